"""Fields of a request's JSON object: each is read once and checked; what is left at the end is unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.strict_json import loads
from deltatune.serving.texts.invalid_request import InvalidRequest

INTEGERS = 2**63
"""Integers are below this, either way."""


class RequestFields:
    """The fields of one request. Problems are collected; `finish` raises them together.

    A field that is null counts as absent, as in OpenAI's API.
    """

    def __init__(self, body: bytes) -> None:
        """Raises InvalidRequest for a body that is not a JSON object."""
        try:
            content = loads(body, "the request's body") if body.strip() else None
        except DeltatuneError as error:
            raise InvalidRequest(str(error), code="invalid_json") from None
        if not isinstance(content, dict):
            what = "empty" if content is None else f"a JSON {_type_name(content)}"
            raise InvalidRequest(f"the request's body is {what}; it must be a JSON object", code="invalid_json")
        self.content: dict[str, Any] = content
        self.known: set[str] = set()
        self.problems: list[tuple[str, str]] = []

    def raw(self, name: str) -> Any:
        """A field as it is; None if it is absent."""
        self.known.add(name)
        return self.content.get(name)

    def wrong(self, name: str, what: str) -> None:
        """Note what is wrong with a field."""
        self.problems.append((name, f"{shortened(name, quoted=False)} {what}"))

    def text(self, name: str, default: str = "", most: int = 256) -> str:
        """A text of at most `most` characters."""
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, str) and len(value) <= most:
            return value
        self.wrong(name, f"must be a text of at most {most} characters, not {_shown(value)}")
        return default

    def integer(self, name: str, default: int, least: int, most: int = INTEGERS) -> int:
        """A whole number."""
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.wrong(name, f"must be a whole number {_range(least, most)}, not {_shown(value)}")
        return default

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number."""
        value = self.raw(name)
        if value is None:
            return default
        if _is_number(value) and least <= value <= most:
            return float(value)
        self.wrong(name, f"must be a number from {least:g} to {most:g}, not {_shown(value)}")
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.wrong(name, f"must be true or false, not {_shown(value)}")
        return default

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of several texts, the first by default."""
        value = self.raw(name)
        if value is None or value in choices:
            return choices[0] if value is None else str(value)
        self.wrong(name, f"must be {' or '.join(map(repr, choices))}, not {_shown(value)}")
        return choices[0]

    def stops(self, most: int = 4) -> tuple[str, ...]:
        """Stop strings: one or a list of up to `most`."""
        value = self.raw("stop")
        given = [value] if isinstance(value, str) else ([] if value is None else value)
        fits = isinstance(given, list) and len(given) <= most
        if fits and all(isinstance(stop, str) and 0 < len(stop) <= 500 for stop in given):
            return tuple(given)
        self.wrong("stop", f"must be a text of 1 to 500 characters, or a list of at most {most}, not {_shown(value)}")
        return ()

    def biases(self, vocabulary: int, most: int = 1024) -> dict[int, float]:
        """`logit_bias`: numbers from -100 to 100 by token id."""
        value = self.raw("logit_bias")
        if value is None:
            return {}
        if not isinstance(value, Mapping) or len(value) > most:
            self.wrong("logit_bias", f"must be an object of at most {most} token ids and numbers, not {_shown(value)}")
            return {}
        biases = {}
        for token, bias in value.items():
            known = token.isascii() and token.isdecimal() and len(token) < 10 and int(token) < vocabulary
            if known and _is_number(bias) and -100 <= bias <= 100:
                biases[int(token)] = float(bias)
            else:
                self.wrong(
                    "logit_bias",
                    f"gives {_shown(bias)} to {shortened(token)}; it takes numbers from -100 to 100 by token ids below "
                    f"{vocabulary}",
                )
                break
        return biases

    def ignore(self, *names: str) -> None:
        """Fields that change nothing here."""
        self.known.update(names)

    def refuse(self, name: str, why: str, *allowed: Any) -> None:
        """A field that is not served; some values of it mean what happens anyway."""
        value = self.raw(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            self.wrong(name, why)

    def finish(self) -> None:
        """Raise InvalidRequest with all problems, unknown fields among them."""
        for name in self.content:
            if name not in self.known:
                near = nearest(name, self.known) if len(name) <= 100 else ""
                self.problems.append((name, f"unknown field {shortened(name)}{near}"))
        if self.problems:
            listed = "; ".join(message for _, message in self.problems[:10])
            more = f"; and {len(self.problems) - 10} more" if len(self.problems) > 10 else ""
            raise InvalidRequest(listed + more, shortened(self.problems[0][0], quoted=False), "invalid_value")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < INTEGERS if isinstance(value, int) else math.isfinite(value)


def _shown(value: Any) -> str:
    return shortened(value) if isinstance(value, (str, int, float, bool)) else f"a JSON {_type_name(value)}"


def _type_name(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _range(least: int, most: int) -> str:
    return f"of at least {least}" if most >= INTEGERS else f"from {least} to {most}"
