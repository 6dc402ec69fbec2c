"""Learning-rate search: the rate whose runs are best on the validation rows, over all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from deltatune.comparison.candidates import EXTENSIONS, neighbour

Record = dict[str, Any]


class Search:
    """The runs of one method, and the learning rate to choose by them.

    Every rate is tried at the first seed; while the best of three or more is at an edge, the next rate beyond it is
    tried. Then the best rate is run at the other seeds. If that takes its mean clearly below another rate's, its first
    seed was lucky, and the other rate is run at the other seeds instead. Only validation rows are used. Most searches
    need the planned rates at one seed, and one rate at the other seeds.
    """

    def __init__(
        self,
        rates: Sequence[float],
        seeds: Sequence[Any],
        run: Callable[[float, Any], Record | None],
        score: Callable[[Record], float],
        slack: float = 0.0,
    ) -> None:
        """`run` trains at a rate with a seed and returns None if that fails; a higher `score` is better.

        `seeds`: what the runs at one rate differ in: seeds, or pairs of a seed and a draw of rows.
        `slack`: another rate is clearly better if its score is better by more than this share.
        """
        self.seeds, self.slack, self._run, self._score = seeds, slack, run, score
        self.runs: dict[float, list[Record]] = {}
        """Runs by rate, in the order of the seeds."""
        self._failed: set[float] = set()
        for rate in rates:
            self._try(rate)
        for _ in range(EXTENSIONS if len(self.runs) >= 3 else 0):
            if not self._extend():
                break
        self.rate = self.best if self.runs else rates[0]
        """The chosen rate."""
        while self.runs and not self._is_settled():
            self._try(self.rate)
            if self._is_beaten():
                self.rate = self.best

    @property
    def best(self) -> float:
        """The rate with the best mean so far, the first of equal ones. Rates at which a seed failed come last."""
        return max(self.runs, key=lambda rate: (rate not in self._failed, self.mean(rate)))

    @property
    def chosen(self) -> list[Record]:
        """The runs of the chosen rate; none if all failed."""
        return self.runs.get(self.rate, [])

    def mean(self, rate: float) -> float:
        """The mean score of a rate over the seeds it was tried at."""
        return statistics.mean(map(self._score, self.runs[rate]))

    def _try(self, rate: float) -> bool:
        """Train with the next seed of a rate; False if that fails."""
        record = self._run(rate, self.seeds[len(self.runs.get(rate, ()))])
        if record is None:
            self._failed.add(rate)
            return False
        self.runs.setdefault(rate, []).append(record)
        return True

    def _extend(self) -> bool:
        """Try the next rate beyond the edge; False if the best rate is at no edge, or if training fails there."""
        rate = self.best
        if min(self.runs) < rate < max(self.runs):
            return False
        return self._try(neighbour(rate, 1 if rate == max(self.runs) else -1))

    def _is_beaten(self) -> bool:
        best = self.mean(self.best)
        return self.rate in self._failed or best - self.mean(self.rate) > self.slack * abs(best)

    def _is_settled(self) -> bool:
        return self.rate in self._failed or len(self.runs[self.rate]) == len(self.seeds)
