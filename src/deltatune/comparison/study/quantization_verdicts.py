"""Verdicts on quantisations of the base: is a method on 4 bits as good as the same method on the published weights?

The runs of two comparisons that differ in the quantisation alone are scored on the same test rows, and those of one
seed, or of one draw of rows, begin alike. So they are paired as methods of one comparison are (`verdicts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.plans.plan import Cell, Plan
from deltatune.comparison.report.study_results import UNQUANTIZED
from deltatune.comparison.results.decision import ALPHA, is_fixed
from deltatune.comparison.results.records import Records
from deltatune.comparison.run_comparison import TESTED
from deltatune.comparison.statistics.verdicts import PairVerdict, decide
from deltatune.comparison.study.set_averages import asked_of, entry_of
from deltatune.comparison.study.study_plan import Axes, Point
from deltatune.tasks.metrics.corpus_score import Scorer

Pair = Mapping[str, Any]
"""{"method", "at" (all axes but the quantisation), "scheme", "against", "metric", "margin", "difference", "ci",
"verdict", "runs"}: `scheme` against the reference `against`; None is the published weights."""


@dataclass(frozen=True)
class ScoredRuns:
    """The tested runs of one method in one comparison."""

    scorers: tuple[Scorer, ...]
    labels: tuple[object, ...]
    """Seed, or draw of training rows, of each run: runs of one label begin alike."""
    fixed: bool
    """Whether the result does not depend on a seed."""


@dataclass(frozen=True)
class ScoredComparison:
    """What a finished comparison of a study gives to verdicts between quantisations."""

    metric: str
    examples: int
    margin: float | None
    runs: Mapping[str, ScoredRuns]
    """By the method as the user wrote it."""


class QuantizationVerdicts:
    """Finished comparisons of a study over several quantisations, and the verdicts between them so far."""

    def __init__(self, axes: Axes) -> None:
        self.schemes = axes.quantize
        self.tested: dict[tuple[Any, ...], dict[str | None, ScoredComparison]] = {}
        """By the other axes, then by the quantisation."""
        self._pairs: dict[tuple[Any, ...], list[Pair]] = {}

    @property
    def reference(self) -> str | None:
        """What the others are compared with: the published weights, or else the first quantisation."""
        return None if None in self.schemes else self.schemes[0]

    @property
    def pairs(self) -> list[Pair]:
        """All verdicts so far."""
        return [pair for pairs in self._pairs.values() for pair in pairs]

    def add_(self, point: Point, plan: Plan, summary: Mapping[str, Any]) -> None:
        """Take in a finished comparison; what it can be compared with is judged again."""
        if len(self.schemes) < 2:
            return
        at = {axis: value for axis, value in point.to_json().items() if axis != "quantize"}
        group = self.tested.setdefault(tuple(at.values()), {})
        group[point.quantize] = scored_comparison(plan, summary)
        if self.reference in group and len(group) > 1:
            self._pairs[tuple(at.values())] = judge_quantizations(group, self.schemes, self.reference, at)


def scored_comparison(plan: Plan, summary: Mapping[str, Any]) -> ScoredComparison:
    """The tested runs behind the scores of a summary, read from the comparison's folder."""
    records = Records(plan.out)
    references = plan.splits["test"].references
    runs = {}
    for asked in dict.fromkeys(asked_of(entry) for entry in summary["methods"]):
        entry = entry_of(summary, asked)
        candidate = next((each for each in plan.candidates if entry and each.text == entry["method"]), None)
        if entry is None or candidate is None:
            continue
        scorers: dict[str, Scorer] = {}
        labels = []
        for repeat in plan.repeats:
            key = plan.key(Cell("final", candidate, entry["learning_rate"] or 0.0, repeat.seed, repeat.draw)) + TESTED
            if key not in scorers and records.get(key, adapter=False) is not None:
                score = plan.session.task.primary_score(records.answers(key), references)
                scorers[key] = score.resampled
                labels.append(repeat.seed if repeat.draw is None else repeat.draw)
        if scorers:
            runs[asked] = ScoredRuns(tuple(scorers.values()), tuple(labels), is_fixed(candidate.method))
    return ScoredComparison(plan.session.task.metric, plan.splits["test"].examples, plan.margin, runs)


def judge_quantizations(
    tested: Mapping[str | None, ScoredComparison],
    schemes: Sequence[str | None],
    reference: str | None,
    at: Mapping[str, Any],
) -> list[Pair]:
    """The verdict of each quantisation against the reference, for every method that was tested on both.

    All verdicts at one place hold together with probability 1 - ALPHA, shared between the methods. Comparisons whose
    test rows differ in number are not paired.
    """
    base = tested[reference]
    order = [scheme for scheme in schemes if scheme in tested and scheme != reference]
    order = [scheme for scheme in order if tested[scheme].examples == base.examples]
    methods = [method for method in base.runs if any(method in tested[scheme].runs for scheme in order)]
    pairs: list[Pair] = []
    for method in methods:
        runs = {scheme: tested[scheme].runs[method] for scheme in order if method in tested[scheme].runs}
        runs[reference] = base.runs[method]
        names = {scheme: scheme or UNQUANTIZED for scheme in runs}
        verdicts = decide(
            base.metric,
            {names[scheme]: each.scorers for scheme, each in runs.items()},
            base.examples,
            margin=base.margin,
            alpha=ALPHA / len(methods),
            clusters={names[scheme]: each.labels for scheme, each in runs.items()},
            fixed=[names[scheme] for scheme, each in runs.items() if each.fixed],
        )
        facts = {"method": method, "at": dict(at), "metric": base.metric, "margin": base.margin}
        pairs += [
            {**facts, "scheme": scheme, "against": reference, **_verdict(each)}
            for scheme in runs
            for each in verdicts
            if scheme != reference and (each.first, each.second) == (names[scheme], names[reference])
        ]
    return pairs


def _verdict(pair: PairVerdict) -> dict[str, Any]:
    return {name: value for name, value in pair.to_json().items() if name in ("difference", "ci", "verdict", "runs")}


# ---- in words

KINDS = ("equal", "better", "worse", "undecided")


def verdict_sentences(pairs: Sequence[Pair], varied: Sequence[str]) -> list[dict[str, str]]:
    """[{"method", "scheme", "sentence"}]: `LoRA() on nf4 is equal to LoRA() unquantised within 0.02 on 3 data sets.`"""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair["method"], str(pair["scheme"])), []).append(pair)
    return [
        {"method": method, "scheme": scheme, "sentence": _sentence(method, scheme, group, varied)}
        for (method, scheme), group in groups.items()
    ]


def _sentence(method: str, scheme: str, pairs: Sequence[Pair], varied: Sequence[str]) -> str:
    against = pairs[0]["against"]
    other = f"{method} {UNQUANTIZED}" if against is None else f"{method} on {against}"
    names = [axis for axis in varied if axis != "quantize"]
    parts = []
    for kind in KINDS:
        of_kind = [pair for pair in pairs if pair["verdict"] == kind]
        if not of_kind:
            continue
        where = _where(of_kind, pairs, names)
        margins = {pair["margin"] for pair in of_kind}
        within = f" within {margins.pop():g}" if len(margins) == 1 and None not in margins else " within the margin"
        if kind == "equal":
            parts.append(f"equal to {other}{within}{where}")
        elif kind == "undecided":
            known = "" if margins == {None} else f" nor shown to be equal{within}"
            told = f"told apart from {'it' if parts else other}"
            parts.append(f"{'neither' if known else 'not'} {told}{known}{where} ({_ranges(of_kind)})")
        else:
            parts.append(f"{kind} than {'it' if parts else other}{where} ({_ranges(of_kind)})")
    return f"{method} on {scheme} is {', '.join(parts)}."


def _where(some: Sequence[Pair], pairs: Sequence[Pair], names: Sequence[str]) -> str:
    """` on trec6 and sst2`; nothing where there is one place only."""
    if not names:
        return ""
    if len(some) == len(pairs) and len(some) > 1:
        data_alone = list(names) == ["data"]
        return f" on all {len(some)} data sets" if data_alone else f" in all {len(some)} comparisons"
    models = [str(pair["at"]["model"]) for pair in pairs]
    places = [Point(**pair["at"]).describe(names, models) for pair in some]
    shown = places if len(places) <= 5 else [*places[:4], f"{len(places) - 4} more"]
    return f" on {' and '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}"


def _ranges(pairs: Sequence[Pair]) -> str:
    """The interval of each difference, quantised minus reference."""
    texts = [f"{pair['ci'][0]:+.3f} to {pair['ci'][1]:+.3f}".replace("-", "−") for pair in pairs[:5]]
    return "; ".join([*texts, *([f"{len(pairs) - 5} more"] if len(pairs) > 5 else [])])


# ---- with costs


def quantization_summary(
    comparisons: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    verdicts: QuantizationVerdicts,
    varied: Sequence[str],
) -> dict[str, Any] | None:
    """The quantisations side by side, as plain data; None unless a study has several.

    {"reference", "sentences", "pairs", "rows"}: a row {"method", "scheme", "base_bytes", "peak_memory_bytes",
    "train_seconds", "time_ratio", "scores"} for every method on every quantisation, over all comparisons with a score;
    `scores` by the comparison's number; `time_ratio` against the reference, the mean over the places that both have.
    """
    if len(verdicts.schemes) < 2:
        return None
    rows = []
    for method in methods:
        entries = {
            number: entry
            for number, comparison in enumerate(comparisons)
            if comparison["summary"] is not None and (entry := entry_of(comparison["summary"], method)) is not None
        }
        by_place: dict[tuple[Any, ...], dict[str | None, float]] = {}
        for number, entry in entries.items():
            at = dict(comparisons[number]["at"])
            scheme = at.pop("quantize", None)
            if entry.get("train_seconds"):
                by_place.setdefault(tuple(at.values()), {})[scheme] = float(entry["train_seconds"])
        for scheme in verdicts.schemes:
            numbers = [number for number in entries if comparisons[number]["at"].get("quantize") == scheme]
            if not numbers:
                continue
            both = [times for times in by_place.values() if scheme in times and verdicts.reference in times]
            peaks = [int(entries[n]["peak_memory_bytes"]) for n in numbers if entries[n].get("peak_memory_bytes")]
            rows.append({
                "method": method,
                "scheme": scheme,
                "base_bytes": max((comparisons[n].get("base_bytes") or 0 for n in numbers), default=0) or None,
                "peak_memory_bytes": max(peaks, default=None),
                "train_seconds": sum(float(entries[n].get("train_seconds") or 0.0) for n in numbers) / len(numbers),
                "time_ratio": sum(t[scheme] for t in both) / sum(t[verdicts.reference] for t in both) if both else None,
                "scores": {str(n): entries[n]["score"] for n in numbers},
            })  # fmt: skip
    pairs = [dict(pair) for pair in verdicts.pairs]
    return {
        "reference": verdicts.reference,
        "sentences": verdict_sentences(pairs, varied),
        "pairs": pairs,
        "rows": rows,
    }
