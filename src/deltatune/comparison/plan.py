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

from deltatune.comparison.candidates import Contender, contenders_of
from deltatune.core.budget import Budget, read_budget
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.data.splits import Data
from deltatune.models.hardware import best_device
from deltatune.models.loading import BUILTIN, load_backbone
from deltatune.tasks.auto_task import KINDS, shorter, task_for
from deltatune.tasks.task import Encoded, Task
from deltatune.tasks.tokenization import longest_input
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


@dataclass(frozen=True)
class Cell:
    """One training run."""

    stage: Literal["search", "seed", "final"]
    """Training at the first seed, at another one, and what was trained on the test rows."""
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
        """Training runs, where no search has to go beyond its edge and no rate loses its place at other seeds."""
        return sum(len(contender.rates) + len(self.seeds) - 1 for contender in self.contenders)

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
    Raises DeltatuneError listing every method that cannot run on this model, before anything is trained; of the
    default ones they are left out, and a note says so.
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
    fitted, problems = contenders_of(host, methods, found, rates, tokenizer, asked)
    splits, more = _encode(host, asked, data, tokenizer, fitted, settings.packing)
    contenders = tuple(contender for contender in fitted if contender.text not in more)
    notes = (*chosen.notes, *_check({**problems, **more}, methods, len(contenders)))
    return Plan(
        name=f"{data.name} on {Path(model).name}",
        out=Path(out) if out is not None else folder_for(model, data),
        model=model,
        host=host,
        tokenizer=tokenizer,
        data=dataclasses.replace(data, notes=(*data.notes, *notes)),
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


def _room(host: Host, methods: Sequence[str | Method]) -> int | None:
    """Positions of the model, less a share for prompts and prefixes where there is a limit."""
    positions = longest_input(host.model)
    return None if positions is None else positions - min(VIRTUAL, positions // 8)


def _encode(
    host: Host, task: Task, data: Data, tokenizer: Any, contenders: list[Contender], packing: bool
) -> tuple[dict[str, Encoded], dict[str, str]]:
    """Encode once; each method is attached for a moment, so that what cannot work is known before the first run.

    Returns the splits, and why each method that cannot be used here cannot.
    """
    encoded: dict[str, Encoded] = {}
    problems: dict[str, str] = {}
    for contender in contenders:
        host.attach("candidate", contender.method, head=False)
        try:
            if task.answers in ("text", "words") and not host.trainable("candidate"):
                raise DeltatuneError("it trains only a head, and there is none where the model's own words are read")
            if encoded:
                encode_for(host, "candidate", task, data.train[:1], tokenizer)
            else:
                encoded = {
                    name: encode_for(host, "candidate", task, rows, tokenizer) for name, rows in data.splits().items()
                }
        except DeltatuneError as error:
            problems[contender.text] = str(error)
        finally:
            host.detach("candidate")
    if not encoded and len(contenders) > 1 and len(set(problems.values())) == 1:
        raise DeltatuneError(next(iter(problems.values())))  # it is the data then, not the methods
    return encoded, problems


def _check(problems: Mapping[str, str], methods: Sequence[str | Method], left: int) -> list[str]:
    """Raise DeltatuneError for methods that cannot be compared; of the default ones say which are left out."""
    told = [f"{method}: {why}" for method, why in problems.items()]
    if tuple(methods) == DEFAULT_METHODS and left:
        return [f"left out: {one}" for one in told]
    raise_all(told, "these methods cannot be compared here:" if told else "")
    if not methods:
        raise DeltatuneError("name at least one method, for example --methods 'LoRA()' 'BitFit()'")
    return []


def _digest(splits: dict[str, Encoded]) -> str:
    text = json.dumps({name: [list(rows), rows.truth] for name, rows in splits.items()}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
