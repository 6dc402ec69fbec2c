"""Conditions that the entries of a list meet, as those of a query in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import fits_utf8, shortened

MAX_TEXT = 1000
"""Characters of a text, and number of tags, that are searched for: SQLite bounds patterns and conditions."""


def conditions(
    task: str | None, method: str | None, base: str | None, tags: Sequence[str], text: str | None
) -> list[tuple[str, Sequence[Any]]] | None:
    """Conditions and their values, as `StoreIndex.find` takes them; None where no entry can meet them.

    Raises DeltatuneError listing what is no text, and texts that are too long.
    """
    if isinstance(tags, str):
        raise DeltatuneError(f"tags={shortened(tags)} is one text; give a list of tags")
    named = {"task": task, "method": method, "base": base, "text": text}
    given = [(name, value) for name, value in named.items() if value is not None] + [("tag", tag) for tag in tags]
    problems = [f"{name}={shortened(value)}: {why}" for name, value in given if (why := _text_problem(value))]
    problems += [f"{len(tags):,} tags are asked for; {MAX_TEXT:,} are the most"] if len(tags) > MAX_TEXT else []
    raise_all(problems)
    if not all(fits_utf8(value) for _, value in given):
        return None
    where: list[tuple[str, Sequence[Any]]] = []
    if task is not None:
        where.append(("task = ?", [task]))
    if method is not None:
        where.append(("method LIKE ? ESCAPE '\\'", [_anywhere(method)]))
    if base is not None:
        where.append(("(base LIKE ? ESCAPE '\\' OR content LIKE ? ESCAPE '\\')", [_anywhere(base), _start(base)]))
    where += [("name IN (SELECT name FROM tags WHERE tag = ?)", [tag]) for tag in dict.fromkeys(tags)]
    words = dict.fromkeys((text or "").lower().split())
    where += [("text LIKE ? ESCAPE '\\'", [_anywhere(word)]) for word in words]
    return where


def _text_problem(value: object) -> str | None:
    """Why this cannot be searched for, or None."""
    if not isinstance(value, str):
        return "must be a text"
    return f"has {len(value):,} characters; {MAX_TEXT:,} are the most" if len(value) > MAX_TEXT else None


def _anywhere(text: str) -> str:
    return f"%{_start(text)}"


def _start(text: str) -> str:
    for sign in "\\%_":
        text = text.replace(sign, f"\\{sign}")
    return f"{text}%"
