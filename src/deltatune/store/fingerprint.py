"""Fingerprints: the identity of a base (name, shapes, sampled weights), and a hash of a model folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.sites.blocks import body
from deltatune.store.atomic_files import MANIFEST, digest, listed_files

_SAMPLE = 1024
"""Entries per tensor that are hashed."""
SCALES_TOLERANCE = 0.01
"""By how much `scales` may differ: those that are quantised themselves are rounded differently on another device."""
_identities: WeakKeyDictionary[Host, dict[bool, dict[str, Any]]] = WeakKeyDictionary()
"""Identities of hosts whose weights are sharded, of the whole model and without its language-model head."""
_served: WeakKeyDictionary[Host, tuple[Any, dict[bool, dict[str, Any]]]] = WeakKeyDictionary()
"""Identities of hosts with banks, and the state of the weights of which they were made."""


def base_identity(host: Host, bare: bool = False) -> dict[str, Any]:
    """The identity of a Host's base without adapters: `name`, `revision`, `architecture`, `shapes`, `content`.

    The content is hashed in float32 from evenly spaced entries of each tensor, so it is the same in every dtype that
    holds the values exactly, and its cost does not depend on the size of the model. Of a quantised base it is that of
    the codes, and `scales` is the sum of the logarithms of their scales.
    bare: without the language-model head, as the bare transformer has it.
    """
    if host in _identities:
        return dict(_identities[host][bare])
    if any(hasattr(parameter, "full_tensor") for parameter in host.model.parameters()):
        raise DeltatuneError(
            "the base's weights are in pieces on several processes (FSDP), so that no process can tell which base this "
            "is, as an adapter's folder must; before fully_shard(model): deltatune.store.fingerprint.remember(host)"
        )
    config: Any = host.model.config
    shapes, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    prefix, parameters = host.sites.facts.prefix, 0
    for path, tensor in _identifying(host, bare):
        parameters += host.sites.weights[path].params
        name = path.removeprefix(prefix)  # the same with and without a head
        shapes.update(f"{name}{_shape(host, path, tensor)}".encode())
        content.update(name.encode() + _sampled(tensor).cpu().numpy().tobytes())
    return {
        "name": str(getattr(config, "_name_or_path", "") or ""),
        "revision": str(getattr(config, "_commit_hash", "") or ""),
        "architecture": _bare_architecture(host) if bare else host.sites.facts.architecture,
        "parameters": parameters,
        **({"quantized": labels, "scales": _scales(host, bare)} if (labels := quantizations(host, bare)) else {}),
        "shapes": shapes.hexdigest(),
        "content": content.hexdigest(),
    }


def base_identities(host: Host) -> dict[bool, dict[str, Any]]:
    """Both identities of a Host's base, with the language-model head (False) and without (True)."""
    return {bare: base_identity(host, bare) for bare in (False, True)}


def identity_for(host: Host, name: str) -> dict[str, Any]:
    """The identity of what one attached adapter depends on: without the language-model head if it `reads_body`."""
    return base_identity(host, reads_body(host, name))


def reads_body(host: Host, name: str) -> bool:
    """Whether an adapter depends on the bare transformer alone, so that its folder is the same there: it was loaded as
    one of the bare transformer, or its own head reads hidden states and nothing of it is at a language-model head."""
    adapter = host.adapters[name]
    at_head = {site.module for site in adapter.sites.values()} & host.sites.facts.outside
    return adapter.body is not None or (getattr(adapter.head, "reads_states", False) and not at_head)


def _bare_architecture(host: Host) -> str:
    """The class of the bare transformer; a language model that is its own body (T5) does not have it as a module."""
    bare = body(host.model)
    if bare is host.model and host.sites.facts.outside:
        config: Any = host.model.config
        name = MODEL_MAPPING_NAMES.get(config.model_type)
        return name if isinstance(name, str) else type(bare).__name__
    return type(bare).__name__


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spaced entries (≤ 1024,) in float32."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].float()


def _scales(host: Host, bare: bool) -> float:
    """The logarithms of the mean scales of all quantised weights, added with a factor for each name.

    Codes do not change when a weight is multiplied by a number; this sum does.
    """
    total, prefix = 0.0, host.sites.facts.prefix
    for path in _weights(host, bare):
        stored = host.base.stored(path)
        if stored is None:
            continue
        factor = 1 + hashlib.blake2b(path.removeprefix(prefix).encode(), digest_size=1).digest()[0] / 256
        means = [float(_sampled(tensor).abs().mean()) for tensor in list(stored.tensors())[1:] if tensor.numel()]
        total += factor * sum(math.log2(max(mean, 1e-30)) for mean in means)
    return round(total, 6)


def quantizations(host: Host, bare: bool = False) -> list[str]:
    """What the base's weights are quantised to, sorted; empty for a plain base.

    bare: without the language-model head.
    """
    return sorted({host.sites.weights[path].quantized for path in _weights(host, bare)} - {""})


def _weights(host: Host, bare: bool) -> list[str]:
    """Paths of the base's parameters, with the language-model head or without."""
    outside = host.sites.facts.outside if bare else frozenset[str]()
    return [path for path, site in host.sites.weights.items() if site.module not in outside]


def _identifying(host: Host, bare: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's own parameters by path; of quantised weights the codes, which are the same on every machine."""
    for path in _weights(host, bare):
        stored = host.base.stored(path)
        yield path, host.base.tensor(path) if stored is None else next(iter(stored.tensors()))


def _shape(host: Host, path: str, tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter, that of the plain matrix where it is quantised."""
    stored = host.base.stored(path)
    if stored is None:
        return tuple(tensor.shape)
    return stored.shape[::-1] if stored.transposed else stored.shape


def remember(host: Host) -> None:
    """Store a base's identity before its weights are sharded, because then no process has all of them."""
    _identities[host] = base_identities(host)


def served_identities(host: Host) -> dict[bool, dict[str, Any]]:
    """Both identities of a base that is not changed in place, with the language-model head and without: made once.

    They are made again where a weight is another tensor, or was changed by an operation that torch counts.
    """
    state = tuple((tensor.data_ptr(), tensor._version) for _, tensor in _identifying(host))
    known = _served.get(host)
    if known is None or known[0] != state:
        known = _served[host] = state, base_identities(host)
    return known[1]


def compare_bases(
    saved: Mapping[str, Any],
    host: Host,
    other_base: bool,
    identities: Mapping[bool, Mapping[str, Any]] | None = None,
) -> list[str]:
    """List why an adapter trained on the base `saved` does not fit this Host's, whose `identities` may be known."""
    identities = identities or base_identities(host)
    here, bare = identities[False], identities[True]
    if saved.get("shapes") == bare["shapes"]:  # the adapter reads no more than that
        here = bare
    if saved.get("shapes") != here["shapes"]:
        return [
            f"it was trained on another base: {saved.get('architecture')} {saved.get('name')!r} with "
            f"{saved.get('parameters', 0):,} parameters; this is {here['architecture']} {here['name']!r} with "
            f"{here['parameters']:,}; load the adapter onto the base it was trained on"
        ]
    before, now = saved.get("quantized", []), here.get("quantized", [])
    other = [_scheme(label) for label in before] != [_scheme(label) for label in now]  # codes may be equal all the same
    scales = here.get("scales", 0.0)
    rescaled = abs(saved.get("scales", scales) - scales) > SCALES_TOLERANCE  # earlier versions did not store them
    if (saved.get("content") != here["content"] or other or rescaled) and not other_base:
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
