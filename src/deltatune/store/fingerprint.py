"""Fingerprints: the identity of a base (name, shapes, sampled weights), and a hash of a model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import expanded
from deltatune.store.atomic_files import MANIFEST, digest, listed_files

_SAMPLE = 1024
"""Entries per tensor that are hashed."""
_identities: WeakKeyDictionary[Host, dict[str, Any]] = WeakKeyDictionary()


def base_identity(host: Host) -> dict[str, Any]:
    """The identity of a Host's base without adapters: `name`, `revision`, `architecture`, `shapes`, `content`.

    The content is hashed in float32 from evenly spaced entries of each tensor, so it is the same in every dtype that
    holds the values exactly, and its cost does not depend on the size of the model.
    """
    if host in _identities:
        return dict(_identities[host])
    config: Any = host.model.config
    shapes, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    prefix = _prefix(host)
    for path, tensor in _identifying(host):
        name = path.removeprefix(prefix)  # the same with and without a head
        shapes.update(f"{name}{_shape(host, path, tensor)}".encode())
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _SAMPLE)
        content.update(name.encode() + flat[::step][:_SAMPLE].float().cpu().numpy().tobytes())
    return {
        "name": str(getattr(config, "_name_or_path", "") or ""),
        "revision": str(getattr(config, "_commit_hash", "") or ""),
        "architecture": host.sites.facts.architecture,
        "parameters": host.sites.base_params,
        **({"quantized": labels} if (labels := quantizations(host)) else {}),
        "shapes": shapes.hexdigest(),
        "content": content.hexdigest(),
    }


def quantizations(host: Host) -> list[str]:
    """What the base's weights are quantised to, sorted; empty for a plain base."""
    return sorted({site.quantized for site in host.sites.weights.values()} - {""})


def _identifying(host: Host) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's own parameters by path; of quantised weights the codes, which are the same on every machine."""
    for path in host.sites.weights:
        stored = host.stored_weight(path)
        yield path, host.base_tensor(path) if stored is None else next(iter(stored.tensors()))


def _shape(host: Host, path: str, tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter, that of the plain matrix where it is quantised."""
    stored = host.stored_weight(path)
    if stored is None:
        return tuple(tensor.shape)
    return stored.shape[::-1] if stored.transposed else stored.shape


def remember(host: Host) -> None:
    """Store a base's identity before its weights are sharded, because then no process has all of them."""
    _identities[host] = base_identity(host)


def compare_bases(saved: dict[str, Any], host: Host, other_base: bool) -> list[str]:
    """List why an adapter trained on the base `saved` does not fit this Host's base."""
    here = base_identity(host)
    if saved.get("shapes") != here["shapes"]:
        return [
            f"it was trained on another base: {saved.get('architecture')} {saved.get('name')!r} with "
            f"{saved.get('parameters', 0):,} parameters; this is {here['architecture']} {here['name']!r} with "
            f"{here['parameters']:,}; load the adapter onto the base it was trained on"
        ]
    before, now = saved.get("quantized", []), here.get("quantized", [])
    other = [_scheme(label) for label in before] != [_scheme(label) for label in now]  # codes may be equal all the same
    if (saved.get("content") != here["content"] or other) and not other_base:
        if other:
            return [
                f"it was trained on {saved.get('name')!r} {_stored_in(before)}; this base is {_stored_in(now)}: "
                "load it as it was then (--quantize), or pass other_base=True (--other-base) to accept this one"
            ]
        return [
            f"the base has the right shapes but other weights than {saved.get('name')!r}, which it was trained on; "
            "load that base, or pass other_base=True (--other-base) to accept this one"
        ]
    return []


def _scheme(label: str) -> str:
    """The scheme of a label: bitsandbytes and this package store the same bits."""
    return label.removeprefix("bitsandbytes ")


def _stored_in(labels: list[str]) -> str:
    return f"stored in {', '.join(labels)}" if labels else "without quantisation"


def _prefix(host: Host) -> str:
    """The path of the body in a model with a head, with a final dot; empty for a model without a head."""
    base = getattr(host.model, "base_model", host.model)
    if not isinstance(base, torch.nn.Module) or base is host.model:
        return ""
    paths = [path for path, module in host.model.named_modules() if module is base]
    if not paths:
        raise DeltatuneError(f"{type(host.model).__name__} names a base model that is not one of its modules")
    return f"{paths[0]}."


SAMPLED_BYTES = 1 << 20
"""Files up to this size are hashed completely; of larger ones, this many bytes in evenly spaced parts."""
SAMPLED_PARTS = 64


def contents_of(model: str) -> str | None:
    """Return a hash of a model's folder; None for a hub name, for builtin, and if there is no such folder.

    A folder written here has the hashes of its files in its manifest; in others, large files are sampled.
    """
    folder = expanded(model)
    if not folder.is_dir():
        return None
    content = hashlib.blake2b(digest_size=16)
    if (folder / MANIFEST).is_file():
        content.update(str(sorted(listed_files(folder).items())).encode())
        return content.hexdigest()
    for path in sorted(item for item in folder.iterdir() if item.is_file() and not item.name.startswith(".")):
        content.update(f"{path.name} {path.stat().st_size} {_sampled_hash(path)}".encode())
    return content.hexdigest()


def _sampled_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= SAMPLED_BYTES:
        return digest(path)
    content = hashlib.blake2b(digest_size=16)
    part = SAMPLED_BYTES // SAMPLED_PARTS
    with path.open("rb") as file:
        for i in range(SAMPLED_PARTS):
            file.seek((size - part) * i // (SAMPLED_PARTS - 1))
            content.update(file.read(part))
    return content.hexdigest()
