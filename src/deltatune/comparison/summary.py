"""Summary of a comparison from its records: an entry for each method, as plain data that the report reads."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from deltatune.comparison.baseline import baseline
from deltatune.comparison.candidates import Candidate
from deltatune.comparison.cells import Record
from deltatune.comparison.lr_search import Search
from deltatune.comparison.plan import Plan
from deltatune.comparison.recommend import recommend
from deltatune.comparison.records import Records
from deltatune.comparison.sample_predictions import samples
from deltatune.comparison.statistics import Interval, PscpConstants, draw, intervals_of, pscp, ties_of
from deltatune.models.versions import versions

RESAMPLES = 2000


def summarise(
    plan: Plan,
    finals: Mapping[str, list[Record]],
    records: Records,
    searches: Mapping[str, Search],
    failed: list[Record],
    elapsed: float,
) -> dict[str, Any]:
    """Statistics over all finished cells, in the schema that `report.page.write_report` reads."""
    intervals, ties = _intervals_and_ties(plan, finals, records)
    entries = [
        _entry(plan, candidate, finals[candidate.text], searches[candidate.text], intervals, ties, failed)
        for candidate in plan.candidates
    ]
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
        "head_params": plan.head_params,
        "seeds": list(plan.seeds),
        "shots": plan.shots,
        "draws": len(plan.draws) or None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": elapsed,
        "settings": dataclasses.asdict(plan.settings) | {"resamples": RESAMPLES, **_limits(plan)},
        "head": plan.head_json,
        "versions": {name: version for name, version in versions().items() if version},
        "majority": baseline(plan, records),
        "samples": samples(plan, finals, records),
        "methods": entries,
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


def _intervals_and_ties(
    plan: Plan, finals: Mapping[str, list[Record]], records: Records
) -> tuple[dict[str, Interval], dict[str, bool]]:
    task, references = plan.session.task, plan.splits["test"].references
    scorers = {
        text: [task.primary_score(records.answers(record["cell"]), references).resampled for record in each]
        for text, each in finals.items()
        if each
    }
    if not scorers:
        return {}, {}
    clusters = {text: [record.get("draw") for record in each] for text, each in finals.items() if plan.draws}
    draws = draw(task.metric, scorers, plan.splits["test"].examples, RESAMPLES, clusters=clusters)
    return intervals_of(draws), ties_of(draws)


def _entry(
    plan: Plan,
    candidate: Candidate,
    final: list[Record],
    search: Search,
    intervals: Mapping[str, Interval],
    ties: Mapping[str, bool],
    failed: list[Record],
) -> dict[str, Any]:
    metric = plan.session.task.metric
    entry: dict[str, Any] = {
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
        "failed": "; ".join(sorted({r["error"] for r in failed if r["method"] == candidate.text})) or None,
        "search": [(rate, _validation(search.runs[rate], metric)) for rate in sorted(search.runs) if rate],
    }
    if not final:
        return entry
    interval, first = intervals[candidate.text], final[0]
    memory = [record["peak_memory_bytes"] for record in final if record["peak_memory_bytes"]]
    return entry | {
        "score": interval.mean,
        "ci95": [interval.low, interval.high],
        "tied_with_best": ties[candidate.text],
        "seed_scores": [record["scores"]["test"][metric] for record in final],
        "scores": _mean_scores(final, "test"),
        "more_scores": {name: _mean_scores(final, name) for name in plan.data.more_tests},
        "learning_rate": first["learning_rate"] or None,
        "rate_at_edge": len(search.runs) > 1 and search.rate in (min(search.runs), max(search.runs)),
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


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _validation(records: list[Record], metric: str) -> float:
    return statistics.mean(float(record["scores"]["validation"][metric]) for record in records)


def _mean_scores(final: list[Record], split: str) -> dict[str, float]:
    names = final[0]["scores"][split]
    return {name: statistics.mean(record["scores"][split][name] for record in final) for name in names}
