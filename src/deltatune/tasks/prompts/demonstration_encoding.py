"""Prompts with demonstrations: inputs with their answers in front of a row, as text or as earlier turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from deltatune.tasks.prompts.prompt_encoding import Example, PromptEncoder
from deltatune.tasks.prompts.prompt_format import Message
from deltatune.tasks.task import Row

if TYPE_CHECKING:
    from deltatune.tasks.in_context_generation import GenerateInContext


class DemonstrationEncoder(PromptEncoder):
    """The prompts and answers of a task that shows demonstrations, which are left out from the far end."""

    def __init__(self, task: GenerateInContext, tokenizer: PreTrainedTokenizerBase, joined: bool) -> None:
        super().__init__(task, tokenizer, joined)
        self.showing = task
        self.without_room = 0
        """Rows so far that had no room for all of their demonstrations."""

    def examples(self, rows: Sequence[Row], labelled: bool) -> list[Example]:
        """The rows as examples with their demonstrations, checked."""
        plain = super().examples(rows, labelled)
        shown = [self.showing.shown_to(row) for row in rows]
        return [each._replace(demonstrations=of_row) for each, of_row in zip(plain, shown, strict=True)]

    def prompt_text(self, example: Example) -> str:
        """The demonstrations and the text before the answer."""
        if self.chat:
            return super().prompt_text(example)
        text = self.showing.in_front(example.demonstrations) + self.showing.question(example.values)
        return text if self.joined else text.strip()

    def messages(self, example: Example) -> list[Message]:
        """The demonstrations as earlier turns, and the example."""
        turns: list[Message] = []
        for question, answer in example.demonstrations:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*turns, *super().messages(example)]

    def answer_ids(self, example: Example, prompt: list[int]) -> list[int]:
        """The tokens of the answer as it follows the prompt, and of its end."""
        gap = self.showing.gap(self.prompt_text(example)) if self.joined and not self.chat else ""
        return super().answer_ids(example._replace(answer=f"{gap}{example.answer}"), prompt)

    def fitted(self, example: Example) -> tuple[Example, list[int], bool]:
        """As `PromptEncoder.fitted`; the demonstrations that are furthest from the row go before any of its text."""
        limit = self.task.max_length - (self.task.new_tokens if self.joined else 0)
        kept = example
        while kept.demonstrations and len(self.ids(self.prompt_text(kept), True)) > limit:
            kept = kept._replace(demonstrations=kept.demonstrations[1:])
        self.without_room += len(kept.demonstrations) < len(example.demonstrations)
        return super().fitted(kept)

    def notes(self, rows: int) -> tuple[str, ...]:
        """How many rows have no room for all demonstrations."""
        if not self.without_room:
            return ()
        return (
            f"{self.without_room} of {rows} rows have no room for all of their demonstrations within "
            f"{self.task.max_length} tokens; the first ones are left out",
        )
