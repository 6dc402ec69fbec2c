"""What a comparison will do: methods at one budget, rates to try, seeds; checked whole before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from deltatune.core.budget import Budget, fit_budget, read_budget
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.text import parse
from deltatune.data.splits import Data
from deltatune.tasks.backbone import BUILTIN, best_device, load_backbone
from deltatune.tasks.choosing import KINDS, shorter, task_for
from deltatune.tasks.task import Encoded, Task
from deltatune.tasks.tokens import longest_input
from deltatune.tasks.words import worded
from deltatune.training import Settings, encode_for

DEFAULT_METHODS = (
    "LoRA()",
    "Bottleneck(form='houlsby')",
    "Bottleneck(form='pfeiffer')",
    "Prefix()",
    "BitFit()",
    "Probe()",
    "Full()",
)
"""Compared when none are named: the size-fitted families, and three reference lines."""
DEFAULT_BUDGET = "0.5%"
LENGTH = 128
"""Longest input of classifications, in tokens."""
VIRTUAL = 64
"""Positions left to prompts and prefixes."""
STEP = 3.0
"""Neighbouring rates of the search differ by this factor."""
EXTENSIONS = 2
"""How often a search of three or more rates goes on beyond its edge, as long as the edge is best."""


@dataclass(frozen=True)
class Contender:
    """One method of the comparison, at its size."""

    method: Method
    rates: tuple[float, ...]
    """Learning rates to try, ascending, around the recommended one."""
    params: int
    """Trainable parameters, the head left out."""

    @property
    def text(self) -> str:
        """The method's text form, by which it is known in all files."""
        return repr(self.method)

    @property
    def reach(self) -> tuple[float, ...]:
        """Every rate the search may come to: the planned ones, and the extensions on both sides."""
        if len(self.rates) < 3:
            return self.rates
        below, above = self.rates[0], self.rates[-1]
        more = [beyond(below, -i) for i in range(1, EXTENSIONS + 1)] + [
            beyond(above, i) for i in range(1, EXTENSIONS + 1)
        ]
        return (*self.rates, *more)

    @property
    def reference(self) -> bool:
        """Whether it has no size that a budget could set."""
        return self.method.size is None


@dataclass(frozen=True)
class Cell:
    """One training run."""

    stage: Literal["search", "final"]
    contender: Contender
    rate: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """Everything a comparison needs, encoded and checked."""

    name: str
    out: Path
    model: str
    host: Host
    tokenizer: Any
    data: Data
    task: Task
    head: dict[str, Any]
    """Fields of the head that are set."""
    splits: dict[str, Encoded]
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    settings: Settings
    budget: Budget | None

    def make_head(self, seed: int) -> nn.Module | Literal[False]:
        """A new head for the task; False where the model's own words are the answer."""
        found = self.task.make_head(self.host.model.config, seed, **self.head)  # type: ignore[arg-type]
        return False if found is None else found

    @cached_property
    def head_json(self) -> dict[str, Any] | None:
        """The head's fields as plain data; None where there is none."""
        head: Any = self.make_head(0)
        return head.config.to_json() if head else None

    @property
    def head_params(self) -> int:
        """Parameters of the head."""
        head = self.make_head(0)
        return sum(p.numel() for p in head.parameters()) if head else 0

    @property
    def total(self) -> int:
        """Number of training runs: the search's best one is the first seed's final run."""
        return sum(len(c.rates) + len(self.seeds) - 1 if len(c.rates) > 1 else len(self.seeds) for c in self.contenders)

    def identity(self, cell: Cell) -> dict[str, Any]:
        """Everything that determines a cell's result, as plain data."""
        settings = dataclasses.asdict(self.settings) | {"learning_rate": cell.rate, "seed": cell.seed}
        return {
            "model": self.model,
            "base_params": self.host.sites.base_params,
            "data": {"name": self.data.name, "origin": self.data.origin, "digest": _digest(self.splits)},
            "task": self.task.to_json(),
            "head": self.head_json,
            "method": cell.contender.text,
            "settings": settings,
        }

    def key(self, cell: Cell) -> str:
        """Short name of a cell's identity: equal for equal runs, whenever they were done."""
        text = json.dumps(self.identity(cell), sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def make_plan(
    data: Data,
    *,
    model: str = "builtin",
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    budget: str | int | None = DEFAULT_BUDGET,
    seeds: int = 3,
    rates: int = 3,
    settings: Settings | None = None,
    max_length: int | None = None,
    metric: str = "",
    task: Mapping[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    out: str | Path | None = None,
) -> Plan:
    """Load the model, fit every method to the budget, encode the data, and check that all of it can run.

    `task` sets fields of the task, `max_length` and `metric` among them, which is otherwise what suits the data.
    `methods` are text forms or methods. With a `budget` ("0.5%", "300k") every method with a size gets the largest that
    fits, whatever size it was given; None keeps the sizes as given. `rates` learning rates are tried a method.
    Raises DeltatuneError listing every method that cannot run on this model, before anything is trained.
    """
    raise_all([f"{n} must be at least 1, not {v}" for n, v in (("seeds", seeds), ("rates", rates)) if v < 1])
    settings = settings or Settings()
    answers = KINDS[data.kind].answers
    backbone, tokenizer = load_backbone(model, pooler=(head or {}).get("pooling") == "pooler", answers=answers)
    host = Host(backbone.to(best_device()))  # type: ignore[arg-type]
    over = {**(task or {}), "max_length": max_length, "metric": metric or None}
    if answers == "row" and max_length is None:
        over["max_length"] = LENGTH
    chosen = task_for(data, backbone.config, tokenizer, over)
    asked: Any = chosen.task if max_length else shorter(chosen.task, _room(host, methods))
    found = None if budget is None else read_budget(budget, host.sites)
    contenders = _contenders(host, [_worded(method, tokenizer, asked) for method in methods], found, rates)
    splits = _encode(host, asked, data, tokenizer, contenders, settings.packing)
    return Plan(
        name=f"{data.name} on {Path(model).name}",
        out=Path(out) if out is not None else folder_for(model, data),
        model=model,
        host=host,
        tokenizer=tokenizer,
        data=dataclasses.replace(data, notes=(*data.notes, *chosen.notes)),
        task=asked,
        head=(head or {}) if answers == "row" else {},
        splits=splits,
        contenders=contenders,
        seeds=tuple(range(seeds)),
        settings=settings,
        budget=found,
    )


def folder_for(model: str, data: Data) -> Path:
    """`runs/<data>` for the built-in model, `runs/<model>-<data>` for others."""
    return Path("runs") / (data.name if model == BUILTIN else f"{Path(model).name}-{data.name}")


def beyond(rate: float, steps: int) -> float:
    """The rate some steps of the search away, rounded to two digits."""
    return float(f"{rate * STEP**steps:.2g}")


def spread_rates(middle: float, count: int) -> tuple[float, ...]:
    """`count` rates around a recommended one, each STEP times the one before; an even count leans low."""
    first = -(count // 2)
    return tuple(beyond(middle, first + i) for i in range(count))


def _room(host: Host, methods: Sequence[str | Method]) -> int | None:
    """Positions of the model, less a share for prompts and prefixes where there is a limit."""
    positions = longest_input(host.model)
    return None if positions is None else positions - min(VIRTUAL, positions // 8)


def _worded(given: str | Method, tokenizer: Any, task: Task) -> str | Method:
    """A method with its words as token ids; a text that cannot be read is left to be reported with the others."""
    try:
        return worded(parse(given), tokenizer, task)
    except DeltatuneError:
        return given


def _contenders(
    host: Host, methods: Sequence[str | Method], budget: Budget | None, rates: int
) -> tuple[Contender, ...]:
    found: dict[str, Contender] = {}
    problems = []
    for given in methods:
        try:
            method = parse(given) if isinstance(given, str) else given
            if budget is not None:
                method = fit_budget(method, host.sites, budget.params)
            contender = Contender(method, spread_rates(method.learning_rate, rates), method.count(host.sites))
        except DeltatuneError as error:
            problems.append(f"{given}: {error}")
            continue
        if contender.text in found:
            problems.append(f"{given}: it is {contender.text}, which is in the comparison already")
        found[contender.text] = contender
    raise_all(problems, "these methods cannot be compared here:" if problems else "")
    if not found:
        raise DeltatuneError("name at least one method, for example --methods 'LoRA()' 'BitFit()'")
    return tuple(found.values())


def _encode(
    host: Host, task: Task, data: Data, tokenizer: Any, contenders: tuple[Contender, ...], packing: bool
) -> dict[str, Encoded]:
    """Encode once; each method is attached for a moment, so that what cannot work is known before the first run."""
    encoded: dict[str, Encoded] = {}
    problems = []
    for contender in contenders:
        host.attach("candidate", contender.method, head=False)
        try:
            if encoded:
                encode_for(host, "candidate", task, data.train[:1], tokenizer)
            else:
                encoded = {
                    name: encode_for(host, "candidate", task, rows, tokenizer) for name, rows in data.splits().items()
                }
        except DeltatuneError as error:
            problems.append(f"{contender.text}: {error}")
        finally:
            host.detach("candidate")
    raise_all(problems, "these methods cannot be compared here:" if problems else "")
    return encoded


def _digest(splits: dict[str, Encoded]) -> str:
    text = json.dumps({name: [list(rows), rows.truth] for name, rows in splits.items()}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
