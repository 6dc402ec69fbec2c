"""`deltatune quantize`: the folder, the table and JSON, and what other commands do with the folder."""

import json
from pathlib import Path

import pytest

from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.models.loading import load_backbone
from support.command_line import QUICK, ran, review_folder
from support.models import tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    tiny("gpt2", "lm").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_table_says_what_is_quantised_and_what_is_not(decoder, tmp_path):
    done = ran("quantize", decoder, "--out", tmp_path / "q")
    assert done.code == 0, done.err
    for words in ("8 matrices as nf4", "bits a parameter", "an embedding", "tied to transformer.wte", "of their norm"):
        assert words in " ".join(done.out.split())
    model, _ = load_backbone(str(tmp_path / "q"), answers="text")
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 8


def test_json_counts_real_tensors(decoder, tmp_path):
    done = ran("quantize", decoder, "--out", tmp_path / "q", "--quantize", "int8", "--sites", "*.attn.*", "--json")
    result = json.loads(done.out)
    quantized = result["quantized"]
    assert quantized["params"] == 2 * (32 * 96 + 32 * 32)
    assert quantized["bytes"] == quantized["params"] + 4 * 2 * (96 + 32)
    assert {row["name"]: row["why"] for row in result["skipped"]}["transformer.h.0.mlp.c_fc"].startswith("not among")
    assert result["params"] == sum(parameter.numel() for parameter in tiny("gpt2", "lm").parameters())
    assert 0 < result["change"]["relative"] < 0.1
    assert result["bytes"]["files"] == (tmp_path / "q/model.safetensors").stat().st_size


def test_perplexity_on_documents_before_and_after(decoder, tmp_path):
    documents = tmp_path / "documents.txt"
    words = ["good", "bad"] * 40
    documents.write_text("\n".join(f"the film was {word} and the plot is {word} {i}" for i, word in enumerate(words)))
    done = ran("quantize", decoder, "--out", tmp_path / "q", "--data", documents, "--json")
    assert done.code == 0, done.err
    measured = json.loads(done.out)["perplexity"]
    assert measured["before"] != measured["after"]
    assert measured["after"] == pytest.approx(measured["before"], rel=0.2)


def test_the_folder_is_a_base_for_training(tiny_folder, tmp_path):
    assert ran("quantize", tiny_folder, "--out", tmp_path / "q", "--no-compare").code == 0
    data = review_folder(tmp_path / "data")
    done = ran("train", "--model", tmp_path / "q", "--data", data, "--lr", "1e-2", "--method", "LoRA(r=2)",
               *QUICK, "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 0, done.err
    done = ran("evaluate", "--adapter", tmp_path / "run", "--data", data)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quantize", "nf5"), "nf4"),
        (("--quantize", "none"), "nothing to do"),
        (("--sites", "*.atn.q"), "attn"),
        (("--no-compare", "--data", "x.txt"), "--no-compare"),
    ],
)
def test_mistakes_are_named(decoder, options, words, tmp_path):
    done = ran("quantize", decoder, "--out", tmp_path / "q", *options)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "q").exists()


def test_the_model_itself_is_never_overwritten(decoder, tmp_path):
    done = ran("quantize", decoder, "--out", decoder)
    assert done.code == 2
    ran("quantize", decoder, "--out", tmp_path / "q")
    done = ran("quantize", tmp_path / "q", "--out", tmp_path / "again", "--quantize", "int8")
    assert done.code == 2
    assert "quantised already" in done.err
