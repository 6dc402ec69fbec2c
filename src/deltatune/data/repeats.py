"""Repeats: rows and labels that occur more than once, exactly or but for case, blanks and Unicode form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deltatune.core.input_validation.strict_json import MAX_DIGITS
from deltatune.data.columns.column_names import REJECTED
from deltatune.data.columns.column_values import is_numeric
from deltatune.data.dataset import Data, Row, texts
from deltatune.data.formats.file_format import first_few
from deltatune.data.layouts.layout import count, in_rows
from deltatune.data.media.media_files import MediaFile
from deltatune.data.text_forms import FORM, near_form, same_forms


@dataclass(frozen=True)
class Keys:
    """Hashes of the rows of one split, in their order: 64 bits, so that long documents are not kept twice."""

    texts: list[int]
    """Of the texts as they are."""
    forms: list[int]
    """Of their near forms."""
    rows: list[int]
    """Of the texts and the label."""


def repeat_remarks(data: Data) -> list[str]:
    """Rows in two splits, rows that repeat an earlier one of their split, exactly or nearly; labels of one form."""
    keys = {split: _keys(data, rows) for split, rows in data.splits().items()}
    return (
        [sentence for split, other in _pairs(data) for sentence in _in_two_splits(split, other, keys)]
        + [sentence for split in keys for sentence in _repeated(split, keys[split])]
        + _labels_of_one_form(data)
    )


def _keys(data: Data, rows: list[Row]) -> Keys:
    exact, forms, whole = [], [], []
    for row in rows:
        inputs = _contents(texts(row, data.text), [row[column] for column in data.text])
        exact.append(hash(inputs))
        forms.append(hash(tuple(map(near_form, inputs))))
        whole.append(hash((inputs, repr(_label(row, data)))))
    return Keys(exact, forms, whole)


def _contents(inputs: tuple[str, ...], values: list[Any]) -> tuple[str, ...]:
    """What rows are told apart by: their texts, and of files the bytes."""
    return tuple([
        value.digest if isinstance(value, MediaFile) else text for text, value in zip(inputs, values, strict=True)
    ])  # fmt: skip


def _label(row: Row, data: Data) -> Any:
    label = row.get(data.label)
    return (
        row.get("references") if data.kind == "text" else [label, row.get(REJECTED)] if data.kind == "pairs" else label
    )


def _pairs(data: Data) -> Iterator[tuple[str, str]]:
    """Every split that is scored, and each one before it that it must not share rows with."""
    yield "validation", "train"
    for test in ("test", *data.more_tests):
        yield from ((test, "train"), (test, "validation"))


def _in_two_splits(split: str, other: str, keys: dict[str, Keys]) -> list[str]:
    """Texts of one split that occur in another."""
    exact, forms = set(keys[other].texts), set(keys[other].forms)
    shared, near = [], []
    for number, (text, form) in enumerate(zip(keys[split].texts, keys[split].forms, strict=True), start=1):
        if text in exact:
            shared.append(number)
        elif form in forms:
            near.append(number)
    total = len(keys[split].texts)
    sentences = []
    for numbers, how in ((shared, "also occur"), (near, f"also occur, but for {FORM},")):
        if numbers:
            shown = first_few([str(number) for number in numbers])
            sentences.append(
                f"{len(numbers)} of {total} {split} rows ({shown}) {how} in {other}: scores on them measure memory."
            )
    return sentences


def _repeated(split: str, keys: Keys) -> list[str]:
    """Rows that repeat an earlier one of their split: with the same label, or in near form."""
    seen_texts: set[int] = set()
    seen_forms: set[int] = set()
    seen_rows: set[int] = set()
    repeats, near = [], []
    for number, (text, form, row) in enumerate(zip(keys.texts, keys.forms, keys.rows, strict=True), start=1):
        if row in seen_rows:
            repeats.append(number)
        elif form in seen_forms and text not in seen_texts:
            near.append(number)
        seen_texts.add(text)
        seen_forms.add(form)
        seen_rows.add(row)
    sentences = []
    for numbers, what in ((repeats, "an earlier row"), (near, f"the text of an earlier row, but for {FORM}")):
        if numbers:
            verb = "repeats" if len(numbers) == 1 else "repeat"
            sentences.append(f"{split}: {in_rows(numbers)} {verb} {what}.")
    return sentences


def _labels_of_one_form(data: Data) -> list[str]:
    """Class names and tags that differ only in form, with the most frequent of them, which the others may mean."""
    if data.kind not in ("classes", "many", "tags"):
        return []
    counts = Counter(name for rows in data.splits().values() for row in rows for name in _names(row.get(data.label)))
    thing, unit = ("tags", "word") if data.kind == "tags" else ("labels", "row")
    numbers: dict[float, list[str]] = {}
    for name in counts:
        if is_numeric(name) and math.isfinite(number := _number(name)):
            numbers.setdefault(number, []).append(name)
    spelled = [names for names in numbers.values() if len({near_form(name) for name in names}) > 1]
    groups = [(f"differ only in {FORM}", names) for names in same_forms(counts)]
    groups += [("are one number", names) for names in spelled]
    sentences = []
    for how, group in groups:
        names = sorted(group, key=lambda name: (-counts[name], name != name.strip(), name))
        listed = first_few([f"{name!r} ({count(counts[name], unit)})" for name in names])
        sentences.append(
            f"the {thing} {listed} {how}: they are learned as {len(names)} classes. "
            f"If they are one, write {names[0]!r} for all."
        )
    return sentences


def _number(name: str) -> float:
    """The number that a text spells; whole ones exactly, for a float joins long identifiers."""
    return int(name) if name.strip().lstrip("+-").isdecimal() and len(name) <= MAX_DIGITS else float(name)


def _names(value: Any) -> list[str]:
    """The class names or tags of a row: one, or any number of them."""
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
