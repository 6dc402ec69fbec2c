"""Rows to what a language model reads and what it has to write: plain templates, Alpaca's form, chat templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

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


SENTINEL = "\ue000answer\ue000"
"""Stands for an answer, to see where a chat template puts it."""


class Said(NamedTuple):
    """An answer of the assistant in a chat template's text: its characters, and where its end token ends."""

    start: int
    end: int
    stop: int


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
        named = [
            name
            for _, field, spec, _ in Formatter().parse(template)
            if field is not None
            for name in (field, *(inner for _, inner, _, _ in Formatter().parse(spec or "") if inner is not None))
        ]
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


def last_answer(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[str, Said]:
    """The text of a conversation that ends with an answer, and where in it that stands.

    An answer is all that the model has to write behind its prompt, even where the template adds to what was said.
    Raises DeltatuneError for a template that leaves out part of what the assistant says.
    """
    content = messages[-1]["content"]
    text = _rendered(messages, tokenizer, prompt=False)
    found, tail = _rendered([*messages[:-1], {"role": "assistant", "content": SENTINEL}], tokenizer, False).partition(
        SENTINEL
    )[1:]
    end = len(text) - len(tail)
    shown = content if text[:end].endswith(content) else content.strip()
    if not found or not text.endswith(tail) or not text[:end].endswith(shown):
        raise DeltatuneError(
            f"this tokenizer's chat template does not show what the assistant says as it is: {content[:80]!r}; change "
            "it in the data (templates leave out thoughts, for one), or set another tokenizer.chat_template"
        )
    start, before = end - len(shown), _rendered(messages[:-1], tokenizer, prompt=True)
    start = len(before) if text.startswith(before) and len(before) <= start else start
    return text, Said(start, end, end + len(end_of_turn(tail, tokenizer)))


def earlier_answers(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Said] | None:
    """Where in a prompt's text the assistant's answers stand; None where the template rewrites earlier turns."""
    text = chat_prompt(messages, tokenizer)
    found = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            then, said = last_answer(messages[: i + 1], tokenizer)
            if not text.startswith(then[: said.stop]):
                return None
            found.append(said)
    return found


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
    from jinja2 import TemplateError  # the import takes a while

    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError as error:
        raise DeltatuneError(f"this tokenizer's chat template refuses the conversation: {error}") from None
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
