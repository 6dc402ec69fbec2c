"""Questions on a context: answers that are pieces of it, with the character each starts at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.data.formats.files import Row
from deltatune.data.layouts.layout import Shaped, blank, with_parsed
from deltatune.data.layouts.row_problems import Faults, short

Answer = dict[str, Any]
"""{"text": str, "start": int}: the start is -1 where it was not given."""

UNKNOWN = -1

AS_ROW = 'A row has answers such as [{"text": "Ann", "start": 17}], [] where the context does not say.'


def shape(rows: Sequence[Row], where: str, text: Sequence[str], label: str | None) -> Shaped:
    """Answers as lists of {"text", "start"}, starts that were not given found by search. Without `label`: inputs."""
    faults, kept, ambiguous = Faults(where), [], 0
    for number, row in enumerate(with_parsed(rows, [label] if label else []), start=1):
        for column in text:
            if blank(row.get(column)):
                faults.add(number, f"column {column!r} has no text", "Fill in or remove them.")
        if any(blank(row.get(column)) for column in text):
            continue
        if label is None:
            kept.append(dict(row))
            continue
        answers = as_answers(row.get(label))
        if answers is None:
            faults.add(number, f"column {label!r} holds no answers", AS_ROW, short(row.get(label)))
            continue
        context = row[text[-1]]
        found = [_placed(answer, context) for answer in answers]
        for answer in found:
            _judge(answer, context, number, faults)
        if all(fits(answer, context) for answer in found):
            kept.append({**row, label: found})
            given = [answer["start"] != UNKNOWN for answer in answers]
            ambiguous += any(
                not known and context.count(answer["text"]) > 1 for known, answer in zip(given, found, strict=True)
            )
    note = f"{where}: in {ambiguous} rows an answer without a start occurs more than once: the first place is taken"
    return Shaped(kept, faults.sentences(), [note] if ambiguous else [])


def as_answers(value: Any) -> list[Answer] | None:
    """Answers of a string, a list of strings or of objects, or lists side by side as `datasets` has them; else None.

    Nothing at all (None, a blank string) is None as well: that a question has no answer must be said by an empty list.
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
    found = [_answer(item) for item in value]
    return None if None in found else [answer for answer in found if answer is not None]


def _answer(item: Any) -> Answer | None:
    if isinstance(item, str):
        return {"text": item, "start": UNKNOWN}
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        return None
    start = item.get("start", item.get("answer_start"))
    start = UNKNOWN if start is None else start
    if isinstance(start, bool) or not isinstance(start, int) or start < UNKNOWN:
        return None
    return {"text": item["text"], "start": start}


def _placed(answer: Answer, context: str) -> Answer:
    """With its start: the first place where it stands, if none was given."""
    return {**answer, "start": context.find(answer["text"])} if answer["start"] == UNKNOWN else answer


def fits(answer: Answer, context: str) -> bool:
    """Whether the answer stands where it says."""
    text, start = answer["text"], answer["start"]
    return bool(text.strip()) and start >= 0 and context.startswith(text, start)


def _judge(answer: Answer, context: str, number: int, faults: Faults) -> None:
    """Add what is wrong with an answer."""
    text, start = answer["text"], answer["start"]
    if fits(answer, context):
        return
    if not text.strip():
        faults.add(number, "an answer has no text", "Where the context does not say, answers is [].")
    elif text not in context:
        faults.add(number, "an answer is not in its context", "Copy it as it stands there.", short(text))
    else:
        there = short(context[start : start + len(text)])
        seen = f"{short(text)} should start at {start}, where {there} stands; it is found at {context.find(text)}"
        faults.add(number, "the start of an answer is wrong", "Correct it, or leave it out: it is searched for.", seen)
