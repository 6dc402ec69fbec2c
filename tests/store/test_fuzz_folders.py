"""Mutated adapter folders, ours and PEFT's: a plain error, an equal adapter, or one whose change `repr` shows."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deltatune import DeltatuneError, Host, parse
from deltatune.core.adapter_formats import formats
from deltatune.store.adapter_folder import CONFIG, TENSORS
from deltatune.store.atomic_files import MANIFEST, digest
from deltatune.store.peft import peft_format
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.testing.tiny_models import tiny
from support.fuzz import mutate, outcome

METHOD = "LoRA(r=4, alpha=3) + Prefix(length=3) + Bottleneck(size=5)"
COUNTS = [40, pytest.param(1000, marks=pytest.mark.slow)]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


class Adapters:
    """A host, and an adapter that was saved from another one."""

    def __init__(self, folder: Path, method: str, kind: str) -> None:
        source = Host(tiny("bert", None))
        head = Head(HeadConfig(outputs=3, width=32)) if kind == "deltatune" else False
        extra = {"task": {"task": "classify", "labels": ["a", "b", "c"]}}
        source.attach("a", parse(method), head=head, extra=extra)
        torch.manual_seed(3)
        for _, parameter in source.trainable("a"):
            parameter.data += 0.05 * torch.randn_like(parameter)
        formats()[kind].save(source, "a", folder, {})
        self.host, self.folder = Host(tiny("bert", None)), folder
        self.expected = self.loaded(folder)

    @torch.no_grad()
    def loaded(self, folder: Path) -> tuple[str, torch.Tensor, dict[str, Any]]:
        """`repr` of the method, outputs and head tensors of the adapter in a folder."""
        try:
            self.host.load(folder, name="a")
            adapter = self.host.adapters["a"]
            head = {key: tensor for key, tensor in adapter.tensors().items() if key.startswith("head.")}
            return repr(adapter.method), self.host.model(input_ids=IDS)[0], head
        finally:
            if "a" in self.host.adapters:
                self.host.detach("a")

    def check(self, folder: Path, name: str, whole: bool) -> bool:
        """Load a mutated folder; with `whole`, outputs must be equal. Returns whether it loaded."""
        result = outcome(lambda: self.loaded(folder), name)
        assert not self.host.adapters, name
        if isinstance(result, DeltatuneError):
            return False
        told, outputs, head = result
        if whole and told == self.expected[0]:
            torch.testing.assert_close(outputs, self.expected[1], rtol=0, atol=0, msg=name)
            assert head.keys() == self.expected[2].keys(), name
            assert all(torch.equal(tensor, self.expected[2][key]) for key, tensor in head.items()), name
        return True


def mutated(adapters: Adapters, target: Path, file: str, seed: int) -> str:
    """Copy the folder and mutate one of its files."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(adapters.folder, target)
    name, content = mutate((target / file).read_bytes(), random.Random(f"{file}-{seed}"), seed)
    (target / file).write_bytes(content)
    return f"{file} {name}"


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_folders_are_refused_or_equal(tmp_path: Path, count: int) -> None:
    adapters = Adapters(tmp_path / "a", METHOD, "deltatune")
    for seed in range(count):
        # a hash would find every change of adapter.json: it is renewed, so that the checks behind it are met
        file = (CONFIG, CONFIG, CONFIG, TENSORS, MANIFEST)[seed % 5]
        name = mutated(adapters, tmp_path / "b", file, seed)
        if file == CONFIG:
            files = json.loads((tmp_path / "b" / MANIFEST).read_text())["files"]
            files[CONFIG] = digest(tmp_path / "b" / CONFIG)
            (tmp_path / "b" / MANIFEST).write_text(json.dumps({"files": files}))
        adapters.check(tmp_path / "b", name, whole=True)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", ["LoRA(r=4, alpha=3)", "Prefix(length=3)", "IA3()", "VeRA(r=4)"])
def test_mutated_peft_folders_are_refused_or_equal(tmp_path: Path, method: str, count: int) -> None:
    adapters = Adapters(tmp_path / "a", method, "peft")
    for seed in range(count // 4):
        file = (peft_format.CONFIG, peft_format.CONFIG, peft_format.TENSORS)[seed % 3]
        if file == peft_format.CONFIG:
            (tmp_path / "a" / MANIFEST).unlink(missing_ok=True)  # PEFT writes none
        name = mutated(adapters, tmp_path / "b", file, seed)
        # values of tensors may change: a folder of PEFT has no hashes that would show it
        adapters.check(tmp_path / "b", name, whole=file == peft_format.CONFIG)
