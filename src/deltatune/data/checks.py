"""Checks of whole data sets: problems, which stop training, and remarks, which do not. Each is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_names import REJECTED
from deltatune.data.dataset import Data, Row, texts
from deltatune.data.formats.file_format import SHOWN
from deltatune.data.layouts import LAYOUTS
from deltatune.data.layouts.layout import count, in_rows, missing_values
from deltatune.data.layouts.text_rows import long_rows
from deltatune.data.media.media_files import MediaFile, fault, header_fault
from deltatune.data.mixture_data import MixtureData
from deltatune.data.repeats import repeat_remarks

SMALL_SPLIT = 100
"""Rows of a split below which one row is more than a point."""

DAMAGE = {
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "replacement characters (U+FFFD), where a file was read in a wrong encoding": re.compile("\ufffd"),
    "letters such as 'Ã©' and 'â€™', UTF-8 read as another encoding": re.compile(
        "[ÂÃ][\x80-\xbf]|â€[\x80-\xbf\u2018-\u201e\u2122\u0153\u0161\u00a6\u02dc]|ï¿½|ðŸ"
    ),
    "byte-order marks (U+FEFF)": re.compile("\ufeff"),
}
"""Characters of texts that were damaged before they came here."""
ASCII_DAMAGE = [("control characters", DAMAGE["control characters"])]
"""What texts in ASCII can have."""


def problems(data: Data) -> list[str]:
    """Everything that makes training or scoring on `data` impossible or meaningless, one sentence each.

    For data that were built by hand: `read` has checked its rows while it converted them.
    """
    if data.task in ("classify", "regression"):  # its labels are converted already
        rows = data.splits().items()
        missing = [sentence for split, part in rows for sentence in missing_values(part, split, data.text, data.label)]
        return missing + split_problems(data)
    converted = LAYOUTS[data.task].convert(data.splits(), Columns(data.text, data.label), (data.kind,))
    return converted.problems + (_too_few_rows(data) if converted.problems else split_problems(data))


def file_problems(data: Data) -> list[str]:
    """Images and sounds that cannot be read to their end: `read` has told of those of columns whose header is wrong."""
    columns = [name for name in (*data.text, data.label) if name]
    values = (row.get(name) for rows in data.splits().values() for row in rows for name in columns)
    files = list(dict.fromkeys(value for value in values if isinstance(value, MediaFile)))
    faults = [found for file in files if not (data.task != "image" and header_fault(file)) and (found := fault(file))]
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return (
        [f"{len(faults)} of {len(files)} files cannot be used; mend or remove them: {'; '.join(faults[:SHOWN])}{more}"]
        if faults
        else []
    )


def split_problems(data: Data) -> list[str]:
    """What is wrong with whole splits whose rows have no faults, one sentence each."""
    return _too_few_rows(data) + _not_utf8(data) + LAYOUTS[data.task].problems(data)


def remarks(data: Data) -> list[str]:
    """What makes a score on `data` mean less than it seems, one sentence each. `data` must be without problems."""
    if isinstance(data, MixtureData):
        return [f"{name}: {remark}" for name, part in data.parts.items() for remark in remarks(part)]
    if data.task == "image":  # captions repeat, and no picture is right or wrong
        return _damaged_characters(data)
    return (
        repeat_remarks(data)
        + LAYOUTS[data.task].remarks(data)
        + _constant_columns(data)
        + (long_rows(data, lambda row: _length(row, data)) if _has_long_texts(data) else [])
        + (_small_splits(data) if data.task != "lm" else [])
        + (_damaged_characters(data) if data.inputs == "text" else [])
    )


def _too_few_rows(data: Data) -> list[str]:
    """Splits that are too small to learn from or to score on."""
    fewest = LAYOUTS[data.task].min_rows
    return [
        f"{split} has {count(len(rows), 'row')}; at least {fewest} are needed. Give more rows or a {split} file."
        for split, rows in data.splits().items()
        if len(rows) < fewest
    ]


def _small_splits(data: Data) -> list[str]:
    """Splits so small that one row moves the score by more than a point."""
    return [
        f"{split} has {len(rows)} rows: each row counts {100 / len(rows):.1f} percentage points; small differences may "
        "be chance."
        for split, rows in data.splits().items()
        if split != "train"
        if 0 < len(rows) < SMALL_SPLIT
    ]


def _constant_columns(data: Data) -> list[str]:
    """Text columns with one text in every training row, beside others."""
    columns = data.text if len(data.text) > 1 and data.task != "span" else ()
    return [
        f"train: column {column!r} has the same text in every row: it tells nothing."
        for column in columns
        if len(data.train) > 1 and all(row[column] == data.train[0][column] for row in data.train)
    ]


def _has_long_texts(data: Data) -> bool:
    """Whether a row is a text that may be too long for a model."""
    return data.task not in ("generate", "lm", "prefer") and data.inputs == "text"


def _length(row: Row, data: Data) -> int:
    """Characters of the input."""
    return sum(map(len, texts(row, data.text)))


def _damaged_characters(data: Data) -> list[str]:
    """Characters that come from a wrong encoding or from binary data."""
    columns = [*dict.fromkeys((*data.text, *_answer_columns(data)))]
    sentences = []
    for split, rows in data.splits().items():
        numbers: dict[str, list[int]] = {what: [] for what in DAMAGE}
        for number, row in enumerate(rows, start=1):
            text = "\n".join(_strings([row[column] for column in columns]))
            if text.isascii() and text.isprintable():  # nearly all, known quickly
                continue
            for what, pattern in ASCII_DAMAGE if text.isascii() else DAMAGE.items():
                if pattern.search(text):
                    numbers[what].append(number)
        sentences += [f"{split}: there are {what} in {in_rows(rows)}." for what, rows in numbers.items() if rows]
    return sentences


def _answer_columns(data: Data) -> list[str]:
    """The columns of answers that are learned as texts."""
    return [data.label, *([REJECTED] if data.kind == "pairs" else [])] if data.kind in ("text", "pairs") else []


def _not_utf8(data: Data) -> list[str]:
    """Texts and labels with half of a surrogate pair, which no tokenizer and no file takes."""
    columns = [
        *dict.fromkeys(
            (
                *data.text,
                *filter(None, [data.label]),
                *_answer_columns(data),
                *(["references"] if data.kind == "text" else []),
            )
        )
    ]
    sentences = []
    for split, rows in data.splits().items():
        for column in columns:
            values = [row.get(column) for row in rows]
            numbers = [
                i
                for i, value in enumerate(values, start=1)
                if not (type(value) is str and value.isascii()) and not _is_utf8(value)  # known without reading it
            ]
            if numbers:
                sentences.append(
                    f"{split}: column {column!r} has half of a surrogate pair, which UTF-8 cannot hold, in "
                    f"{in_rows(numbers)}. Write the whole character, or remove it."
                )
    return sentences


def _is_utf8(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    return value is None or all(map(_is_utf8, _strings([value])))


def _strings(values: Iterable[Any]) -> Iterator[str]:
    """Every string in values of any shape."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _strings(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _strings(value)
