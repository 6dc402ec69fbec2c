"""Plan of a comparison: methods at one budget, learning rates, seeds; checked completely before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deltatune.comparison.candidates import Candidate, make_candidates
from deltatune.comparison.check_candidates import (
    check_candidates,
    check_methods,
    encode_splits,
    length_note,
)
from deltatune.comparison.records import unused_results
from deltatune.core.budget import Budget, read_budget
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.strict_json import dumps
from deltatune.core.method import Method
from deltatune.data import Data, Row
from deltatune.data.few_shot import MOST_UNLABELLED, few_shot, unlabelled_rows, without_labels
from deltatune.models.loading import BUILTIN
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.tasks.task import Encoded
from deltatune.training import Settings
from deltatune.training.session import Session, open_session

DEFAULT_METHODS = (
    "LoRA()",
    "Bottleneck(form='houlsby')",
    "Bottleneck(form='pfeiffer')",
    "Prefix()",
    "BitFit()",
    "Probe()",
    "Full()",
)
"""Compared if no methods are named: the families with a size, and three references."""
PROMPTING_METHODS = (
    "ZeroShot()",
    "TemplateEnsemble()",
    "ICL(shots=8)",
    "Cloze(LoRA())",
    "Cloze(Full())",
    "LoRA()",
    "Full()",
)
"""Compared with `--prompting`: from no trained number to all of them."""
DEFAULT_BUDGET = "0.5%"
MOST = {"seeds": 1000, "rates": 50, "draws": 1000}
"""Most of what is repeated; learning rates are a factor of about 3 apart, so that 50 are more than floats hold."""


@dataclass(frozen=True)
class Cell:
    """One training run: a method at a learning rate with a seed."""

    stage: Literal["search", "seed", "final"]
    """Training with the first seed, with another seed, or the evaluation of a trained adapter on the test rows."""
    candidate: Candidate
    rate: float
    seed: int
    draw: int | None = None
    """Number of the draw of training rows; None where all rows are trained on."""

    def describe(self) -> str:
        """The cell for people: `LoRA(r=12), lr 0.002, learning-rate search`."""
        search = self.stage == "search" and self.rate
        stage = "learning-rate search" if search else f"seed {self.seed}"
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

    @property
    def total(self) -> int:
        """Number of training runs if no search is extended and every first choice of a rate is confirmed."""
        return sum(self.runs_of(candidate) for candidate in self.candidates)

    def runs_of(self, candidate: Candidate) -> int:
        """Planned training runs of one candidate: every rate at the first repeat, one rate at the others."""
        return len(candidate.rates) + len(self.repeats) - 1

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Everything that determines a cell's result, as plain data."""
        method = cell.candidate.method
        drawn: dict[str, Any] = {} if cell.draw is None else {"draw": self._drawn[cell.draw]}
        settings = dataclasses.asdict(self.settings) | {"learning_rate": cell.rate, "seed": cell.seed}
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
            **drawn,
        }

    def notes(self) -> list[str]:
        """Notes for the user: on the data, on methods left out, on results in the folder that cannot be used."""
        first = Cell("search", self.candidates[0], self.candidates[0].rates[0], *self.repeats[0])
        return [*self.data.notes, *unused_results(self.out, self.identity(first))]

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


def make_plan(
    data: Data,
    *,
    model: str = "builtin",
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    budget: str | int | None = DEFAULT_BUDGET,
    seeds: int = 3,
    rates: int = 3,
    shots: int | None = None,
    draws: int = 1,
    settings: Settings | None = None,
    max_length: int | None = None,
    metric: str = "",
    task: Mapping[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    out: str | Path | None = None,
    prompts: PromptOptions = NO_OPTIONS,
    unlabelled: Sequence[Row] = (),
) -> Plan:
    """Load the model, fit every method to the budget, encode the data, and check that all of it can run.

    `task` sets fields of the task, `max_length` and `metric` among them; the others are inferred from the data. Without
    `max_length` all methods get the same one: the task's default, or the most that each of them leaves of the model's
    positions. `methods` are text forms or methods. With a `budget` ("0.5%", "300k") every method with a size gets the
    largest that fits, whatever size it was given; None keeps the sizes as given. `rates` is the number of learning
    rates to try for each method. With `shots` every method is trained on `draws` draws of so many rows a class, with
    every seed on each; validation rows are drawn too, as Gao et al. 2021 do (https://arxiv.org/abs/2012.15723), and all
    are scored on the same test rows. `prompts` and `unlabelled` are for prompting methods: the model is then loaded
    with its language-model head, for all methods. Raises DeltatuneError listing every method that cannot run on this
    model, before anything is trained; of the default methods those are left out, and a note says so.
    """
    raise_all(count_problems(seeds=seeds, rates=rates, draws=draws))
    if shots is None and draws > 1:
        raise DeltatuneError(
            f"draws={draws}: draws are of `shots` rows for each class; set shots too, such as shots=16"
        )
    settings = settings or Settings()
    whole, drawn = data, [few_shot(data, shots, draw) for draw in range(draws)] if shots is not None else []
    data = drawn[0] if drawn else data
    fields = dict(task or {})
    fields |= {name: value for name, value in (("max_length", max_length), ("metric", metric)) if value}
    prompting = [method for method in map(_prompting_method, methods) if method is not None]
    if not prompting and (prompts.template or prompts.words or prompts.describe):
        raise DeltatuneError(
            "a template, words or a description of the classes are for prompting methods: name one, such as "
            "ZeroShot(), or Cloze(LoRA()) to train through label words"
        )
    if unlabelled and not any(method.reads_unlabelled for method in prompting):
        raise DeltatuneError(
            f"{len(unlabelled):,} unlabelled rows are given, and none of the methods learns from them; add one that "
            "does, such as PET(), or leave the rows out"
        )
    loads = "words" if prompting and data.kind == "classes" else ""
    session = open_session(model, data, fields, head, precision=settings.precision, loads=loads)
    prompts = dataclasses.replace(prompts, data=prompts.data or data.name)
    limit = None if budget is None else read_budget(budget, session.host.sites)
    candidates, problems = make_candidates(session, methods, limit, rates)
    free, unusable = check_candidates(session, data, candidates, limited="max_length" not in fields, prompts=prompts)
    candidates = [candidate for candidate in candidates if candidate.text not in unusable]
    left_out = check_methods({**problems, **unusable}, tuple(methods) == DEFAULT_METHODS, len(candidates))
    notes = [*session.notes, *left_out]
    if "max_length" not in fields and free:
        shortest = min(free, key=lambda text: free[text])
        limited = session.limited(free[shortest])
        notes += length_note(session, limited, shortest)
        session = limited
    return Plan(
        name=f"{data.name} on {Path(model).name}",
        out=Path(out) if out is not None else folder_for(model, data),
        session=session,
        data=dataclasses.replace(whole, notes=(*data.notes, *notes)),
        splits=encode_splits(session, data.splits()),
        candidates=tuple(candidates),
        seeds=tuple(range(seeds)),
        settings=settings,
        budget=limit,
        shots=shots,
        draws=tuple(encode_splits(session, {"train": each.train, "validation": each.validation}) for each in drawn),
        drawn=tuple(drawn),
        options=prompts,
        more_unlabelled=tuple(unlabelled),
    )


def _prompting_method(text: str | Method) -> PromptMethod | None:
    """The prompting method of a text; None for others, and for one that cannot be read: it is told of later."""
    try:
        method = as_prompt_method(text)
    except DeltatuneError:
        return None
    return method if isinstance(method, PromptMethod) else None


def count_problems(**counts: int) -> list[str]:
    """What is wrong with numbers of seeds, learning rates and draws."""
    problems = [f"{name} must be at least 1, not {number}" for name, number in counts.items() if number < 1]
    return problems + [f"{name} must be at most {MOST[name]}, not {n}" for name, n in counts.items() if n > MOST[name]]


def folder_for(model: str, data: Data) -> Path:
    """`runs/<data>` for the built-in model, `runs/<model>-<data>` for others."""
    return Path("runs") / (data.name if model == BUILTIN else f"{Path(model).name}-{data.name}")


def _hash(value: Any) -> str:
    text = dumps(value, "the plan", sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
