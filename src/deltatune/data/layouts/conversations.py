"""Conversations -> messages [{"role", "content"}], the last of them the assistant's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deltatune.data.formats.files import Row
from deltatune.data.layouts.layout import Shaped, with_parsed
from deltatune.data.layouts.row_problems import Faults, short

MESSAGES = "messages"
"""The column that conversations are in."""

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
"""Names of roles that files have -> ours."""

AS_ROW = 'A message is {"role": "user", "content": "..."}, or {"from": "human", "value": "..."}.'


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, of either form."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(
            isinstance(m, Mapping) and ({"role", "content"} <= set(m) or {"from", "value"} <= set(m)) for m in value
        )
    )


def shape(rows: Sequence[Row], where: str, column: str, labelled: bool = True) -> Shaped:
    """Messages with user, assistant, system and tool for roles, and the last answer in `references`.

    What follows the last answer is cut off. Rows that are to be answered (not `labelled`) end with the user's turn.
    """
    faults, kept, cut = Faults(where), [], 0
    for number, row in enumerate(with_parsed(rows, [column]), start=1):
        messages = as_messages(row.get(column))
        if messages is None:
            faults.add(number, f"column {column!r} holds no messages", AS_ROW, short(row.get(column)))
            continue
        fault = _fault(messages, labelled)
        if fault:
            faults.add(number, *fault)
            continue
        rest = {name: value for name, value in row.items() if name != column}
        if labelled:
            end = 1 + max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            cut += end < len(messages)
            rest |= {MESSAGES: messages[:end], "references": [messages[end - 1]["content"]]}
        else:
            rest[MESSAGES] = messages
        kept.append(rest)
    note = f"{where}: {cut} chats go on after the last answer of the assistant: what follows it is left out"
    return Shaped(kept, faults.sentences(), [note] if cut else [])


def as_messages(value: Any) -> list[Message] | None:
    """A list of messages in either form; None where it is none, or has an unknown role or contents that are no text."""
    if not is_chat(value):
        return None
    found = []
    for message in value:
        role = message["role"] if "role" in message else message["from"]
        content = _content(message["content"] if "content" in message else message["value"])
        known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if known is None or content is None:
            return None
        found.append({"role": known, "content": content})
    return found


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
        if any(one == other == role for one, other in pairwise(roles)):
            return f"two {role} turns follow one another", "Join them, or put the missing turn between them.", order
    if "user" not in turns:
        return "there is no user turn", "Add or remove them.", order
    if labelled and "assistant" not in turns:
        return "there is no assistant turn", "Its last turn is what is learned: add one.", order
    if labelled and turns.index("user") > max(i for i, role in enumerate(turns) if role == "assistant"):
        return "no assistant turn follows a user turn", "Its last turn is what is learned: add one.", order
    if not labelled and turns[-1] != "user":
        return "the last turn is not the user's", "There is nothing to answer: end with a user turn.", order
    return None
