"""`learning_rate: auto`: rates tried on the first steps of a run; the best one's run goes on to the end.

The rates are those of a comparison, around the recommended one, and so is the search (`successive_halving`), but its
rungs are early enough for the steps and the scores of all other rates to cost at most SHARE of the run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from deltatune.core.errors import DeltatuneError, OutOfMemory
from deltatune.core.host import Host
from deltatune.core.input_validation.strict_json import dumps
from deltatune.store.atomic_files import MANIFEST, CannotWrite, make_folder, read_json, write_file, write_folder
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.tasks.mixture import MixtureEncoded
from deltatune.tasks.task import Encoded, Task
from deltatune.training.learning_rates.recommended_rate import rates_around, recommended_rate, steps_of
from deltatune.training.learning_rates.successive_halving import FEWEST_STEPS, Arm, Run, Search
from deltatune.training.reporting import FILE
from deltatune.training.settings import AUTO, Settings
from deltatune.training.training_loop import checkpoint

SHARE = 0.5
"""What the search may cost, as a share of the run's training."""
RATES = 3
"""Rates that are tried: the recommended one, and one on each side."""
SCORING = 1 / 3
"""Cost of scoring a row relative to training on it once: it has no backward pass."""
TOKENS_A_ROW = 8
"""Tokens that are generated, one after the other, at about the cost of reading a row."""
SCORING_SHARE = 0.2
"""Share of the search's cost that scoring may take, where there are rows enough for that."""
FEWEST_SCORED = 64
"""Validation rows that the search scores at least, if there are as many."""
Outcome = TypeVar("Outcome")
FOLDER = "search"
"""Folder of the search beside the run's checkpoints; it has a folder of checkpoints for each rate."""
CLAIM = 4
"""Rates that the first rung may have, where it is extended."""


class SearchPlan(NamedTuple):
    """A search that fits into its share of a run."""

    rungs: tuple[int, ...]
    """Steps at which the rates are scored: the better half goes on."""
    extensions: int
    """Most rates that are tried beyond the edges."""
    scored: int
    """Validation rows that a rate is scored on."""

    def describe(self, steps: int) -> str:
        """One line for people."""
        last = RATES + self.extensions
        rates = f"{RATES}" if last == RATES else f"{RATES} or {last}"
        return (
            f"searched: {rates} rates for {self.rungs[0]} of {steps} steps, scored on {self.scored} validation rows; "
            "the best one goes on"
        )


@dataclass(frozen=True)
class RateSearch:
    """What a search of the learning rate tried and chose."""

    rate: float
    """The chosen rate."""
    tried: tuple[Mapping[str, Any], ...]
    """Each rate at each rung: `rate`, `step`, `score` (None where it failed), `kept`."""
    metric: str
    """The metric of the scores."""
    steps: int
    """Optimizer steps of the rates that were not chosen: what the search added to the run."""
    seconds: float
    """Time that the search added to the run."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "tried": [dict(each) for each in self.tried]}


def plan_search(settings: Settings, task: Task, rows: Encoded, validation: Encoded | None) -> SearchPlan:
    """The rungs that fit: 3 rates and one beyond the edge to a first rung, two of them to a second, twice as far.

    A run too short for that tries 3 rates to one rung of at least FEWEST_STEPS steps. Raises DeltatuneError where that
    does not fit either, where nothing can be scored, and for several processes.
    """
    auto = f"learning_rate {AUTO}"
    if (os.environ.get("WORLD_SIZE") or "1") != "1":
        raise DeltatuneError(
            f"{auto} searches in one process, and this run has {os.environ['WORLD_SIZE']}: search without torchrun and "
            "accelerate, on a few rows, and give that rate here"
        )
    if validation is None or not validation.examples:
        raise DeltatuneError(
            f"{auto} chooses by scores on validation rows, and there are none: add some, or give a rate"
        )
    steps = steps_of(settings, len(rows))
    budget = SHARE * steps * settings.batch_size  # in rows that are trained on once
    cost = SCORING * (1 + getattr(task, "new_tokens", 0) / TOKENS_A_ROW)
    arms, pieces = CLAIM, CLAIM + 2
    scored = min(validation.examples, max(FEWEST_SCORED, int(SCORING_SHARE * budget / (pieces * cost))))
    if isinstance(validation, MixtureEncoded):  # rows of every part are needed
        scored = validation.examples
    first = int((budget - pieces * scored * cost) / (arms * settings.batch_size))  # arms - 1 to it, one beyond it
    if first >= FEWEST_STEPS:
        return SearchPlan((first, 2 * first), arms - RATES, scored)
    first = int((budget - RATES * scored * cost) / ((RATES - 1) * settings.batch_size))
    if first >= FEWEST_STEPS:
        return SearchPlan((first,), 0, scored)
    least = RATES * scored * cost / settings.batch_size + (RATES - 1) * FEWEST_STEPS
    raise DeltatuneError(
        f"{auto} tries {RATES} rates for at least {FEWEST_STEPS} steps within {SHARE:.0%} of the run's cost, scored on "
        f"{scored} validation rows: that takes a run of about {math.ceil(least / SHARE)} steps, and this one has "
        f"{steps}; give a rate, or more epochs"
    )


def train_searched(
    train: Callable[..., Outcome],
    host: Host,
    name: str,
    task: Task,
    rows: Encoded,
    validation: Encoded,
    settings: Settings,
    identity: Mapping[str, Any],
    out: Path | None,
    reports: Path | None,
) -> Outcome:
    """Search the rate, then train to the end with it; the Outcome with its `search`.

    `train(settings, rows that score, out, reports, until)` is one training of the attached adapter. `identity` says
    which run it is. Called again after an interruption it goes on with what is stored in `out`.
    """
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(spare) if out is None else out
        with FolderLock(folder, option=""):
            search = _RateRuns(train, host, name, task, rows, validation, settings, identity, folder).run()
            chosen = dataclasses.replace(settings, learning_rate=search.rate)
            _continue_from(folder / FOLDER / _named(search.rate), folder, folder if reports is None else reports)
            outcome = train(chosen, validation, folder, reports, None)
        return dataclasses.replace(outcome, search=search)  # type: ignore[type-var]  # a dataclass, made later


class _RateRuns:
    """The runs of a search and their stored results."""

    def __init__(
        self,
        train: Callable[..., Any],
        host: Host,
        name: str,
        task: Task,
        rows: Encoded,
        validation: Encoded,
        settings: Settings,
        identity: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.train, self.adapter, self.task, self.settings = train, host.adapters[name], task, settings
        self.plan = plan_search(settings, task, rows, validation)
        self.scored = some_rows(validation, self.plan.scored)
        self.steps = steps_of(settings, len(rows))
        self.folder, self.record = folder / FOLDER, folder / FOLDER / checkpoint.RUN
        if self.record.is_file():
            checkpoint.check_same_run(self.folder, identity)
            self.stored = read_json(self.record)
        else:
            if (earlier := checkpoint.newest(folder)) is not None:  # of a run whose rate was given
                checkpoint.check_same_run(earlier, identity)
            make_folder(self.folder)
            self.stored = {"identity": dict(identity), "runs": {}, "chosen": None}
            self._store()

    def run(self) -> RateSearch:
        """Try the rates, or return what was chosen before."""
        if (chosen := self.stored["chosen"]) is not None:
            return RateSearch(**{**chosen, "tried": tuple(chosen["tried"])})
        initial = {tensor: value.clone() for tensor, value in self.adapter.tensors().items()}
        trained_rows = self.adapter.trained_rows
        middle = recommended_rate(self.adapter.method, self.steps)
        arms = [Arm(None, rate) for rate in rates_around(middle, RATES)]
        search: Search[None] = Search(
            arms, [None], self.steps, self._score, pauses=self.plan.rungs, extensions=self.plan.extensions
        )
        failures: list[DeltatuneError] = []

        def record(run: Run[None]) -> dict[str, Any] | None:
            try:
                return self._attempt(run.arm.rate, run.until)
            except (OutOfMemory, CannotWrite):
                raise
            except DeltatuneError as failure:
                failures.append(failure)
                return None
            finally:
                self.adapter.load_tensors(initial)
                self.adapter.trained_rows = trained_rows

        runs = search.run(record, finals=False)
        if not runs:
            first = failures[0]
            raise DeltatuneError(f"no learning rate of {rates_text(arms)} can be trained with: {first}") from first
        found = self._found(search, runs[0].arm.rate)
        self.stored["chosen"] = found.to_json()
        self._store()
        return found

    def _attempt(self, rate: float, until: int | None) -> dict[str, Any]:
        """The record of a rate's run at a rung: stored, or made now."""
        key = f"{_named(rate)}@{until}"
        if key not in self.stored["runs"]:
            started = time.perf_counter()
            settings = dataclasses.replace(self.settings, learning_rate=rate, report_to=())
            outcome = self.train(settings, self.scored, self.folder / _named(rate), None, until)
            self.stored["runs"][key] = {
                "score": outcome.evaluations[-1][1][self.task.metric],
                "history": outcome.history,
                "trained": outcome.seconds,
                "seconds": time.perf_counter() - started,
            }
            self._store()
        return dict(self.stored["runs"][key])

    def _score(self, record: Mapping[str, Any]) -> float:
        """The primary metric, with the sign changed if lower is better; a score that is no number is the worst."""
        value = record["score"]
        if value is None or not math.isfinite(value):
            return -math.inf
        return -value if lower_is_better(self.task.metric) else float(value)

    def _found(self, search: Search[None], rate: float) -> RateSearch:
        """What the search says of itself."""
        tried: list[dict[str, Any]] = [
            {
                "rate": trial.arm.rate,
                "step": trial.step,
                "score": None
                if trial.score is None
                else self.stored["runs"][f"{_named(trial.arm.rate)}@{trial.step}"]["score"],
                "kept": trial.kept,
            }
            for trial in search.trials
        ]
        last = {each["rate"]: each["step"] for each in tried if each["score"] is not None}
        runs: Mapping[str, Mapping[str, float]] = self.stored["runs"]
        own = max((run["trained"] for key, run in runs.items() if key.startswith(f"{_named(rate)}@")), default=0.0)
        return RateSearch(
            rate,
            tuple(tried),
            self.task.metric,
            sum(step for other, step in last.items() if other != rate),
            sum(run["seconds"] for run in runs.values()) - own,
        )

    def _store(self) -> None:
        write_file(self.record, dumps(self.stored, self.record, nonfinite="null", indent=2) + "\n")


def _continue_from(trial: Path, folder: Path, reports: Path) -> None:
    """Let a run start where the trial of its rate has paused, with the metrics of its steps, unless it has begun."""
    paused = checkpoint.newest(trial)
    if paused is not None and checkpoint.newest(folder) is None:
        make_folder(reports)
        write_file(reports / FILE, (trial / FILE).read_bytes())

        def fill(draft: Path) -> None:
            shutil.copytree(paused, draft, dirs_exist_ok=True)
            (draft / MANIFEST).unlink()  # it is written anew

        write_folder(folder / paused.name, fill)


def some_rows(encoded: Encoded, count: int) -> Encoded:
    """`count` rows, evenly spread over all; a mixture's rows are taken whole."""
    total = encoded.examples
    if count >= total or isinstance(encoded, MixtureEncoded):
        return encoded
    chosen = [i * total // count for i in range(count)]
    place = {row: i for i, row in enumerate(chosen)}
    owners: Sequence[int] = range(len(encoded)) if encoded.owners is None else encoded.owners
    return Encoded(
        [piece for piece, owner in zip(encoded.rows, owners, strict=True) if owner in place],
        owners=None if encoded.owners is None else [place[owner] for owner in owners if owner in place],
        facts=None if encoded.facts is None else [encoded.facts[row] for row in chosen],
        row_references=None if encoded.row_references is None else [encoded.row_references[row] for row in chosen],
    )


def rates_text(arms: Sequence[Arm[Any]]) -> str:
    """Rates for people."""
    return ", ".join(f"{arm.rate:g}" for arm in arms)


def _named(rate: float) -> str:
    """A rate as a folder's name."""
    return f"{rate:g}"
