"""Simulated errors of the differences of all pairs of methods at all looks: how wide their intervals must be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deltatune.comparison.statistics.variance_components import Components
from deltatune.tasks.metrics.corpus_score import Floats

Flags = NDArray[np.bool_]
STUDIES = 6000
"""Simulated studies: with them the level of an interval is right within about a tenth of itself."""
TAIL_DRAWS = 800
"""Variances that make the tails of single pairs; at most a quarter of the studies."""
GRID = np.concatenate([[0.0], np.geomspace(0.3, 60.0, 31)])
"""Errors in standard errors at which tails are computed."""
STEPS = 200
"""Steps of the table of normal tails, in one standard deviation."""


def spent(look: int) -> float:
    """Share of alpha that the first looks may use up: 1/2, 2/3, 3/4, ..."""
    return look / (look + 1)


class SimulatedErrors:
    """Simulated errors of all pairs under the estimated components."""

    def __init__(
        self,
        parts: Components,
        pairs: Sequence[tuple[int, int]],
        rng: np.random.Generator,
        studies: int,
        earlier_units: Iterable[int] = (),
    ) -> None:
        self.parts = parts
        self.first, self.second = np.array(pairs).T
        self.units = np.array([len(each) for each in parts.units])
        self.studies = studies
        variances = parts.sample_variances(rng, studies)  # (B, M)
        count = len(parts.mean)
        self.stops = np.unique([*self.units, *(n for n in earlier_units if n <= self.units.max())])
        """Numbers of units that methods have or had at an earlier look, ascending, (J,)."""
        self.means = self._mean_errors(rng, np.sqrt(variances.T))  # (J, M, B)
        factor = np.linalg.cholesky(parts.rows + 1e-18 * np.eye(count) * (1 + np.trace(parts.rows)))
        self.rows = factor @ rng.standard_normal((count, studies))  # (M, B)
        self.errors = np.abs(self._differences(self.units[self.first], self.units[self.second]))  # (P, B)
        diagonal = np.diag(parts.rows)
        between = diagonal[self.first] + diagonal[self.second] - 2 * parts.rows[self.first, self.second]
        self.row_error = np.sqrt(np.maximum(between, 0.0))
        of_seeds = self._seed_variance(parts.variance[:, None])[:, 0]
        self.seed_error = np.sqrt(of_seeds)
        self.scale = np.sqrt(self.row_error**2 + of_seeds)  # (P,)
        self.tails = self._tails(variances[: min(TAIL_DRAWS, studies // 4)].T)  # (P, G): log P(|error| > GRID * scale)
        self.levels = self._levels()

    def _mean_errors(self, rng: np.random.Generator, deviation: Floats) -> Floats:
        """Errors that the seeds make in the mean of the first units, for each of `stops`, (J, M, B).

        deviation: of one unit, (M, B). Methods share a part of the noise where the labels of their units agree.
        """
        own, together = math.sqrt(1 - self.parts.shared), math.sqrt(self.parts.shared)
        total, means, start = np.zeros(deviation.shape), [], 0
        for stop in self.stops:
            noise = own * rng.standard_normal(deviation.shape)
            common: dict[tuple[object, ...], Floats] = {}
            for i, labels in enumerate(self.parts.units if together else ()):
                block = common.setdefault(labels[start:stop] or (i,), rng.standard_normal(self.studies))
                noise[i] += together * block
            total = total + math.sqrt(stop - start) * noise * deviation
            means.append(total / stop)
            start = stop
        return np.array(means)

    def _differences(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
        """Errors of the differences when the methods had so many units, (P, B)."""
        i, j = np.searchsorted(self.stops, first), np.searchsorted(self.stops, second)
        one = self.rows[self.first] + self.means[i, self.first]
        return np.asarray(one - self.rows[self.second] - self.means[j, self.second], dtype=np.float64)

    def _seed_variance(self, variances: Floats) -> Floats:
        """Variance of the differences that the seeds make, for variances (M, ...) of single units: (P, ...)."""
        v, w = variances[self.first], variances[self.second]
        m, n = self.units[self.first][:, None], self.units[self.second][:, None]
        total = v / m + w / n
        if self.parts.shared:
            labels = [set(each) for each in self.parts.units]
            both = np.array([[len(labels[a] & labels[b])] for a, b in zip(self.first, self.second, strict=True)])
            total = total - 2 * self.parts.shared * np.sqrt(v * w) * both / (m * n)
        return np.asarray(np.maximum(total, 0.0), dtype=np.float64)

    def _tails(self, variances: Floats) -> Floats:
        """log P(|error| > GRID * scale) over the variances (M, D) that the runs allow, (P, G)."""
        deviation = np.sqrt(self.row_error[:, None] ** 2 + self._seed_variance(variances))  # (P, D)
        table = _normal_tail()
        ratio = np.divide(self.scale[:, None], deviation, out=np.zeros_like(deviation), where=deviation > 0)
        tails = np.empty((len(self.scale), len(GRID)))
        for i, each in enumerate(ratio):
            z = (GRID[:, None] * (each * STEPS)).astype(np.int64)
            tails[i] = table[np.minimum(z, len(table) - 1)].mean(1)
        return np.log(tails)

    def _levels(self) -> Floats:
        """How improbable each simulated error is for its pair, (P, B), as logarithms."""
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.where(self.scale[:, None] > 0, self.errors / self.scale[:, None], 0.0)
        return np.array([np.interp(each, GRID, tail) for each, tail in zip(size, self.tails, strict=True)])

    def level(self, family: Sequence[int], crossed: Flags, alpha: float, look: int) -> float:
        """Level of each pair's interval at which new errors stay within what this look may use up.

        crossed: (P, B), whether an earlier interval missed; a study with an error of the family counts once. Of what
        earlier looks seem not to have used up half is used again: a variance may look small by chance.
        """
        before = crossed[family].any(0)
        least = np.sort(self.levels[family].min(0)[~before])
        unused = max(0.0, alpha * spent(look - 1) * self.studies - float(before.sum())) if crossed.any() else 0.0
        allowed = int(alpha * (spent(look) - spent(look - 1)) * self.studies + unused / 2)
        return float(np.exp(least[max(min(allowed, len(least)) - 1, 0)])) if len(least) else 1 / self.studies**2

    def half_widths(self, left: Sequence[int], level: float) -> list[float]:
        """Half width of each pair's interval at a level."""
        # The tails fall along the grid: read them from right to left.
        return [
            float(self.scale[i] * np.interp(-math.log(level), -self.tails[i], GRID)) if self.scale[i] > 0 else 0.0
            for i in left
        ]

    def missed(self, positions: Sequence[int], runs: Sequence[tuple[int, int]], widths: Sequence[float]) -> Flags:
        """Whether the errors of an earlier look, with so many runs, were outside its intervals, (len(positions), B)."""
        first, second = self.units[self.first].copy(), self.units[self.second].copy()
        first[list(positions)] = np.minimum(first[list(positions)], [a for a, _ in runs])
        second[list(positions)] = np.minimum(second[list(positions)], [b for _, b in runs])
        errors = np.abs(self._differences(first, second))[list(positions)]
        return np.asarray(errors > np.array(widths)[:, None])


@cache
def _normal_tail() -> Floats:
    """P(|Z| > z) of a standard normal Z, in the middle of each of the steps of z."""
    return np.array([math.erfc((i + 0.5) / STEPS / math.sqrt(2)) for i in range(36 * STEPS)])
