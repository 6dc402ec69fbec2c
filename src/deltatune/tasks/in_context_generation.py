"""Text generation in context: a language model that was not trained for it answers behind a prompt.

Brown et al. 2020, https://arxiv.org/abs/2005.14165
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import raise_all
from deltatune.tasks.generation import Generate
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS
from deltatune.tasks.label_words.nearest_demonstrations import TextVectors, compared_text, ranked_texts
from deltatune.tasks.prompts.demonstration_encoding import DemonstrationEncoder
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN
from deltatune.tasks.prompts.prompt_format import alpaca_prompt, fill_template, plain_prompt
from deltatune.tasks.row_columns import raise_listed
from deltatune.tasks.task import Row

Demonstration = tuple[str, str]
"""An input as the prompt shows it, up to where the answer begins, and its answer."""


@dataclass(frozen=True)
class GenerateInContext(Generate):
    """A text for a text by a prompt alone: nothing is trained, and answered rows may stand in front of each row.

    Where the prompt ends with a word, a space follows it before every answer, and none before what the model writes.
    In a chat the demonstrations are earlier turns. A row's own text is never among those that are chosen for it.
    """

    name: ClassVar[str] = "generate-in-context"
    added_fields: ClassVar[Mapping[str, Any]] = {}

    demonstrations: tuple[Demonstration, ...] = ()
    """Inputs and answers in front of every row, the furthest first; the first are left out where they do not fit."""
    separator: str = "\n\n"
    """Text behind each demonstration."""
    stop: str = ""
    """Text before which an answer ends; "" leaves its end to the model."""
    pool: tuple[tuple[str, str, str], ...] = ()
    """Of what each row is shown the most similar: inputs, answers, and the texts that are compared."""
    shots: int = 0
    """Demonstrations of each row out of the pool."""
    order: Literal["nearest-last", "nearest-first", "random"] = "nearest-last"
    """Order of those, the first the furthest from the row."""
    encoder: str = ""
    """Folder of the model that compares texts; "" for the model itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if CHAT_COLUMN in self.text and (self.demonstrations or self.pool):
            problems.append("conversations cannot be shown as demonstrations; name columns of texts")
        if self.demonstrations and self.pool:
            problems.append("demonstrations are for rows that share them; with a pool each row has its own")
        if self.pool and not 0 < self.shots < len(self.pool):
            problems.append(
                f"shots={self.shots} of a pool of {len(self.pool)} rows: there must be more rows than shots, since a "
                "row is not shown to itself"
            )
        if self.shots and not self.pool:
            problems.append(f"shots={self.shots} of an empty pool: there is nothing to show")
        raise_all(problems)

    @property
    def stop_text(self) -> str:
        """The text before which an answer ends."""
        return self.stop

    @property
    def compares_texts(self) -> bool:
        return bool(self.pool)

    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase, joined: bool) -> DemonstrationEncoder:
        """What makes tokens of its prompts and answers."""
        return DemonstrationEncoder(self, tokenizer, joined)

    # ---- text

    def question(self, values: Mapping[str, str]) -> str:
        """The columns up to where the answer begins."""
        texts = [values[name] for name in self.text]
        if self.prompt == "chat":
            return plain_prompt(texts).strip()
        if self.prompt in ("plain", "alpaca"):
            return alpaca_prompt(texts) if self.prompt == "alpaca" else plain_prompt(texts)
        return fill_template(self.prompt, values).rstrip(" \t")

    def gap(self, question: str) -> str:
        """What stands between a prompt's end and an answer."""
        return "" if self.characters or not question or question[-1].isspace() else " "

    def in_front(self, demonstrations: Sequence[Demonstration]) -> str:
        """Demonstrations as the text in front of a row."""
        return "".join(f"{each}{self.gap(each)}{answer}{self.separator}" for each, answer in demonstrations)

    def demonstration(self, row: Row) -> Demonstration:
        """A labelled row as a demonstration; what separates demonstrations becomes a space in its texts."""

        def plain(text: str) -> str:
            return text.replace(self.separator, " ") if self.prompt != "chat" and self.separator.strip(" ") else text

        values = {name: plain(str(row[name]).strip()) for name in self.text}
        return self.question(values), plain(str(row[self.label]).strip())

    def prompt_of(self, row: Row) -> str:
        """The whole prompt of a row as one text, for a model that continues texts."""
        shown = self.in_front(self.shown_to(row))
        return shown + self.question({name: str(row[name]) for name in self.text})

    # ---- demonstrations of each row

    def shown_to(self, row: Row) -> Sequence[Demonstration]:
        """The demonstrations of a row. Raises DeltatuneError for a row that they were not chosen for."""
        if not self.pool:
            return self.demonstrations
        raise_listed(
            [] if DEMONSTRATIONS in row else ["a row has no demonstrations"],
            "demonstrations of each row's own are chosen with the model: encode the rows with Session.encode",
        )
        shown: Sequence[Demonstration] = row[DEMONSTRATIONS]
        return shown

    def with_demonstrations(self, rows: Sequence[Row], vectors: TextVectors) -> list[Row]:
        """The rows with their demonstrations, the most similar rows of the pool."""
        if not rows:
            return []
        texts = [compared_text(row, self.text) for row in rows]
        ranked = ranked_texts(texts, [each[2] for each in self.pool], vectors)
        result: list[Row] = []
        for row, text, of_row in zip(rows, texts, ranked, strict=True):
            numbers = of_row[: self.shots]
            if self.order == "nearest-last":
                numbers.reverse()
            elif self.order == "random":
                generator = generator_for(self.seed, f"demonstrations.0.{text}")
                numbers = [numbers[i] for i in torch.randperm(len(numbers), generator=generator).tolist()]
            result.append({**row, DEMONSTRATIONS: [self.pool[i][:2] for i in numbers]})
        return result

    def describe(self) -> str:
        """One line."""
        nearest = f", after the {self.shots} nearest of {len(self.pool)} rows" if self.pool else ""
        shared = f", after {len(self.demonstrations)} demonstrations" if self.demonstrations else ""
        return f"{super().describe()}{nearest or shared}"
