"""A base that bitsandbytes has quantised."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import deltatune
from support import models
from support.neighbours import logits, randomize_, works

NAME = "bitsandbytes"
PACKAGES = ("bitsandbytes",)
SHOWN_BY = {"train": "tests/training/other_trainers/test_quantized_trainers.py::test_a_trainer_of_the_user"}
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "dropout": False}


@pytest.fixture
def load(tmp_path):
    models.tiny("llama", "lm", **WIDTHS).save_pretrained(tmp_path / "model")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return lambda: deltatune.Host(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config, dtype=torch.float32)
    )


def adapted(host):
    host.attach("mine", deltatune.LoRA(r=2))
    randomize_(host)
    return host


@works()
def test_attach(load):
    host = load()
    plain = logits(host.model)
    adapted(host)
    assert not torch.equal(logits(host.model), plain)
    with host.disabled():
        assert torch.equal(logits(host.model), plain)


@pytest.mark.slow
@works()
def test_save(load, tmp_path):
    adapted(load()).model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "mine" / "adapter.safetensors").is_file()


@pytest.mark.slow
@works("host.load(folder)", but=("on the plain base", "without quantisation"))
def test_reload(load, refusal, tmp_path):
    first = adapted(load())
    folder = tmp_path / "adapter"
    first.save("mine", folder)
    host = load()
    host.load(folder)
    assert torch.equal(logits(host.model), logits(first.model))
    with refusal():
        deltatune.Host(models.tiny("llama", "lm", **WIDTHS)).load(folder)


@works(but=("merging", "make a plain model first"))
def test_serve(load, refusal):
    """Rows with an adapter of their own; `deltatune merge` writes a plain model, or codes again."""
    host = adapted(load())
    rows = len(models.inputs("llama")["input_ids"])
    alone = logits(host.model)
    with host.disabled():
        bare = logits(host.model)
    with host.using(["mine"] + [None] * (rows - 1)):
        mixed = logits(host.model)
    torch.testing.assert_close(mixed[0], alone[0])
    torch.testing.assert_close(mixed[1:], bare[1:])
    with refusal():
        host.merge_and_unload()
