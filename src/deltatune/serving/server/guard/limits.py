"""Limits of a key: requests and tokens in any minute, and requests at once, counted exactly in a sliding window."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from deltatune.serving.server.guard.api_keys import ApiKey
from deltatune.serving.server.guard.refusals import Header, Refusal

MINUTE = 60.0


class MinuteWindow:
    """Amounts of the last 60 seconds."""

    def __init__(self) -> None:
        self.total = 0
        self._entries: deque[list[float]] = deque()  # [time, amount], oldest first

    def expire_(self, now: float) -> None:
        """Forget what is older than a minute."""
        while self._entries and self._entries[0][0] <= now - MINUTE:
            self.total -= int(self._entries.popleft()[1])

    def wait(self, now: float, amount: int, limit: int) -> float:
        """Seconds until `amount` more fits under `limit`; 0 where it fits now. It must be at most `limit`."""
        self.expire_(now)
        excess, freed = self.total + amount - limit, 0
        if excess <= 0:
            return 0.0
        for at, of in self._entries:
            freed += int(of)
            if freed >= excess:
                return max(at + MINUTE - now, 0.001)
        return MINUTE

    def add_(self, now: float, amount: int) -> list[float]:
        """Count an amount, and return its entry, which `set_` can change."""
        self._entries.append(entry := [now, float(amount)])
        self.total += amount
        return entry

    def set_(self, entry: list[float], amount: int, now: float) -> None:
        """Change a counted amount; one that has expired counts no more."""
        self.expire_(now)
        if entry[0] > now - MINUTE:
            self.total += amount - int(entry[1])
            entry[1] = float(amount)


class Usage:
    """What a key has used."""

    def __init__(self) -> None:
        self.requests, self.tokens, self.running = MinuteWindow(), MinuteWindow(), 0


class Limiter:
    """Counts what each key uses. It belongs to the server's event loop: no two threads call it at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._usage: dict[str, Usage] = {}

    def admit(self, key: ApiKey) -> Permit:
        """Count a request of a key. Its permit must be closed. Raises Refusal (429); what is refused does not count."""
        now = self.clock()
        usage = self._usage.setdefault(key.name, Usage())
        if key.requests_at_once is not None and usage.running >= key.requests_at_once:
            raise _exceeded("requests", f"requests at once: limit {key.requests_at_once}", 1.0)
        if key.requests_per_minute is not None:
            wait = usage.requests.wait(now, 1, key.requests_per_minute)
            if wait:
                raise _exceeded("requests", f"requests per minute (RPM): limit {key.requests_per_minute}", wait)
            usage.requests.add_(now, 1)
        if key.tokens_per_minute is not None:  # what was used up beyond the limit must expire first
            wait = usage.tokens.wait(now, 1, key.tokens_per_minute)
            if wait:
                raise _exceeded("tokens", f"tokens per minute (TPM): limit {key.tokens_per_minute}", wait)
        usage.running += 1
        return Permit(key, usage, self.clock)


class Permit:
    """One request of a key that runs."""

    def __init__(self, key: ApiKey, usage: Usage, clock: Callable[[], float]) -> None:
        self._key, self._usage, self._clock = key, usage, clock
        self._entry: list[float] | None = None
        self._reserved = 0
        self._closed = self._refused = False

    def reserve(self, tokens: int) -> None:
        """Count the tokens that the request may take: those of its prompts and all that it may write.

        Several calls add up. Raises Refusal (429) where they do not fit; `close` counts what was used instead.
        """
        limit = self._key.tokens_per_minute
        if limit is None:
            return
        if self._reserved + tokens > limit:
            self._refused = True
            raise Refusal(
                429,
                f"Request too large for {self._key.name} on tokens per minute (TPM): limit {limit}, "
                f"requested {self._reserved + tokens}. Shorten the input or ask for fewer tokens.",
                type="tokens",
                code="rate_limit_exceeded",
            )
        now = self._clock()
        wait = self._usage.tokens.wait(now, tokens, limit)
        if wait:
            self._refused = True
            text = f"tokens per minute (TPM): limit {limit}, used {self._usage.tokens.total}, requested {tokens}"
            raise _exceeded("tokens", text, wait)
        self._refused, self._reserved = False, self._reserved + tokens
        if self._entry is None:
            self._entry = self._usage.tokens.add_(now, tokens)
        else:
            self._usage.tokens.set_(self._entry, self._reserved, now)

    def close(self, tokens: int) -> None:
        """The request has ended and took so many tokens; one that was refused took none."""
        if self._closed:
            return
        self._closed, tokens = True, 0 if self._refused else tokens
        self._usage.running -= 1
        if self._key.tokens_per_minute is None:
            return
        now = self._clock()
        if self._entry is not None:
            self._usage.tokens.set_(self._entry, tokens, now)
        elif tokens:
            self._usage.tokens.add_(now, tokens)

    @property
    def headers(self) -> list[Header]:
        """OpenAI's headers on what the key has left."""
        self._usage.requests.expire_(now := self._clock())
        self._usage.tokens.expire_(now)
        pairs = [
            ("requests", self._key.requests_per_minute, self._usage.requests.total),
            ("tokens", self._key.tokens_per_minute, self._usage.tokens.total),
        ]
        return [
            (f"x-ratelimit-{what}-{name}".encode(), str(value).encode())
            for name, limit, used in pairs
            if limit is not None
            for what, value in (("limit", limit), ("remaining", max(0, limit - used)))
        ]


def _exceeded(kind: str, what: str, wait: float) -> Refusal:
    return Refusal(
        429,
        f"Rate limit reached on {what}. Please try again in {wait:.1f}s.",
        type=kind,
        code="rate_limit_exceeded",
        retry_after=wait,
    )
