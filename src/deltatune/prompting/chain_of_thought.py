"""Chain of thought: a language model writes its steps before the answer; several chains vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import at_least
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, attach_prompt
from deltatune.tasks.auto_task import shorter
from deltatune.tasks.generation import Generate
from deltatune.tasks.metrics.generation.final_answer import AnswerKind, answer_key
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.task import Row, Task, default_of
from deltatune.training.session import Session
from deltatune.training.settings import Settings


@dataclass(frozen=True)
class ChainOfThought(PromptMethod):
    """argmax over answers a of Σ_m 1[a_m = a], where the answer a_m ends the chain z_m ~ p(z | demonstrations, x)

    Wei et al. 2022, https://arxiv.org/abs/2201.11903 (with demonstrations); Kojima et al. 2022,
    https://arxiv.org/abs/2205.11916 (without, in two stages); Wang et al. 2022, https://arxiv.org/abs/2203.11171 (vote)
    """

    shots: int = 0
    """Training rows with a rationale that are shown, drawn by the seed; 0 is zero-shot in two stages."""
    samples: int = 1
    """Chains of each question; of several the most frequent answer is taken (self-consistency)."""
    answer: AnswerKind = "number"
    """Kind of the answers: number, choice (a letter), yes_no, or text."""
    trigger: str = "Let's think step by step."
    """Beginning of a zero-shot chain; "" asks for the answer at once."""
    answer_trigger: str = ""
    """What asks for the answer of a zero-shot chain; by default the words for its kind of answer."""
    rationale: str = "rationale"
    """Column of the steps; without it they are what stands before `####` or "The answer is" in the label."""
    prompt: str = "plain"
    """plain ("Q: ...", then "A:"), chat, or a template with the columns in braces up to where the answer begins."""
    new_tokens: int = 256
    """Longest chain in tokens."""
    answer_tokens: int = 32
    """Longest answer of a zero-shot chain in tokens."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy for one chain, and 0.7 for several."""
    top_k: int = 0
    """For sampling: this many of the likeliest tokens; 0 takes all. Wang et al. take 40."""
    top_p: float = 1.0
    """For sampling: the likeliest tokens whose probabilities sum to this."""

    def check(self) -> None:
        at_least(self, shots=0, samples=1, new_tokens=1, answer_tokens=1, temperature=0, top_k=0)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether demonstrations or chains are drawn."""
        return self.shots > 0 or self.samples > 1 or self.temperature > 0

    @property
    def label(self) -> str:
        return "Chain of thought" + (", self-consistency" if self.samples > 1 else "")

    def check_task(self, task: Task) -> None:
        if not isinstance(task, Generate) or CHAT_COLUMN in task.text:
            raise DeltatuneError(
                f"{self!r} is for questions with an answer as a text (--task generate); this task is {task.describe()}"
            )

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        self.check_task(session.task)
        task = self.reason(session.task.text, session.task.label, rows.train, settings.seed)
        limited: Reason = shorter(task, session.positions)
        notes = []
        if limited.new_tokens < task.new_tokens:
            notes.append(
                f"chains have at most {limited.new_tokens} tokens, not {task.new_tokens}: the model has "
                f"{session.positions} positions"
            )
        shown = limited.chain_prompt({name: f"{{{name}}}" for name in limited.text})
        return Fitted(attach_prompt(session, self, limited, settings.seed), prompts=(shown,), notes=tuple(notes))

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        found = self.fit(session, rows, Settings(), options).session
        try:
            found.encode(rows.train[:1])
            cast(Reason, found.task).references([*rows.train, *rows.validation])
        finally:
            session.detach()

    def reason(self, text: Sequence[str], label: str, rows: Sequence[Row], seed: int = 0) -> Reason:
        """The task with its demonstrations, for columns of questions `text` and answers `label`; no model is needed.

        rows: the training rows. Raises DeltatuneError where too few of them have a rationale and an answer.
        """
        names = ("samples", "answer", "trigger", "answer_trigger", "rationale", "prompt", "new_tokens", "answer_tokens")
        task = Reason(
            text=tuple(text),
            label=label,
            max_length=max(int(default_of(Reason, "max_length")), 4 * (self.new_tokens + self.answer_tokens)),
            seed=seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            **{name: getattr(self, name) for name in names},
        )
        if not self.shots:
            return task
        shown = self._drawn(task, rows, seed)
        return replace(task, demonstrations=tuple(task.demonstration(row) for row in shown))

    def _drawn(self, task: Reason, rows: Sequence[Row], seed: int) -> list[Row]:
        """As many rows with a rationale as there are shots, in the order in which they were drawn."""
        order = torch.randperm(len(rows), generator=generator_for(seed, "demonstrations")).tolist()
        usable: list[Row] = []
        for number in order:
            steps, final = task.rationale_and_answer(rows[number])
            if steps and answer_key(final, task.answer):
                usable.append(rows[number])
            if len(usable) == self.shots:
                return usable
        columns = ", ".join(map(repr, rows[0])) if rows else "none, since there are no training rows"
        raise DeltatuneError(
            f"{self!r}: {len(usable) or 'none'} of the {len(rows)} training rows have steps and an answer of the kind "
            f"{task.answer!r}, and {self.shots} are needed. The steps are read from the column {task.rationale!r} "
            f"(rationale=), or from {task.label!r} before '####' or 'The answer is'; columns: {columns}"
        )
