"""Strict JSON: what RFC 8259 allows, read without losing a value and written so that every reader accepts it.

Python's `json` takes the last of repeated keys, reads and writes NaN and Infinity, turns 1e400 into infinity, and ends
in a RecursionError or a ValueError without a place where lists are nested deeply or numbers are long. Here each is one
plain error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import fits_utf8
from deltatune.core.input_validation.regular_files import not_utf8

MAX_DEPTH = 100
"""Lists and objects within each other. Files of adapters, recipes and data sets have fewer than ten."""
MAX_DIGITS = 300
"""Characters of a number: what is longer fits no float64, the widest number that anything here computes with."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANKS = " \t\n\r"
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}:,]')


def loads(text: str | bytes, where: str | Path) -> Any:
    """Read JSON. `where` says in errors what the text is: a file, a line of it, the answer of a server.

    Raises DeltatuneError with line and column for text that is not JSON, keys that are repeated within an object, NaN
    and Infinity, numbers outside float64's range or longer than 300 characters, more than 100 levels, and half of a
    surrogate pair, which no file can hold.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DeltatuneError(f"cannot read {where}: {not_utf8(error)}") from None
    try:
        value, end = _DECODER.raw_decode(text)
        if end < len(text) and text[end:].strip(_BLANKS):
            raise ValueError
    except (ValueError, _Refused, RecursionError):  # something is wrong, or there are blanks before the value
        value = _decode(text, where)
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        _refuse_depth(where)
    if ("\\u" in text and _SURROGATE_ESCAPE.search(text)) or not fits_utf8(text):
        _refuse_surrogates(value, f"cannot read {where}")
    return value


def _decode(text: str, where: str | Path) -> Any:
    """The value, or the error that says what is wrong with the text and where."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DeltatuneError(f"cannot read {where} as JSON: {_plain(error.msg)} ({place})") from None
    except _Refused as error:
        what, position = error.explain(text)
        raise DeltatuneError(f"cannot read {where}: {what} ({_place(text, position)})") from None
    except RecursionError:
        _refuse_depth(where)


def dumps(
    value: Any,
    where: str | Path = "the output",
    *,
    nonfinite: Literal["refuse", "null"] = "refuse",
    indent: int | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Write JSON. `nonfinite`: NaN and infinite numbers are refused, or written as null; never as NaN or Infinity.

    Raises DeltatuneError that names `where` and each number that is not finite, and text that UTF-8 cannot hold.
    """
    try:
        if nonfinite == "null":
            value = finite_or_null(value)
        text = json.dumps(
            value, allow_nan=False, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii, default=default
        )
    except RecursionError:
        raise DeltatuneError(f"cannot write {where}: its lists and objects are nested too deeply") from None
    except ValueError as error:
        if "ircular" in str(error):
            raise DeltatuneError(f"cannot write {where}: it contains itself") from None
        numbers = [f"{path or 'the value'} is {number}" for path, number in _leaves(value) if _is_nonfinite(number)]
        if not numbers:
            raise DeltatuneError(f"cannot write {where}: {error}") from None
        more = f", and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        raise DeltatuneError(
            f"cannot write {where}: {', '.join(numbers[:5])}{more}; JSON holds finite numbers alone"
        ) from None
    if not fits_utf8(text):
        _refuse_surrogates(value, f"cannot write {where}")
    return text


def finite_or_null(value: Any) -> Any:
    """The same value with None for each number that is NaN or infinite; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    return [finite_or_null(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---- what Python's reader lets through


class _Refused(Exception):
    """Something in a text that the reader refuses; `explain` says of the text what it is, and its position."""

    def __init__(self, explain: Callable[[str], tuple[str, int]]) -> None:
        self.explain = explain


def _integer(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        _refuse_number(literal)
    return int(literal)


def _real(literal: str) -> float:
    number = float(literal)
    if len(literal) > MAX_DIGITS or math.isinf(number):
        _refuse_number(literal)
    return number


def _refuse_number(literal: str) -> NoReturn:
    why = f"has {len(literal):,} characters" if len(literal) > MAX_DIGITS else "is beyond the range of float64"
    raise _Refused(lambda text: (f"the number {_short(literal)} {why}", text.find(literal)))


def _constant(literal: str) -> NoReturn:
    raise _Refused(lambda text: (f"{literal} is not JSON; numbers are finite", _outside_strings(text, literal)))


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _Refused(lambda text: _repeated_key(text, [name for name, _ in pairs]))
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=_integer, parse_float=_real, parse_constant=_constant)
"""Made once: a data set has a text for each row."""


def _repeated_key(text: str, names: list[str]) -> tuple[str, int]:
    """What is wrong with the first key that an object of the text has twice, and where its repetition stands."""
    tokens = list(_TOKENS.finditer(text))
    objects: list[set[str] | None] = []  # the keys of the objects that are open; None for a list
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        sign = token.group()
        if sign in "{[":
            objects.append(set() if sign == "{" else None)
        elif sign in "}]" and objects:
            objects.pop()
        elif sign[0] == '"' and objects and after is not None and after.group() == ":":
            keys, key = objects[-1], json.loads(sign, strict=False)
            if keys is not None and key in keys:
                return f"the key {_short(key)} is repeated", token.start()
            if keys is not None:
                keys.add(key)
    return f"the key {_short(next(name for name in names if names.count(name) > 1))} is repeated", 0


def _outside_strings(text: str, literal: str) -> int:
    blanked = _TOKENS.sub(lambda match: " " * len(match.group()), text)
    return max(0, blanked.find(literal))


def _place(text: str, position: int) -> str:
    position = max(0, position)
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _refuse_depth(where: str | Path) -> NoReturn:
    raise DeltatuneError(f"cannot read {where}: its lists and objects are nested more than {MAX_DEPTH} deep")


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return any(isinstance(item, (dict, list)) for item in level)


def _refuse_surrogates(value: Any, what: str) -> None:
    for path, string in _leaves(value):
        if isinstance(string, str) and not fits_utf8(string):
            place = f" of {path}" if path and fits_utf8(path) else ""
            raise DeltatuneError(
                f"{what}: the text {_short(string)}{place} has half of a surrogate pair, which UTF-8 cannot hold; "
                "write the whole character"
            )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no list or object with its path, and every key with the path of its object."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            yield from _leaves(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}[{i}]")
    else:
        yield path, value


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _short(text: str) -> str:
    shown = repr(text) if fits_utf8(text) else ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:40]}...{shown[-10:]}"


def _plain(message: str) -> str:
    return message[:1].lower() + message[1:]
