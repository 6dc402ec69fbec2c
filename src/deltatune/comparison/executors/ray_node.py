"""A work on a node of a Ray cluster: its files come with it, and what it has written goes back.

A node needs the packages and the model, and not the folder of the comparison: checkpoints and adapters are sent to it
as bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deltatune.comparison.executors.worker_processes import opened_plan
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.works.works import CHECKPOINTS, Result, Work, Worker
from deltatune.core.errors import DeltatuneError
from deltatune.models.versions import versions

REPORT_SECONDS = 0.5
"""A work reports a step at most this often."""
SAME = ("deltatune", "torch", "transformers", "tokenizers", "safetensors", "numpy")
"""Packages whose versions must be the same on every node: results depend on them."""

Files = dict[str, bytes]
"""Contents of files by their paths in the folder of the comparison."""


class NodeResult(NamedTuple):
    """What a task returns."""

    result: Result | None
    files: Files
    problem: str = ""
    """Why this node can run no work at all; `result` is None then."""


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a node needs to open the plan, and what must be the same there."""

    name: str
    """Tells the plans of one program apart."""
    plan: Any
    """Reference to the portable plan, in Ray's store."""
    base: Mapping[str, str]
    """Fingerprints of the base and its tokenizer."""
    versions: Mapping[str, str | None]
    cwd: str
    """Folder that a relative path of the model starts from."""


class Mailbox:
    """Messages of works on their way to the program that waits for them."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, dict[str, Any]]] = []

    def put(self, kind: str, key: str, detail: dict[str, Any]) -> None:
        """Add a message."""
        self.messages.append((kind, key, detail))

    def take(self) -> list[tuple[str, str, dict[str, Any]]]:
        """All messages since the last time."""
        messages, self.messages = self.messages, []
        return messages


def input_folders(work: Work) -> list[str]:
    """The folders that a work reads, in the folder of the comparison."""
    if work.kind == "train":
        return [f"{work.folder}/{CHECKPOINTS}"] if work.resumable else []
    assert work.earlier is not None
    return [work.earlier["adapter"]]


def read_files(root: Path, folders: list[str]) -> Files:
    """The files of some folders below a root."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def write_files(root: Path, files: Files) -> None:
    """Write files below a root."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


_opened: tuple[str, Plan] | None = None
"""The plan that this process has open: Ray keeps it for several tasks."""


def run_work(opening: Opening, work: Work, files: Files, mailbox: Any) -> NodeResult:
    """Run a work in this process of a node, in a folder of its own, and return what it has written."""
    ray: Any = importlib.import_module("ray")
    node = str(ray.util.get_node_ip_address())
    try:
        plan = _plan(opening, node, ray)
    except DeltatuneError as error:
        return NodeResult(None, {}, str(error))
    mailbox.put.remote("start", work.key, {})
    reported = time.monotonic()

    def on_step(step: int, total: int, loss: float, rate: float) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            mailbox.put.remote("step", work.key, {"step": step, "steps": total, "loss": loss})

    with tempfile.TemporaryDirectory(prefix="deltatune-") as folder:
        root = Path(folder)
        try:
            write_files(root, files)
            result = Worker(dataclasses.replace(plan, out=root)).perform(work, on_step)
        except (DeltatuneError, OSError) as error:  # its disk is full: no result, and the next would have none either
            return NodeResult(None, {}, f"node {node} cannot write what a work needs: {error}")
        written = {
            path.removeprefix(f"{work.folder}/"): content for path, content in read_files(root, [work.folder]).items()
        }
    return NodeResult(result, written)


def _plan(opening: Opening, node: str, ray: Any) -> Plan:
    """The open plan of this process. Raises DeltatuneError naming the node where it cannot be opened."""
    global _opened
    if _opened is not None and _opened[0] == opening.name:
        return _opened[1]
    here = versions()
    other = [
        f"{name} {here[name]} instead of {opening.versions[name]}"
        for name in SAME
        if here[name] != opening.versions[name]
    ]
    if other:
        raise DeltatuneError(
            f"node {node} of the Ray cluster has {', '.join(other)}, so that its results would not compare with those "
            "of other nodes; install the same versions there"
        )
    torch.set_num_threads(1)
    with contextlib.suppress(OSError):  # then a relative path of the model is looked for where this process began
        os.chdir(opening.cwd)
    content = ray.get(opening.plan)
    try:
        plan = opened_plan(content)
    except DeltatuneError as error:
        raise DeltatuneError(
            f"node {node} of the Ray cluster cannot open the model: {error}\nThe model must be at the same path on "
            "every node, or be a name on the hub that each of them reaches"
        ) from error
    if plan.session.base_record() != opening.base:
        place = plan.session.model
        path = os.path.abspath(place) if os.path.isdir(place) else place
        raise DeltatuneError(
            f"node {node} of the Ray cluster has another model or tokenizer at {path} than this machine; put the same "
            "files there"
        )
    _opened = (opening.name, plan)
    return _opened[1]
