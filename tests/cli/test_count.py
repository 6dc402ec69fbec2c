"""`deltatune count`: methods on a model of which only the config is there."""

import json

import pytest

from deltatune.testing.tiny_models import tiny
from support.command_line import ran


@pytest.fixture
def config_only(tmp_path):
    """A folder with nothing but a config.json."""
    tiny("llama").config.save_pretrained(tmp_path)
    return tmp_path


def test_a_table_of_methods_with_reasons_for_those_that_do_not_fit(config_only):
    methods = ("--method", "LoRA(r=8)", "--method", "Full()", "--method", "BitFit()")
    done = ran("count", "--model", config_only, "--tasks", "50", *methods)
    assert done.code == 0, done.err
    for words in ("LoRA(r=8)", "Full()", "50 tasks", "50 fine-tuned copies", "peak"):
        assert words in done.out
    assert "BitFit()" in done.out
    assert "no biases at any site" in done.out
    assert not list(config_only.glob("*.safetensors"))


def test_json_has_every_number(config_only):
    done = ran("count", "--model", config_only, "--method", "LoRA(r=2)", "--method", "BitFit()", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    lora, bitfit = found["methods"]
    assert lora["trained"] == 2 * (2 * (32 + 32) + 2 * (32 + 16))
    assert lora["memory"]["optimizer"] == 2 * lora["memory"]["gradients"] == 2 * 4 * (lora["trained"] + lora["head"])
    assert lora["storage"]["adapters"] == found["model"]["file_bytes"] + 1000 * lora["file_bytes"]
    assert lora["storage"]["copies"] == 1000 * found["model"]["file_bytes"]
    assert (bitfit["trained"], bitfit["memory"], bitfit["storage"]) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "LoRAX()"), "no method is called 'LoRAX'"),
        (("--method", "BitFit()"), "no biases at any site"),
        (("--task", "span"), "task must be one of 'classify', 'tag', 'lm'"),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--classes", "1000000000000000000"), "classes must be at most 1,000,000,000"),
        (("--budget", "lots"), "cannot read the budget"),
    ],
)
def test_mistakes_are_one_plain_error(config_only, options, words):
    done = ran("count", "--model", config_only, *options)
    assert done.code != 0
    assert words in done.err
    assert "Traceback" not in done.err


def test_the_length_is_what_the_model_takes(config_only):
    given = [ran("count", "--model", config_only, "--method", "Full()", "--max-length", n) for n in ("128", "100000")]
    assert all(done.code == 0 for done in given)
    assert "32 rows of 128 tokens, float32" in given[0].out
    assert "32 rows of 128 tokens, the most that this model takes" in given[1].out


def test_methods_over_the_budget_are_named(config_only):
    methods = ("--method", "LoRA()", "--method", "Full()", "--method", "IA3()")
    shown = " ".join(ran("count", "--model", config_only, *methods, "--budget", "2%").out.split())
    assert "budget 2% = 375 parameters; these have no size to fit and train more: Full()" in shown
    found = json.loads(ran("count", "--model", config_only, *methods, "--budget", "2%", "--json").out)
    assert found["budget"] == {"text": "2%", "params": 375}
    assert [each["trained"] <= 375 for each in found["methods"]] == [True, False, True]
    assert "no size to fit" not in ran("count", "--model", config_only, "--method", "LoRA()", "--budget", "2%").out


def test_classes_of_a_task_without_a_head_are_refused(config_only):
    done = ran("count", "--model", config_only, "--task", "lm", "--classes", "7", "--method", "LoRA()")
    assert done.code == 2
    assert "--classes 7 is of a head" in done.err
    assert ran("count", "--model", config_only, "--task", "lm", "--method", "LoRA()").code == 0
