"""PEFT folders whose config is wrong, absurd or contradicts the tensors: one plain error that lists what it is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltatune import DeltatuneError, Host, parse
from deltatune.core.adapter_formats import formats
from deltatune.store.peft.peft_format import CONFIG, TENSORS
from deltatune.testing.tiny_models import tiny

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    host, folder = Host(tiny("bert", None)), tmp_path_factory.mktemp("saved") / "a"
    host.attach("a", parse("LoRA(r=4, alpha=3)"), head=False)
    formats()["peft"].save(host, "a", folder, {})
    return folder


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(tiny("bert", None))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "a")
    return tmp_path / "a"


def refused(host: Host, folder: Path) -> str:
    start = time.monotonic()
    with pytest.raises(DeltatuneError) as caught:
        host.load(folder)
    assert not host.adapters
    assert time.monotonic() - start < 5
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(r=8), "self.query in the config, its tensors have rank 4"),
        (lambda c: c.update(rank_pattern={"query": 2}), "r is 2 for encoder.layer.0.attention.self.query"),
        (lambda c: c.update(target_modules=["query", "key", "value"]), "self.key is among its target_modules"),
        (lambda c: c.update(target_modules=["query"]), "self.value has tensors, but it is not among its"),
        (lambda c: c.update(r="4"), "r is '4', it must be an integer"),
        (lambda c: c.update(r=10**9), "r is 1000000000 for encoder"),
        (lambda c: c.update(r=True), "r is True, it must be an integer"),
        (lambda c: c.update(lora_alpha=None), "lora_alpha is None, it must be a number"),
        (lambda c: c.update(lora_dropout=2), "lora_dropout is 2, it must be at least 0 and less than 1"),
        (lambda c: c.update(use_dora="yes"), "use_dora is 'yes', it must be true or false or null"),
        (lambda c: c.update(alpha_pattern={"query": "x"}), "alpha_pattern.query is 'x', it must be a number"),
        (lambda c: c.update(alpha_pattern={"(": 1}), "alpha_pattern has '(', which is not a pattern"),
        (lambda c: c.update(alpha_pattern={"(.+)+(.+)+x": 1}), "may take without end to match"),
        (lambda c: c.update(alpha_pattern={".*.*.*.*.*.*x": 1}), "may take without end to match"),
        (lambda c: c.update(target_modules=[1]), "target_modules must list names of modules"),
        (lambda c: c.update(peft_type=["LORA"]), "its type is ['LORA']"),
        (lambda c: c.update(init_lora_weights=[]), "init_lora_weights is [], it must be"),
        (lambda c: c.update(bias=5), "bias is 5, it must be text"),
    ],
)  # fmt: skip
def test_a_config_that_lies_is_refused(host: Host, folder: Path, change: Change, message: str) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    assert message in refused(host, folder)


def test_a_repeated_key_is_named(host: Host, folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"r": 4', '"r": 4, "r": 8'))
    assert "the key 'r' is repeated" in refused(host, folder)


def test_tensors_without_values_or_with_nan_are_named(host: Host, folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    key = next(iter(tensors))
    for value, message in (
        (torch.tensor(1.0), "has no values"),
        (torch.zeros(0, 4), "has no values"),
        (tensors[key] * float("inf"), "values that are not finite"),
    ):
        save_file({**tensors, key: value}, folder / TENSORS)
        assert message in refused(host, folder)
