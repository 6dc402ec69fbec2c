"""Prompts and answers as tokens: what the model reads, what it learns to write, what is cut where it is too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.plain import column, raise_listed, text_column
from deltatune.tasks.rendering import (
    Message,
    Turn,
    alpaca,
    chat_prompt,
    chat_turns,
    end_of_turn,
    filled,
    messages_of,
    plain,
)
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow
from deltatune.tasks.tokens import check_length

CHAT = "messages"
"""The column of conversations."""


class Sample(NamedTuple):
    """A row as its parts: columns by name, or a conversation up to the answer; and the answer, where there is one."""

    values: Mapping[str, str]
    messages: Sequence[Message]
    answer: str | None


class Answering:
    """How one task's prompts and answers become the tokens of one tokenizer."""

    def __init__(self, task: Any, tokenizer: PreTrainedTokenizerBase, joined: bool) -> None:
        """`joined`: prompt and answer are one text (decoders), not an encoder's and a decoder's."""
        self.task, self.tokenizer, self.joined = task, tokenizer, joined
        self.chat = task.prompt == "chat" or CHAT in task.text
        self.end = tokenizer.eos_token_id
        if self.end is None:
            raise DeltatuneError("this tokenizer has no end token, so that no answer could end; set its eos_token")

    def samples(self, rows: Sequence[Row], labelled: bool) -> list[Sample]:
        """The rows' parts, checked."""
        if CHAT in self.task.text:
            talks = [messages_of(value, f"row {i}: {CHAT}") for i, value in enumerate(column(rows, CHAT))]
            silent = [i for i, talk in enumerate(talks) if labelled and talk[-1]["role"] != "assistant"]
            raise_listed([f"row {i}: the conversation does not end with an answer of the assistant" for i in silent])
            return [said(talk, labelled) for talk in talks]
        columns = {name: text_column(rows, name) for name in self.task.text}
        answers: Sequence[str | None] = text_column(rows, self.task.label) if labelled else [None] * len(rows)
        empty = [i for i, text in enumerate(answers) if text is not None and not text.strip()]
        raise_listed([f"row {i}: {self.task.label} is empty" for i in empty])
        return [
            Sample({name: values[i] for name, values in columns.items()}, (), answer)
            for i, answer in enumerate(answers)
        ]

    # ---- text

    def prompt(self, sample: Sample) -> str:
        """What the model reads before it writes the last answer."""
        task = self.task
        if self.chat:
            return chat_prompt(self.talk(sample), self.tokenizer)
        texts = list(sample.values.values())
        if task.prompt in ("plain", "alpaca"):
            text = alpaca(texts) if task.prompt == "alpaca" else plain(texts)
        else:
            text = filled(task.prompt, sample.values)
        return text if self.joined else text.strip()

    def talk(self, sample: Sample) -> list[Message]:
        """The sample as a conversation: columns become one turn of the user."""
        return list(sample.messages) or [{"role": "user", "content": plain(list(sample.values.values())).strip()}]

    # ---- tokens

    def ids(self, text: str, start: bool = False) -> list[int]:
        """Token ids of a piece of text; `start`: with what the tokenizer puts in front of a text, without its end."""
        special = start and not self.chat
        found: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        ends = {self.end, self.tokenizer.sep_token_id}
        return found[:-1] if special and self.joined and found and found[-1] in ends else found

    def turn_ids(self, turn: Turn, start: bool) -> tuple[list[int], list[int], list[int]]:
        """Tokens that are read, written (with their end), and read again behind them."""
        end = end_of_turn(turn.ends, self.tokenizer)
        written = self.ids(turn.writes) + (self.ids(end) if end else [self.end])
        return self.ids(turn.reads, start), written, self.ids(turn.ends[len(end) :]) if end else []

    def row(self, sample: Sample) -> tuple[TokenRow, bool]:
        """The tokens of a labelled sample, and whether anything was cut."""
        if self.chat and any(message["role"] == "assistant" for message in sample.messages):
            return self._conversation(sample)
        prompt, cut = self.fitting(sample)
        assert sample.answer is not None
        turn = Turn("", sample.answer)
        if self.chat:
            turn = chat_turns([*self.talk(sample), answer_of(sample)], self.tokenizer)[-1]
        _, answer, _ = self.turn_ids(turn, False)
        most = self.task.max_length - (len(prompt) if self.joined else 0)
        answer, cut = answer[:most], cut or len(answer) > most
        ids = prompt + answer if self.joined else prompt
        labels = [IGNORED] * len(prompt) + answer if self.joined else answer
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut

    def _conversation(self, sample: Sample) -> tuple[TokenRow, bool]:
        """All the assistant's turns of a conversation; the oldest turns go where it is too long."""
        talk = [*sample.messages, answer_of(sample)]
        cut = False
        while True:
            ids: list[int] = []
            labels: list[int] = []
            for turn in chat_turns(talk, self.tokenizer):
                read, written, rest = self.turn_ids(turn, False)
                ids += read + written + rest
                labels += [IGNORED] * len(read) + written + [IGNORED] * len(rest)
            if len(ids) <= self.task.max_length:
                return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut
            shorter = without_oldest(talk)
            cut = True
            if shorter is None:
                return self.row(Sample({}, talk[:-1], sample.answer))[0], cut
            talk = shorter

    def fitting(self, sample: Sample) -> tuple[list[int], bool]:
        """The prompt's tokens, shortened until the answer has room, and whether that was needed."""
        most = self.task.max_length - (self.task.new_tokens if self.joined else 0)
        ids, cut = self.ids(self.prompt(sample), True), False
        while len(ids) > most:
            shorter = shortened(sample, most / len(ids))
            if shorter is None:
                raise DeltatuneError(
                    f"a prompt has {len(ids)} tokens without its input, more than the {most} that max_length="
                    f"{self.task.max_length} and new_tokens={self.task.new_tokens} leave it"
                )
            sample, cut = shorter, True
            ids = self.ids(self.prompt(sample), True)
        return ids, cut

    def stops(self) -> set[int]:
        """Tokens that end an answer."""
        found = {int(self.end)}
        if self.chat:
            example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            end = end_of_turn(chat_turns(example, self.tokenizer)[-1].ends, self.tokenizer)
            found |= set(self.ids(end)[-1:])
        return found


def encode_rows(how: Answering, rows: Sequence[Row], positions: int | None, room: int, labelled: bool) -> Encoded:
    """The rows as tokens; prompts alone are kept beside them, to write from."""
    task = how.task
    check_length(task.max_length, positions, room)
    samples = how.samples(rows, labelled)
    facts, encoded, truncated = [], [], 0
    for sample in samples:
        prompt, cut = how.fitting(sample)
        tokens: TokenRow = {"input_ids": prompt, "attention_mask": [1] * len(prompt)}
        if labelled:
            tokens, cut = how.row(sample)
        truncated += cut
        encoded.append(tokens)
        facts.append({"prompt": prompt})
    return Encoded(encoded, truncated, facts=facts, truth=references(rows, samples) if labelled else None)


def said(talk: Sequence[Message], labelled: bool) -> Sample:
    """A conversation up to its last answer, and that answer."""
    ends = talk[-1]["role"] == "assistant"
    return Sample({}, talk[:-1] if ends else talk, talk[-1]["content"] if labelled else None)


def references(rows: Sequence[Row], samples: Sequence[Sample]) -> list[list[str]]:
    """What each answer is compared with."""
    return [list(row.get("references") or [sample.answer]) for row, sample in zip(rows, samples, strict=True)]


def answer_of(sample: Sample) -> Message:
    """The answer as the assistant's turn."""
    return {"role": "assistant", "content": sample.answer or ""}


def shortened(sample: Sample, share: float) -> Sample | None:
    """A sample whose longest text has lost its end, so that about this share of the whole is left; None if none can."""
    texts = {name: text for name, text in sample.values.items()} or {
        str(i): message["content"] for i, message in enumerate(sample.messages) if message["role"] == "user"
    }
    name = max(texts, key=lambda each: len(texts[each]), default=None)
    if name is None or len(texts[name]) <= 1:
        return None
    total = sum(map(len, texts.values()))
    text = texts[name][: max(1, len(texts[name]) - max(1, int(total * (1 - share))))]
    if sample.values:
        return sample._replace(values={**sample.values, name: text})
    talk = [{**m, "content": text} if str(i) == name else m for i, m in enumerate(sample.messages)]
    return sample._replace(messages=talk)


def without_oldest(talk: Sequence[Message]) -> list[Message] | None:
    """A conversation without its first question and answer, the system's message kept; None where one is left."""
    first = next((i for i, message in enumerate(talk) if message["role"] == "assistant"), len(talk) - 1)
    if first >= len(talk) - 1:
        return None
    return [*(m for m in talk[:1] if m["role"] == "system"), *talk[first + 1 :]]
