"""The cache of what a frozen base computes for rows that are read again: one for a process, bounded in bytes."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.memory import memory_of
from deltatune.store.fingerprint import base_identity

MOST_BYTES = 4_000_000_000
"""Largest share of a device's memory that is taken without being asked."""
FREE_SHARE = 8
"""Without a limit of the user, at most one part in eight of the memory that is free at the first use."""
MOST_SEEN = 4096
"""Row lists that are remembered as read once."""

Inputs = dict[str, Tensor]
"""What the base reads of a batch: `input_ids`, `attention_mask`, maybe `token_type_ids`, each (B, T)."""
SCALES = 256
"""Entries of each quantised weight's scales that a key is made of."""
READ = ("input_ids", "attention_mask", "token_type_ids")


class Cached(Protocol):
    """What the cache keeps: tensors on one device, and how many bytes they take once all are computed."""

    device: torch.device
    bytes: int
    users: int
    """How many trainings or predictions use it at present; it is kept while there are any."""


class FeatureCache:
    """Cached outputs by key. What was used least recently goes first when room is needed."""

    def __init__(self) -> None:
        self.entries: OrderedDict[str, Cached] = OrderedDict()
        self.limit: int | Literal["auto"] | None = "auto"
        self._automatic: dict[torch.device, int] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def limit_on(self, device: torch.device) -> int:
        """Bytes that may be kept on a device."""
        if self.limit != "auto":
            return self.limit or 0
        if device not in self._automatic:
            self._automatic[device] = min(MOST_BYTES, free_memory(device) // FREE_SHARE)
        return self._automatic[device]

    def bytes_on(self, device: torch.device) -> int:
        """Bytes that are kept on a device, or reserved."""
        return sum(entry.bytes for entry in self.entries.values() if entry.device == device)

    def get(self, key: str) -> Cached | None:
        """The entry of a key, from now on the one used last."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    def has_room(self, size: int, device: torch.device) -> bool:
        """Whether `size` bytes fit beside what is in use."""
        used = sum(entry.bytes for entry in self.entries.values() if entry.users and entry.device == device)
        return used + size <= self.limit_on(device)

    def add(self, key: str, entry: Cached) -> bool:
        """Keep an entry, in the place of those used least recently. Returns False where there is no room for it."""
        if not self.has_room(entry.bytes, entry.device):
            return False
        self._shrink_(entry.device, self.limit_on(entry.device) - entry.bytes)
        self.entries[key] = entry
        return True

    def read_before(self, key: str) -> bool:
        """Whether these rows were read before; from now on they were. What is read once is not worth keeping."""
        seen = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return seen

    def set_limit_(self, limit: int | Literal["auto"] | None) -> None:
        """Change the limit; what no longer fits goes at once, but for what is in use."""
        if limit not in (None, "auto") and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise DeltatuneError(f"the limit of the cache is a number of bytes, None or 'auto', not {limit!r}")
        self.limit = limit
        self._automatic.clear()
        for device in {entry.device for entry in self.entries.values()}:
            self._shrink_(device, self.limit_on(device))

    def clear_(self) -> None:
        """Release everything that is not in use."""
        self._seen.clear()
        for device in {entry.device for entry in self.entries.values()}:
            self._shrink_(device, 0)

    def _shrink_(self, device: torch.device, most: int) -> None:
        kept = self.bytes_on(device)
        for key, entry in list(self.entries.items()):
            if kept <= most:
                return
            if entry.device == device and not entry.users:
                kept -= entry.bytes
                del self.entries[key]


CACHE = FeatureCache()
"""The cache of this process."""


def set_cache_limit(limit: int | Literal["auto"] | None) -> None:
    """Set how many bytes this process may keep on each device of what the base computes for rows that are read again.

    auto: one part in eight of the memory that is free at the first use, at most 4 GB. None turns the cache off.
    Several processes on one machine have a limit each. Raises DeltatuneError for anything else.
    """
    CACHE.set_limit_(limit)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    total, info = memory_of(device), Path("/proc/meminfo")
    if info.is_file():
        available = [line.split()[1] for line in info.read_text().splitlines() if line.startswith("MemAvailable:")]
        return min([total, *(int(kilobytes) * 1024 for kilobytes in available)])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return min(total, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return total // 2


def key_of(host: Host, what: object, rows: Iterable[bytes]) -> str:
    """The key of what a base computes for rows: the base by its contents, `what` is computed, and the rows in order."""
    config = host.model.config
    facts = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}  # type: ignore[union-attr, operator]
    base = base_identity(host)
    paths = [path for path, site in host.sites.weights.items() if not site.quantized]  # codes have no other values
    parameters = [p for path in paths if not (p := host.base.tensor(path)).is_inference()]
    versions = sum(p._version for p in parameters)  # a change in place between samples of the contents
    first = parameters[0]
    digest = hashlib.blake2b(digest_size=16)
    for fact in (
        *(base[name] for name in ("architecture", "shapes", "content")),
        base.get("quantized"),
        _scales(host),
        sorted((name, str(value)) for name, value in facts.items()),
        getattr(config, "_attn_implementation", ""),
        (first.dtype, first.device, versions),
        what,
    ):
        digest.update(f"{fact}\n".encode())
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + row)
    return digest.hexdigest()


def _scales(host: Host) -> str:
    """A digest of what stands beside the codes of quantised weights: equal codes with other scales are other values."""
    digest = hashlib.blake2b(digest_size=16)
    for path, site in host.sites.weights.items():
        stored = host.base.stored(path) if site.quantized else None
        for tensor in list(stored.tensors())[1:] if stored is not None else ():
            flat = tensor.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // SCALES)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def inputs_of(batch: Mapping[str, Any]) -> Inputs:
    """The part of a batch that the base reads."""
    return {name: batch[name] for name in READ if isinstance(batch.get(name), Tensor)}


def row_spans(inputs: Inputs) -> list[tuple[bytes, int, int]] | None:
    """Of each row its real tokens as bytes, the column of the first and their number; None for rows with gaps."""
    mask = inputs["attention_mask"].detach().cpu().numpy() != 0  # (B, T)
    if inputs["attention_mask"].dim() != 2 or mask.shape != tuple(inputs["input_ids"].shape):
        return None
    names = [name for name in ("input_ids", "token_type_ids") if name in inputs]
    values = [inputs[name].detach().cpu().numpy() for name in names]
    firsts, counts = mask.argmax(1).tolist(), mask.sum(1).tolist()
    spans = []
    for i, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        if not count or not mask[i, first : first + count].all():
            return None
        parts = [array[i, first : first + count].astype("int32").tobytes() for array in values]
        spans.append((b"".join(parts), first, count))
    return spans
