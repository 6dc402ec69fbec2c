"""`deltatune fit`: what fits into a memory, from a config alone."""

import json

import pytest

from deltatune.core.quantization.stored_weights import stored_bytes
from deltatune.models.loading import load_backbone
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


@pytest.mark.parametrize("sites", ["*.ffn.*", pytest.param("*.{attn,ffn}.*", marks=pytest.mark.slow)])
def test_a_model_folder_in_4_bits_is_counted_as_its_files_are(tmp_path, tiny_folder, sites):
    folder = tmp_path / "quantised"
    assert ran("quantize", tiny_folder, "--sites", sites, "--no-compare", "--out", folder).code == 0
    shared = ("--max-length", "16", "--batch-size", "2", *LORA, "--device", "cpu", "--json")
    found = json.loads(ran("fit", folder, "--memory", "2GB", *shared).out)
    counted = json.loads(ran("count", "--model", folder, *shared).out)
    model = load_backbone(str(folder))[0]
    for each in (found["methods"][0], counted["methods"][0]):
        assert each["memory"]["weights"] == stored_bytes(model)
    assert found["asked"]["quantize"] == counted["training"]["quantize"] == "nf4"
    assert "--quantize" not in found["methods"][0]["command"]
    other = ran("count", "--model", folder, "--quantize", "int8", *shared)
    assert "is quantised already, as nf4" in other.err


def test_a_config_alone_says_that_its_files_are_quantised(config_only):
    entry = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    path = config_only / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": entry}))
    counted = json.loads(ran("count", "--model", config_only, *LORA, "--json").out)
    assert counted["training"]["quantize"] == "NF4(double=False)"


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


def test_a_model_whose_steps_are_not_forecast_is_not_said_to_fit_nowhere(tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8).save_pretrained(tmp_path)
    done = ran("fit", tmp_path, "--memory", "2GB", "--precision", "float32")
    assert "no training step is forecast" in " ".join((done.out + done.err).split())
    assert "nothing fits" not in done.out
