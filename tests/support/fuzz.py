"""A seeded mutation fuzzer for files: whatever is done to a file, reading it gives a plain error or an equal value.

for name, content in mutations(good, seed=0, count=40):
    result = outcome(lambda: read(write(content)), name)
    assert isinstance(result, DeltatuneError) or result == expected
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

from deltatune.core.errors import DeltatuneError

NUMBERS = (
    *("0", "-1", "1", "00", "1e400", "-1e400", "1e-400", "1e308", "NaN", "Infinity", "-Infinity", "9" * 5000),
    *("18446744073709551616", "9223372036854775807", "1000000000", "2147483648", "0.5", "1.0", "1e3", "0x10", "1_0"),
)
"""Numbers at and beyond the limits of what readers expect."""
TEXTS = (
    *('""', '"\\ud800"', '"\\u0000"', '"../x"', '"/etc/passwd"', "null", "true", "false", "[]", "{}", '"\u202e"'),
    *("[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, '"' + "x" * 10_000 + '"', "[[]]", '{"": null}'),
)
_TOKEN = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\w+|\s+|.", re.DOTALL)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def mutations(content: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` mutated files, each with a name that says how it was made; equal seeds give equal files."""
    for number in range(count):
        yield mutate(content, random.Random(f"{seed}-{number}"), number)


def mutate(content: bytes, rng: random.Random, number: int = 0) -> tuple[str, bytes]:
    """One mutated file, by one to three mutations; its name gives the number and the mutations."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice(MUTATIONS)
        content = mutation(content, rng)
        names.append(mutation.__name__.removeprefix("_"))
    return f"{number}: {', '.join(names)}", content


def outcome(call: Callable[[], Any], name: str, seconds: float = 20.0) -> Any:
    """What a call returns, or the DeltatuneError that it raises.

    Fails with the mutation's name on any other exception, on an error without a message, and after `seconds`.
    """

    def late(signal_number: int, frame: Any) -> None:
        raise TimeoutError(f"{name}: no answer after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return call()
    except DeltatuneError as error:
        message = str(error)
        assert message.strip(), f"{name}: the error has no message"
        assert len(message) < 20_000, f"{name}: the error has {len(message):,} characters"
        message.encode("utf-8")  # it can be printed
        return error
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {str(error)[:300]}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- mutations of bytes


def _flip_bit(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return b"\x00"
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _delete(content: bytes, rng: random.Random) -> bytes:
    start, end = _range(content, rng)
    return content[:start] + content[end:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = _range(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    start, end = _range(content, rng)
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[start:end] + content[at:]


def _insert_bytes(content: bytes, rng: random.Random) -> bytes:
    piece = rng.choice(
        (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\xed\xa0\x80", b"\n\n", b'"', b"{", b"]", b"\t")
    )
    at = rng.choice((0, len(content), rng.randrange(len(content) + 1)))
    return content[:at] + piece + content[at:]


def _range(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 8, 64, 512)))


# ---- mutations of text


def _swap_tokens(content: bytes, rng: random.Random) -> bytes:
    tokens = _TOKEN.findall(content[:100_000])
    if len(tokens) < 2:
        return content
    first, second = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    tokens[first], tokens[second] = tokens[second], tokens[first]
    return b"".join(tokens) + content[100_000:]


def _extreme_number(content: bytes, rng: random.Random) -> bytes:
    places = list(_NUMBER.finditer(content[:100_000]))
    if not places:
        return content
    place = rng.choice(places)
    return content[: place.start()] + rng.choice(NUMBERS).encode() + content[place.end() :]


def _move_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return content
    line = lines[rng.randrange(len(lines))]
    if rng.random() < 0.5:
        lines.remove(line)
    lines.insert(rng.randrange(len(lines) + 1), line)
    return b"".join(lines)


# ---- mutations of JSON: a value, a key, or the structure; other files get another mutation


def _change_value(content: bytes, rng: random.Random) -> bytes:
    return _with_place(content, rng, lambda: rng.choice((*NUMBERS[:12], *TEXTS)))


def _remove_member(content: bytes, rng: random.Random) -> bytes:
    return _with_place(content, rng, lambda: None)


def _repeat_key(content: bytes, rng: random.Random) -> bytes:
    keys = list(re.finditer(rb'"\w+"\s*:', content))
    if not keys:
        return _repeat(content, rng)
    key = rng.choice(keys)
    return (
        content[: key.start()]
        + key.group()
        + rng.choice(TEXTS).encode("utf-8", "replace")
        + b", "
        + content[key.start() :]
    )


_MARK = "\ue000"
"""Stands for the new value in JSON that is being written, because it may be text that `json` would not write."""


def _with_place(content: bytes, rng: random.Random, new: Callable[[], str | None]) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _extreme_number(content, rng)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        places += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    if not places:
        return rng.choice(TEXTS).encode("utf-8", "replace")
    holder, key = rng.choice(places)
    text = new()
    if text is None:
        del holder[key]
        return json.dumps(value).encode()
    holder[key] = _MARK
    return json.dumps(value, ensure_ascii=False).replace(f'"{_MARK}"', text).encode("utf-8", "replace")


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip_bit, _truncate, _delete, _repeat, _splice, _insert_bytes, _swap_tokens, _extreme_number, _move_line),
    *(_change_value, _change_value, _change_value, _remove_member, _repeat_key),
)
