"""Verdicts on pairs of methods in a comparison that adds seeds until methods are told apart.

After every look at the results each pair of methods gets a simultaneous interval of its difference. The intervals of
all pairs at all looks together hold the true differences with probability 1 - alpha, however often one looks:

- The error of a difference has two parts (`variance_components`): the test rows, which are the same at every look, and
  the seeds, whose variance is moderated over the methods (Smyth 2004), since two or three runs alone say little of it.
- Both are simulated for all pairs and all looks so far, and the largest error decides how wide the intervals are
  (max-t: Romano & Wolf 2005, https://doi.org/10.1198/016214504000000539). Pairs that are told apart leave the family.
- Look k may use up alpha·k/(k+1) in all (error spending: Lan & DeMets 1983, https://doi.org/10.1093/biomet/70.3.659),
  so that the number of looks need not be known. Errors at several looks are nearly the same where rows dominate; the
  simulation counts them once.
- Two methods are equal if the interval lies within the margin (Schuirmann 1987, https://doi.org/10.1007/BF01068419).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from deltatune.comparison.statistics.simulated_errors import STUDIES, Flags, SimulatedErrors
from deltatune.comparison.statistics.variance_components import Components, components, unit_scores
from deltatune.tasks.metrics.corpus_score import Scorer
from deltatune.tasks.metrics.metric_facts import lower_is_better

Kind = Literal["better", "worse", "equal", "undecided"]


@dataclass(frozen=True)
class PairVerdict:
    """What one look says of two methods."""

    first: str
    second: str
    difference: float
    """Mean score of the first minus that of the second."""
    low: float
    high: float
    """Simultaneous interval of the difference."""
    verdict: Kind
    """Whether the first is better or worse, both are equal within the margin, or nothing can be said yet."""
    look: int
    """Look at which the verdict was given."""
    runs: tuple[int, int] = (1, 1)
    """Runs of both methods at that look; with draws of training rows, draws."""
    row_error: float = 0.0
    """Standard error of the difference that more seeds do not change."""
    seed_error: float = 0.0
    """Standard error of the difference that the seeds make."""
    level: float = 0.05
    """Probability of an error outside an interval of this width, for this pair at this look alone."""
    covers_seeds: bool = True
    """Whether the interval covers seeds; without a second run of any method it covers the test rows alone."""

    def to_json(self) -> dict[str, Any]:
        """As plain data: the interval is `ci`."""
        fields = asdict(self)
        low, high = fields.pop("low"), fields.pop("high")
        return {**fields, "runs": list(self.runs), "ci": [low, high]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PairVerdict:
        """The verdict that `to_json` wrote."""
        rest = {name: value for name, value in fields.items() if name != "ci"}
        low, high = fields["ci"]
        return cls(**{**rest, "runs": tuple(fields["runs"])}, low=low, high=high)

    @property
    def half_width(self) -> float:
        """Half of the width of the interval."""
        return (self.high - self.low) / 2


def decide(
    metric: str,
    scorers: Mapping[str, Sequence[Scorer]],
    examples: int,
    *,
    look: int = 1,
    earlier: Iterable[PairVerdict] = (),
    margin: float | None = None,
    alpha: float = 0.05,
    clusters: Mapping[str, Sequence[object]] | None = None,
    fixed: Collection[str] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> list[PairVerdict]:
    """Verdicts on all pairs of methods at one look, in the order of the methods.

    scorers: by method, one Scorer for each run so far, over the same n test rows. earlier: all verdicts of all earlier
    looks; one that is not "undecided" stands. margin: differences of at most this much do not matter; None: methods
    are never called equal. clusters: by method, what its runs share, such as their draw of training rows. fixed:
    methods whose result does not depend on a seed. A method with a score that is not finite gets no verdicts.
    Raises ValueError for a look below 1, an alpha outside (0, 1) or a negative margin.
    """
    _check(look, alpha, margin)
    finite = {method: each for method, each in scorers.items() if each and _is_finite(each, examples)}
    if len(finite) < 2:
        return []
    scores = unit_scores(metric, finite, examples, resamples, seed, clusters)
    parts = components(scores, fixed)
    return judge(parts, look, list(earlier), margin, alpha, seed, lower=lower_is_better(metric))


def judge(
    parts: Components,
    look: int,
    earlier: Sequence[PairVerdict],
    margin: float | None,
    alpha: float = 0.05,
    seed: int = 0,
    studies: int = STUDIES,
    lower: bool = False,
) -> list[PairVerdict]:
    """Like `decide`, from the variance components. lower: a lower score is better."""
    pairs = list(combinations(range(len(parts.methods)), 2))
    names = [(parts.methods[a], parts.methods[b]) for a, b in pairs]
    stands = {name: verdict for verdict in earlier for name in _both(verdict) if verdict.verdict != "undecided"}
    verdicts = {name: _turned(stands[name], name) for name in names if name in stands}
    left = [i for i, name in enumerate(names) if name not in stands]
    if not left:
        return [verdicts[name] for name in names]
    rng = np.random.default_rng([seed, look])
    before = [runs for verdict in earlier for runs in verdict.runs]
    study = SimulatedErrors(parts, pairs, rng, studies, before)
    crossed = _earlier_errors(study, names, earlier)
    differences = parts.mean[study.first] - parts.mean[study.second]

    def verdict(i: int, kind: Kind, half: float, level: float) -> PairVerdict:
        difference, runs = float(differences[i]), (int(study.units[study.first[i]]), int(study.units[study.second[i]]))
        errors = float(study.row_error[i]), float(study.seed_error[i])
        interval = difference - half, difference + half
        return PairVerdict(*names[i], difference, *interval, kind, look, runs, *errors, level, parts.covers_seeds)

    def of_other_kinds(*kinds: Kind) -> list[int]:
        return [i for i, name in enumerate(names) if name not in verdicts or verdicts[name].verdict not in kinds]

    # Both questions step down: pairs that differ leave the family of those that may differ, equal pairs that of those
    # that may be equal. Neither leaves the other's: the pairs left over would be those with the largest errors.
    new = left if margin is not None else []
    while new and left and margin is not None:
        level = study.level(of_other_kinds("equal"), crossed, alpha, look)
        halves = zip(left, study.half_widths(left, level), strict=True)
        equal = [(i, half) for i, half in halves if abs(differences[i]) + half <= margin]
        verdicts |= {names[i]: verdict(i, "equal", half, level) for i, half in equal}
        new = [i for i, _ in equal]
        left = [i for i in left if i not in new]
    family = of_other_kinds("better", "worse")
    while left:
        level = study.level(family, crossed, alpha, look)
        for i, half in zip(left, study.half_widths(left, level), strict=True):
            verdicts[names[i]] = verdict(i, _order(float(differences[i]), half, lower), half, level)
        told_apart = [i for i in left if verdicts[names[i]].verdict != "undecided"]
        if not told_apart:
            break
        family = [i for i in family if i not in told_apart]
        left = [i for i in left if i not in told_apart]
    return [verdicts[name] for name in names]


def _earlier_errors(study: SimulatedErrors, names: Sequence[tuple[str, str]], earlier: Sequence[PairVerdict]) -> Flags:
    """Whether each pair's interval missed at an earlier look, (P, B)."""
    place = {name: i for i, name in enumerate(names)}
    crossed = np.zeros((len(names), study.studies), bool)
    for number in sorted({verdict.look for verdict in earlier}):
        here = [v for v in earlier if v.look == number and v.verdict in ("undecided", "equal")]
        here = [_turned(v, name) for v in here for name in _both(v) if name in place]
        positions = [place[v.first, v.second] for v in here]
        if here:
            crossed[positions] |= study.missed(positions, [v.runs for v in here], [v.half_width for v in here])
    return crossed


def _order(difference: float, half: float, lower: bool) -> Kind:
    if abs(difference) <= half:
        return "undecided"
    return "better" if (difference > 0) != lower else "worse"


def undecided_methods(verdicts: Iterable[PairVerdict]) -> set[str]:
    """Methods with at least one pair that is not decided."""
    return {name for v in verdicts if v.verdict == "undecided" for name in (v.first, v.second)}


def seeds_needed(verdict: PairVerdict, margin: float | None = None, most: int = 1000) -> int | None:
    """About how many more runs of both methods would decide the pair if its difference stays as it is.

    0 if it is decided; None if the test rows limit it, so that not even `most` further runs would.
    """
    if verdict.verdict != "undecided":
        return 0
    runs, error = min(verdict.runs), math.hypot(verdict.row_error, verdict.seed_error)
    normal = NormalDist().inv_cdf(1 - verdict.level / 2)
    now = verdict.half_width / error if error else normal
    for more in range(1, most + 1):
        share = runs / (runs + more)
        width = normal + (now - normal) * share  # the variance of the seeds gets known
        if _decides(verdict, margin, width * math.hypot(verdict.row_error, verdict.seed_error * math.sqrt(share))):
            return more
    return None


def rows_needed(verdict: PairVerdict, examples: int, margin: float | None = None) -> int | None:
    """About how many more test rows would decide the pair with the runs that there are.

    examples: test rows so far. 0 if it is decided; None if the seeds limit it.
    """
    if verdict.verdict != "undecided":
        return 0
    error = math.hypot(verdict.row_error, verdict.seed_error)
    width = verdict.half_width / error if error else 0.0
    aim = max(abs(verdict.difference), (margin or 0.0) - abs(verdict.difference))
    rest = (aim / width) ** 2 - verdict.seed_error**2 if width else 0.0
    return max(1, math.ceil(examples * (verdict.row_error**2 / rest - 1))) if rest > 0 else None


def _decides(verdict: PairVerdict, margin: float | None, half: float) -> bool:
    size = abs(verdict.difference)
    return size > half or (margin is not None and size + half <= margin)


def _both(verdict: PairVerdict) -> list[tuple[str, str]]:
    return [(verdict.first, verdict.second), (verdict.second, verdict.first)]


def _turned(verdict: PairVerdict, name: tuple[str, str]) -> PairVerdict:
    """The same verdict with the methods in this order."""
    if (verdict.first, verdict.second) == name:
        return verdict
    kind: Kind = {"better": "worse", "worse": "better"}.get(verdict.verdict, verdict.verdict)  # type: ignore[assignment]
    return replace(
        verdict,
        first=name[0],
        second=name[1],
        difference=-verdict.difference,
        low=-verdict.high,
        high=-verdict.low,
        verdict=kind,
        runs=verdict.runs[::-1],
    )


def _is_finite(scorers: Sequence[Scorer], examples: int) -> bool:
    ones = np.ones((1, examples))
    return all(math.isfinite(float(score(ones)[0])) for score in scorers)


def _check(look: int, alpha: float, margin: float | None) -> None:
    if look < 1:
        raise ValueError(f"looks are numbered from 1, not {look}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, not {alpha}")
    if margin is not None and not margin >= 0:
        raise ValueError(f"a margin is 0 or more, not {margin}")
