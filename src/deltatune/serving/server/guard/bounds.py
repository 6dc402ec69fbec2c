"""Bounds of the server: what one request, one connection and the shutdown may take."""

from __future__ import annotations

from dataclasses import dataclass, fields

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields


@dataclass(frozen=True)
class Bounds:
    """What one request, one connection and the shutdown may take. Everything beyond is refused, not cut."""

    body_bytes: int = 2 * 2**20
    """Bytes of a request's body."""
    all_bodies_bytes: int = 256 * 2**20
    """Bytes of all bodies that are held at once."""
    body_seconds: float = 30.0
    """Seconds within which a body must have arrived."""
    header_bytes: int = 32 * 2**10
    """Bytes of a request's line and headers."""
    header_seconds: float = 15.0
    """Seconds within which a request's headers must have arrived, from its first byte or the connection's beginning."""
    idle_seconds: float = 30.0
    """Seconds for which a connection is kept open between two requests."""
    linger_seconds: float = 2.0
    """Seconds for which what a refused client still sends is read and thrown away, so that it sees the answer."""
    write_seconds: float = 60.0
    """Seconds for which a client may leave an answer unread."""
    request_seconds: float = 600.0
    """Seconds that a request may take from its body's arrival to its answer's end."""
    connections: int = 1000
    """Open connections."""
    backlog: int = 512
    """Connections that the system holds before they are accepted."""
    drain_seconds: float = 30.0
    """Seconds that running requests have to finish once the server is told to stop."""
    texts: int = 512
    """Texts, prompts or rows of one request."""
    choices: int = 16
    """Answers to one prompt: `n` and `best_of`."""
    max_tokens: int = 8192
    """Tokens that a request may ask for in each answer."""

    def __post_init__(self) -> None:
        check_fields(self)
        small = [field.name for field in fields(self) if getattr(self, field.name) <= 0]
        raise_all([f"{name} must be above 0, not {getattr(self, name)}" for name in small], "Bounds:" * bool(small))
        if self.all_bodies_bytes < self.body_bytes:
            raise DeltatuneError(
                f"Bounds: all_bodies_bytes ({self.all_bodies_bytes:,}) must hold one body ({self.body_bytes:,})"
            )
