"""Rows of tagging: tokens, and a tag for each token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from deltatune.data.columns.column_values import WRITTEN_LIST, has_text, with_parsed
from deltatune.data.dataset import Data, LabelKind, Row, Splits
from deltatune.data.formats.file_format import first_few
from deltatune.data.layouts.layout import FILL_IN, ConvertedRows, Layout, RowProblems, count, each_split, in_rows, short

OUTSIDE = "O"
"""The tag of tokens outside every entity."""
BEGIN, INSIDE = "B-", ("I-", "E-")

LIST_FIX = "Write JSON in every row (Python: json.dumps(tags)), or words with blanks between them."
FORM_FIX = 'A row is {"tokens": ["Ann", "slept"], "tags": ["B-person", "O"]}.'


def convert_rows(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Tokens and tags as lists of strings of one length; strings are split at white space. Without `label`: tokens."""
    (tokens,) = text
    columns = [tokens] if label is None else [tokens, label]
    problems, converted = RowProblems(split), []
    for number, row in enumerate(with_parsed(rows, columns), start=1):
        lists = {column: as_strings(row.get(column)) for column in columns}
        fault = _fault(row, lists)
        if fault:
            problems.add(number, *fault)
        else:
            converted.append({**row, **lists})
    numbered = label and split == "train" and all(tag.isdecimal() for row in converted for tag in row[label])
    note = (
        f"the tags in {label!r} are numbers without names, so that entities are not known and each word is scored "
        "by itself; names can stand in dataset_info.json beside the files, as the hub has them"
    )
    return ConvertedRows(converted, problems.sentences(), [note] if numbered and converted else [])


def as_strings(value: Any) -> list[str] | None:
    """The words of a string, or the items of a list as strings; None for anything else."""
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)) or any(not isinstance(v, (str, int)) or isinstance(v, bool) for v in value):
        return None
    return [str(item) for item in value]


def _fault(row: Row, lists: dict[str, list[str] | None]) -> tuple[str, str, str] | None:
    """What is wrong with a row, the fix, and what the row has."""
    for column, items in lists.items():
        if items is None:
            return f"column {column!r} is not a list of strings", FORM_FIX, short(row.get(column))
        if isinstance(row.get(column), str) and WRITTEN_LIST.fullmatch(row[column]):
            return (
                f"column {column!r} has lists in strings that are not JSON in every row",
                LIST_FIX,
                short(row[column]),
            )
    lengths = {column: len(items) for column, items in lists.items() if items is not None}
    tokens = next(iter(lengths))
    if not any(map(has_text, lists[tokens] or [])):
        return f"column {tokens!r} has no words", FILL_IN, ""
    if len(set(lengths.values())) > 1:
        pair = " and ".join(f"{length} {column}" for column, length in lengths.items())
        return f"{' and '.join(map(repr, lengths))} differ in length", "Each token needs one tag.", pair
    for column, tags in list(lists.items())[1:]:
        if any(not tag.strip() for tag in tags or []):
            return f"column {column!r} has an empty tag", "Each token needs one tag, O outside of entities.", ""
    return None


def tag_names(splits: Splits, kind: LabelKind, label: str) -> tuple[str, ...]:
    """The tags of all splits: O first, then sorted."""
    tags = {tag for rows in splits.values() for row in rows for tag in row[label]}
    return tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag)))


# --- checks ---


def problems(data: Data) -> list[str]:
    """One tag in all training rows."""
    tags = {tag for row in data.train for tag in row[data.label]}
    if len(tags) != 1:
        return []
    (only,) = tags
    return [f"train: every word has the tag {only!r}: nothing can be learned. Is it the right column?"]


def remarks(data: Data) -> list[str]:
    """Unseen tags, entities without a B- tag, tokens of white space."""
    sentences = _unseen_tags(data)
    has_begin = any(tag.startswith(BEGIN) for tag in data.labels)
    for split, rows in data.splits().items():
        faults = RowProblems(split)
        for number, row in enumerate(rows, start=1):
            place = _inside_without_begin(row[data.label])
            if place and has_begin:
                fault = "an entity begins without a B- tag"
                faults.add(number, fault, "It is scored as a new entity.", place)
            blank = [token for token in row[data.text[0]] if not token.strip()]
            if blank:
                fault = "there are words of white space alone"
                faults.add(number, fault, "A model sees nothing there.", short(blank[0]))
        sentences += faults.sentences()
    if not has_begin and any(tag.startswith(INSIDE) for tag in data.labels):
        sentences.append("no tag begins with B-: adjacent entities of one type count as one.")
    return sentences


def _unseen_tags(data: Data) -> list[str]:
    """Tags that no training row has: no method can predict them."""
    seen = {tag for row in data.train for tag in row[data.label]}
    sentences = []
    for split, rows in data.splits().items():
        counts = Counter(tag for row in rows for tag in row[data.label] if tag not in seen)
        if counts:
            numbers = [number for number, row in enumerate(rows, start=1) if not seen.issuperset(row[data.label])]
            unseen = first_few([f"{tag!r} ({count(tokens, 'word')})" for tag, tokens in counts.most_common()])
            sentences.append(
                f"{split} has tags that train does not have, so that no model can predict them: {unseen}; "
                f"in {in_rows(numbers)}."
            )
    return sentences


def _inside_without_begin(tags: list[str]) -> str:
    """The first I- or E- tag that continues no entity, else ""."""
    for before, tag in pairwise([OUTSIDE, *tags]):
        if tag.startswith(INSIDE) and before[2:] != tag[2:]:
            return f"{tag} after {before}"
        if tag.startswith(INSIDE) and not before.startswith((BEGIN, "I-")):
            return f"{tag} after {before}"
    return ""


LAYOUT = Layout(
    each_split(convert_rows, "tags"), convert_rows, label_names=tag_names, problems=problems, remarks=remarks
)
