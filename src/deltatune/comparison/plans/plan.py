"""Plan of a comparison: its methods, rows and repeats, the cells it can run, and what identifies a cell's result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deltatune.comparison.plans.candidates import Candidate
from deltatune.comparison.results.records import unused_results
from deltatune.core.budget import Budget
from deltatune.core.input_validation.strict_json import dumps
from deltatune.core.method import Method
from deltatune.data import Data, Row
from deltatune.data.few_shot import MOST_UNLABELLED, unlabelled_rows, without_labels
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.tasks.task import Encoded
from deltatune.training import Settings
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.scaling.lower_layers import LOWER_LAYERS_VERSION, spares_first_block
from deltatune.training.session import Session


@dataclass(frozen=True)
class Cell:
    """One training run: a method at a learning rate with a seed."""

    stage: Literal["search", "seed", "final", "costs"]
    """Training with the first seed, with another seed, test scores of a trained adapter, or its inference costs."""
    candidate: Candidate
    rate: float
    seed: int
    draw: int | None = None
    """Number of the draw of training rows; None where all rows are trained on."""

    def describe(self) -> str:
        """The cell for people: `LoRA(r=12), lr 0.002, learning-rate search`."""
        search = self.stage == "search" and self.rate
        stage = "learning-rate search" if search else f"seed {self.seed}"
        stage = {"final": f"{stage}, test", "costs": "inference costs"}.get(self.stage, stage)
        stage = stage if self.draw is None else f"{stage}, draw {self.draw}"
        return f"{self.candidate.text}, {f'lr {self.rate:g}, ' if self.rate else ''}{stage}"


class Repeat(NamedTuple):
    """One of the runs of a method at a learning rate."""

    seed: int
    draw: int | None = None
    """Number of the draw of training rows; None where all rows are trained on."""


@dataclass(frozen=True)
class Plan:
    """Everything a comparison needs, encoded and checked."""

    name: str
    out: Path
    session: Session
    """The model, its tokenizer and the task, without an adapter."""
    data: Data
    splits: dict[str, Encoded]
    candidates: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    settings: Settings
    budget: Budget | None
    start: int = 1
    """Repeats that every method gets; those not told apart get more, up to all."""
    margin: float | None = None
    """Difference of two scores within which methods count as equal."""
    minutes: float | None = None
    """Time for the whole comparison; None: as long as it takes."""
    timed: bool = False
    """Whether the rows are those that the time is enough for."""
    executor: str = "local"
    """Where works run: `local`, `ray`, or the address of a Ray cluster."""
    workers: int | None = None
    """Works that run at once; None: as many as there is room for."""
    together: Literal["off", "auto"] = "off"
    """Whether trainings share passes of the base: never, or where that is measured to be faster."""
    shots: int | None = None
    """Training rows of each class in a draw; None: all rows are trained on."""
    draws: tuple[dict[str, Encoded], ...] = ()
    """Train and validation rows of each draw; the test rows are the same for all."""
    drawn: tuple[Data, ...] = ()
    """The same rows as they were read."""
    options: PromptOptions = NO_OPTIONS
    """What the user says of prompts."""
    more_unlabelled: tuple[Row, ...] = ()
    """Rows without labels that the user gives."""

    @property
    def repeats(self) -> tuple[Repeat, ...]:
        """The runs of each method at its learning rate: every seed, on every draw."""
        draws: Sequence[int | None] = range(len(self.draws)) if self.draws else [None]
        return tuple(Repeat(seed, draw) for draw in draws for seed in self.seeds)

    def splits_of(self, draw: int | None) -> dict[str, Encoded]:
        """The rows of one draw, or all rows."""
        return self.splits if draw is None else {**self.splits, **self.draws[draw]}

    def rows_of(self, draw: int | None) -> dict[str, list[Row]]:
        """The rows of one draw as they were read, or all rows."""
        return (self.data if draw is None else self.drawn[draw]).splits()

    def unlabelled(self, draw: int | None) -> list[Row]:
        """Rows without labels: those given, and with draws the training rows that were not drawn."""
        given = without_labels(self.more_unlabelled, self.data.label)
        if draw is None or self.data.kind != "classes":
            return given
        left = unlabelled_rows(self.data, self.drawn[draw])
        return [*given, *without_labels(left, self.data.label, MOST_UNLABELLED - len(given))]

    @cached_property
    def head_json(self) -> dict[str, Any] | None:
        """The head's fields as plain data; None for tasks without one."""
        head: Any = self.session.make_head(0)
        return head.config.to_json() if head else None

    @cached_property
    def head_params(self) -> int:
        """Number of parameters of the head."""
        head = self.session.make_head(0)
        return sum(p.numel() for p in head.parameters()) if head else 0

    @cached_property
    def contestants(self) -> dict[str, list[Candidate]]:
        """The sizes of each method to compare, by the method as the user wrote it."""
        groups: dict[str, list[Candidate]] = {}
        for candidate in self.candidates:
            groups.setdefault(candidate.asked or candidate.text, []).append(candidate)
        return groups

    @property
    def look(self) -> int:
        """Repeats that are added at once: all seeds of a draw, or one seed."""
        return len(self.seeds) if self.draws else 1

    def steps(self, draw: int | None = None) -> int:
        """Optimizer steps of one training."""
        return steps_of(self.settings, len(self.splits_of(draw)["train"]))

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Everything that determines a cell's result, as plain data."""
        method = cell.candidate.method
        drawn: dict[str, Any] = {} if cell.draw is None else {"draw": self._drawn[cell.draw]}
        settings = self.settings.facts() | {"learning_rate": cell.rate, "seed": cell.seed}
        if isinstance(method, PromptMethod):
            drawn |= {"prompt": dataclasses.asdict(self.options), "unlabelled": self._unlabelled[cell.draw]}
            if not method.draws:  # one result for all seeds and draws, which is computed once
                settings, drawn = settings | {"seed": 0}, {"prompt": drawn["prompt"]}
        return {
            "model": self.session.model,
            "base_params": self.session.host.sites.base_params,
            "base": self._base,
            "data": {"name": self.data.name, "origin": self.data.origin, "digest": self._digest},
            "task": self.session.task.to_json(),
            "head": self.head_json,
            "method": cell.candidate.text,
            "settings": settings,
            "schedule_version": self.settings.schedule_version(),
            **({} if self.together == "off" else {"together": self.together}),
            **self._lower_layers(method),
            **drawn,
        }

    def _lower_layers(self, method: Method) -> dict[str, int]:
        """The version of trainings that leave the first block alone; nothing for others."""
        spared = not isinstance(method, PromptMethod) and spares_first_block(method, self.session.host.sites)
        return {"lower_layers": LOWER_LAYERS_VERSION} if spared else {}

    def notes(self) -> list[str]:
        """Notes for the user: on the data, on methods left out, on results in the folder that cannot be used."""
        first = [Cell("search", each, each.rates[0], *self.repeats[0]) for each in self.candidates]
        return [*self.data.notes, *unused_results(self.out, [self.identity(cell) for cell in first])]

    def key(self, cell: Cell) -> str:
        """Hash of a cell's identity: equal for equal runs, in every session."""
        return _hash(self.identity(cell))

    @cached_property
    def _base(self) -> dict[str, str]:
        return self.session.base_record()

    @cached_property
    def _digest(self) -> str:
        return _hash({name: [list(rows), rows.row_references] for name, rows in self.splits.items()})

    @cached_property
    def _unlabelled(self) -> dict[int | None, str]:
        """Digest of the texts without labels, by draw."""
        return {
            draw: _hash([[str(row.get(name)) for name in self.data.text] for row in self.unlabelled(draw)])
            for draw in {repeat.draw for repeat in self.repeats}
        }

    @cached_property
    def _drawn(self) -> list[dict[str, Any]]:
        """What identifies each draw."""
        return [
            {"shots": self.shots, "rows": _hash({name: list(rows) for name, rows in draw.items()})}
            for draw in self.draws
        ]


def _hash(value: Any) -> str:
    text = dumps(value, "the plan", sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
