"""Residency: which adapters of a store are in memory."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from deltatune.core.host import Host


class AdapterSource(Protocol):
    """What residency asks of a store."""

    def __contains__(self, name: str) -> bool: ...

    def revision(self, name: str) -> str:
        """What changes when the adapter of this name is replaced."""

    def read(self, name: str) -> Any:
        """The adapter, read and verified: a StoredAdapter."""


class Residency:
    """Adapters in memory: those attached by hand for good, those of a store as they are needed.

    Any thread may call its public methods; the engine's worker alone changes the host.
    """

    def __init__(
        self, host: Host, store: AdapterSource | None = None, *, adapters: int = 64, other_base: bool = False
    ) -> None:
        """`adapters`: how many of the store are in memory at once; those used longest ago make room for others.

        `other_base` accepts adapters of a base with other weights of the same shapes.
        """
        raise NotImplementedError

    def load(self, name: str) -> Future[None]:
        """Bring an adapter into memory ahead of requests. The future raises DeltatuneError if that fails."""
        raise NotImplementedError

    def reload(self, name: str) -> Future[None]:
        """Read an adapter anew; running requests finish with what they started with."""
        raise NotImplementedError

    def unload(self, name: str) -> Future[None]:
        """Take an adapter out of memory once no request uses it; the next request loads it again."""
        raise NotImplementedError

    @property
    def resident(self) -> tuple[str, ...]:
        """Names in memory, the one used last at the end."""
        raise NotImplementedError

    def pins(self, name: str) -> int:
        """Requests that use an adapter at present."""
        raise NotImplementedError
