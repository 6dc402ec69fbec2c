"""Rows of generation: inputs (texts, tables, triples or a chat), an output, and the references it is scored with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_names import MESSAGES, OUTPUT, REFERENCES
from deltatune.data.columns.column_values import WRITTEN_LIST, has_text, is_missing, is_strings, with_parsed
from deltatune.data.dataset import Data, LabelKind, Row, Splits, texts
from deltatune.data.layouts.conversations import convert_chats
from deltatune.data.layouts.layout import (
    FILL_IN,
    Converted,
    ConvertedRows,
    Layout,
    RowProblems,
    each_split,
    in_rows,
    short,
)
from deltatune.data.layouts.text_rows import long_rows
from deltatune.data.splits import complete

COPIED = 0.05
"""Share of rows with their output inside the input, above which it is remarked."""

TABLE_FIX = "A table is an object or a list of [key, value]."
REFERENCES_FIX = 'It holds the texts that count as correct: ["...", "..."]. Or rename it.'


def convert(splits: Splits, columns: Columns, kinds: Sequence[LabelKind]) -> Converted:
    """The rows of all splits; the columns of chats and of outputs that were found among references get their names."""
    converted = each_split(convert_rows, "text")(splits, columns, kinds)
    if columns.text == (columns.label,):
        columns = Columns((MESSAGES,), MESSAGES, columns.notes)
    elif columns.label == REFERENCES:
        columns = Columns(columns.text, OUTPUT, columns.notes)
    return Converted(converted.splits, columns, "text", converted.problems, converted.notes)


def convert_rows(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Inputs as strings, tables and triples on one line; outputs as strings, and `references` a list of strings.

    Without `label` the inputs alone. One of the inputs must have text; an output may be empty in validation and test.
    """
    if list(text) in ([label], [MESSAGES]):
        return convert_chats(rows, split, text[0], label is not None)
    problems, converted = RowProblems(split), []
    outputs = [label, REFERENCES] if label else []
    for number, row in enumerate(with_parsed(rows, [*text, *outputs]), start=1):
        lines = {column: _input_line(row.get(column)) for column in text}
        unusable = [column for column, line in lines.items() if line is None]
        for column in unusable:
            fault = f"column {column!r} is not a text, table or list of triples"
            problems.add(number, fault, TABLE_FIX, short(row.get(column)))
        if not unusable and not any(map(has_text, lines.values())):
            have = "has" if len(text) == 1 else "have"
            problems.add(number, f"{' and '.join(map(repr, text))} {have} no text", FILL_IN)
            unusable = list(text)
        output = _output(row, label, number, problems) if label else {}
        if not unusable and output is not None:
            converted.append({**row, **lines, **output})
    return ConvertedRows(converted, problems.sentences())


def _input_line(value: Any) -> str | None:
    """An input on one line; a missing value is empty."""
    return "" if is_missing(value) else as_line(_number_as_text(value))


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _output(row: Row, label: str, number: int, problems: RowProblems) -> dict[str, Any] | None:
    """The output and its references, or None where there is none and one is needed."""
    value = row.get(label)
    references = row.get(REFERENCES) if label != REFERENCES else None
    if references is not None and not is_strings(references):
        problems.add(number, f"column {REFERENCES!r} is not a list of strings", REFERENCES_FIX, short(references))
        return None
    if value is None and references:
        value = references[0]
    if is_strings(value) and value:
        value, references = value[0], [*value, *(references or [])]
    value = _number_as_text(value)
    if not isinstance(value, str):
        problems.add(number, f"column {label!r} is not a text", FILL_IN, short(value))
        return None
    if not has_text(value) and problems.split == "train":
        problems.add(number, f"column {label!r} has no text", f"{FILL_IN[:-1]}: an empty answer would be learned.")
        return None
    return {OUTPUT if label == REFERENCES else label: value, REFERENCES: list(references) if references else [value]}


# --- tables and triples ---


def as_line(value: Any) -> str | None:
    """A string unchanged, a table or a list of triples on one line; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return table_line(value) if all(_is_cell(cell) for cell in value.values()) else None
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if all(isinstance(item, str) and item.count("|") == 2 for item in value):  # triples as WebNLG writes them
        value = [[part.strip() for part in item.split("|")] for item in value]
    if all(_has_cells(item, 2) for item in value):
        return table_line(value)
    return triples_line(value) if all(_has_cells(item, 3) for item in value) else None


def table_line(pairs: Mapping[str, Any] | Sequence[Sequence[Any]]) -> str:
    """`key: value | key: value` from an object or a list of [key, value]."""
    items = pairs.items() if isinstance(pairs, Mapping) else [(key, value) for key, value in pairs]
    return " | ".join(f"{key}: {_cell(value)}" for key, value in items)


def triples_line(triples: Sequence[Sequence[Any]]) -> str:
    """`subject | relation | object && subject | relation | object` from a list of [subject, relation, object]."""
    return " && ".join(" | ".join(_cell(part) for part in triple) for triple in triples)


def _has_cells(item: Any, length: int) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == length and all(_is_cell(cell) for cell in item)


def _is_cell(value: Any) -> bool:
    """Whether a value is plain, or a list of plain values."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (str, int, float)) for item in value)
    return value is None or isinstance(value, (str, int, float))


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


# --- references ---


def complete_and_group(splits: Splits, columns: Columns) -> tuple[Splits, list[str]]:
    """All splits; in all but train rows with equal inputs become one row with several references.

    Train keeps every row to learn from, and a row that came with several references becomes one row for each.
    """
    completed, notes = complete(splits, columns.text)
    completed = {**splits, **completed}
    grouped = dict(completed)
    if columns.label == OUTPUT:
        grouped["train"] = _row_for_each_reference(completed["train"])
        if len(grouped["train"]) > len(completed["train"]):
            each = f"{len(completed['train'])} rows with several references became {len(grouped['train'])}"
            notes.append(f"train: {each}, one for each reference")
    for split in [name for name in completed if name != "train"]:
        grouped[split], repeated = group_references(completed[split], columns.text, split)
        notes += repeated
    return grouped, notes


def group_references(rows: list[Row], text: Sequence[str], split: str) -> tuple[list[Row], list[str]]:
    """One row for each input, with every reference of it, and a note where rows became fewer."""
    by_input: dict[tuple[str, ...], Row] = {}
    for row in rows:
        first = by_input.setdefault(texts(row, text), {**row, REFERENCES: []})
        first[REFERENCES] += [reference for reference in row[REFERENCES] if reference not in first[REFERENCES]]
    if len(by_input) == len(rows):
        return rows, []
    repeated = f"{len(rows)} rows repeat {len(by_input)} inputs"
    note = f"{split}: {repeated}: they became one row for each input, with several references"
    return list(by_input.values()), [note]


def _row_for_each_reference(rows: list[Row]) -> list[Row]:
    """Rows whose output is the first of their references, once for each different reference that has text."""
    return [
        {**row, OUTPUT: reference, REFERENCES: [reference]}
        for row in rows
        for reference in (dict.fromkeys(row[REFERENCES]) if row[OUTPUT] == row[REFERENCES][0] else [row[OUTPUT]])
        if reference.strip()
    ]


# --- checks ---


def problems(data: Data) -> list[str]:
    """One output in all training rows."""
    outputs = {output_of(row, data) for row in data.train}
    if len(outputs) != 1 or len(data.train) < LAYOUT.min_rows:
        return []
    (only,) = outputs
    return [f"train: every row has the output {only[:60]!r}: nothing can be learned. Is it the right column?"]


def remarks(data: Data) -> list[str]:
    """Empty outputs, outputs copied from the input, rows far longer than the others."""
    copies = [sentence for split, rows in data.splits().items() for sentence in _copies(data, split, rows)]
    return (
        _written_lists(data)
        + copies
        + long_rows(data, lambda row: sum(map(len, (*texts(row, data.text), output_of(row, data)))))
    )


def _written_lists(data: Data) -> list[str]:
    """Outputs that are lists in strings in every row, which are learned letter by letter."""
    if not data.train or not all(WRITTEN_LIST.fullmatch(output_of(row, data)) for row in data.train):
        return []
    example = short(output_of(data.train[0], data), 40)
    return [f"train: every output is a list in a string, {example}: it is learned as it is. Write references as JSON."]


def output_of(row: Row, data: Data) -> str:
    """The output of a row; of a chat the last message."""
    value = row[data.label]
    return str(value if isinstance(value, str) else value[-1]["content"])


def _copies(data: Data, split: str, rows: list[Row]) -> list[str]:
    empty, equal, inside = [], [], []
    for number, row in enumerate(rows, start=1):
        output, inputs = output_of(row, data).strip(), [text.strip() for text in texts(row, data.text)]
        if not output:
            empty.append(number)
        elif output in inputs:
            equal.append(number)
        elif any(output in text for text in inputs):
            inside.append(number)
    sentences = [f"{split}: the output is empty in {in_rows(empty)}."] if empty else []
    if equal:
        sentences.append(f"{split}: the output equals the input in {in_rows(equal)}.")
    if len(inside) > COPIED * len(rows):
        share = f"{len(inside) / len(rows):.0%}"
        sentences.append(
            f"{split}: the input contains the output word for word in {share} of the rows, {in_rows(inside)}."
        )
    return sentences


LAYOUT = Layout(
    convert, convert_rows, complete=complete_and_group, problems=problems, remarks=remarks, same_columns=False
)
