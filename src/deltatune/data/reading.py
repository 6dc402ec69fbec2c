"""A source and the columns' names -> `Data`: labelled rows in three splits, checked, with every guess noted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data.checks import gaps, has_text, problems
from deltatune.data.columns import Columns, choose, names_of
from deltatune.data.formats import Row, read_rows
from deltatune.data.labels import Kind, convert, in_order, is_absent, kind_of
from deltatune.data.sources import open_source
from deltatune.data.splits import Data, complete, first_by_hash

__all__ = ["Data", "Row", "read", "read_rows"]

Parts = dict[str, list[Row]]


def read(
    source: str | Path,
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    kind: Kind | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    limit: int | None = None,
) -> Data:
    """Read labelled data, make the splits that are missing, and check everything before anything is trained.

    `source` is a CSV, TSV, JSONL, JSON or Parquet file; a folder with files named train, dev (val, valid, validation)
    and test; the name of a data set on the hub (`owner/name` or `owner/name:configuration`); or "python-docs", the
    built-in data. `text` names one column or a pair, `label` the label column; what is not named is guessed where there
    is no doubt. `kind` says "classes" (classification) or "number" (regression) where the guess would be wrong.
    `validation` and `test` are further files. `limit` keeps that many training rows, the first by hash of their text.
    Labels in the returned rows are class names (strings) or floats; other columns are as they were read.

    Raises DeltatuneError with everything that is wrong, once.
    """
    if limit is not None and limit < 1:
        raise DeltatuneError(f"--limit {limit}: the number of training rows to keep must be at least 1.")
    found = open_source(source, validation=validation, test=test)
    text = (text,) if isinstance(text, str) else tuple(text)
    columns = choose(found.parts["train"], text or found.text, label or found.label, found.header)
    parts, unlabelled = _without_unlabelled_test(found.parts, columns) if test is None else (found.parts, [])
    raise_all(_absent_columns(parts, columns), f"{found.origin}:")
    wrong = [problem for split, rows in parts.items() for problem in gaps(rows, split, columns.text, columns.label)]
    parts = {split: [row for row in rows if _is_whole(row, columns)] for split, rows in parts.items()}
    parts, chosen, guessed = _with_labels(parts, columns.label, kind, wrong)
    parts, made = complete(parts, columns.text)
    if limit is not None:
        parts["train"] = first_by_hash(parts["train"], columns.text, columns.label, limit)
    notes = (*columns.notes, *unlabelled, *guessed, *made)
    names = in_order({row[columns.label] for row in parts["train"]}) if chosen == "classes" else ()
    data = Data(found.name, found.origin, columns.text, columns.label, chosen, names, **parts, notes=notes)
    kept = "" if limit is None else f" with --limit {limit}"
    raise_all(wrong + problems(data), f"{found.origin}{kept} cannot be used as it is:")
    return data


def _without_unlabelled_test(parts: Parts, columns: Columns) -> tuple[Parts, list[str]]:
    """Leave out a test split without any label: benchmarks publish theirs so, and nothing can be scored on it."""
    test = parts.get("test", [])
    if not test or any(not is_absent(row.get(columns.label)) for row in test):
        return parts, []
    kept = {split: rows for split, rows in parts.items() if split != "test"}
    return kept, [f"the {len(test)} test rows have no label, so they are not used"]


def _absent_columns(parts: Parts, columns: Columns) -> list[str]:
    """Columns that the training rows have and another split lacks altogether."""
    return [
        f"{split} has no column {column!r}, train has. The columns of {split} are: {', '.join(names)}."
        for split, names in ((split, names_of(rows)) for split, rows in parts.items())
        for column in (*columns.text, columns.label)
        if column not in names
    ]


def _is_whole(row: Row, columns: Columns) -> bool:
    return not is_absent(row.get(columns.label)) and all(has_text(row, column) for column in columns.text)


def _with_labels(parts: Parts, label: str, forced: Kind | None, wrong: list[str]) -> tuple[Parts, Kind, list[str]]:
    """The rows with class names or numbers for labels, which of the two, and a note if that was a guess.

    Where labels cannot be converted nothing further can be checked: raises together with what was `wrong` before.
    """
    kind, note = kind_of([row[label] for rows in parts.values() for row in rows], label, forced)
    converted: Parts = {}
    unusable = []
    for split, rows in parts.items():
        try:
            values = convert([row[label] for row in rows], label, kind)
        except DeltatuneError as error:
            unusable.append(f"{split}: {error}")
        else:
            converted[split] = [{**row, label: value} for row, value in zip(rows, values, strict=True)]
    raise_all(wrong + unusable if unusable else [])
    return converted, kind, [note] if note else []
