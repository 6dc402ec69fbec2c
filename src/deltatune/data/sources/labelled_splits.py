"""Which splits of a source can be scored: published test rows often have no labels, and some rows have none anywhere.

The rule: test rows without labels are not used, and the published validation rows take their place, so that scores can
be compared with published ones; validation rows are then made of training rows. Each of these steps is a note.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.data.columns.column_names import GOLD_LABEL, NO_GOLD, REFERENCES, normalised
from deltatune.data.columns.column_values import is_missing
from deltatune.data.dataset import SPLITS, Row, Splits, columns_of
from deltatune.data.formats.file_format import first_few
from deltatune.data.sources.split_names import SPLIT_NAMES

HIDDEN = (-1, "-1", "-1.0")
"""Labels of test rows that are not public. -1.0 equals -1."""


def labelled_splits(
    splits: Splits,
    text: Sequence[str],
    label: str,
    known: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    fixed: Collection[str] = (),
) -> tuple[Splits, list[str]]:
    """The splits that can be scored, named as they are used, and notes.

    - `known`: columns whose classes the source names; a missing value there is a label that nobody knows.
    - `names`: split -> its name in the source.
    - `fixed`: splits that the user named a file for; they stay as they are.
    """
    names = {name: (names or {}).get(name, name) for name in splits}
    notes: list[str] = []
    kept: Splits = {}
    for name, rows in splits.items():
        hidden = label and name not in fixed and name.startswith("test")
        if hidden and _are_hidden(rows, label, splits["train"]):
            notes.append(f"the {len(rows)} {names[name]} rows have {_no_label(rows, label, splits['train'])}")
        elif name not in SPLITS and (reason := _unusable(rows, text, label)):
            notes.append(f"{names[name]} is not used: {reason}")
        else:
            if name in (*fixed, "validation") and label and all(_is_hidden(row.get(label)) for row in rows):
                check_labelled(rows, label, names[name])
            kept[name] = rows
    final = _final_names(kept)
    notes += _name_notes({final[name]: names[name] for name in kept if name not in fixed}, "test" in final.values())
    kept, dropped = without_unknown({final[name]: rows for name, rows in kept.items()}, label, known)
    return kept, [*notes, *dropped]


def _are_hidden(rows: Sequence[Row], label: str, train: Sequence[Row]) -> bool:
    """Whether no row has a label: it is missing, -1, which train does not have, or empty, which is rare in train."""
    if not rows:
        return False
    values = [row.get(label) for row in rows]
    if all(map(_is_missing, values)):
        return not any(row.get(REFERENCES) for row in rows)
    if all(map(_is_hidden, values)):
        return not any(_is_hidden(row.get(label)) for row in train)
    return all(map(_is_empty, values)) and sum(_is_empty(row.get(label)) for row in train) * 2 < len(train)


def _no_label(rows: Sequence[Row], label: str, train: Sequence[Row]) -> str:
    """The end of the note on rows without labels. A column that train lacks may be the label under another name."""
    known = columns_of(train)
    others = [name for name in columns_of(rows) if name not in known]
    if others and label not in columns_of(rows):
        return f"no column {label!r}, so they are not used; they have {first_few(list(map(repr, others)))} instead"
    return "no label, so they are not used"


def _is_missing(value: Any) -> bool:
    """Whether there is no value, or a list of none."""
    return bool(value) and all(map(is_missing, value)) if isinstance(value, list) else is_missing(value)


def _is_hidden(value: Any) -> bool:
    """Whether a value, or every item of a list, is -1."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_hidden, value))
    return not isinstance(value, dict) and value in HIDDEN


def _is_empty(value: Any) -> bool:
    """Whether there are no answers or references: an empty list, or the hub's object of empty lists."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(items, list) and not items for items in value.values())
    return isinstance(value, list) and not value


def _unusable(rows: Sequence[Row], text: Sequence[str], label: str) -> str:
    """Why a further split cannot be scored, or ""."""
    names = columns_of(rows)
    absent = [column for column in text if column not in names]
    if absent:
        return f"it has no column {absent[0]!r}"
    values = [row.get(label) for row in rows] if label else [""]
    if label and all(_is_missing(value) or _is_hidden(value) for value in values) and REFERENCES not in names:
        return f"its {len(rows)} rows have no label"
    return ""


def _final_names(splits: Splits) -> dict[str, str]:
    """Split -> the name under which it is used. Without a test split the first of its parts is it.

    Without any, the validation split becomes it later, and the parts of validation become parts of test now.
    """
    final = {name: name for name in splits}
    if "test" in splits:
        return final
    first = next((name for name in splits if name.startswith("test_")), None)
    if first is not None:
        return final | {first: "test"}
    return {name: name.replace("validation_", "test_", 1) for name in splits}


def _name_notes(names: Mapping[str, str], has_test: bool) -> list[str]:
    """A note on the splits that have another name in the source, apart from synonyms such as dev."""
    if not has_test:  # validation will be the test split
        names = {"test" if split == "validation" else split: name for split, name in names.items()}
    synonyms = {name: split for split in SPLITS for name in SPLIT_NAMES[split]}
    further = [f"{split} is {name}" for split, name in names.items() if split not in SPLITS]
    renamed = [
        f"{split} is {name}" for split, name in names.items() if split in SPLITS and name.lower() not in synonyms
    ]
    return [f"several parts are scored: {', '.join([*renamed, *further])}"] if further else renamed


def check_labelled(rows: Sequence[Row], label: str, source: str) -> None:
    """Raise DeltatuneError where no row has a label that it could be scored by, as in published test files."""
    values = [row.get(label) for row in rows]
    if len(values) > 1 and all(_is_missing(value) or _is_hidden(value) for value in values):
        raise DeltatuneError(
            f"{source}: none of its {len(rows)} rows has a label in column {label!r} (the first is {values[0]!r}), "
            "as in published test files: there is nothing to score. `deltatune predict` needs no labels."
        )


def without_unknown(splits: Splits, label: str, known: Collection[str]) -> tuple[Splits, list[str]]:
    """The splits without the rows on whose label the annotators did not agree, which the source marks, and notes."""
    gold = normalised(label) == GOLD_LABEL
    if not gold and label not in known:
        return splits, []
    kept, notes = {}, []
    for name, rows in splits.items():
        kept[name] = [
            row
            for row in rows
            if not ((label in known and row.get(label) is None) or (gold and row.get(label) == NO_GOLD))
        ]
        dropped = len(rows) - len(kept[name])
        if dropped:
            notes.append(f"{name}: {dropped} of {len(rows)} rows have no gold label, so they are not used")
    return kept, notes
