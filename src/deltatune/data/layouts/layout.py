"""`Layout`: how the rows of one task are converted and checked; and `RowProblems`, which collects faults of rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_names import normalised
from deltatune.data.columns.column_values import has_words, is_missing, is_strings
from deltatune.data.dataset import Data, LabelKind, Row, Splits
from deltatune.data.formats.file_format import SHOWN, first_few
from deltatune.data.media.media_files import MediaFile, header_fault, names_of_media
from deltatune.data.splits import complete

PARAGRAPH = "paragraph"
"""Name of a text column on which several rows have questions."""

FILL_IN = "Fill in or remove them."


@dataclass(frozen=True)
class ConvertedRows:
    """The rows of one split in the form of their task."""

    rows: list[Row]
    """The rows that can be used."""
    problems: list[str] = field(default_factory=list)
    """Why the others cannot be used, one sentence for each fault."""
    notes: list[str] = field(default_factory=list)
    """What was inferred or changed."""


@dataclass(frozen=True)
class Converted:
    """All splits in the form of their task."""

    splits: Splits
    """The rows that can be used."""
    columns: Columns
    """The text and label columns of the converted rows."""
    kind: LabelKind
    """What their labels are."""
    problems: list[str] = field(default_factory=list)
    """Why the other rows cannot be used, one sentence for each fault."""
    notes: list[str] = field(default_factory=list)
    """What was inferred or changed."""
    checkable: bool = True
    """False where the labels of a split could not be converted, so that checks of whole splits would mislead."""


ConvertRows = Callable[[Sequence[Row], str, Sequence[str], str | None], ConvertedRows]
"""(rows, name of the split, text columns, label column or None for unlabelled rows) -> converted rows."""


def by_text(splits: Splits, columns: Columns) -> tuple[Splits, list[str]]:
    """All three splits, the missing ones made by hash of the text columns.

    Rows on one paragraph, the first of several texts, stay together: otherwise it would have been read in training.
    """
    shared = len(columns.text) > 1 and normalised(columns.text[0]) == PARAGRAPH
    return complete(splits, columns.text[:1] if shared else columns.text)


def no_labels(splits: Splits, kind: LabelKind, label: str) -> tuple[str, ...]:
    """No label names."""
    return ()


def nothing(data: Data) -> list[str]:
    """No problems or remarks."""
    return []


@dataclass(frozen=True)
class Layout:
    """What the rows of one task look like. Each task's layout is the last thing in its file."""

    convert: Callable[[Splits, Columns, Sequence[LabelKind]], Converted]
    """(splits, columns, allowed kinds of label) -> all splits in the form of the task."""
    convert_rows: ConvertRows
    """The same for the rows of one split, labelled or not."""
    complete: Callable[[Splits, Columns], tuple[Splits, list[str]]] = by_text
    """(converted splits, columns) -> all three splits, and notes on those that were made."""
    label_names: Callable[[Splits, LabelKind, str], tuple[str, ...]] = no_labels
    """(all splits, kind, label column) -> the class names or tags."""
    problems: Callable[[Data], list[str]] = nothing
    """What makes training or scoring on converted rows impossible or meaningless."""
    remarks: Callable[[Data], list[str]] = nothing
    """What makes a score on them mean less than it seems."""
    min_rows: int = 2
    """Rows that each split needs."""
    same_columns: bool = True
    """Whether every split must have the text and label columns of train."""


def each_split(convert_rows: ConvertRows, kind: LabelKind) -> Callable[..., Converted]:
    """A `Layout.convert` that converts one split after the other."""

    def convert(splits: Splits, columns: Columns, kinds: Sequence[LabelKind]) -> Converted:
        converted = {s: convert_rows(rows, s, columns.text, columns.label or None) for s, rows in splits.items()}
        problems = [problem for split in converted.values() for problem in split.problems]
        notes = [note for split in converted.values() for note in split.notes]
        return Converted({s: split.rows for s, split in converted.items()}, columns, kind, problems, notes)

    return convert


# --- faults of rows ---


@dataclass
class RowProblems:
    """The faults of the rows of one split: one sentence for each kind of fault, with the numbers of its rows."""

    split: str
    """The name of the split, which begins each sentence."""
    rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """(fault, fix) -> the rows that have it, counted from 1."""
    examples: dict[str, str] = field(default_factory=dict)
    """Fault -> what its first row looks like."""

    def add(self, number: int, fault: str, fix: str, example: str = "") -> None:
        """Row `number` has a fault."""
        self.rows.setdefault((fault, fix), []).append(number)
        self.examples.setdefault(fault, example)

    def sentences(self) -> list[str]:
        """One for each fault: split, fault, how many rows and which, an example, the fix."""
        return [
            f"{self.split}: {fault} in {in_rows(numbers)}{self._example(fault)}. {fix}"
            for (fault, fix), numbers in self.rows.items()
        ]

    def _example(self, fault: str) -> str:
        return f": {self.examples[fault]}" if self.examples[fault] else ""


def missing_values(rows: Sequence[Row], split: str, text: Sequence[str], label: str) -> list[str]:
    """Texts and labels that are missing, with row numbers counted from 1 within `rows`."""
    problems = []
    for column in text:
        empty = [i for i, row in enumerate(rows, start=1) if not has_words(row.get(column))]
        others = [i for i in empty if not _is_blank(rows[i - 1].get(column))]
        if others:
            shown = short(rows[others[0] - 1][column], 30)
            problems.append(f"{split}: column {column!r} is no text in {in_rows(others)}: {shown}. Write strings.")
            empty = sorted({*empty} - {*others})
        if empty:
            problems.append(f"{split}: column {column!r} has no text in {in_rows(empty)}. {FILL_IN}")
        problems += media_faults(rows, split, column)
    unlabelled = [i for i, row in enumerate(rows, start=1) if is_missing(row.get(label))]
    if unlabelled:
        problems.append(f"{split}: column {label!r} has no label in {in_rows(unlabelled)}. {FILL_IN}")
    return problems


def media_faults(
    rows: Sequence[Row], split: str, column: str, fault: Callable[[MediaFile], str | None] = header_fault
) -> list[str]:
    """Files of a column that are missing or cannot be opened, with row numbers counted from 1 within `rows`."""
    values = [row.get(column) for row in rows]
    if not any(isinstance(value, MediaFile) for value in values):
        kind = names_of_media(values)
        if kind == "text" or not rows:
            return []
        return [
            f"{split}: column {column!r} names {kind} files ({short(values[0])}), and none of them exists: paths are "
            "relative to the folder of the file that names them."
        ]
    files = [(i, value) for i, value in enumerate(values, start=1) if isinstance(value, MediaFile)]
    absent = [(i, file) for i, file in files if not os.path.exists(file)]
    problems = []
    if absent:
        shown = first_few([repr(file.given) for _, file in absent], 3)
        where = in_rows([i for i, _ in absent])
        problems.append(f"{split}: column {column!r} names files that do not exist in {where}: {shown}. {FILL_IN}")
    broken = [(i, found) for i, file in files if os.path.exists(file) and (found := fault(file))]
    if broken:
        where = in_rows([i for i, _ in broken])
        shown = "; ".join(found for _, found in broken[:SHOWN])
        problems.append(f"{split}: column {column!r} has files that cannot be used in {where}: {shown}")
    return problems


def _is_blank(value: object) -> bool:
    """Whether a text is missing, and not something else such as a number."""
    return is_missing(value) or is_strings(value) or isinstance(value, str)


def in_rows(numbers: Sequence[int]) -> str:
    """ "1 row (7)" or "12 rows (3, 4, 9, 10, 17, and 7 more)"."""
    return f"{count(len(numbers), 'row')} ({first_few([str(number) for number in numbers])})"


def count(number: int, thing: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def short(value: object, length: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= length else shown[: length - 4] + "..." + shown[-1]
