"""Adapters that do not say their task, such as those of PEFT and loralib, opened for training on new data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.registry import parse
from deltatune.data import Data
from deltatune.store import adapter_folder
from deltatune.store.atomic_files import read_json
from deltatune.store.loralib import load_loralib
from deltatune.training.open_session import open_session
from deltatune.training.session import Session


def open_unknown(
    path: Path,
    data: Data,
    model: str | None,
    method: str | None,
    task: Mapping[str, Any],
    head: Mapping[str, Any],
    precision: str,
    seed: int,
    quantize: str | None = None,
) -> Session:
    """Open an adapter that does not say its task, such as one of PEFT: the data say it, and the head is new."""
    alpha = None
    if path.is_file():
        alpha = getattr(parse(method), "alpha", None) if method else None
        if alpha is None:
            raise DeltatuneError(
                f"{path} is a loralib checkpoint, which does not hold its alpha: name its method, such as "
                '--method "LoRA(r=8, alpha=16)"'
            )
    session = open_session(model or _model_of(path), data, task, head, precision=precision, quantize=quantize)
    if alpha is not None:
        load_loralib(session.host, path, alpha=float(alpha), name=session.name)
    else:
        session.host.load(path, name=session.name)
    adapter = session.adapter
    wanted = session.make_head(seed)
    note = f"training goes on with {path}, whose task is unknown: it is that of the data"
    if wanted and adapter.head is None:
        adapter.head = wanted.to(next(session.host.model.parameters()).device)
        note += ", with a new head"
    shapes = [{name: tuple(p.shape) for name, p in each.named_parameters()} for each in (adapter.head, wanted) if each]
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        raise DeltatuneError(f"the head of {path} has tensors {shapes[0]}, these data need {shapes[1]}")
    return replace(session, notes=(*session.notes, note))


def _model_of(path: Path) -> str:
    """The base that an adapter of another library names."""
    if path.is_file():
        raise DeltatuneError(f"{path} does not name its model; say it with --model")
    if adapter_folder.knows(path):
        name = (adapter_folder.read_config(path).get("base") or {}).get("name")
    else:
        name = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise DeltatuneError(f"{path} does not name its model; say it with --model")
    return str(name)
