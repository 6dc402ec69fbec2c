"""Prompts and answers as tokens: what the model reads, what it learns to write, what is cut where it is too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.span_corruption import after_sentinel
from deltatune.tasks.prompts.prompt_format import (
    Message,
    alpaca,
    chat_prompt,
    check_chat,
    earlier_answers,
    filled,
    last_answer,
    messages_of,
    plain,
)
from deltatune.tasks.task import IGNORED, Encoded, Row, TokenRow, column, raise_listed, text_column
from deltatune.tasks.tokenization import check_length, need_offsets

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
            empty = [i for i, talk in enumerate(talks) if labelled and not talk[-1]["content"].strip()]
            raise_listed([f"row {i}: the conversation's last answer is empty" for i in empty])
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

    def answer(self, sample: Sample, prompt: list[int]) -> list[int]:
        """The tokens of the answer, those that end it included; cut as the whole text is, if that keeps the prompt's.

        Alone, an answer may be cut otherwise: sentencepiece puts a space in front of every text.
        """
        assert sample.answer is not None
        text, ended = sample.answer, False
        if self.chat:
            whole, said = last_answer([*self.talk(sample), answer_of(sample)], self.tokenizer)
            text, ended = whole[said.start : said.stop], said.stop > said.end
        elif not self.joined:
            found: list[int] = self.tokenizer(text_target=text, verbose=False)["input_ids"]
            return found if self.end in found else [*found, self.end]
        both = self.ids(self.prompt(sample) + text, True) if self.joined else []
        own = both[len(prompt) :] if both[: len(prompt)] == prompt and self.joined else self.ids(text)
        return own if ended else [*own, self.end]

    def rows(self, sample: Sample) -> tuple[list[TokenRow], list[int], bool]:
        """The tokens of a labelled sample, the last row's prompt among them, and whether anything was cut.

        A conversation is one row, in which every answer is learnt. Where that cannot be, as the template rewrites
        earlier turns or the model does not write what it reads, every answer has a row of its own.
        """
        fits, prompt, cut = self.fitting(sample)
        told = [i for i, message in enumerate(fits.messages) if message["role"] == "assistant"]
        learnt = self.learnt(fits, prompt) if self.joined and told else None
        apart = told if learnt is None else []
        rows = [self.row(Sample({}, fits.messages[:i], fits.messages[i]["content"])) for i in apart]
        rows.append(self.row(fits, prompt, learnt))
        return [row for row, _ in rows], prompt, cut or any(short for _, short in rows)

    def row(
        self, sample: Sample, prompt: list[int] | None = None, learnt: list[int] | None = None
    ) -> tuple[TokenRow, bool]:
        """Prompt and answer as tokens with labels; `learnt`: labels of the prompt, if any of it is to be learnt."""
        cut = False
        if prompt is None:
            sample, prompt, cut = self.fitting(sample)
        whole = self.opened(self.answer(sample, prompt))
        answer = whole[: self.task.max_length - (len(prompt) if self.joined else 0)]
        ids = prompt + answer if self.joined else prompt
        labels = (learnt or [IGNORED] * len(prompt)) + answer if self.joined else answer
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut or len(answer) < len(whole)

    def opened(self, answer: list[int]) -> list[int]:
        """The answer behind the task's sentinel, where it has one."""
        name = self.task.sentinel
        if not name:
            return answer
        known = self.tokenizer.get_vocab()
        if self.joined or name not in known:
            why = "decoders have not learnt to write behind one" if self.joined else "its tokenizer has no such token"
            raise DeltatuneError(f"sentinel={name!r} cannot be used with this model: {why}; leave it out")
        return after_sentinel(answer, known[name])

    def learnt(self, sample: Sample, prompt: list[int]) -> list[int] | None:
        """Labels of a conversation's prompt: what the assistant says in it; None where the template rewrites that."""
        spans = earlier_answers(sample.messages, self.tokenizer)
        if spans is None:
            return None
        need_offsets(self.tokenizer, "learning every answer of a conversation")
        text = chat_prompt(sample.messages, self.tokenizer)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        mine = [any(a < said.stop and b > said.start for said in spans) for a, b in found["offset_mapping"]]
        return [token if own else IGNORED for token, own in zip(prompt, mine, strict=True)]

    def fitting(self, sample: Sample) -> tuple[Sample, list[int], bool]:
        """The sample, shortened until its answer has room, its prompt's tokens, and whether that was needed.

        A conversation loses its oldest turns, then, as others do, the end of its longest text.
        """
        most = self.task.max_length - (self.task.new_tokens if self.joined else 0)
        ids, cut = self.ids(self.prompt(sample), True), False
        while len(ids) > most:
            talk = without_oldest(sample.messages)
            shorter = sample._replace(messages=talk) if talk else shortened(sample, most / len(ids))
            if shorter is None:
                raise DeltatuneError(
                    f"a prompt has {len(ids)} tokens without its input, more than the {most} that max_length="
                    f"{self.task.max_length} and new_tokens={self.task.new_tokens} leave it"
                )
            sample, cut = shorter, True
            ids = self.ids(self.prompt(sample), True)
        return sample, ids, cut

    def stops(self) -> set[int]:
        """Tokens that end an answer."""
        found = {int(self.end)}
        if self.chat:
            check_chat(self.tokenizer)
            example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            text, said = last_answer(example, self.tokenizer)
            found |= set(self.ids(text[said.end : said.stop])[-1:])
        return found


def encode_rows(how: Answering, rows: Sequence[Row], positions: int | None, room: int, labelled: bool) -> Encoded:
    """The rows as tokens; prompts alone are kept beside them, to write from."""
    check_length(how.task.max_length, positions, room)
    samples = how.samples(rows, labelled)
    facts, encoded, owners, truncated = [], [], [], 0
    for i, sample in enumerate(samples):
        try:
            tokens, prompt, cut = how.rows(sample) if labelled else asked(how, sample)
        except DeltatuneError as error:
            raise DeltatuneError(f"row {i}: {error}") from None
        truncated += cut
        encoded += tokens
        owners += [i] * len(tokens)
        facts.append({"prompt": prompt})
    return Encoded(encoded, truncated, owners, facts, references(rows, samples) if labelled else None)


def asked(how: Answering, sample: Sample) -> tuple[list[TokenRow], list[int], bool]:
    """A sample without an answer."""
    _, prompt, cut = how.fitting(sample)
    return [{"input_ids": prompt, "attention_mask": [1] * len(prompt)}], prompt, cut


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
    if name is None or len(texts[name].strip()) <= 1:
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
