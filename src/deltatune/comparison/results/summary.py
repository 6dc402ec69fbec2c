"""Summary of a comparison from its records: an entry for each method, as plain data that the report reads."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deltatune.comparison.plans.candidates import Candidate
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.baseline import baseline
from deltatune.comparison.results.decision import Decision, RunScorers, fixed_methods, runs_by_method
from deltatune.comparison.results.recommend import recommend
from deltatune.comparison.results.sample_predictions import samples
from deltatune.comparison.statistics.score_statistics import Interval, PscpConstants, draw, intervals_of, pscp
from deltatune.comparison.works.works import Record
from deltatune.models.versions import versions
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.training.learning_rates.successive_halving import RungScore, Search

RESAMPLES = 2000


def summarise(
    plan: Plan,
    finals: Mapping[str, list[Record]],
    scorers: RunScorers,
    searches: Mapping[str, Search[Candidate]],
    failed: list[Record],
    elapsed: float,
    decision: Decision,
) -> dict[str, Any]:
    """Statistics over all finished cells, in the schema that `report.page.write_report` reads.

    finals, searches: tested runs and searches by the method as the user wrote it.
    """
    tested, records = runs_by_method(finals), scorers.records
    intervals = _intervals(plan, tested, scorers)
    ties = _ties(plan, intervals, decision)
    entries = [_entry(plan, asked, finals[asked], searches[asked], intervals, ties, failed) for asked in finals]
    summary: dict[str, Any] = {
        "schema": 1,
        "name": plan.name,
        "model": plan.session.model,
        "data": {
            "name": plan.data.name,
            "origin": plan.data.origin,
            "rows": {name: rows.examples for name, rows in plan.splits.items()},
            "labels": list(plan.data.labels),
            "notes": list(plan.data.notes),
        },
        "task": plan.data.task,
        "metric": plan.session.task.metric,
        "positive": plan.session.task.to_json().get("positive") or None,
        "budget": dataclasses.asdict(plan.budget) if plan.budget else None,
        "base_params": plan.session.host.sites.base_params,
        "base_bytes": plan.session.host.base.bytes,
        "quantize": plan.session.quantize,
        "head_params": plan.head_params,
        "seeds": sorted({record["seed"] for runs in finals.values() for record in runs}),
        "shots": plan.shots,
        "draws": len({record.get("draw") for runs in finals.values() for record in runs}) if plan.draws else None,
        "minutes": plan.minutes,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": elapsed,
        "settings": plan.settings.record() | {"resamples": RESAMPLES, **_limits(plan)},
        "head": plan.head_json,
        "versions": {name: version for name, version in versions().items() if version},
        "majority": baseline(plan, records),
        "samples": samples(plan, tested, records),
        "methods": entries,
        "pairs": [pair.to_json() for pair in decision.pairs],
        "decision": decision.to_json(),
        "failed": [
            {key: record[key] for key in ("method", "learning_rate", "seed", "stage", "error")} for record in failed
        ],
        "pscp_constants": dataclasses.asdict(PscpConstants()),
    }
    return summary | {"recommendation": recommend(summary)}


def _limits(plan: Plan) -> dict[str, Any]:
    """Fields of the task that the report shows."""
    names = ("max_length", "prompt", "new_tokens", "beams", "stride", "piece")
    return {name: value for name, value in plan.session.task.to_json().items() if name in names}


def _intervals(plan: Plan, tested: Mapping[str, Sequence[Record]], scorers: RunScorers) -> dict[str, Interval]:
    if not tested:
        return {}
    metric, examples, clusters = plan.session.task.metric, plan.splits["test"].examples, scorers.draws(tested)
    draws = draw(metric, scorers.of(tested), examples, RESAMPLES, clusters=clusters, fixed=fixed_methods(plan))
    return intervals_of(draws)


def _ties(plan: Plan, intervals: Mapping[str, Interval], decision: Decision) -> dict[str, bool]:
    """Whether each method is not told apart from the one with the best mean."""
    if not intervals:
        return {}
    sign = -1.0 if lower_is_better(plan.session.task.metric) else 1.0
    best = max(intervals, key=lambda text: sign * intervals[text].mean)
    apart = {
        name
        for pair in decision.pairs
        if pair.verdict in ("better", "worse") and best in (pair.first, pair.second)
        for name in (pair.first, pair.second)
    }
    return {text: text not in apart for text in intervals} | {best: True}


def _entry(
    plan: Plan,
    asked: str,
    final: list[Record],
    search: Search[Candidate],
    intervals: Mapping[str, Interval],
    ties: Mapping[str, bool],
    failed: list[Record],
) -> dict[str, Any]:
    metric, candidate = plan.session.task.metric, search.arm.candidate
    sign = -1.0 if lower_is_better(metric) else 1.0
    sizes = {each.text for each in plan.contestants[asked]}
    entry: dict[str, Any] = {
        "asked": asked,
        "method": candidate.text,
        "name": candidate.method.label,
        "reference": candidate.reference,
        "params": candidate.params,
        "head_params": plan.head_params,
        "share": candidate.params / plan.session.host.sites.base_params,
        "metric": metric,
        "score": None,
        "ci95": None,
        "tied_with_best": False,
        "failed": "; ".join(sorted({r["error"] for r in failed if r["method"] in sizes})) or None,
        "search": _searched(search, candidate, metric),
        "rungs": [_trial(trial, search, sign) for trial in search.trials],
        "sizes": [each.text for each in plan.contestants[asked]] if len(sizes) > 1 else [],
    }
    if not final:
        return entry
    interval, first, rates = intervals[candidate.text], final[0], search.tried(candidate)
    memory = [record["peak_memory_bytes"] for record in final if record["peak_memory_bytes"]]
    return entry | {
        "score": interval.mean,
        "ci95": [interval.low, interval.high],
        "tied_with_best": ties[candidate.text],
        "seed_scores": [record["scores"]["test"][metric] for record in final],
        "scores": _mean_scores(final, "test"),
        "more_scores": {name: _mean_scores(final, name) for name in plan.data.more_tests},
        "learning_rate": first["learning_rate"] or None,
        "rate_at_edge": len(rates) > 1 and search.arm.rate in (rates[0], rates[-1]),
        "head_params": first["head_params"],
        "train_seconds": statistics.mean(record["train_seconds"] for record in final),
        "examples_per_second": _mean([record["examples_per_second"] for record in final]),
        "peak_memory_bytes": max(memory) if memory else None,
        "adapter_bytes": first["adapter_bytes"],
        "adapter": first["adapter"],
        "latency_ratio": first.get("latency_ratio"),
        "latency_ratio_merged": first.get("latency_ratio_merged"),
        "writing_ratio": first.get("writing_ratio"),
        "tokens": first.get("tokens"),
        "cost": {key: statistics.mean(record["cost"][key] for record in final) for key in first.get("cost") or {}},
        "prompts": list(dict.fromkeys(prompt for record in final for prompt in record.get("prompts") or ())),
        "trials": first.get("trials") or [],
        "example": first.get("example"),
        "notes": list(dict.fromkeys(note for record in final for note in record.get("notes") or ())),
        "extra_flops": first.get("extra_flops"),
        "pscp": pscp(interval.mean, candidate.params, first.get("extra_flops") or 0.0, max(memory) if memory else 0.0),
        "curves": [
            {"seed": record["seed"], "loss": record["history"], "validation": record["evaluations"]}
            for record in final
            if record["history"]
        ],
    }


def _searched(search: Search[Candidate], candidate: Candidate, metric: str) -> list[tuple[float, float]]:
    """(rate, validation score) of each rate tried of one size: of finished runs, or at the rung where it pauses."""
    arms = sorted((arm for arm in search.last if arm.candidate == candidate and arm.rate), key=lambda arm: arm.rate)
    return [(arm.rate, _validation(search.runs.get(arm) or [search.last[arm]], metric)) for arm in arms]


def _trial(trial: RungScore[Candidate], search: Search[Candidate], sign: float) -> dict[str, Any]:
    return {
        "method": trial.arm.candidate.text,
        "learning_rate": trial.arm.rate,
        "step": trial.step,
        "steps": search.steps,
        "score": None if trial.score is None else sign * trial.score,
        "kept": trial.kept,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _validation(records: list[Record], metric: str) -> float:
    return statistics.mean(float(record["scores"]["validation"][metric]) for record in records)


def _mean_scores(final: list[Record], split: str) -> dict[str, float]:
    names = final[0]["scores"][split]
    return {name: statistics.mean(record["scores"][split][name] for record in final) for name in names}
