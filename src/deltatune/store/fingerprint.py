"""Which base an adapter belongs to: name, shapes, and a fingerprint of the weights' content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.store.atomic_files import MANIFEST, digest, read_json

_SAMPLE = 1024
_known: WeakKeyDictionary[Host, dict[str, Any]] = WeakKeyDictionary()


def base_identity(host: Host) -> dict[str, Any]:
    """Identity of a Host's base, free of adapters: `name`, `revision`, `architecture`, `shapes`, `content`.

    The content is hashed in float32 from an even sample of each tensor, so it is the same in every dtype that holds
    the values exactly, and costs the same for any size of model.
    """
    if host in _known:
        return dict(_known[host])
    config: Any = host.model.config
    shapes, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    prefix = _prefix(host)
    for path, tensor in host.base_tensors():
        plain = path.removeprefix(prefix)  # the same body with or without a head around it
        shapes.update(f"{plain}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _SAMPLE)
        content.update(plain.encode() + flat[::step][:_SAMPLE].float().cpu().numpy().tobytes())
    return {
        "name": str(getattr(config, "_name_or_path", "") or ""),
        "revision": str(getattr(config, "_commit_hash", "") or ""),
        "architecture": host.sites.facts.architecture,
        "parameters": host.sites.base_params,
        "shapes": shapes.hexdigest(),
        "content": content.hexdigest(),
    }


def remember(host: Host) -> None:
    """Keep a base's identity: its weights are about to be spread over processes, none of which has them all."""
    _known[host] = base_identity(host)


def compare_bases(saved: dict[str, Any], host: Host, other_base: bool) -> list[str]:
    """What is wrong with loading an adapter trained on base `saved` onto this Host's base."""
    here = base_identity(host)
    if saved.get("shapes") != here["shapes"]:
        return [
            f"it was trained on another base: {saved.get('architecture')} {saved.get('name')!r} with "
            f"{saved.get('parameters', 0):,} parameters; this is {here['architecture']} {here['name']!r} with "
            f"{here['parameters']:,}; load the adapter onto the base it was trained on"
        ]
    if saved.get("content") != here["content"] and not other_base:
        return [
            f"the base has the right shapes but other weights than {saved.get('name')!r}, which it was trained on; "
            "load that base, or say other_base=True (--other-base) if you mean it"
        ]
    return []


def _prefix(host: Host) -> str:
    """Path of the bare body within a model with a head, with a dot; empty for a bare model."""
    base = getattr(host.model, "base_model", host.model)
    if not isinstance(base, torch.nn.Module) or base is host.model:
        return ""
    found = [path for path, module in host.model.named_modules() if module is base]
    if not found:
        raise DeltatuneError(f"{type(host.model).__name__} names a base model that is not one of its modules")
    return f"{found[0]}."


SMALL = 1 << 20
"""Bytes up to which a file is read whole; of others this much at even distances is."""
SAMPLES = 64


def contents_of(model: str) -> str | None:
    """A hash of a model's folder; None for a name on the hub, for builtin and where there is no such folder.

    A folder written here has the hashes of its files already; of others large files are sampled.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    found = hashlib.blake2b(digest_size=16)
    if (folder / MANIFEST).is_file():
        found.update(str(sorted(read_json(folder / MANIFEST).get("files", {}).items())).encode())
        return found.hexdigest()
    for path in sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith(".")):
        found.update(f"{path.name} {path.stat().st_size} {_sample(path)}".encode())
    return found.hexdigest()


def _sample(path: Path) -> str:
    size = path.stat().st_size
    if size <= SMALL:
        return digest(path)
    found = hashlib.blake2b(digest_size=16)
    part = SMALL // SAMPLES
    with path.open("rb") as file:
        for i in range(SAMPLES):
            file.seek((size - part) * i // (SAMPLES - 1))
            found.update(file.read(part))
    return found.hexdigest()
