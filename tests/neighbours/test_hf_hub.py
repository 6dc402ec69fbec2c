"""The Hugging Face hub, against a local stand-in."""

import pytest
import torch

import deltatune
from support import models
from support.hub_server import hub_server
from support.neighbours import hosted, logits, works

NAME = "Hugging Face hub"
PACKAGES = ("huggingface_hub",)
REASON = "it stores files"
NOT_APPLICABLE = {"attach": REASON, "train": REASON, "serve": REASON}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "cache") as repositories:
        yield repositories


@works('host.push_to_hub("me/german")')
def test_save(hub):
    host = hosted()
    host.push_to_hub("me/german")
    repository = hub["me/german"]
    files = repository.commits[repository.branches["main"]]
    assert {"adapter.json", "adapter.safetensors", "README.md"} <= files.keys()
    assert "model.safetensors" not in files


@works('host.load("me/german")')
def test_reload(hub):
    first = hosted()
    first.model.push_to_hub("me/german")
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load("me/german")
    assert torch.equal(logits(host.model), logits(first.model))
