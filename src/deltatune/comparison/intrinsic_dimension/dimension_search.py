"""Search for the intrinsic dimension: the smallest random subspace that reaches a share of full fine-tuning's score.

Li et al. 2018, https://arxiv.org/abs/1804.08838; for language models Aghajanyan et al. 2020,
https://arxiv.org/abs/2012.13255. The head is trained beside the subspace and not counted, so dimension 0 is a probe.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.comparison.intrinsic_dimension.dimension_config import (
    BISECTIONS,
    DimensionConfig,
    DimensionPoint,
    by_distance,
    dimension_range,
    first_rates,
    grid,
    midpoint,
    refusal,
    target_of,
)
from deltatune.comparison.plans.candidates import Candidate
from deltatune.comparison.plans.plan import Cell, Plan
from deltatune.comparison.works.cells import CellRunner, OnEvent
from deltatune.comparison.works.works import Record, Work
from deltatune.core.errors import DeltatuneError
from deltatune.core.registry import parse
from deltatune.store.folder_lock import FolderLock
from deltatune.training.learning_rates.recommended_rate import EXTENSIONS, neighbour


@dataclass(frozen=True)
class DimensionResult:
    """Result of a search."""

    full: DimensionPoint
    head: DimensionPoint
    points: tuple[DimensionPoint, ...]
    """By dimension, the head alone first."""
    target: float
    """Validation score to reach."""
    dimension: int | None
    """The smallest dimension that reached the target; None if none did."""
    below: int | None
    """The largest smaller dimension that was tried; it did not reach the target."""
    refusal: str | None = None
    """Why nothing is concluded: full fine-tuning is not above the head alone. No other dimension was tried then."""


def search_dimension(plan: Plan, config: DimensionConfig, on_event: OnEvent | None = None) -> DimensionResult:
    """Train fully, train the head alone, try a rising grid until the target is reached, then bisect on a log scale.

    Where full fine-tuning is not above the head alone, the search ends there with a `refusal`.
    """
    with FolderLock(plan.out):
        return _search(plan, config, on_event)


def _search(plan: Plan, config: DimensionConfig, on_event: OnEvent | None) -> DimensionResult:
    search = DimensionSearch(plan, config, on_event)
    smallest, largest = dimension_range(plan, config)
    dimensions = grid(smallest, largest)
    search.cells.notify("start", plan.name)
    full = search.point(None, first_rates(parse("Full()"), config), math.inf, 1 + len(dimensions) + BISECTIONS)
    head = search.point(0, first_rates(config.at(0), config), math.inf, len(dimensions) + BISECTIONS)
    target = target_of(config, full.score, head.score)
    rows = plan.splits["validation"].examples
    if problem := refusal(plan.session.task.metric, full.score, head.score, rows):
        return DimensionResult(full, head, (head,), target, None, None, problem)
    low, high = 0, (0 if head.score >= target else None)
    rates = first_rates(config.at(smallest), config)
    while high is None and dimensions:
        dimension = dimensions.pop(0)
        point = search.point(dimension, rates, target, len(dimensions) + BISECTIONS)
        rates = by_distance(point.rate, config.rates)
        low, high = (low, dimension) if point.score >= target else (dimension, None)
    for later in reversed(range(BISECTIONS * 2)):
        middle = midpoint(max(low, smallest - 1), high) if high else None
        if middle is None:
            break
        point = search.point(middle, rates, target, later // 2)
        rates = by_distance(point.rate, config.rates)
        low, high = (low, middle) if point.score >= target else (middle, high)
    points = sorted((p for p in search.points if p.dimension is not None), key=lambda p: p.dimension or 0)
    return DimensionResult(full, head, tuple(points), target, high, None if high == 0 else low)


class DimensionSearch:
    """Measures single points of a search; finished runs are read from the folder."""

    def __init__(self, plan: Plan, config: DimensionConfig, on_event: OnEvent | None = None) -> None:
        self.plan, self.config = plan, config
        self.cells = CellRunner(plan, on_event)
        self.points: list[DimensionPoint] = []

    def point(self, dimension: int | None, rates: Sequence[float], target: float, later: int) -> DimensionPoint:
        """Try rates until one reaches the target, also beyond the edge; then run the best rate at the other seeds.

        `dimension` is None for full fine-tuning. `later`: points that may still follow, for the estimate of the time.
        """
        seeds = self.plan.seeds
        method = parse("Full()") if dimension is None else self.config.at(dimension)
        candidate = Candidate(method, tuple(sorted(rates)), method.count(self.plan.session.host.sites))
        follow = later * (len(rates) + len(seeds) - 1)
        tried: dict[float, Record] = {}
        queue, extended = list(rates), 0
        while queue:
            self._expect(len(queue) + len(seeds) - 1 + follow)
            rate = queue.pop(0)
            tried[rate] = self._run(candidate, rate, seeds[0])
            best = max(tried, key=lambda rate: self._score(tried[rate]))
            if self._score(tried[best]) >= target:
                break
            if not queue and len(tried) >= 3 and extended < EXTENSIONS and best in (min(tried), max(tried)):
                queue.append(neighbour(best, 1 if best == max(tried) else -1))
                extended += 1
        if tried[best]["status"] != "ok":
            raise DeltatuneError(f"{candidate.text} fails at every rate; with {best:g}: {tried[best]['error']}")
        runs = [tried[best]]
        for i, seed in enumerate(seeds[1:], 1):
            self._expect(len(seeds) - i + follow)
            runs.append(self._run(candidate, best, seed))
        runs = [run for run in runs if run["status"] == "ok"]
        self._expect(follow)
        metric = self.plan.session.task.metric
        point = DimensionPoint(
            candidate.text,
            dimension,
            statistics.mean(map(self._score, runs)),
            statistics.mean(run["scores"]["test"][metric] for run in runs),
            best,
            tuple(sorted((rate, self._score(run)) for rate, run in tried.items() if run["status"] == "ok")),
        )
        self.points.append(point)
        return point

    def _expect(self, runs: int) -> None:
        """Tell the display how many runs may still follow at most."""
        self.cells.expected["search"] = runs

    def _score(self, record: Record) -> float:
        """The metric on the validation rows; minus infinity for a run that failed."""
        if record["status"] != "ok":
            return -math.inf
        return float(record["scores"]["validation"][self.plan.session.task.metric])

    def _run(self, candidate: Candidate, rate: float, seed: int) -> Record:
        """One training run, or its record of an earlier session."""
        cell = Cell("search" if seed == self.plan.seeds[0] else "seed", candidate, rate, seed)
        # the scores on the test rows do not influence the search
        work = Work("train", cell, self.plan.key(cell), "", keep=False, splits=("test",))
        self.cells.expected["search"] -= 1
        return self.cells.run_one(work)
