"""Rows to what a language model reads and what it has to write: plain templates, Alpaca's form, chat templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest

ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
PAIRED = ", paired with an input that provides further context"
PRESETS = ("plain", "alpaca", "chat")
"""Forms of a prompt by name; anything else is a template with columns in braces."""

Message = Mapping[str, str]


@dataclass(frozen=True)
class Turn:
    """What the model reads, and what it then has to write."""

    reads: str
    writes: str
    ends: str = ""
    """What its template puts behind an answer; empty: the tokenizer's end token."""


def plain(texts: Sequence[str]) -> str:
    """The columns, a line each."""
    return "".join(f"{text}\n" for text in texts)


def alpaca(texts: Sequence[str]) -> str:
    """Alpaca's form (https://github.com/tatsu-lab/stanford_alpaca): an instruction, maybe an input."""
    instruction, *more = texts
    given = "\n".join(text for text in more if text.strip())
    return ALPACA.format(
        paired=PAIRED if given else "", instruction=instruction, input=f"### Input:\n{given}\n\n" if given else ""
    )


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with columns in braces, as `Question: {question}\\nAnswer:`."""
    return template.format(**values)


def check_template(template: str, columns: Sequence[str]) -> list[str]:
    """What is wrong with a template of the user's: columns it does not name or does not know."""
    try:
        named = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        return [f"the prompt {template!r} is no template: {error}"]
    if not named:
        near = nearest(template, PRESETS)
        return [f"the prompt {template!r} names no column in braces{near}; or choose one of {', '.join(PRESETS)}"]
    unknown = [name for name in named if name not in columns]
    return [
        f"the prompt names {{{name}}}{nearest(name, columns)}; its columns: {', '.join(columns)}" for name in unknown
    ]


# ---- chats


def chat_turns(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Turn]:
    """The assistant's turns of a conversation, each with the text in front of it since the one before.

    Raises DeltatuneError for a tokenizer without a chat template and one whose template rewrites earlier turns.
    """
    check_chat(tokenizer)
    turns: list[Turn] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(messages[:i], tokenizer, prompt=True)
        after = _rendered(messages[: i + 1], tokenizer, prompt=False)
        if not (before.startswith(done) and after.startswith(before)):
            if turns:
                raise DeltatuneError(
                    "this tokenizer's chat template rewrites earlier turns, so that a conversation cannot be learnt as "
                    "one text; keep one answer a conversation"
                )
            before = after[: after.rindex(message["content"])]
        answer = after[len(before) :]
        content = message["content"]
        if not answer.startswith(content):
            content = answer[: answer.index(content.strip()) + len(content.strip())]
        turns.append(Turn(before[len(done) :], content, answer[len(content) :]))
        done = after
    return turns


def chat_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation up to where the assistant writes."""
    check_chat(tokenizer)
    return _rendered(messages, tokenizer, prompt=True)


def check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DeltatuneError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise DeltatuneError(
            "this model's tokenizer has no chat template; choose the prompt 'alpaca' or 'plain', or set "
            "tokenizer.chat_template and save it with the model"
        )


def _rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, prompt: bool) -> str:
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
    )
    return str(text)


def end_of_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token that ends an answer in a chat template's text behind it; "" where there is none."""
    special = [token for token in tokenizer.get_added_vocab() if token]
    found = [match for token in special if (match := re.match(rf"\s*{re.escape(token)}", text))]
    return max((match.group() for match in found), key=len, default="")


def messages_of(value: Any, where: str) -> list[Message]:
    """A conversation, checked. Raises DeltatuneError naming what is wrong."""
    if not isinstance(value, (list, tuple)) or not value:
        raise DeltatuneError(f"{where} is no conversation: a list of messages with role and content is needed")
    for message in value:
        lacking = not isinstance(message, Mapping) or {"role", "content"} - set(message)
        if lacking or not isinstance(message["content"], str):
            raise DeltatuneError(f"{where} has a message without role and content: {str(message)[:80]}")
    return list(value)
