"""Prompt formats: plain templates, Alpaca's format, and chat templates of tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.field_validation import shortened
from deltatune.tasks.prompts.chat_templates import rendered

ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
PAIRED = ", paired with an input that provides further context"
PRESETS = ("plain", "alpaca", "chat")
"""Prompt formats by name; any other prompt is a template with columns in braces."""

Message = Mapping[str, str]
"""A message of a conversation: `role` and `content`."""

PLACEHOLDER = "\ue000answer\ue000"
"""Stands for an answer in a chat template, to find its position."""


class AnswerSpan(NamedTuple):
    """An answer of the assistant in the text of a chat template, in characters."""

    start: int
    end: int
    stop: int
    """End of the special token that ends the answer."""


def plain_prompt(texts: Sequence[str]) -> str:
    """The columns, one per line."""
    return "".join(f"{text}\n" for text in texts)


def alpaca_prompt(texts: Sequence[str]) -> str:
    """Alpaca's format (https://github.com/tatsu-lab/stanford_alpaca): an instruction, maybe an input."""
    instruction, *more = texts
    context = "\n".join(text for text in more if text.strip())
    section = f"### Input:\n{context}\n\n" if context else ""
    return ALPACA.format(paired=PAIRED if context else "", instruction=instruction, input=section)


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """A template with columns in braces, as `Question: {question}\\nAnswer:`."""
    return template.format(**values)


def check_template(template: str, columns: Sequence[str]) -> list[str]:
    """What is wrong with a custom template: no column in braces, an unknown one, or one that is padded without end."""
    try:
        fields = [(field, spec or "") for _, field, spec, _ in Formatter().parse(template) if field is not None]
        nested = [name for _, spec in fields for _, name, _, _ in Formatter().parse(spec) if name is not None]
    except ValueError as error:
        return [f"the prompt {template!r} is not a template: {error}"]
    used = [field for field, _ in fields]
    if not used:
        near = nearest(template, PRESETS)
        return [f"the prompt {template!r} names no column in braces{near}; presets: {', '.join(PRESETS)}"]
    unknown = [name for name in used if name not in columns]
    unknown += [name for name in nested if name not in columns]
    if nested and not unknown:
        return [f"the prompt {template!r} takes the width of a column from {{{nested[0]}}}; write a number"]
    wide = [spec for _, spec in fields if any(len(digits) > 4 for digits in re.findall(r"\d+", spec))]
    if wide:
        return [f"the prompt {template!r} has the format {wide[0]!r}: columns are padded to at most 9999 characters"]
    return [
        f"the prompt names {{{name}}}{nearest(name, columns)}; its columns: {', '.join(columns)}" for name in unknown
    ]


# ---- chats


def last_answer(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[str, AnswerSpan]:
    """The text of a conversation that ends with an answer, and the span of that answer.

    The answer is all that the model has to generate after the prompt, with what the template adds to the message.
    Raises DeltatuneError for a template that leaves out part of the assistant's message.
    """
    content = messages[-1]["content"]
    text = rendered(messages, tokenizer, prompt=False)
    separator, tail = rendered(
        [*messages[:-1], {"role": "assistant", "content": PLACEHOLDER}], tokenizer, False
    ).partition(PLACEHOLDER)[1:]
    end = len(text) - len(tail)
    shown = content if text[:end].endswith(content) else content.strip()
    if not separator or not text.endswith(tail) or not text[:end].endswith(shown):
        raise DeltatuneError(
            f"this tokenizer's chat template changes the assistant's message {content[:80]!r}: change it in the data "
            "(some templates leave out thoughts), or set another tokenizer.chat_template"
        )
    start, prompt = end - len(shown), rendered(messages[:-1], tokenizer, prompt=True)
    start = len(prompt) if text.startswith(prompt) and len(prompt) <= start else start
    return text, AnswerSpan(start, end, end + len(end_of_turn(tail, tokenizer)))


def earlier_answers(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[AnswerSpan] | None:
    """The spans of the assistant's answers in a prompt; None where the template rewrites earlier turns."""
    text = chat_prompt(messages, tokenizer)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            conversation, span = last_answer(messages[: i + 1], tokenizer)
            if not text.startswith(conversation[: span.stop]):
                return None
            spans.append(span)
    return spans


def chat_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a conversation up to the assistant's next answer.

    Raises DeltatuneError for a template that leaves out a message of somebody else, as some do with roles that they do
    not know.
    """
    check_chat(tokenizer)
    text = rendered(messages, tokenizer, prompt=True)
    for message in messages:
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise DeltatuneError(
                f"this tokenizer's chat template leaves out or changes the message {message['content'][:80]!r} of the "
                f"role {shortened(message['role'])}: change it in the data, or set another tokenizer.chat_template"
            )
    return text


def check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise DeltatuneError for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        raise DeltatuneError(
            "this model's tokenizer has no chat template; choose the prompt 'alpaca' or 'plain', or set "
            "tokenizer.chat_template and save it with the model"
        )


def end_of_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token at the start of the text after an answer; "" where there is none."""
    special = [token for token in tokenizer.get_added_vocab() if token]
    matches = [match for token in special if (match := re.match(rf"\s*{re.escape(token)}", text))]
    return max((match.group() for match in matches), key=len, default="")


def check_messages(value: Any, where: str) -> list[Message]:
    """The messages of a conversation. Raises DeltatuneError where it is none."""
    if not isinstance(value, (list, tuple)) or not value:
        raise DeltatuneError(f"{where} is not a conversation: a list of messages with role and content is needed")
    for message in value:
        incomplete = not isinstance(message, Mapping) or {"role", "content"} - set(message)
        if incomplete or not isinstance(message["content"], str):
            raise DeltatuneError(f"{where} has a message without role and content: {str(message)[:80]}")
    return list(value)
