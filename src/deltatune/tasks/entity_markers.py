"""Markers around the entities of a text, for relation extraction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.data.columns.column_values import has_text
from deltatune.data.layouts.qa_rows import is_whole
from deltatune.tasks.row_columns import column, raise_listed
from deltatune.tasks.task import Row

MARKERS = (("@", "*"), ("#", "^"))
"""The marker of each entity and the one of its type: the typed entity marker (punct) of Zhou and Chen 2021,
https://arxiv.org/abs/2102.01373. Ordinary tokenizers have them all."""


@dataclass(frozen=True)
class Mark:
    """An entity that is marked."""

    column: str
    """Its column: the entity's text, its characters [start, end], or the numbers of its words."""
    type_column: str = ""
    """The column of its type; "" marks it without one."""

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Read `COLUMN` or `COLUMN:TYPE_COLUMN`."""
        name, _, type_column = text.partition(":")
        return cls(name, type_column)


@dataclass(frozen=True)
class MarkedText:
    """A text with its entities marked."""

    text: str
    end: int
    """Character after the last marker."""


def mark_problems(mark: Sequence[str], text: Sequence[str]) -> list[str]:
    """What is wrong with the fields of a task that marks entities."""
    if not mark:
        return []
    problems = []
    if len(mark) > len(MARKERS):
        problems.append(f"mark must name one or two columns of entities, not {len(mark)}")
    if len(text) > 2:
        problems.append(f"entities are marked in the first of at most two text columns, not of {len(text)}")
    marks = [Mark.parse(name) for name in mark]
    if not all(each.column for each in marks):
        problems.append(f"mark={list(mark)}: each is a column, or COLUMN:TYPE_COLUMN")
    if len({each.column for each in marks}) < len(marks):
        problems.append(f"mark names a column twice: {', '.join(mark)}")
    problems += [
        f"mark: {each.column!r} is the text itself, not an entity in it" for each in marks if each.column in text
    ]
    return problems


def check_markers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DeltatuneError if a marker is unknown to the tokenizer."""
    unknown = [
        sign
        for sign in (sign for pair in MARKERS for sign in pair)
        if tokenizer.unk_token_id is not None
        and tokenizer.unk_token_id in tokenizer(sign, add_special_tokens=False)["input_ids"]
    ]
    if unknown:
        raise DeltatuneError(
            f"entities are marked with {' '.join(sign for pair in MARKERS for sign in pair)}, and this tokenizer does "
            f"not know {' '.join(unknown)}. Use a model whose vocabulary has punctuation"
        )


def mark_entities(rows: Sequence[Row], text: str, mark: Sequence[str]) -> list[MarkedText]:
    """The texts of a column with their entities marked: `@ * person * Bill @ was born in # ^ city ^ Seattle #`.

    The text is a string, or a list of words, which are joined by blanks. An entity is its text, which must occur once;
    `[start, end]`, characters of a string (the end is not part of it); numbers of words of a list, one after another;
    or an object with `start` and `end`, or with `text`. Raises DeltatuneError listing the rows whose entities are not
    there, or are there several times.
    """
    marks = [Mark.parse(name) for name in mark]
    texts = column(rows, text)
    entities = [column(rows, each.column) for each in marks]
    types = [column(rows, each.type_column) if each.type_column else [None] * len(rows) for each in marks]
    marked, problems = [], []
    for i, value in enumerate(texts):
        spans = []
        for each, values, kinds in zip(marks, entities, types, strict=True):
            place = _place(value, values[i])
            if isinstance(place, str):
                problems.append(f"row {i}: {each.column} {_short(values[i])} {place}")
            elif each.type_column and not has_text(kinds[i]):
                problems.append(f"row {i}: {each.type_column} is {kinds[i]!r}, not the name of a type")
            else:
                spans.append((*place, kinds[i]))
        if len(spans) == len(marks):
            marked.append(_insert(_joined(value)[0], spans))
    raise_listed(problems, f"entities are looked for in the column {text!r}; [start, end] says where one is")
    return marked


def _insert(text: str, spans: Sequence[tuple[int, int, str | None]]) -> MarkedText:
    """The text with markers; of two entities that begin or end together, the longer one is outside."""
    pieces: list[tuple[int, int, int, str]] = []  # position, order there, order of equals, marker
    for number, ((start, end, kind), (sign, type_sign)) in enumerate(zip(spans, MARKERS, strict=False)):
        typed = f"{type_sign} {' '.join(kind.replace('_', ' ').lower().split())} {type_sign} " if kind else ""
        length = end - start
        pieces.append((start, 1, -length * 2 + number, f"{sign} {typed}"))
        pieces.append((end, 0, length * 2 - number, f" {sign}"))
    out, last = "", 0
    for position, opens, _, marker in sorted(pieces):
        out += text[last:position]
        last = position
        if opens:
            out += ("" if not out or out[-1].isspace() else " ") + marker
        else:
            out += marker
    rest = text[last:]
    return MarkedText(out + (" " if rest and not rest[0].isspace() else "") + rest, len(out))


def _place(text: Any, entity: Any) -> tuple[int, int] | str:
    """The characters of an entity in the joined text, or what is wrong with it."""
    whole, words = _joined(text)
    if isinstance(entity, Mapping):
        if "start" in entity and "end" in entity:
            entity = [entity["start"], entity["end"]]
        else:
            entity = next((entity[name] for name in ("text", "word", "name") if name in entity), entity)
    if isinstance(entity, str) and entity.strip().startswith("[") and entity.strip() not in whole:
        numbers = re.fullmatch(r"\[\s*\d{1,9}(\s*,\s*\d{1,9})*\s*\]", entity.strip())
        entity = [int(number) for number in re.findall(r"\d+", entity)] if numbers else entity  # a cell of a CSV file
    if isinstance(entity, str):
        return _occurrence(whole, entity)
    if not isinstance(entity, (list, tuple)) or not entity or not all(type(number) is int for number in entity):
        return "is neither a text nor numbers"
    if words is None:
        start, end = (entity[0], entity[1]) if len(entity) == 2 else (-1, -1)
        inside = 0 <= start < end <= len(whole) and bool(whole[start:end].strip())
        return (start, end) if inside else f"is not [start, end] in a text of {len(whole)} characters"
    numbers_of = list(entity)
    if numbers_of != list(range(numbers_of[0], numbers_of[0] + len(numbers_of))):
        return "is not a list of words that follow one another"
    if not 0 <= numbers_of[0] <= numbers_of[-1] < len(words):
        return f"is outside of the text's {len(words)} words"
    return words[numbers_of[0]][0], words[numbers_of[-1]][1]


def _occurrence(text: str, entity: str) -> tuple[int, int] | str:
    """The only place of an entity, as whole words if it occurs so."""
    entity = entity.strip()
    if not entity:
        return "is empty"
    places = [match.start() for match in re.finditer(f"(?={re.escape(entity)})", text)]
    if not places:
        near = nearest(entity, text.split())
        return f"does not occur in the text{near}: {_short(text)}"
    whole = [start for start in places if is_whole(text, start, start + len(entity))] or places
    if len(whole) > 1:
        at = ", ".join(map(str, whole[:5]))
        return f"occurs {len(whole)} times in the text, at characters {at}: give [start, end] in its place"
    return whole[0], whole[0] + len(entity)


def _joined(text: Any) -> tuple[str, list[tuple[int, int]] | None]:
    """The text, and the characters of its words where it is a list of them."""
    if isinstance(text, str):
        return text, None
    if not isinstance(text, (list, tuple)) or not all(isinstance(word, str) for word in text):
        raise DeltatuneError(f"{_short(text)} is neither a text nor a list of words")
    places, at = [], 0
    for word in text:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(text), places


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_kept(
    cut: Mapping[int, MarkedText], texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Raise DeltatuneError listing the truncated rows whose entities were cut off."""
    problems = []
    for i, marked in cut.items():
        encoding = tokenizer(
            *texts[i], truncation="longest_first", max_length=max_length, return_offsets_mapping=True, verbose=False
        )
        sides = encoding.sequence_ids(0)
        ends = [end for (_, end), side in zip(encoding["offset_mapping"], sides, strict=True) if side == 0]
        if max(ends, default=0) < marked.end:
            problems.append(f"row {i}: an entity is cut off by max_length={max_length}")
    raise_listed(problems, "raise max_length, or shorten these texts around their entities")
