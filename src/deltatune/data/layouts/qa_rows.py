"""Rows of extractive QA: a question, a context, and the answers as pieces of it with their first character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_values import has_text, with_parsed
from deltatune.data.dataset import Data, Row, Splits
from deltatune.data.layouts.layout import FILL_IN, ConvertedRows, Layout, RowProblems, each_split, in_rows, short
from deltatune.data.splits import complete

Answer = dict[str, Any]
"""{"text": str, "start": int}; the start is UNKNOWN where it was not given."""

UNKNOWN = -1
LONG_ANSWER = 30
"""Words of an answer above which it is remarked."""

FORM_FIX = 'A row has answers such as [{"text": "Ann", "start": 17}], [] where the context does not say.'


def convert_rows(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Answers as lists of {"text", "start"}; starts that were not given are searched for. Without `label`: inputs."""
    problems, converted, ambiguous = RowProblems(split), [], 0
    for number, row in enumerate(with_parsed(rows, [label] if label else []), start=1):
        empty = [column for column in text if not has_text(row.get(column))]
        for column in empty:
            problems.add(number, f"column {column!r} has no text", FILL_IN)
        if empty:
            continue
        if label is None:
            converted.append(dict(row))
            continue
        answers = as_answers(row.get(label))
        if answers is None:
            problems.add(number, f"column {label!r} holds no answers", FORM_FIX, short(row.get(label)))
            continue
        context = row[text[-1]]
        located = [_located(answer, context) for answer in answers]
        for answer in located:
            _add_fault(answer, context, number, problems)
        if all(is_at_start(answer, context) for answer in located):
            converted.append({**row, label: located})
            ambiguous += any(
                given["start"] == UNKNOWN and context.count(answer["text"]) > 1
                for given, answer in zip(answers, located, strict=True)
            )
    note = f"{split}: in {ambiguous} rows an answer without a start occurs more than once: the first place is taken"
    notes = [note] if ambiguous else []
    if label and split == "train":
        several = sum(len({answer["text"] for answer in row[label]}) > 1 for row in converted)
        if several:  # annotators often differ in the rows that are scored; in training it may mean that all are needed
            notes.append(
                f"train: {several} of {len(converted)} rows have several different answers: any of them counts as "
                "correct by itself, and one is learned; answers that are only right together are not a task here"
            )
    return ConvertedRows(converted, problems.sentences(), notes)


def as_answers(value: Any) -> list[Answer] | None:
    """Answers from a string, a list of strings or objects, or an object of lists as `datasets` has it; else None.

    A missing value (None, a blank string) is None as well: an unanswerable question must have an empty list.
    """
    if isinstance(value, str):
        return [{"text": value, "start": UNKNOWN}] if value.strip() else None
    if isinstance(value, Mapping):
        texts = value.get("text")
        if isinstance(texts, str):
            return as_answers([value])
        starts = value.get("answer_start", value.get("start"))
        if not isinstance(texts, (list, tuple)):
            return None
        if starts is None:
            starts = [UNKNOWN] * len(texts)
        if not isinstance(starts, (list, tuple)) or len(starts) != len(texts):
            return None
        return as_answers([{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)])
    if not isinstance(value, (list, tuple)):
        return None
    answers = [_as_answer(item) for item in value]
    return None if None in answers else [answer for answer in answers if answer is not None]


def _as_answer(item: Any) -> Answer | None:
    if isinstance(item, str):
        return {"text": item, "start": UNKNOWN}
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        return None
    start = item.get("start", item.get("answer_start"))
    start = UNKNOWN if start is None else start
    if isinstance(start, bool) or not isinstance(start, int) or start < UNKNOWN:
        return None
    return {"text": item["text"], "start": start}


def _located(answer: Answer, context: str) -> Answer:
    """The answer with its start: the first place where it occurs as whole words, else at all, if none was given."""
    text = answer["text"]
    if answer["start"] != UNKNOWN or not text:
        return answer
    start = context.find(text)
    while start >= 0 and not is_whole(context, start, start + len(text)):
        start = context.find(text, start + 1)
    return {**answer, "start": start if start >= 0 else context.find(text)}


def is_whole(context: str, start: int, end: int) -> bool:
    """Whether a span neither begins nor ends inside a word."""
    inside = (
        0 < place < len(context) and context[place - 1].isalnum() and context[place].isalnum() for place in (start, end)
    )
    return not any(inside)


def is_at_start(answer: Answer, context: str) -> bool:
    """Whether the context has the answer at its start."""
    text, start = answer["text"], answer["start"]
    return bool(text.strip()) and start >= 0 and context.startswith(text, start)


def _add_fault(answer: Answer, context: str, number: int, problems: RowProblems) -> None:
    """Add what is wrong with an answer, if anything."""
    text, start = answer["text"], answer["start"]
    if is_at_start(answer, context):
        return
    if not text.strip():
        problems.add(number, "an answer has no text", "Where the context does not say, answers is [].")
    elif text not in context:
        problems.add(number, "an answer is not in its context", "Copy it exactly from there.", short(text))
    else:
        actual, found_at = short(context[start : start + len(text)]), context.find(text)
        example = f"{short(text)} should start at {start}, where the context has {actual}; it is found at {found_at}"
        fix = "Correct it, or leave it out: it is searched for."
        problems.add(number, "the start of an answer is wrong", fix, example)


def by_context(splits: Splits, columns: Columns) -> tuple[Splits, list[str]]:
    """All three splits, the missing ones made by hash of the context.

    All questions on one context stay together; otherwise answers of validation would have been read in training.
    """
    return complete(splits, columns.text[-1:])


# --- checks ---


def problems(data: Data) -> list[str]:
    """Training rows without any answer."""
    if not data.train or any(row[data.label] for row in data.train):
        return []
    return [f"train: column {data.label!r} has no answer in any row: nothing can be learned. Is it the right column?"]


def remarks(data: Data) -> list[str]:
    """Unanswerable questions, long answers, and training answers that occur at several places of their context."""
    sentences = []
    for split, rows in data.splits().items():
        unanswerable = sum(not row[data.label] for row in rows)
        if unanswerable:
            share = f"{unanswerable / len(rows):.0%}"
            sentences.append(f"{split}: {unanswerable} of {len(rows)} rows ({share}) have no answer in their context.")
        answers = [[answer["text"] for answer in row[data.label]] for row in rows]
        long = [i for i, texts in enumerate(answers, start=1) if any(len(text.split()) > LONG_ANSWER for text in texts)]
        if long:
            sentences.append(f"{split}: an answer has more than {LONG_ANSWER} words in {in_rows(long)}.")
        contexts = [row[data.text[-1]] for row in rows] if split == "train" else []
        repeated = [
            i
            for i, (context, texts) in enumerate(zip(contexts, answers, strict=False), start=1)
            if any(context.count(text) > 1 for text in texts)
        ]
        if repeated:
            sentences.append(
                f"{split}: an answer occurs at several places of its context in {in_rows(repeated)}; "
                "the given place is learned."
            )
    return sentences


LAYOUT = Layout(each_split(convert_rows, "span"), convert_rows, complete=by_context, problems=problems, remarks=remarks)
