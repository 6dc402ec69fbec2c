"""An adapter in memory, where it comes from, and how far it has come."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from deltatune.store.stored_adapter import StoredAdapter


class AdapterSource(Protocol):
    """What residency asks of a store; the methods may be called from any thread."""

    def __contains__(self, name: object) -> bool: ...

    def revision(self, name: str) -> str:
        """What changes when the adapter of this name is replaced. Raises DeltatuneError if there is none."""

    def read(self, name: str) -> StoredAdapter:
        """The adapter, verified. Raises DeltatuneError if it is damaged."""


@dataclass(eq=False)
class Resident:
    """One adapter in memory."""

    name: str
    host_name: str
    """Its name on the host: another one while a replaced adapter of its name is still in use."""
    revision: str
    number: int
    """Another one for every adapter that was ever brought into memory."""
    fixed: bool = False
    """Whether it was attached by hand, and stays."""
    pins: int = 0
    """Requests that use it."""
    requests: int = 0
    """Requests that have used it."""
    last_used: float = field(default_factory=time.time)
    """When a request last took it up, in seconds since 1970."""


@dataclass(eq=False)
class AdapterReading:
    """An adapter that is being read."""

    revision: str
    stored: Future[StoredAdapter]
    wished: float


@dataclass(eq=False)
class ResidencyOrder:
    """What somebody asked for and waits for."""

    verb: Literal["load", "unload"]
    name: str
    done: Future[None]
