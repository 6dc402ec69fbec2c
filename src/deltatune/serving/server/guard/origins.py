"""Where requests may come from: the server's own names, and web pages of other origins only where that is asked for.

A page of any site can make a browser send requests to this machine. Two checks stop it: the Host header must be a name
of this server (a page whose own name was pointed here, by DNS rebinding, brings that name along), and an Origin header
must be this server's own or an allowed one.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError
from deltatune.serving.server.guard.refusals import Header, Refusal, Scope

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(host: str, has_keys: bool, no_keys: bool) -> None:
    """Raise DeltatuneError where a server without keys would be reached from other machines, unless `no_keys`."""
    if has_keys and no_keys:
        raise DeltatuneError("--keys and --no-keys exclude each other")
    if not has_keys and not no_keys and not is_local(host):
        raise DeltatuneError(
            f"--host {host}: without keys anyone who reaches this address could use the server. Make a key with "
            "`deltatune keys add keys.json NAME` and give --keys keys.json, or say --no-keys"
        )


@dataclass(frozen=True)
class Origins:
    """Host names that the server answers to, and web pages that may call it."""

    names: tuple[str, ...] | None = None
    """Host names of the server, without ports; None for any."""
    allowed: tuple[str, ...] = ()
    """Origins of other web pages that may call it, such as https://chat.example.com; "*" for all."""

    @staticmethod
    def of(host: str, more: tuple[str, ...] = (), allowed: tuple[str, ...] = ()) -> Origins:
        """The names of a server that listens on `host`: those of this machine where it is local, else any or `more`."""
        names = (*LOCAL_NAMES, host.strip("[]").lower(), *(name.lower() for name in more))
        return Origins(names if is_local(host) or more else None, tuple(origin.rstrip("/") for origin in allowed))

    def check(self, scope: Scope) -> None:
        """Raise Refusal for a request under a foreign name (421) or from a foreign page (403)."""
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        if self.names is not None and _name_of(host) not in self.names:
            raise Refusal(
                421,
                "This server is not called so. Use its own address, or start it with --allow-host NAME.",
                code="unknown_host",
                close=True,
            )
        if origin and not self._is_allowed(origin) and origin.partition("://")[2].lower() != host.lower():
            raise Refusal(
                403,
                "Pages of other origins may not call this server. Start it with --allow-origin ORIGIN.",
                code="origin_not_allowed",
                close=True,
            )

    def is_preflight(self, scope: Scope) -> bool:
        """Whether a browser asks if an allowed page may call."""
        asks = scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method")
        return bool(asks) and self._is_allowed(_header(scope, b"origin"))

    def answer_headers(self, scope: Scope) -> list[Header]:
        """The headers that tell a browser who may read the answer."""
        origin = _header(scope, b"origin")
        if not origin or not self._is_allowed(origin):
            return [(b"cross-origin-resource-policy", b"same-origin"), (b"vary", b"Origin")]
        headers = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"cross-origin-resource-policy", b"cross-origin"),
            (b"vary", b"Origin"),
        ]
        if self.is_preflight(scope):
            headers += [
                (b"access-control-allow-methods", b"GET, POST, DELETE"),
                (b"access-control-allow-headers", b"authorization, content-type, *"),
                (b"access-control-max-age", b"600"),
            ]
        return headers

    def _is_allowed(self, origin: str) -> bool:
        return bool(origin) and ("*" in self.allowed or origin in self.allowed)


def _header(scope: Scope, name: bytes) -> str:
    """A header that may stand there once; of several, none is believed."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1").strip() if len(values) == 1 else ""


def _name_of(host: str) -> str:
    """A Host header without its port."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    return name.strip("[]").rstrip(".").lower()
