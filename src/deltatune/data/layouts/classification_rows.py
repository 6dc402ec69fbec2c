"""Rows of classification, multilabel classification and regression: labels converted, texts and labels checked."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_values import has_words, is_missing, is_numeric
from deltatune.data.dataset import Data, LabelKind, Row, Splits, texts
from deltatune.data.formats.file_format import first_few
from deltatune.data.layouts.label_values import (
    LARGEST,
    convert_labels,
    infer_kind,
    list_faults,
    name_separator,
    not_finite,
    sort_classes,
)
from deltatune.data.layouts.layout import (
    FILL_IN,
    Converted,
    ConvertedRows,
    Layout,
    count,
    in_rows,
    missing_values,
    short,
)
from deltatune.data.media.media_files import MediaFile
from deltatune.data.text_forms import FORM, same_forms

IMBALANCE = 2.0
"""Size of the largest class over that of the smallest, from which on it is remarked."""
SMALL_CLASS = 5
"""Training rows of a class below which it is hardly learned."""
COARSE = 0.9
"""Share of the different numbers that float32 keeps apart, below which it is remarked."""
LEAK = 0.2
"""Share of training rows with their label in the text, above which it is remarked."""
ROWS_OF_SEVERAL = 20
"""Rows of a split from which on one class alone is remarked."""
MISSING_WORDS = {"nan", "null", "n/a", "#n/a", "<na>", "na"}
"""What programs write where there is no value."""
RESCALE = "Divide the column by a constant, or mend them."
MIN_LEAK_LENGTH = 3
"""Characters of a label that is searched for in the texts."""


def convert(splits: Splits, columns: Columns, kinds: Sequence[LabelKind]) -> Converted:
    """Labels as class names, lists of them or numbers, in all rows that have text and label.

    The kind is inferred from all labels together, unless `kinds` has only one. Where the inferred kind is not among
    `kinds`, the labels are classes.
    """
    label, notes = columns.label, []
    forced = kinds[0] if len(kinds) == 1 else None
    present = [row[label] for rows in splits.values() for row in rows if not is_missing(row.get(label))]
    inferred = infer_kind(present, label, forced)
    if present and inferred[0] == "many":
        splits = {split: [_with_empty_list(row, label) for row in rows] for split, rows in splits.items()}
    problems = [p for split, rows in splits.items() for p in missing_values(rows, split, columns.text, label)]
    numbered = {split: list(enumerate(rows, start=1)) for split, rows in splits.items()}
    if problems:
        numbered = {s: [(i, row) for i, row in rows if _is_complete(row, columns)] for s, rows in numbered.items()}
    numbered = _finite(numbered, label, forced == "number", problems)
    labels = [row[label] for rows in numbered.values() for _, row in rows]
    kind, note = inferred if labels == present else infer_kind(labels, label, forced)
    if kind not in kinds:
        kind, note = "classes", None
    if kind == "number":
        numbered = _small(numbered, label, problems)
    splits = {split: [row for _, row in rows] for split, rows in numbered.items()}
    notes = [note] if note else []
    labels = [row[label] for rows in splits.values() for row in rows]
    faults = list_faults(labels, kind, forced is not None)
    problems += [f"column {label!r} {fault}" for fault in faults]
    checkable = not faults
    separator = name_separator(labels) if kind == "many" else None
    converted: Splits = {}
    for split, rows in splits.items():
        try:
            values = convert_labels([row[label] for row in rows], label, kind, separator)
            converted[split] = [
                row if row[label] is value else {**row, label: value} for row, value in zip(rows, values, strict=True)
            ]
        except DeltatuneError as error:
            problems.append(f"{split}: {error}")
            converted[split] = []
            checkable = False
    return Converted(converted, columns, kind, problems, notes, checkable)


Numbered = dict[str, list[tuple[int, Row]]]
"""Split -> its rows, each with its number in the file."""


def _finite(numbered: Numbered, label: str, forced: bool, problems: list[str]) -> Numbered:
    """The rows without those whose label is no finite number where the others are, each of which is a problem."""
    bad = not_finite([row[label] for rows in numbered.values() for _, row in rows], forced)
    if not bad:
        return numbered
    places = (i for i, _ in enumerate(row for rows in numbered.values() for row in rows))
    faults = {split: [(number, row) for number, row in rows if next(places) in bad] for split, rows in numbered.items()}
    return _without(numbered, faults, label, "has no finite number", FILL_IN, problems)


def _small(numbered: Numbered, label: str, problems: list[str]) -> Numbered:
    """The rows without those whose number is too large to train on, each of which is a problem."""
    faults = {
        split: [(number, row) for number, row in rows if is_numeric(row[label]) and abs(float(row[label])) > LARGEST]
        for split, rows in numbered.items()
    }
    return _without(
        numbered, faults, label, f"has numbers beyond {LARGEST:g}, too large to train on,", RESCALE, problems
    )


def _without(numbered: Numbered, faults: Numbered, label: str, fault: str, fix: str, problems: list[str]) -> Numbered:
    """The rows that have no fault; the others are added to `problems` with their numbers and labels."""
    for split, rows in faults.items():
        if rows:
            shown = first_few(list(dict.fromkeys(short(row[label], 30) for _, row in rows)), 3)
            where = in_rows([number for number, _ in rows])
            problems.append(f"{split}: column {label!r} {fault} in {where}: {shown}. {fix}")
    bad = {split: {number for number, _ in rows} for split, rows in faults.items()}
    return {split: [pair for pair in rows if pair[0] not in bad[split]] for split, rows in numbered.items()}


def _with_empty_list(row: Row, label: str) -> Row:
    """A row whose blank cell means no class at all."""
    blank = isinstance(row.get(label), str) and is_missing(row[label])
    return {**row, label: "[]"} if blank else row


def _is_complete(row: Row, columns: Columns) -> bool:
    inputs = [row.get(column) for column in columns.text]
    if any(isinstance(value, MediaFile) and not os.path.exists(value) for value in inputs):
        return False
    return not is_missing(row.get(columns.label)) and all(map(has_words, inputs))


def unchanged(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Rows without labels as they are: the task itself reads their texts."""
    return ConvertedRows(list(rows))


def class_names(splits: Splits, kind: LabelKind, label: str) -> tuple[str, ...]:
    """The class names of the training rows; none for numbers."""
    if kind == "number":
        return ()
    return sort_classes({*_class_counts(splits["train"], label)})


def _class_counts(rows: Sequence[Row], label: str) -> Counter[Any]:
    """How many rows have each class."""
    values = [row.get(label) for row in rows]
    try:
        return Counter(values)
    except TypeError:  # lists of classes
        return Counter(name for value in values for name in _names(value))


def _names(value: Any) -> tuple[Any, ...]:
    """The classes of a row, sorted: one, or any number of them."""
    return tuple(sorted(value)) if isinstance(value, list) else (value,)


# --- checks ---


def problems(data: Data) -> list[str]:
    """One label in all training rows, and classes that train does not have."""
    return _single_label(data) + (_unseen_classes(data) if data.kind != "number" else _unusable_numbers(data))


def remarks(data: Data) -> list[str]:
    """Equal texts with different labels, classes of different size, labels that occur in the text."""
    return (
        _contradictions(data)
        + (_imbalance(data) + _one_class(data) if data.kind == "classes" else [])
        + (_missing_words(data) if data.inputs == "text" else [])
        + (_coarse(data) if data.kind == "number" else _leak(data) if data.inputs == "text" else [])
    )


def _single_label(data: Data) -> list[str]:
    labels = (row.get(data.label) for row in data.train)
    values = {_names(value) for value in (labels if data.kind == "many" else set(labels))}
    if len(values) != 1 or len(data.train) < LAYOUT.min_rows:
        return []
    things = {"classes": "one class only", "number": "one value only", "many": "the same classes in every row"}
    (only,) = values
    shown = list(only) if data.kind == "many" else only[0]
    return [
        f"train: column {data.label!r} has {things[data.kind]}, {shown!r}: nothing can be learned. "
        "Is it the right column?"
    ]


def _unusable_numbers(data: Data) -> list[str]:
    """Numbers of hand-made rows that are too large or not finite, and numbers that are one number in float32."""
    sentences = []
    for split, rows in data.splits().items():
        wrong = [i for i, row in enumerate(rows, start=1) if not abs(float(row[data.label])) <= LARGEST]
        if wrong:
            sentences.append(
                f"{split}: column {data.label!r} has numbers beyond {LARGEST:g} in {in_rows(wrong)}. {RESCALE}"
            )
    values = [float(row[data.label]) for row in data.train]
    if not sentences and len(set(values)) > 1 and len(set(array("f", values))) == 1:
        sentences.append(
            f"train: the numbers of column {data.label!r} are one number in float32, in which training computes: "
            f"nothing can be learned. Subtract their mean, {sum(values) / len(values):.9g}, or multiply them."
        )
    return sentences


def _unseen_classes(data: Data) -> list[str]:
    """Classes that no training row has: no method can predict them."""
    seen = {*_class_counts(data.train, data.label)}
    sentences = []
    for split, rows in data.splits().items():
        counts: Counter[str] = Counter()
        for name, number in _class_counts(rows, data.label).items():
            if name and name not in seen:
                counts[str(name)] += number
        if counts:
            unseen = first_few([f"{label!r} ({count(rows, 'row')})" for label, rows in counts.most_common()])
            forms = [group for group in same_forms([*map(str, seen), *counts]) if not seen.issuperset(group)]
            meant = "".join(f" {' and '.join(map(repr, group))} differ only in {FORM}." for group in forms[:3])
            trained = first_few([repr(label) for label in sorted(map(str, seen))])
            sentences.append(
                f"{split} has labels that train does not have: {unseen}. Labels of train: {trained}.{meant} "
                "Rename or remove them, or give train rows with them."
            )
    return sentences


def _contradictions(data: Data) -> list[str]:
    """Equal training texts with different labels."""
    first: dict[tuple[str, ...], object] = {}
    differing = 0
    for row in data.train:
        names = _names(row.get(data.label))
        differing += first.setdefault(texts(row, data.text), names) != names
    sentence = f"{differing} of {len(data.train)} train rows repeat an earlier text with another label."
    return [sentence] if differing else []


def _coarse(data: Data) -> list[str]:
    """Different numbers that float32 cannot tell apart: they are far from zero, close together or next to zero."""
    values = {float(row[data.label]) for row in data.train}
    kept = len(set(array("f", values)))
    sentence = (
        f"train has {len(values)} different numbers, {kept} in float32, in which training computes: "
        "subtract a constant from the column, or multiply it."
    )
    return [sentence] if kept < COARSE * len(values) else []


def _imbalance(data: Data) -> list[str]:
    """Classes of different size, with the score of always predicting the largest class."""
    counts = Counter(str(row[data.label]) for row in data.train).most_common()
    if len(counts) < 2 or counts[0][1] < IMBALANCE * counts[-1][1]:
        return []
    (most, largest), (least, smallest) = counts[0], counts[-1]
    small = [f"{name!r} ({rows})" for name, rows in counts if rows < SMALL_CLASS]
    rate = sum(row[data.label] == most for row in data.test) / max(1, len(data.test))
    return [
        f"classes differ in size: {most!r} has {count(largest, 'train row')}, {least!r} has {smallest}. "
        f"Always predicting {most!r} is right on {rate:.1%} of test."
        + (f" Classes of fewer than {SMALL_CLASS} train rows: {first_few(small)}." if len(small) > 1 else "")
    ]


def _one_class(data: Data) -> list[str]:
    """Splits with one class where train has several: their labels may stand for labels that are not public."""
    sentences = []
    for split, rows in data.splits().items():
        names = {row[data.label] for row in rows}
        if len(names) == 1 < len(data.labels) and len(rows) >= ROWS_OF_SEVERAL:
            (only,) = names
            sentences.append(
                f"{split}: all rows have the label {only!r}, train has {len(data.labels)} classes: is it real?"
            )
    return sentences


def _missing_words(data: Data) -> list[str]:
    """Classes and texts that are what programs write where there is no value."""
    counts = sum((_class_counts(rows, data.label) for rows in data.splits().values()), Counter[Any]())
    sentences = [
        f"the class {name!r} ({count(rows, 'row')}) is what programs write for a missing value: is it one?"
        for name, rows in counts.items()
        if str(name).strip().lower() in MISSING_WORDS
    ]
    for split, rows in data.splits().items():
        numbers = [
            i
            for i, row in enumerate(rows, start=1)
            if any(len(text) < 6 and text.strip().lower() in MISSING_WORDS for text in texts(row, data.text))
        ]
        if numbers:
            sentences.append(f"{split}: a text is what programs write for a missing value, in {in_rows(numbers)}.")
    return sentences


def _leak(data: Data) -> list[str]:
    """Training rows with their own label as a word in their text."""
    patterns = {
        label: re.compile(rf"\b{re.escape(label)}\b", re.IGNORECASE)
        for label in data.labels
        if len(label) >= MIN_LEAK_LENGTH
    }
    leaking = sum(
        any(patterns[n].search(t) for n in _names(row.get(data.label)) if n in patterns for t in texts(row, data.text))
        for row in data.train
    )
    rate = leaking / max(1, len(data.train))
    sentence = f"the label itself occurs in the text of {rate:.0%} of the train rows: does it leak?"
    return [sentence] if rate > LEAK else []


LAYOUT = Layout(convert, unchanged, label_names=class_names, problems=problems, remarks=remarks)
