"""Validation of a frozen dataclass's fields against their annotations, on construction."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from deltatune.core.errors import DeltatuneError, nearest


def check_fields(config: Any) -> None:
    """Check every field of a dataclass instance; ints become floats and lists tuples where annotated so.

    Raises DeltatuneError naming the field, the value and the allowed ones.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        fitted, ok = _fit(value, hints[field.name])
        if not ok:
            allowed = describe_type(hints[field.name])
            near = nearest(value, _choices(hints[field.name])) if isinstance(value, str) else ""
            raise DeltatuneError(
                f"{type(config).__name__}({field.name}={value!r}): {field.name} must be {allowed}{near}"
            )
        if fitted is not value:
            object.__setattr__(config, field.name, fitted)


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
        kind, rest = typing.get_args(hint)[0], typing.get_args(hint)[1:]
        if not isinstance(value, (tuple, list)) or rest not in ((), (Ellipsis,)):
            return value, isinstance(value, tuple)
        fitted = tuple(_fit(item, kind)[0] for item in value)
        return (value if isinstance(value, tuple) and fitted == value else fitted), all(
            _fit(item, kind)[1] for item in value
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), True
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    return value, isinstance(value, hint) if isinstance(hint, type) else True
