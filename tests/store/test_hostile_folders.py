"""Adapter folders whose files contradict each other, lie or lead elsewhere: one error that lists everything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltatune import DeltatuneError, Host, parse
from deltatune.store.adapter_folder import CONFIG, TENSORS
from deltatune.store.atomic_files import MANIFEST, digest
from deltatune.tasks.heads import Head, HeadConfig
from deltatune.testing.tiny_models import tiny

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with the head of a task with three labels."""
    host = Host(tiny("bert", None))
    extra = {"task": {"task": "classify", "labels": ["a", "b", "c"]}}
    host.attach("a", parse("LoRA(r=4, alpha=3)"), head=Head(HeadConfig(outputs=3, width=32)), extra=extra)
    folder = tmp_path_factory.mktemp("saved") / "a"
    host.save("a", folder)
    return folder


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(tiny("bert", None))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "a")
    return tmp_path / "a"


def rewrite(folder: Path, change: Change, file: str = CONFIG) -> None:
    """Change a JSON file and make the manifest's hash fit again: what a hash would find is found without it."""
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    renew_hashes(folder)


def renew_hashes(folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    (folder / MANIFEST).write_text(json.dumps({"files": {name: digest(folder / name) for name in files}}))


def refused(host: Host, folder: Path) -> str:
    with pytest.raises(DeltatuneError) as caught:
        host.load(folder)
    assert not host.adapters
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda c: c.update(text="LoRA(r=8)"), [r"text says 'LoRA(r=8)', but method is LoRA(r=4, alpha=3.0)"]),
        (lambda c: c["method"].update(alpha=30.0), ["alpha=3.0)', but method is LoRA(r=4, alpha=30.0)"]),
        (lambda c: c["method"].pop("alpha"), ["text says 'LoRA(r=4, alpha=3.0)', but method is LoRA(r=4)"]),
        (lambda c: c["method"].update(r=5), ["text says", "has shape (4, 32), not (5, 32)"]),
        (lambda c: c.update(own_head=True), ["own_head is true", "but there is a head of the task too"]),
        (
            lambda c: (c["head"]["config"].update(outputs=4), c["extra"]["task"].update(labels=["a", "b"])),
            ["the head has 4 outputs, but the task has 2 labels", "head.out.weight has shape (3, 32) in the file, (4,"],
        ),
        (lambda c: c["head"]["config"].update(outputs=10**15), ["3, 32) in the file, (1000000000000000, 32) by the"]),
        (lambda c: c["head"]["config"].update(outputs=10**18), ["makes tensors that no memory can hold"]),
        (lambda c: c["head"]["config"].update(dense=True), ["tensor head.dense.weight is missing"]),
        (lambda c: c.update(head=None), ["tensor head.out.weight is not one of this adapter's"]),
        (lambda c: c["sites"].pop("lora.layers.0.attn.q"), ["sites lacks lora.layers.0.attn.q, where LoRA"]),
        (lambda c: c["sites"].update({"lora.x": "y"}), ["sites has lora.x, where LoRA(r=4, alpha=3.0) does not act"]),
        (
            lambda c: c["sites"].update({"lora.layers.0.attn.q": "encoder.layer.1.attention.self.query"}),
            ["sites has lora.layers.0.attn.q at the module encoder.layer.1"],
        ),
        (lambda c: c["method"].update(r=10**9), ["r=1,000,000,000 makes tensors of"]),
        (lambda c: c["method"].update(name="Nothing"), ["holds a Nothing adapter, but that method is not installed"]),
        (lambda c: c["method"].update(name="Houlsby"), ["that method is not installed"]),
        (lambda c: c["method"].update(name=["LoRA"]), ["must be an object with a name"]),
        (lambda c: c.update(method=["LoRA"]), ["the method 'LoRA' must be an object with a name"]),
        (lambda c: c.update(method=[c["method"]] * 100), ["a union of 100 methods"]),
        (lambda c: c["method"].update(sites=[["*.attn.q"]]), ["sites must be"]),
        (lambda c: c["head"].update(kind="unknown"), ["a head of kind 'unknown'; installed kinds: "]),
        (lambda c: c["head"]["config"].update(width="wide"), ["width must be an integer"]),
    ],
)  # fmt: skip
def test_contradictions_are_listed(host: Host, folder: Path, change: Change, messages: list[str]) -> None:
    rewrite(folder, change)
    error = refused(host, folder)
    for message in messages:
        assert message in error


def test_wrong_types_are_listed_in_one_error(host: Host, folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config |= {"seed": "0", "own_head": 0, "text": 5, "sites": [], "training": None, "extra": [], "method": 3}
        config["base"] |= {"parameters": "many", "shapes": 1}
        config["head"] = {"kind": 3}

    rewrite(folder, change)
    error = refused(host, folder)
    for line in (
        "method is 3, it must be an object or a list", "text is 5, it must be text",
        "seed is '0', it must be an integer", "sites is [], it must be an object",
        "own_head is 0, it must be true or false", "extra is [], it must be an object",
        "training is None, it must be true or false", "base.parameters is 'many', it must be an integer",
        "base.shapes is 1", "head.kind is 3, it must be text", "head.config is missing",
    ):  # fmt: skip
        assert line in error


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "adapter.json is not listed in manifest.json"),
        ([], "lists no files"),
        ({"../x": "0"}, "../x is not inside the folder"),
        ({"/etc/passwd": "0"}, "/etc/passwd is not inside the folder"),
        ({CONFIG: 5}, "adapter.json was changed or damaged"),
        ({"x" * 300: "0"}, "is missing"),
        ({"a\0b": "0"}, "is missing"),
    ],
    ids=str,
)
def test_a_manifest_that_lies_is_refused(host: Host, folder: Path, files: Any, message: str) -> None:
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    assert message in refused(host, folder)


def test_links_that_leave_the_folder_are_refused_but_those_of_the_hub_are_not(
    host: Host, folder: Path, tmp_path: Path
) -> None:
    shutil.move(folder / TENSORS, tmp_path / "elsewhere")
    (folder / TENSORS).symlink_to(tmp_path / "elsewhere")
    assert f"{TENSORS} is a link to {tmp_path / 'elsewhere'}, which is not inside the folder" in refused(host, folder)

    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1", tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, blobs / digest(file))
        (snapshot / file.name).symlink_to(Path("../../blobs") / digest(file))
    host.load(snapshot, name="hub")
    host.detach("hub")


def test_pipes_and_dangling_links_do_not_block(host: Host, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "it is a link to" in refused(host, tmp_path / "dangling")
    (tmp_path / "file").write_text("x")
    assert "it is a file, not a folder" in refused(host, tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refused(host, tmp_path / "pipe")
    for name in (CONFIG, TENSORS, MANIFEST):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert name in refused(host, folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    peft = tmp_path / "peft"
    peft.mkdir()
    os.mkfifo(peft / "adapter_config.json")
    assert "it is a pipe" in refused(host, peft)


def test_tensors_that_are_not_finite_or_of_another_kind_are_found_at_load(host: Host, folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    key = next(name for name in tensors if name.endswith(".B"))
    for value, message in (
        (tensors[key] * float("nan"), f"tensor {key} has 128 of 128 values that are not finite: NaN"),
        (tensors[key].to(torch.int64), f"tensor {key} is of torch.int64, not torch.float32"),
        (tensors[key].double() + 1e300, f"tensor {key} has values beyond the range of torch.float32"),
    ):
        save_file({**tensors, key: value}, folder / TENSORS)
        renew_hashes(folder)
        assert message in refused(host, folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": 1, "schema": 1}', "9" * 5000, '{"schema": 1e400}', "", "\xff"]
)
def test_json_that_is_hostile_is_a_plain_error(host: Host, folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    renew_hashes(folder)
    assert CONFIG in refused(host, folder)
