"""Validation of a frozen dataclass's fields against their annotations, on construction."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from typing import Any, Literal

from deltatune.core.errors import DeltatuneError, nearest

LARGEST_FLOAT32 = 3.4e38
"""Beyond it a number is infinite in float32."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_fields(config: Any) -> None:
    """Check every field of a dataclass instance; ints become floats and lists tuples where annotated so.

    Raises DeltatuneError naming the field, the value and the allowed ones. Numbers fit float32 and integers have
    at most 64 bits, because tensors have no others; text has no half of a surrogate pair, because files cannot hold it.
    """
    hints = _hints(config.__class__)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        fitted, ok = _fit(value, hints[field.name])
        if not ok:
            allowed = _unfit_value(value) or describe_type(hints[field.name])
            near = nearest(value, _choices(hints[field.name])) if isinstance(value, str) else ""
            raise DeltatuneError(
                f"{type(config).__name__}({field.name}={shortened(value)}): {field.name} must be {allowed}{near}"
            )
        if fitted is not value:
            object.__setattr__(config, field.name, fitted)


@functools.cache  # annotations are text: each is compiled
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def shortened(value: Any, quoted: bool = True) -> str:
    """The `repr` of a value for an error message, at most 120 characters; `quoted=False` gives a text as it is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    try:
        text = value if isinstance(value, str) and not quoted else repr(value)
    except (ValueError, RecursionError):  # a huge integer or a deep list inside
        return f"a {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"


def _unfit_value(value: Any) -> str:
    """What a value of the right type must be besides; an empty string if its type is wrong."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, float) and not math.isfinite(item) for item in values):
        return "a finite number"
    if any(isinstance(item, float) and not _fits_float32(item) for item in values):
        return "a number that float32 can hold, up to 3.4e38"
    if any(type(item) is int and not _has_64_bits(item) for item in values):
        return "a number of at most 64 bits"
    if any(isinstance(item, str) and not fits_utf8(item) for item in values):
        return "text without half of a surrogate pair, which UTF-8 cannot hold"
    return ""


def _fits_float32(value: float) -> bool:
    return abs(value) <= LARGEST_FLOAT32


def _has_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def fits_utf8(value: str) -> bool:
    """Whether a text can be written to a file: UTF-8 cannot hold half of a surrogate pair."""
    return value.isascii() or not _SURROGATE.search(value)


def describe_type(hint: Any) -> str:
    """An annotation in words: `an integer`, `one of 'a', 'b'`."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if _is_union(hint):
        return " or ".join(describe_type(part) for part in typing.get_args(hint))
    words = {int: "an integer", float: "a number", str: "a string", bool: "True or False", type(None): "None"}
    return words.get(hint, str(hint).replace("typing.", ""))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _choices(hint: Any) -> list[str]:
    if _is_union(hint):
        return [choice for part in typing.get_args(hint) for choice in _choices(part)]
    return [str(choice) for choice in typing.get_args(hint)] if typing.get_origin(hint) is Literal else []


def _fit(value: Any, hint: Any) -> tuple[Any, bool]:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value, any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint))
    if _is_union(hint):
        return next(
            ((v, True) for v, ok in (_fit(value, part) for part in typing.get_args(hint)) if ok), (value, False)
        )
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return value, False
        kind, *rest = typing.get_args(hint)
        kinds = [kind] * len(value) if rest in ([], [Ellipsis]) else [kind, *rest]
        if len(kinds) != len(value):
            return value, False
        items = [_fit(item, each) for item, each in zip(value, kinds, strict=True)]
        fitted = tuple(item for item, _ in items)
        return (value if isinstance(value, tuple) and fitted == value else fitted), all(fits for _, fits in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return (float(value), True) if _has_64_bits(value) else (value, False)
    if hint is float:
        return value, isinstance(value, float) and _fits_float32(value)
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool) and _has_64_bits(value)
    if hint is str:
        return value, isinstance(value, str) and fits_utf8(value)
    return value, isinstance(value, hint) if isinstance(hint, type) else True
