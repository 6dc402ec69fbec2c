"""Recommendation of a method: the fewest trained parameters among those that are not told apart from the best.

Methods that are not told apart from the baseline either are left out where the best is.

Two to four sentences: what to use and how sure that is, what it costs, and what more seeds or rows would change.
"""

import math
from collections.abc import Mapping
from typing import Any

from deltatune.tasks.metrics.metric_facts import lower_is_better

NOISE = 0.05
"""Difference of two ratios of latency that is not worth a word."""
MethodEntry = Mapping[str, Any]
"""One entry of `summary["methods"]`."""


def recommend(summary: Mapping[str, Any]) -> dict[str, str | None]:
    """Choose a method from a comparison's summary, with the reason.

    Returns {"method", "sentence"}; method is None if none has a score. Among equal parameters a smaller head wins, then
    the better score, then the faster training.
    """
    rows = list(summary["methods"])
    scored = [row for row in rows if has_score(row)]
    if not scored:
        return {
            "method": None,
            "sentence": f"No recommendation: none of the {len(rows)} methods finished with a score.",
        }
    sign = -1 if lower_is_better(summary["metric"]) else 1

    def loss(row: MethodEntry) -> float:
        return -sign * float(row["score"])

    # of equal scores that with the fewest parameters: the same score is not "not told apart from the best"
    best = min(scored, key=lambda row: (loss(row), *_trained(row), _seconds(row)))
    tied = [row for row in scored if row["tied_with_best"] or row is best]
    baseline = _Baseline(summary.get("majority"), sign)
    useful = [row for row in tied if baseline.is_beaten_by(row)] or tied
    chosen = min(useful, key=lambda row: (*_trained(row), loss(row), _seconds(row)))
    reason = _reason(chosen, best, scored, tied, sign, _Verdicts(summary))
    warning = baseline.warning(best, [row for row in tied if row not in useful and _trained(row) <= _trained(chosen)])
    further = f"{_costs(chosen, summary)}{_outlook(chosen, summary)}"
    return {
        "method": chosen["method"],
        "sentence": f"Use {_claim(chosen, summary['metric'])}{reason}.{warning}{further}",
    }


def has_score(row: MethodEntry) -> bool:
    """Whether a method finished with a score."""
    return row.get("score") is not None and not math.isnan(row["score"])


def percent(share: float) -> str:
    """0.0033 -> "0.33 %", 0.5 -> "50 %": two significant digits."""
    value = 100 * share
    digits = 0 if value >= 10 or value == 0 else 1 if value >= 1 else min(6, 1 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} %"


def _claim(row: MethodEntry, metric: str) -> str:
    interval = f" (95 % CI {row['ci95'][0]:.3f}-{row['ci95'][1]:.3f})" if row.get("ci95") else ""
    return f"{row['method']}: {row['score']:.3f} {metric}{interval}"


def _trained(row: MethodEntry) -> tuple[int, int]:
    """Trained parameters without the head, and those of the head."""
    return row["params"], row.get("head_params") or 0


def _seconds(row: MethodEntry) -> float:
    seconds = row.get("train_seconds")
    return math.inf if seconds is None else float(seconds)


class _Verdicts:
    """What a comparison with verdicts on pairs says of two methods; one without knows only what is tied."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self.kinds = {frozenset((p["first"], p["second"])): p["verdict"] for p in summary.get("pairs") or ()}
        self.margin = (summary.get("decision") or {}).get("margin")

    def is_equal(self, one: MethodEntry, other: MethodEntry) -> bool:
        """Whether the methods are equal within the margin."""
        return self.kinds.get(frozenset((one["method"], other["method"]))) == "equal"

    def tie(self, one: MethodEntry, other: MethodEntry) -> str:
        """How a method is tied with another."""
        if self.is_equal(one, other) and self.margin is not None:
            return f"equal within {self.margin:g} to"
        return "not told apart from" if self.kinds else "statistically tied with"


def _reason(
    chosen: MethodEntry,
    best: MethodEntry,
    scored: list[MethodEntry],
    tied: list[MethodEntry],
    sign: int,
    verdicts: _Verdicts,
) -> str:
    if len(scored) == 1:
        return "; it is the only method with a score, so there is no comparison"
    if chosen is not best:
        tie = verdicts.tie(chosen, best)
        return f", {tie} the best ({best['method']}, {best['score']:.3f}){_cost(chosen, best)}"
    fitted = [row for row in scored if not row.get("reference")]
    if chosen.get("reference") and fitted and not any(row["tied_with_best"] for row in fitted):
        near = max(fitted, key=lambda row: sign * float(row["score"]))
        return (
            "; no method fitted to the budget reaches it: "
            f"{near['method']} comes closest with {near['score']:.3f} and {_share(near, chosen)}"
        )
    if len(tied) > 1:
        others = "1 other is" if len(tied) == 2 else f"{len(tied) - 1} others are"
        fewer = any(_trained(row) == _trained(chosen) for row in tied if row is not chosen)
        s = "s" if len(tied) == 2 else ""
        cost = f"train{s} no fewer" if fewer else f"train{s} more"
        tie = "not told apart from it" if verdicts.kinds else "statistically tied with it"
        return f", the best score; {others} {tie} but {cost} parameters"
    return ", significantly better than all the others"


def _cost(chosen: MethodEntry, best: MethodEntry) -> str:
    if chosen["params"] == 0:
        return f" although it trains {'only the head' if chosen.get('head_params') else 'nothing'}"
    if chosen["params"] == best["params"]:
        return f" with as many trained parameters and {'a smaller' if chosen.get('head_params') else 'no'} head"
    return f" with {_share(chosen, best)}"


def _share(row: MethodEntry, of: MethodEntry) -> str:
    if not of["params"]:  # a probe trains only the head: a share is undefined
        return f"{row['params']:,} trained parameters against none"
    return f"{percent(row['params'] / of['params'])} of its trained parameters"


def _costs(row: MethodEntry, summary: Mapping[str, Any]) -> str:
    """What was measured of training, storing and serving it; "" in summaries without these measurements."""
    from deltatune.comparison.report.number_format import number, seconds, size

    stored, time, merged = (number(row, name) for name in ("adapter_bytes", "train_seconds", "latency_ratio_merged"))
    if stored is None:
        return ""
    parts = [f"One training took {seconds(time)}"] if time is not None else []
    parts.append(f"{'its' if parts else 'Its'} file has {size(stored)} ({size(100 * stored)} for 100 tasks)")
    if (latency := number(row, "latency_ratio")) is not None:
        once = f", {merged:.2f} merged" if merged is not None and abs(merged - latency) >= NOISE else ""
        parts.append(f"inference takes {latency:.2f} times as long as with the bare model{once}")
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return f" {text}."


def _outlook(row: MethodEntry, summary: Mapping[str, Any]) -> str:
    """What would likely tell it from the methods from which it is not told apart; "" where nobody can say."""
    from deltatune.comparison.statistics.pair_forecast import forecast

    margin = (summary.get("decision") or {}).get("margin")
    examples = ((summary.get("data") or {}).get("rows") or {}).get("test")
    expected = {}
    for pair in summary.get("pairs") or ():
        if row["method"] in (pair["first"], pair["second"]):
            other = pair["second"] if pair["first"] == row["method"] else pair["first"]
            if (found := forecast(pair, margin, examples)) is not None:
                expected[other] = found
    seeds = {other: found.seeds for other, found in expected.items() if found.seeds}
    rows = {other: found.rows for other, found in expected.items() if found.rows}
    if seeds:
        nearest = min(seeds, key=lambda other: seeds[other])
        more = f"{seeds[nearest]} more seed{'' if seeds[nearest] == 1 else 's'}"
        left = len(seeds) - 1
        others = f", and more than that between it and {left} {'other' if left == 1 else 'others'}" if left else ""
        return f" About {more} would likely decide between it and {nearest}{others}."
    if rows:
        nearest = min(rows, key=lambda other: rows[other])
        return f" More seeds would not decide between it and {nearest}; about {rows[nearest]:,} more test rows would."
    if expected:
        one = next(iter(expected)) if len(expected) == 1 else f"the {len(expected)} others"
        return f" Neither a few more seeds nor a few times the test rows would likely tell it from {one}."
    return ""


class _Baseline:
    """The score without training that a comparison knows; one that knows none is beaten by every method."""

    def __init__(self, majority: Mapping[str, Any] | None, sign: int) -> None:
        self.score = (majority or {}).get("score")
        words = str((majority or {}).get("words") or "Always answering the most frequent label").rstrip(",")
        self.words = words[:1].lower() + words[1:]
        self.sign = sign

    def is_beaten_by(self, row: MethodEntry) -> bool:
        """Whether the interval of a score lies on the better side of the baseline, as far as both are known."""
        if self.score is None or not row.get("ci95"):
            return True
        low, high = row["ci95"]
        return bool(low > self.score if self.sign > 0 else high < self.score)

    def warning(self, best: MethodEntry, passed_over: list[MethodEntry]) -> str:
        """A sentence if even the best method may be no better, or on methods that were passed over for this reason."""
        if self.is_beaten_by(best) and not passed_over:
            return ""
        than = f"not significantly better than {self.words} ({self.score:.3f})"
        if not self.is_beaten_by(best):
            return f" Warning: the best method is {than}."
        names = ", ".join(str(row["method"]) for row in passed_over)
        train, are = ("trains", "is") if len(passed_over) == 1 else ("train", "are")
        return f" {names} {train} no more, but {are} {than}."
