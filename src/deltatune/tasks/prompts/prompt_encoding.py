"""Prompt encoding: prompts and answers as tokens and labels, cut where they are too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.span_corruption import prepend_sentinel
from deltatune.tasks.prompts.prompt_format import (
    Message,
    alpaca_prompt,
    chat_prompt,
    check_chat,
    check_messages,
    earlier_answers,
    fill_template,
    last_answer,
    plain_prompt,
)
from deltatune.tasks.row_columns import column, raise_listed, text_column
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow
from deltatune.tasks.tokenization import check_length, need_offsets

if TYPE_CHECKING:
    from deltatune.tasks.generation import Generate

CHAT_COLUMN = "messages"
"""The column of conversations."""


class Example(NamedTuple):
    """The input of a row, as columns by name or as a conversation up to the answer, and its answer if there is one."""

    values: Mapping[str, str]
    messages: Sequence[Message]
    answer: str | None
    demonstrations: Sequence[tuple[str, str]] = ()
    """Inputs and answers that are shown in front, the furthest first."""


class PromptEncoder:
    """The prompts and answers of one task as tokens of one tokenizer."""

    def __init__(self, task: Generate, tokenizer: PreTrainedTokenizerBase, joined: bool) -> None:
        """`joined`: prompt and answer are one sequence (decoders), not an encoder's and a decoder's input."""
        self.task, self.tokenizer, self.joined = task, tokenizer, joined
        self.chat = task.prompt == "chat" or CHAT_COLUMN in task.text
        self.end = tokenizer.eos_token_id
        if self.end is None:
            raise DeltatuneError("this tokenizer has no end token, so no answer could end; set its eos_token")

    def encode(self, rows: Sequence[Row], positions: int | None, positions_taken: int, labelled: bool) -> Encoded:
        """Rows as tokens; the facts of a row are its prompt, for generation."""
        check_length(self.task.max_length, positions, positions_taken)
        examples = self.examples(rows, labelled)
        facts, encoded, owners, truncated = [], [], [], 0
        for i, example in enumerate(examples):
            try:
                token_rows, prompt, cut = self.labelled_rows(example) if labelled else self.prompt_row(example)
            except DeltatuneError as error:
                raise DeltatuneError(f"row {i}: {error}") from None
            truncated += cut
            encoded += token_rows
            owners += [i] * len(token_rows)
            facts.append({"prompt": prompt})
        known = references(rows, examples) if labelled else None
        return Encoded(encoded, truncated, owners, facts, known, notes=self.notes(len(rows)))

    def notes(self, rows: int) -> tuple[str, ...]:
        """What a user must know of the rows that were encoded, in sentences."""
        return ()

    def examples(self, rows: Sequence[Row], labelled: bool) -> list[Example]:
        """The rows as examples, checked."""
        if CHAT_COLUMN in self.task.text:
            values = column(rows, CHAT_COLUMN)
            chats = [check_messages(value, f"row {i}: {CHAT_COLUMN}") for i, value in enumerate(values)]
            unanswered = [i for i, chat in enumerate(chats) if labelled and chat[-1]["role"] != "assistant"]
            ending = "the conversation does not end with an answer of the assistant"
            raise_listed([f"row {i}: {ending}" for i in unanswered])
            empty = [i for i, chat in enumerate(chats) if labelled and not chat[-1]["content"].strip()]
            raise_listed([f"row {i}: the conversation's last answer is empty" for i in empty])
            return [chat_example(chat, labelled) for chat in chats]
        columns = {name: text_column(rows, name) for name in self.task.text}
        answers: Sequence[str | None] = text_column(rows, self.task.label) if labelled else [None] * len(rows)
        empty = [i for i, text in enumerate(answers) if text is not None and not text.strip()]
        raise_listed([f"row {i}: {self.task.label} is empty" for i in empty])
        return [
            Example({name: values[i] for name, values in columns.items()}, (), answer)
            for i, answer in enumerate(answers)
        ]

    # ---- text

    def prompt_text(self, example: Example) -> str:
        """The text before the last answer."""
        task = self.task
        if self.chat:
            return chat_prompt(self.messages(example), self.tokenizer)
        texts = list(example.values.values())
        if task.prompt in ("plain", "alpaca"):
            text = alpaca_prompt(texts) if task.prompt == "alpaca" else plain_prompt(texts)
        else:
            text = fill_template(task.prompt, example.values)
        return text if self.joined else text.strip()

    def messages(self, example: Example) -> list[Message]:
        """The example as a conversation; columns become one message of the user."""
        text = plain_prompt(list(example.values.values())).strip()
        return list(example.messages) or [{"role": "user", "content": text}]

    # ---- tokens

    def ids(self, text: str, start: bool = False) -> list[int]:
        """Token ids of a piece of text; `start`: with the special tokens before a text, without its end token."""
        special = start and not self.chat
        ids: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        ends = {self.end, self.tokenizer.sep_token_id}
        return ids[:-1] if special and self.joined and ids and ids[-1] in ends else ids

    def answer_ids(self, example: Example, prompt: list[int]) -> list[int]:
        """The tokens of the answer and of its end.

        The answer is tokenised behind its prompt if the prompt's tokens stay the same. Alone, it may be split
        otherwise: SentencePiece puts a space before every text.
        """
        assert example.answer is not None
        text, ended = example.answer, False
        if self.chat:
            chat, span = last_answer([*self.messages(example), answer_message(example)], self.tokenizer)
            text, ended = chat[span.start : span.stop], span.stop > span.end
        elif not self.joined:
            target: list[int] = self.tokenizer(text_target=text, verbose=False)["input_ids"]
            return target if self.end in target else [*target, self.end]
        sequence = self.ids(self.prompt_text(example) + text, True) if self.joined else []
        ids = sequence[len(prompt) :] if sequence[: len(prompt)] == prompt and self.joined else self.ids(text)
        return ids if ended else [*ids, self.end]

    def labelled_rows(self, example: Example) -> tuple[list[TokenRow], list[int], bool]:
        """The encoded rows of a labelled example, the prompt of its last answer, and whether anything was cut.

        A conversation is one row with a loss on every answer. If the template rewrites earlier turns, or the model is
        an encoder-decoder, each answer has its own row.
        """
        example, prompt, cut = self.fitted(example)
        turns = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
        labels = self.prompt_labels(example, prompt) if self.joined and turns else None
        separate = turns if labels is None else []
        rows = [self.row(Example({}, example.messages[:i], example.messages[i]["content"])) for i in separate]
        rows.append(self.row(example, prompt, labels))
        return [row for row, _ in rows], prompt, cut or any(row_cut for _, row_cut in rows)

    def prompt_row(self, example: Example) -> tuple[list[TokenRow], list[int], bool]:
        """The encoded prompt of an example without an answer, its ids, and whether it was cut."""
        _, prompt, cut = self.fitted(example)
        return [{"input_ids": prompt, "attention_mask": [1] * len(prompt)}], prompt, cut

    def row(
        self, example: Example, prompt: list[int] | None = None, prompt_labels: list[int] | None = None
    ) -> tuple[TokenRow, bool]:
        """Prompt and answer with labels, and whether they were cut; by default the prompt has no loss."""
        cut = False
        if prompt is None:
            example, prompt, cut = self.fitted(example)
        whole_answer = self.with_sentinel(self.answer_ids(example, prompt))
        answer = whole_answer[: self.task.max_length - (len(prompt) if self.joined else 0)]
        ids = prompt + answer if self.joined else prompt
        labels = (prompt_labels or [IGNORED] * len(prompt)) + answer if self.joined else answer
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
        return row, cut or len(answer) < len(whole_answer)

    def with_sentinel(self, answer: list[int]) -> list[int]:
        """The answer after the task's sentinel, if it has one."""
        name = self.task.sentinel
        if not name:
            return answer
        vocabulary = self.tokenizer.get_vocab()
        if self.joined or name not in vocabulary:
            why = "decoders were not trained with sentinels" if self.joined else "its tokenizer has no such token"
            raise DeltatuneError(f"sentinel={name!r} cannot be used with this model: {why}; leave it out")
        return prepend_sentinel(answer, vocabulary[name])

    def prompt_labels(self, example: Example, prompt: list[int]) -> list[int] | None:
        """Labels of the assistant's earlier answers in a prompt; None where the template rewrites earlier turns."""
        spans = earlier_answers(example.messages, self.tokenizer)
        if spans is None:
            return None
        need_offsets(self.tokenizer, "a loss on every answer of a conversation")
        text = chat_prompt(example.messages, self.tokenizer)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside = [any(a < span.stop and b > span.start for span in spans) for a, b in encoding["offset_mapping"]]
        return [token if learned else IGNORED for token, learned in zip(prompt, inside, strict=True)]

    def fitted(self, example: Example) -> tuple[Example, list[int], bool]:
        """The example, cut until its answer has room, its prompt's tokens, and whether it was cut.

        A conversation loses its oldest turns first, then, like other examples, the end of its longest text.
        """
        limit = self.task.max_length - (self.task.new_tokens if self.joined else 0)
        ids, cut = self.ids(self.prompt_text(example), True), False
        while len(ids) > limit:
            messages = without_oldest_turn(example.messages)
            shorter = example._replace(messages=messages) if messages else shortened(example, limit / len(ids))
            if shorter is None:
                raise DeltatuneError(
                    f"a prompt has {len(ids)} tokens without its input, more than the {limit} that max_length="
                    f"{self.task.max_length} and new_tokens={self.task.new_tokens} leave it"
                )
            example, cut = shorter, True
            ids = self.ids(self.prompt_text(example), True)
        return example, ids, cut

    def stop_ids(self) -> set[int]:
        """Ids of the tokens that end an answer."""
        stops = {int(self.end)}
        if self.chat:
            check_chat(self.tokenizer)
            chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            text, span = last_answer(chat, self.tokenizer)
            stops |= set(self.ids(text[span.end : span.stop])[-1:])
        return stops


def chat_example(chat: Sequence[Message], labelled: bool) -> Example:
    """A conversation up to its last answer, and that answer."""
    answered = chat[-1]["role"] == "assistant"
    return Example({}, chat[:-1] if answered else chat, chat[-1]["content"] if labelled else None)


def references(rows: Sequence[Row], examples: Sequence[Example]) -> list[list[str]]:
    """The references of each row: its column `references`, or its answer."""
    return [list(row.get("references") or [example.answer]) for row, example in zip(rows, examples, strict=True)]


def answer_message(example: Example) -> Message:
    """The answer as the assistant's message."""
    return {"role": "assistant", "content": example.answer or ""}


def shortened(example: Example, share: float) -> Example | None:
    """The example with its longest text cut, so that about this share of all text is left; None if it is too short."""
    texts = dict(example.values) or {
        str(i): message["content"] for i, message in enumerate(example.messages) if message["role"] == "user"
    }
    name = max(texts, key=lambda name: len(texts[name]), default=None)
    if name is None or len(texts[name].strip()) <= 1:
        return None
    total = sum(map(len, texts.values()))
    text = texts[name][: max(1, len(texts[name]) - max(1, int(total * (1 - share))))]
    if example.values:
        return example._replace(values={**example.values, name: text})
    messages = [{**m, "content": text} if str(i) == name else m for i, m in enumerate(example.messages)]
    return example._replace(messages=messages)


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """A conversation without its first question and answer, but with the system message; None if only one is left."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages) - 1)
    if first >= len(messages) - 1:
        return None
    return [*(m for m in messages[:1] if m["role"] == "system"), *messages[first + 1 :]]
