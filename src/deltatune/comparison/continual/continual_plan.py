"""Plan of a continual-learning run: tasks in order, methods, ways to learn them; checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.method import Method
from deltatune.core.registry import parse_tuning
from deltatune.data.mixture_data import MixtureData
from deltatune.methods.base_weights.unfreeze import Probe
from deltatune.models.versions import versions
from deltatune.store import run_folder
from deltatune.tasks import Encoded, Mixture
from deltatune.training import Settings
from deltatune.training.open_session import open_session
from deltatune.training.session import Session

Mode = Literal["apart", "sequential", "joint"]
"""An adapter for each task; one adapter that learns task after task; one adapter that learns all tasks together."""
MODES: tuple[Mode, ...] = get_args(Mode)
DEFAULT_METHODS = ("LoRA(r=8)", "Full()")


@dataclass(frozen=True)
class ContinualPlan:
    """Everything a continual-learning run needs, encoded and checked."""

    out: Path
    session: Session
    """The model and the mixture of all tasks, without an adapter."""
    data: MixtureData
    """The tasks in the order in which they are learned."""
    encoded: Mapping[str, Mapping[str, Encoded]]
    """Tokens by task and split."""
    together: Encoded
    """The training rows of all tasks."""
    methods: tuple[Method, ...]
    modes: tuple[Mode, ...]
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def mixture(self) -> Mixture:
        """The tasks by name, in order."""
        assert isinstance(self.session.task, Mixture)
        return self.session.task

    @property
    def names(self) -> list[str]:
        """The tasks in the order in which they are learned."""
        return list(self.mixture.parts)

    @property
    def trainings(self) -> int:
        """Trainings of the whole run."""
        each = sum(1 if mode == "joint" else len(self.names) for mode in self.modes)
        return each * len(self.methods) * len(self.seeds)

    def settings_of(self, method: Method, seed: int) -> Settings:
        """The settings of a training with this method and seed."""
        rate = method.learning_rate if self.settings.learning_rate is None else self.settings.peak_rate
        return dataclasses.replace(self.settings, learning_rate=rate, seed=seed)

    def record(self) -> dict[str, Any]:
        """The configuration as plain data: two runs with equal records are the same run."""
        return {
            "model": self.session.model,
            "base": self.session.base_record(),
            "data": run_folder.data_record(self.data, self.data.origin),
            "order": self.names,
            "task": self.mixture.to_json(),
            "methods": [repr(method) for method in self.methods],
            "modes": list(self.modes),
            "seeds": list(self.seeds),
            "settings": self.settings.facts(),
            "versions": versions(),
        }


def make_plan(
    data: MixtureData,
    *,
    model: str = "builtin",
    methods: Sequence[str] = DEFAULT_METHODS,
    modes: Sequence[str] = MODES,
    seeds: int = 1,
    settings: Settings | None = None,
    task: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    quantize: str | None = None,
) -> ContinualPlan:
    """Load the model, try every method and encode the data, so that a mistake shows before the first training.

    `data` holds the tasks in order; `task` sets fields of the mixture and its parts, `quantize` how the
    base is stored. Raises DeltatuneError listing
    every method that cannot learn these tasks.
    """
    settings = settings or Settings()
    problems = [
        f"--mode {mode}: it is one of {', '.join(MODES)}{nearest(mode, MODES)}" for mode in modes if mode not in MODES
    ]
    problems += [f"seeds must be at least 1, not {seeds}"] if seeds < 1 else []
    problems += ["packing is for a single task; leave it out"] if settings.packing else []
    raise_all(problems)
    session = open_session(model, data, task, precision=settings.precision, quantize=quantize)
    chosen: list[Method] = []
    free: list[int] = []
    for text in methods:
        try:
            method = session.fit(parse_tuning(text))
            free += _free_positions(session, method)
            chosen.append(method)
        except DeltatuneError as error:
            problems.append(f"{text}: {error}")
    raise_all(problems, "these methods cannot learn these tasks:" if problems else "")
    twice = sorted({repr(method) for method in chosen if chosen.count(method) > 1})
    raise_all([f"{method} is named twice" for method in twice])
    if free:
        session = session.limited(min(free))
    session.attach(Probe(), 0, head=False)  # it adds no tokens
    try:
        encoded = {
            name: {split: session.for_part(name).encode(rows) for split, rows in part.splits().items()}
            for name, part in data.parts.items()
        }
        together = session.encode(data.train)
    finally:
        session.detach()
    folder = Path(out) if out is not None else Path("runs") / f"continual-{data.name}"
    return ContinualPlan(
        folder,
        session,
        data,
        encoded,
        together,
        tuple(chosen),
        tuple(mode for mode in MODES if mode in modes),
        tuple(range(seeds)),
        settings,
    )


def _free_positions(session: Session, method: Method) -> list[int]:
    """The positions that a method leaves to a text, if the model has a limit. Raises for one that cannot be trained."""
    session.attach(method, 0, head=False)
    try:
        trains = session.host.trainable(session.name)
        headless = [name for name, part in session.task.parts.items() if part.loads == "text"]  # type: ignore[attr-defined]
        if headless and not trains:
            raise DeltatuneError(f"it trains only heads, and {', '.join(headless)} uses the language-model head")
        positions = session.free_positions()
        return [] if positions is None else [positions]
    finally:
        session.detach()
