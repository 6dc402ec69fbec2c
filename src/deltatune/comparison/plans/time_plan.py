"""A plan that fits into a number of minutes: steps are timed, and rows are left out where all would take too long."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from deltatune.comparison.executors.choose_executor import choose_executor
from deltatune.comparison.plans.candidates import with_rates
from deltatune.comparison.plans.check_candidates import encode_splits
from deltatune.comparison.plans.plan import Cell, Plan
from deltatune.comparison.report.number_format import seconds
from deltatune.comparison.works.works import Work, Worker
from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.data.splits import first_by_hash
from deltatune.models.hardware import best_device
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.store.atomic_files import make_folder, write_file
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.learning_rates.successive_halving import rungs

TIMES = "minutes.json"
"""Name of the file with the rows that were chosen, so that an interrupted comparison goes on with the same ones."""
TIMED_STEPS = 4
"""Steps of each method that are timed."""
TIMED_ROWS = 64
"""Validation rows whose predictions are timed."""
UNKNOWN_ROW = 0.01
"""Seconds of the prediction of a row where no method can be timed."""
SHARE = 0.7
"""Share of the time for the search and the first repeats; the rest is for methods that are not told apart."""
COSTS_SECONDS = 4.0
"""Seconds that the inference costs of one method take, about."""
FEWEST_ROWS = 100
"""Rows of a split below which no comparison is made."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Measured seconds on this machine."""

    steps: dict[str, float]
    """Of one training step, by method as the user wrote it; 0 for methods that are not trained."""
    row: float
    """Of the prediction of one row."""


def fit_minutes(plan: Plan) -> Plan:
    """The plan with as many rows as its `minutes` have time for, and a note if some are left out.

    The rows are those that `--limit` takes, and all methods get the same ones. Rows are chosen once: a comparison that
    goes on takes those of its start. Raises DeltatuneError for minutes that are too few.
    """
    if plan.minutes is None or plan.draws or plan.timed:
        return plan
    _, slots = choose_executor(plan)
    if plan.executor == "local" and best_device().type == "cpu":
        slots = 1  # workers share the cores that are timed with all threads: together they may be no faster
    path = plan.out / TIMES
    identity = _identity(plan)
    chosen: Any = loads(path.read_text(encoding="utf-8"), path) if path.is_file() else {}
    if chosen.get("identity") != identity or chosen.get("minutes") != plan.minutes:
        chosen = {"identity": identity, "minutes": plan.minutes, "slots": slots, **_choose(plan, slots)}
        make_folder(plan.out)
        write_file(path, dumps(chosen, path, indent=2) + "\n")
    return with_rows(plan, chosen["rows"], chosen["all_rows_minutes"])


def _identity(plan: Plan) -> dict[str, Any]:
    """What the rows are chosen for: with more methods, rates or runs of each there is time for fewer."""
    cells = [Cell("search", each, rate, 0) for each in plan.candidates for rate in each.rates]
    return {"trainings": [plan.key(cell) for cell in cells], "runs": plan.start}


def with_rows(plan: Plan, rows: dict[str, int], all_rows_minutes: float) -> Plan:
    """The plan with fewer rows of some splits, and a note on what was left out."""
    splits, columns, label = plan.data.splits(), plan.data.text, plan.data.label
    fewer = {name: number for name, number in rows.items() if number < len(splits[name])}
    if not fewer:
        return dataclasses.replace(plan, timed=True)
    kept = {name: first_by_hash(splits[name], columns, label, number) for name, number in fewer.items()}
    left = ", ".join(f"{number:,} of {len(splits[name]):,} {name} rows" for name, number in fewer.items())
    minutes = f"{plan.minutes:g} minutes" if plan.minutes != 1 else "a minute"
    note = f"{left}: what {minutes} have time for; all rows take about {seconds(60 * all_rows_minutes)}"
    data = dataclasses.replace(plan.data, **dict[str, Any](kept), notes=(*plan.data.notes, note))
    encoded = {**plan.splits, **encode_splits(plan.session, kept)}
    candidates = with_rates(plan.candidates, steps_of(plan.settings, len(encoded["train"])))
    return dataclasses.replace(plan, data=data, splits=encoded, candidates=candidates, timed=True)


def seconds_of(plan: Plan, times: Times, rows: dict[str, int], slots: int) -> float:
    """Seconds of the search and the first repeats of every method, with so many rows of each split."""
    steps = steps_of(plan.settings, rows["train"])
    total = 0.0
    for asked, sizes in plan.contestants.items():
        arms = sum(len(size.rates) for size in sizes)
        pauses = [] if isinstance(sizes[0].method, PromptMethod) else rungs(arms, steps)
        trained, scored, left, before = 0.0, 0, arms + 1, 0  # one more: the search may go beyond its edge
        for i, step in enumerate([*pauses, steps]):
            trained += left * (step - before)
            scored, left, before = scored + left, max(1, -(-arms // 2 ** (i + 1))), step
        trained += (plan.start - 1) * steps
        scored += plan.start - 1
        total += trained * times.steps[asked] + times.row * (scored * rows["validation"] + plan.start * rows["test"])
    return total / slots + COSTS_SECONDS * len(plan.contestants)


def _choose(plan: Plan, slots: int) -> dict[str, Any]:
    """The rows of each split that there is time for, and the minutes that all of them would take."""
    assert plan.minutes is not None
    times = measure(plan)
    have = {name: plan.splits[name].examples for name in ("train", "validation", "test")}
    limit = SHARE * plan.minutes * 60
    whole = seconds_of(plan, times, have, slots)
    rows = dict(have)
    least = {name: min(number, FEWEST_ROWS) for name, number in have.items()}
    for names in (("train",), ("validation", "test")):  # fewer training rows first: they cost most
        if seconds_of(plan, times, rows, slots) <= limit:
            break
        fewest = rows | {name: least[name] for name in names}
        if names == ("train",) and seconds_of(plan, times, fewest, slots) > limit:
            rows = fewest
            continue
        low, high = 0.0, 1.0  # shares between the fewest and all
        for _ in range(30):
            middle = (low + high) / 2
            tried = rows | {name: round(least[name] + middle * (have[name] - least[name])) for name in names}
            low, high = (middle, high) if seconds_of(plan, times, tried, slots) <= limit else (low, middle)
        rows |= {name: int(least[name] + low * (have[name] - least[name])) for name in names}
    needed = seconds_of(plan, times, rows, slots)
    if needed > limit:
        raise DeltatuneError(
            f"{plan.minutes:g} minutes are too few: with {rows['train']} training and {rows['test']} test rows the "
            f"search and the first {plan.start} runs of {len(plan.contestants)} methods take about "
            f"{needed / SHARE / 60:.1f} minutes here; give more minutes, or fewer methods, rates or epochs"
        )
    return {
        "rows": rows,
        "all_rows_minutes": whole / SHARE / 60,
        "seconds_a_step": times.steps,
        "seconds_a_row": times.row,
    }


def measure(plan: Plan) -> Times:
    """Time some steps of every method, and predictions, in this process with all its threads.

    Each method is run twice, and the second run counts: the first loads libraries, and fills the memory of what a
    frozen base computes once. Prompting methods count as the slowest of the others. A method that fails takes no time;
    its failure is a result of the comparison.
    """
    settings = dataclasses.replace(plan.settings, max_steps=TIMED_STEPS)
    worker = Worker(dataclasses.replace(plan, settings=settings, splits=_first_rows(plan, 0, 2)))
    steps: dict[str, float] = {}
    for asked, (*_, size) in plan.contestants.items():
        if isinstance(size.method, PromptMethod):
            continue
        work = Work("train", Cell("search", size, size.rates[0], 0), "", "", keep=False)
        worker.perform(work)
        record = worker.perform(work).record
        steps[asked] = 0.0 if record.get("error") else record["train_seconds"] / TIMED_STEPS
    slowest = max(steps.values(), default=0.0)
    return Times({asked: steps.get(asked, slowest) for asked in plan.contestants}, _row_seconds(plan))


def _row_seconds(plan: Plan) -> float:
    """Seconds of the prediction of one row, by the first method that can be attached."""
    session = plan.session
    warm, timed = (_first_rows(plan, *cut)["validation"] for cut in ((0, TIMED_ROWS), (TIMED_ROWS, 3 * TIMED_ROWS)))
    timed = timed if timed.examples else warm
    for candidate in plan.candidates:
        if isinstance(candidate.method, PromptMethod) or not candidate.params:  # a probe's vectors may be kept
            continue
        session.attach(candidate.method, 0, session.make_head(0))
        try:
            session.predict(warm)
            started = time.perf_counter()
            session.predict(timed)
            return float(time.perf_counter() - started) / int(timed.examples)
        finally:
            session.detach()
    return UNKNOWN_ROW


def _first_rows(plan: Plan, start: int, end: int) -> dict[str, Any]:
    """The splits with some of the validation rows."""
    rows: Sequence[Any] = plan.data.validation[start:end]
    return {**plan.splits, **encode_splits(plan.session, {"validation": rows})}
