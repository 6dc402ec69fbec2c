"""Rows of preferences: a prompt (a text or a chat), the answer that was chosen, and the one that was rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltatune.data.columns.choose_columns import Columns
from deltatune.data.columns.column_names import CHOSEN, REJECTED, by_normalised, normalised
from deltatune.data.columns.column_values import has_text, is_missing, with_parsed
from deltatune.data.dataset import Data, LabelKind, Row, Splits, columns_of, texts
from deltatune.data.layouts.conversations import Message, as_messages
from deltatune.data.layouts.layout import Converted, ConvertedRows, Layout, RowProblems, each_split, short
from deltatune.data.layouts.text_rows import long_rows

ANSWER_FIX = "Write a text, or a chat whose last message is the assistant's."
PROMPT_FIX = "Write a text, or a chat whose last message is the user's."

Prompt = str | list[Message]
"""A text, or the messages before the answer."""


def convert(splits: Splits, columns: Columns, kinds: Sequence[LabelKind]) -> Converted:
    """The rows of all splits; the answers are texts in the columns `chosen` and `rejected`."""
    converted = each_split(convert_rows, "pairs")(splits, columns, kinds)
    return Converted(
        converted.splits,
        Columns(columns.text, CHOSEN, columns.notes),
        "pairs",
        converted.problems,
        converted.notes,
    )


def convert_rows(rows: Sequence[Row], split: str, text: Sequence[str], label: str | None) -> ConvertedRows:
    """Prompts as texts or chats, both answers as texts; without `label` the prompts alone."""
    problems, converted = RowProblems(split), []
    chosen, rejected = label or CHOSEN, rejected_column(rows, label or CHOSEN)
    answers = [chosen, rejected] if label else []
    if absent := [name for name in answers if rows and name not in columns_of(rows)]:
        listed = f"The columns are: {', '.join(columns_of(rows))}."
        return ConvertedRows([], [f"{split}: there is no column {name!r} of answers. {listed}" for name in absent])
    for number, row in enumerate(with_parsed(rows, [*text, *answers]), start=1):
        prompts = {column: prompt for column in text if (prompt := _prompt(row.get(column))) is not None}
        fault = next((column for column in text if column not in prompts), None)
        if fault is not None:
            problems.add(number, f"column {fault!r} is not a text or a chat", PROMPT_FIX, short(row.get(fault)))
            continue
        new: dict[str, Any] = dict(prompts)
        if label:
            pair = _pair(row, chosen, rejected, number, problems)
            if pair is None:
                continue
            shared, *two = pair
            if shared and len(prompts) == 1:
                new = {text[0]: _joined(prompts[text[0]], shared)}
            new |= dict(zip((CHOSEN, REJECTED), two, strict=True))
        problem = _prompt_problem([new[column] for column in text])
        if problem:
            problems.add(number, f"{' and '.join(map(repr, text))}: {problem}", PROMPT_FIX)
            continue
        converted.append({**row, **new})
    return ConvertedRows(converted, problems.sentences())


def rejected_column(rows: Sequence[Row], chosen: str) -> str:
    """The column of rejected answers beside one of chosen ones: `rejected_response` beside `chosen_response`."""
    names = by_normalised(columns_of(rows[:100]))
    wanted = normalised(chosen).replace(CHOSEN, REJECTED)
    return names.get(wanted, names.get(REJECTED, REJECTED))


def _prompt(value: Any) -> Prompt | None:
    """A text or messages; None for anything else. A missing one is empty: the answers may begin with it."""
    if is_missing(value):
        return ""
    return value if isinstance(value, str) else as_messages(value)


def _prompt_problem(prompts: Sequence[Prompt]) -> str:
    """What is wrong with the prompts of a row, or ""."""
    chats = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if chats and len(prompts) > 1:
        return "a chat must be the only prompt"
    if chats and chats[0][-1]["role"] not in ("user", "tool"):
        return "the chat before the answers does not end with the user's turn"
    return "" if chats or any(map(has_text, prompts)) else "there is no text before the answers"


def _pair(
    row: Row, chosen: str, rejected: str, number: int, problems: RowProblems
) -> tuple[list[Message], str, str] | None:
    """The messages with which both answers begin, and the answers; None where there is a fault."""
    found: list[list[Message]] = []
    for column in (chosen, rejected):
        value = row.get(column)
        messages = [Message(role="assistant", content=value)] if isinstance(value, str) else as_messages(value)
        if not messages:
            problems.add(number, f"column {column!r} is not a text or a chat", ANSWER_FIX, short(value))
            return None
        if messages[-1]["role"] != "assistant" or not has_text(messages[-1]["content"]):
            problems.add(number, f"column {column!r} has no answer", ANSWER_FIX, short(value))
            return None
        found.append(messages)
    better, worse = found
    if better[:-1] != worse[:-1]:
        problems.add(
            number,
            f"{chosen!r} and {rejected!r} differ before their last messages",
            "Both must answer the same prompt: leave the row out, or cut the chats at their first difference.",
        )
        return None
    if better == worse:
        problems.add(number, f"{chosen!r} and {rejected!r} are equal", "Nothing is preferred: leave the row out.")
        return None
    return better[:-1], better[-1]["content"], worse[-1]["content"]


def _joined(prompt: Prompt, shared: list[Message]) -> list[Message]:
    """The whole chat before the answers: the answers' chats may repeat the prompt, or go on behind it."""
    if isinstance(prompt, str):
        known = not prompt.strip() or any(message["content"].strip() == prompt.strip() for message in shared)
        return shared if known else [Message(role="user", content=prompt), *shared]
    return shared if shared[: len(prompt)] == prompt else [*prompt, *shared]


# --- checks ---


def remarks(data: Data) -> list[str]:
    """Rows far longer than the others."""
    return long_rows(data, lambda row: sum(map(len, (*texts(row, data.text), row[CHOSEN], row[REJECTED]))))


LAYOUT = Layout(convert, convert_rows, remarks=remarks, same_columns=False)
