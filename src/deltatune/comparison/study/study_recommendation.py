"""Recommendation of a study: the method that is best over all, how sure that is, and where another one wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import mean
from typing import Any

from deltatune.comparison.report.number_format import model_labels
from deltatune.comparison.results.recommend import percent
from deltatune.comparison.study.set_averages import Comparison, SetScores, asked_of, entry_of, set_scores
from deltatune.comparison.study.study_series import ORDERED, place
from deltatune.tasks.metrics.metric_facts import lower_is_better

Ranks = Mapping[str, Any]
"""`study["ranks"]`: {"p", "critical_difference", "sets", ...}."""


@dataclass(frozen=True)
class Duels:
    """How two methods stand in the single comparisons, as far as these have decided."""

    better: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(winner, loser) -> number of comparisons."""

    def wins(self, first: str, second: str) -> int:
        """Comparisons in which the first is better than the second."""
        return self.better.get((first, second), 0)


def duels(comparisons: Sequence[Comparison]) -> Duels:
    """The decided pairs of all comparisons, by the methods as they were asked for."""
    better: dict[tuple[str, str], int] = {}
    for comparison in comparisons:
        summary = comparison["summary"] or {"methods": ()}
        asked = {entry["method"]: asked_of(entry) for entry in summary["methods"]}
        for pair in summary.get("pairs") or ():
            names = [asked.get(pair[key], pair[key]) for key in ("first", "second")]
            if pair["verdict"] in ("better", "worse") and names[0] != names[1]:
                winner, loser = names if pair["verdict"] == "better" else reversed(names)
                better[winner, loser] = better.get((winner, loser), 0) + 1
    return Duels(better)


def recommend_for_study(
    comparisons: Sequence[Comparison],
    methods: Sequence[str],
    scores: SetScores,
    ranks: Ranks | None,
    quantizations: Sequence[Mapping[str, str]] = (),
) -> dict[str, str | None]:
    """{"method", "sentence"}; method is None while no method has a score everywhere.

    quantizations: what is said of each method on each quantisation, {"method", "scheme", "sentence"}; those of the best
    method are part of the recommendation.
    """
    done = [comparison for comparison in comparisons if comparison["summary"] is not None]
    mean_ranks = scores.ranks()
    if not mean_ranks:
        what = "no comparison is finished yet" if not done else "no method has a score in all of them"
        return {"method": None, "sentence": f"No recommendation: {what}."}
    params = {method: _mean_params(done, method) for method in mean_ranks}

    def order(method: str) -> tuple[float, float, float]:
        return mean_ranks[method], -(scores.average(method) or 0.0), params[method]

    best = min(mean_ranks, key=order)
    found = duels(done)
    sentences = [
        _claim(best, scores, mean_ranks),
        _certainty(best, mean_ranks, found, ranks, len(done)),
        _cheaper(best, params, found, mean_ranks, len(done)),
        *_changes(comparisons, methods),
        *(each["sentence"] for each in quantizations if each["method"] == best),
    ]
    left = len(comparisons) - len(done)
    sentences += [f"{left} of {len(comparisons)} comparisons have no result yet."] if left else []
    sentences.append(_warning(done))
    return {"method": best, "sentence": " ".join(sentence for sentence in sentences if sentence)}


def _claim(best: str, scores: SetScores, ranks: Mapping[str, float]) -> str:
    if len(ranks) == 1:
        return f"{best} is the only method with a score everywhere."
    average = scores.average(best)
    score = "" if average is None else f" and its mean score {average:.3f}"
    if len(scores.used) == 1:
        return f"Use {best}: its score is the best{'' if average is None else f', {average:.3f}'}."
    where = f"{len(scores.sets)} data sets" if len(scores.sets) > 1 else f"the {len(scores.used)} comparisons"
    if len(scores.sets) > 1:
        return f"Use {best}: over {where} its mean rank is {ranks[best]:.2g} of {len(ranks)}{score}."
    return f"Use {best}: over {where} its mean score is the best" + (
        f", {average:.3f}." if average is not None else "."
    )


def _certainty(best: str, mean_ranks: Mapping[str, float], found: Duels, ranks: Ranks | None, comparisons: int) -> str:
    """What tests say: of the ranks over data sets, and of the pairs within single comparisons."""
    others = [method for method in mean_ranks if method != best]
    if not others:
        return ""
    said = []
    if ranks is not None and ranks["p"] is not None:
        distance = ranks["critical_difference"]
        beyond = [method for method in others if distance and mean_ranks[method] - mean_ranks[best] > distance]
        if ranks["p"] >= 0.05:
            said.append(
                f"The ranks alone tell no methods apart over {ranks['sets']} sets (Friedman p = {ranks['p']:.2g})."
            )
        elif beyond:
            said.append(
                f"By its ranks it is better than {_listed(beyond)} (Nemenyi), and not told apart from the rest."
            )
        else:
            said.append("By its ranks alone it is not told apart from any other (Nemenyi).")

    def counted(method: str, n: int) -> str:
        return f"{method} in {n} of {comparisons}" if comparisons > 1 else method

    wins = [counted(method, n) for method in others if (n := found.wins(best, method))]
    losses = [counted(method, n) for method in others if (n := found.wins(method, best))]
    if wins or losses:
        better = f"better than {_listed(wins)}" if wins else ""
        worse = f"worse than {_listed(losses)}" if losses else ""
        told = "; and ".join(filter(None, [better, worse]))
        said.append(f"Within single comparisons it is {told}." if comparisons > 1 else f"It is {told}.")
    elif comparisons == 1:
        said.append("It is not told apart from any other method.")
    elif found.better or not said:
        said.append("No single comparison tells it apart from another method.")
    return " ".join(said)


def _cheaper(best: str, params: Mapping[str, float], found: Duels, ranks: Mapping[str, float], comparisons: int) -> str:
    """The method with the fewest parameters that no comparison has found worse than the best one."""
    never = [method for method in params if method != best and not found.wins(best, method)]
    fewer = [method for method in never if params[method] < params[best]]
    if not fewer or not found.better:  # where nothing is decided, nothing follows from it
        return ""
    method = min(fewer, key=lambda each: (params[each], ranks[each]))
    share = (
        f"{percent(params[method] / params[best])} of its parameters" if params[method] else "only a head, or nothing"
    )
    where = f"any of the {comparisons} comparisons" if comparisons > 1 else "the comparison"
    return f"{method} trains {share} and is not told apart from it in {where}."


def _warning(done: Sequence[Comparison]) -> str:
    """A warning where even the best method may be no better than the baseline without training."""
    weak = [comparison for comparison in done if not _beats_baseline(comparison["summary"])]
    if not weak:
        return ""
    names = _listed(list(dict.fromkeys(str(comparison["at"]["data"]) for comparison in weak)))
    where = f"{len(weak)} of {len(done)} comparisons ({names})" if len(done) > 1 else "the comparison"
    return f"Warning: in {where} no method is significantly better than the baseline without training."


def _beats_baseline(summary: Mapping[str, Any]) -> bool:
    """Whether some method is significantly better than the baseline; true where there is none to be better than."""
    baseline = (summary.get("majority") or {}).get("score")
    ends = [entry["ci95"] for entry in summary["methods"] if entry.get("ci95")]
    if baseline is None or not ends:
        return True
    lower = lower_is_better(summary["metric"])
    return bool(min(end[1] for end in ends) < baseline if lower else max(end[0] for end in ends) > baseline)


# --- where the winner changes ---


def _changes(comparisons: Sequence[Comparison], methods: Sequence[str]) -> list[str]:
    """A sentence for each axis along which another method wins."""
    done = [comparison for comparison in comparisons if comparison["summary"] is not None]
    sentences = []
    for axis in (*ORDERED, "data"):
        values = list(dict.fromkeys(comparison["at"][axis] for comparison in done))
        if len(values) < 2:
            continue
        groups = _comparable_groups(done, axis, values)
        if axis != "data":
            values.sort(key=lambda value: mean(place(each, axis) for each in groups[value]) if groups[value] else 0.0)
        best = {value: _winner(groups[value], methods) for value in values if groups[value]}
        winners = {value: winner for value, winner in best.items() if winner is not None}
        if len(set(winners.values())) > 1:
            sure = _are_told_apart(winners, groups)
            sentences += [_change(axis, winners, sure)] if sure or axis != "data" else []
    return sentences


def _comparable_groups(done: Sequence[Comparison], axis: str, values: Sequence[Any]) -> dict[Any, list[Comparison]]:
    """The comparisons at each value of an axis, those on the other axes that all values have."""
    places: dict[tuple[Any, ...], dict[Any, Comparison]] = {}
    for comparison in done:
        others = tuple(value for name, value in sorted(comparison["at"].items()) if name != axis)
        places.setdefault(others, {})[comparison["at"][axis]] = comparison
    complete = [by_value for by_value in places.values() if len(by_value) == len(values)]
    return {value: [by_value[value] for by_value in complete] for value in values}


def _winner(group: Sequence[Comparison], methods: Sequence[str]) -> str | None:
    """The method with the best mean rank over a group's data sets, then the best mean score; None if several are."""
    scores = set_scores(group, methods)
    places = {
        method: (round(rank, 9), -round(scores.average(method) or 0.0, 9)) for method, rank in scores.ranks().items()
    }
    best = [method for method, place in places.items() if place == min(places.values())]
    return best[0] if len(best) == 1 else None


def _change(axis: str, winners: Mapping[Any, str], sure: bool) -> str:
    """`With 200 rows LoRA() is best, with 2,000 rows Full().`, and whether that is told apart."""
    parts: list[str] = []
    if axis == "data":
        by_method: dict[str, list[str]] = {}
        for value, winner in winners.items():
            by_method.setdefault(winner, []).append(str(value))
        parts = [f"{winner} on {_listed(names)}" for winner, names in by_method.items()]
        text = f"The best differs by data set: {'; '.join(parts)}"
    else:
        names = model_labels(winners) if axis == "model" else {}
        for number, (winner, run) in enumerate(groupby(winners, key=lambda value: winners[value])):
            value, *more = run  # "from ... on" only where it holds for several values: nobody knows what comes after
            where = _value_text(axis, names.get(value, value), later=number > 0 and bool(more))
            parts.append(f"{where} {winner}{' is best' if not number else ''}")
        text = ", ".join(parts)
        text = text[:1].upper() + text[1:]
    return f"{text}." if sure else f"{text}; but the runs do not tell these methods apart at every value."


def _value_text(axis: str, value: Any, later: bool) -> str:
    number = f"{value:,}" if isinstance(value, int) else str(value)
    if axis == "model":
        return f"{'from' if later else 'on'} {value}{' on' if later else ''}"
    rows = {"limit": "rows", "shots": "rows of each class"}
    text = "sizes as written" if value is None and axis == "budget" else "all rows" if value is None else number
    text = f"{text} {rows[axis]}" if axis in rows and value is not None else text
    if axis == "budget" and value is not None:
        text = f"a budget of {text}"
    return f"from {text} on" if later else f"with {text}"


def _are_told_apart(winners: Mapping[Any, str], groups: Mapping[Any, Sequence[Comparison]]) -> bool:
    """Whether at each value some comparison finds its winner better than those elsewhere, and none the reverse."""
    for value, winner in winners.items():
        found = duels(groups[value])
        others = set(winners.values()) - {winner}
        if any(not found.wins(winner, other) or found.wins(other, winner) for other in others):
            return False
    return True


def _mean_params(done: Sequence[Comparison], method: str) -> float:
    entries = [entry_of(comparison["summary"], method) for comparison in done]
    return mean([float(entry["params"]) for entry in entries if entry is not None] or [0.0])


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`; of many the first four."""
    names = list(names) if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
