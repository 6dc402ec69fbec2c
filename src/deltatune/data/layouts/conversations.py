"""Chats -> messages [{"role", "content"}], the last of them the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deltatune.data.columns.column_names import MESSAGES, REFERENCES
from deltatune.data.columns.column_values import has_text, is_chat, with_parsed
from deltatune.data.dataset import Row
from deltatune.data.layouts.layout import ConvertedRows, RowProblems, short

Message = dict[str, str]

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Role in a file -> role of the returned messages."""

FORM_FIX = 'A message is {"role": "user", "content": "..."}, or {"from": "human", "value": "..."}.'
TURN_FIX = "The last assistant turn is what is learned: add one."


def convert_chats(rows: Sequence[Row], split: str, column: str, labelled: bool = True) -> ConvertedRows:
    """`messages` with the roles user, assistant, system and tool, and the last answer in `references`.

    What follows the last answer is cut off. Unlabelled rows, which are to be answered, end with the user's turn.
    """
    problems, converted, cut = RowProblems(split), [], 0
    for number, row in enumerate(with_parsed(rows, [column]), start=1):
        messages = as_messages(row.get(column))
        if messages is None:
            problems.add(number, f"column {column!r} holds no messages", FORM_FIX, short(row.get(column)))
            continue
        fault = _fault(messages, labelled)
        if fault:
            problems.add(number, *fault)
            continue
        others = {name: value for name, value in row.items() if name != column}
        if labelled:
            end = 1 + max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            cut += end < len(messages)
            answer = messages[end - 1]["content"]
            if split == "train" and not has_text(answer):
                problems.add(
                    number, "the last assistant turn has no text", "An empty answer would be learned: fill it in."
                )
                continue
            converted.append({**others, MESSAGES: messages[:end], REFERENCES: [answer]})
        else:
            converted.append({**others, MESSAGES: messages})
    note = f"{split}: {cut} chats go on after the last answer of the assistant: what follows it is left out"
    return ConvertedRows(converted, problems.sentences(), [note] if cut else [])


def as_messages(value: Any) -> list[Message] | None:
    """A list of messages in either form; None for anything else, an unknown role, or contents that are not text."""
    if not is_chat(value):
        return None
    messages = []
    for message in value:
        name = message["role"] if "role" in message else message["from"]
        role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        content = _content(message["content"] if "content" in message else message["value"])
        if role is None or content is None:
            return None
        messages.append({"role": role, "content": content})
    return messages


def _content(value: Any) -> str | None:
    """A text, or the texts of a list of parts; None where a part is something else, such as a picture."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)) or not value:
        return None
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
    return "".join(text for text in texts if text) if all(isinstance(text, str) for text in texts) else None


def _fault(messages: list[Message], labelled: bool) -> tuple[str, str, str] | None:
    """What is wrong with the order of turns, the fix, and the order."""
    roles = [message["role"] for message in messages]
    order = " ".join(roles[:8]) + (" ..." if len(roles) > 8 else "")
    turns = [role for role in roles if role in ("user", "assistant")]
    for role in ("user", "assistant"):
        if (role, role) in pairwise(roles):
            return f"two {role} turns follow one another", "Join them, or put the missing turn between them.", order
    if "user" not in turns:
        return "there is no user turn", "Add or remove them.", order
    if labelled and "assistant" not in turns:
        return "there is no assistant turn", TURN_FIX, order
    if labelled and turns.index("user") > max(i for i, role in enumerate(turns) if role == "assistant"):
        return "no assistant turn follows a user turn", TURN_FIX, order
    if not labelled and turns[-1] != "user":
        return "the last turn is not the user's", "There is nothing to answer: end with a user turn.", order
    return None
