"""`deltatune fit`: what fits into a memory, from a config alone."""

import json

import pytest

from deltatune.testing.tiny_models import tiny
from support.command_line import ran

LORA = ("--method", "LoRA(r=2)", "--precision", "float32")


@pytest.fixture
def config_only(tmp_path):
    """A folder with nothing but a config.json."""
    tiny("llama").config.save_pretrained(tmp_path)
    return tmp_path


def test_a_method_that_fits_comes_with_its_command(config_only):
    done = ran("fit", config_only, "--memory", "2GB", *LORA, "--method", "BitFit()", "--task", "lm")
    assert done.code == 0, done.err
    for words in ("LoRA(r=2)", "yes", "as asked for", "no biases at any site", "deltatune train --model"):
        assert words in done.out
    assert '--method "LoRA(r=2)"' in done.out
    assert "--precision float32" in done.out  # asked for; `auto` may be another one where the command runs


def test_count_and_fit_say_the_same(config_only):
    shared = ("--max-length", "16", "--batch-size", "4", "--quantize", "nf4", *LORA, "--device", "cpu", "--json")
    counted = json.loads(ran("count", "--model", config_only, *shared).out)["methods"][0]["memory"]
    fitting = json.loads(ran("fit", config_only, "--memory", "2GB", *shared).out)["methods"][0]
    assert fitting["memory"] == counted
    assert fitting["total"] == counted["peak"] + counted["fixed"]
    assert "--quantize nf4" in fitting["command"]


def test_nothing_fits(config_only):
    done = ran("fit", config_only, "--memory", "50MB", *LORA)
    assert done.code == 0
    assert "nothing fits" in done.out
    assert "are missing" in done.out
    assert "deltatune train --model" not in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory", "16"), "give a number and a unit"),
        (("--memory", "16GB", "--method", "LoRAX()"), "no method is called 'LoRAX'"),
        (("--memory", "16GB", "--method", "BitFit()"), "no biases at any site"),
        (("--memory", "16GB", "--quantize", "nf5"), "not a quantisation"),
        (("--memory", "16GB", "--batch-size", "0"), "batch_size must be at least 1"),
        (("--memory", "16GB", "--task", "span"), "task must be one of"),
    ],
)
def test_mistakes_are_one_plain_error(config_only, options, words):
    done = ran("fit", config_only, *options)
    assert done.code != 0
    assert words in done.err
    assert "Traceback" not in done.err
