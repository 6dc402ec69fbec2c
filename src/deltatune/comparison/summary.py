"""From the records of a comparison to its summary: one entry a method, plain data that the report and others read."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from deltatune.comparison.baseline import baseline
from deltatune.comparison.candidates import Contender
from deltatune.comparison.lr_search import Search
from deltatune.comparison.plan import Plan
from deltatune.comparison.recommend import recommend
from deltatune.comparison.records import Records
from deltatune.comparison.sample_predictions import samples
from deltatune.comparison.statistics import Interval, PscpConstants, Scorer, draw, intervals_of, pscp, ties_of
from deltatune.tasks.additive_task import Tallied
from deltatune.tasks.task import Task

Record = dict[str, Any]
RESAMPLES = 2000


def summarise(
    plan: Plan,
    finals: Mapping[str, list[Record]],
    records: Records,
    searches: Mapping[str, Search],
    failed: list[Record],
    elapsed: float,
) -> dict[str, Any]:
    """Statistics over all finished cells, in the schema that `report.write_report` reads."""
    spans, ties = _judge(plan, finals, records)
    entries = [
        _entry(plan, contender, finals[contender.text], searches[contender.text], spans, ties, failed)
        for contender in plan.contenders
    ]
    summary: dict[str, Any] = {
        "schema": 1,
        "name": plan.name,
        "model": plan.model,
        "data": {
            "name": plan.data.name,
            "origin": plan.data.origin,
            "rows": {name: rows.examples for name, rows in plan.splits.items()},
            "labels": list(plan.data.labels),
            "notes": list(plan.data.notes),
        },
        "task": plan.data.task,
        "metric": plan.task.metric,
        "budget": dataclasses.asdict(plan.budget) if plan.budget else None,
        "base_params": plan.host.sites.base_params,
        "head_params": plan.head_params,
        "seeds": list(plan.seeds),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": elapsed,
        "settings": dataclasses.asdict(plan.settings) | {"resamples": RESAMPLES, **_limits(plan)},
        "head": plan.head_json,
        "versions": versions(),
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
    """What the task was asked with, as far as a reader of the report wants it."""
    wanted = ("max_length", "prompt", "new_tokens", "beams", "stride", "piece")
    return {name: value for name, value in plan.task.to_json().items() if name in wanted}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("deltatune", "torch", "transformers", "tokenizers", "accelerate", "numpy")
    return {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()}


def _judge(
    plan: Plan, finals: Mapping[str, list[Record]], records: Records
) -> tuple[dict[str, Interval], dict[str, bool]]:
    references = plan.splits["test"].references
    scorers = {
        text: [_scorer(plan.task, records.answers(record["cell"]), references) for record in each]
        for text, each in finals.items()
        if each
    }
    if not scorers:
        return {}, {}
    draws = draw(plan.task.metric, scorers, plan.splits["test"].examples, RESAMPLES)
    return intervals_of(draws), ties_of(draws)


def _scorer(task: Task, answers: Any, references: Any) -> Scorer:
    """What scores resamples of one cell; sums over the rows are made once, since some take long."""
    if isinstance(task, Tallied):
        return task.primary(answers, references).resampled
    return partial(task.resampled, answers, references)


def _entry(
    plan: Plan,
    contender: Contender,
    final: list[Record],
    search: Search,
    spans: Mapping[str, Interval],
    ties: Mapping[str, bool],
    failed: list[Record],
) -> dict[str, Any]:
    metric = plan.task.metric
    entry: dict[str, Any] = {
        "method": contender.text,
        "name": contender.method.label,
        "reference": contender.reference,
        "params": contender.params,
        "head_params": plan.head_params,
        "share": contender.params / plan.host.sites.base_params,
        "metric": metric,
        "score": None,
        "ci95": None,
        "tied_with_best": False,
        "failed": "; ".join(sorted({r["error"] for r in failed if r["method"] == contender.text})) or None,
        "search": [(rate, _validation(search.runs[rate], metric)) for rate in sorted(search.runs)],
    }
    if not final:
        return entry
    span, first = spans[contender.text], final[0]
    memory = [record["peak_memory_bytes"] for record in final if record["peak_memory_bytes"]]
    return entry | {
        "score": span.mean,
        "ci95": [span.low, span.high],
        "tied_with_best": ties[contender.text],
        "seed_scores": [record["scores"]["test"][metric] for record in final],
        "scores": _mean_scores(final),
        "learning_rate": first["learning_rate"],
        "rate_at_edge": len(search.runs) > 1 and search.rate in (min(search.runs), max(search.runs)),
        "head_params": first["head_params"],
        "train_seconds": statistics.mean(record["train_seconds"] for record in final),
        "examples_per_second": statistics.mean(record["examples_per_second"] for record in final),
        "peak_memory_bytes": max(memory) if memory else None,
        "adapter_bytes": first["adapter_bytes"],
        "adapter": first["adapter"],
        "latency_ratio": first.get("latency_ratio"),
        "latency_ratio_merged": first.get("latency_ratio_merged"),
        "writing_ratio": first.get("writing_ratio"),
        "extra_flops": first.get("extra_flops"),
        "pscp": pscp(span.mean, contender.params, first.get("extra_flops") or 0.0, max(memory) if memory else 0.0),
        "curves": [
            {"seed": record["seed"], "loss": record["history"], "validation": record["evaluations"]} for record in final
        ],
    }


def _validation(records: list[Record], metric: str) -> float:
    return statistics.mean(float(record["scores"]["validation"][metric]) for record in records)


def _mean_scores(final: list[Record]) -> dict[str, float]:
    names = final[0]["scores"]["test"]
    return {name: statistics.mean(record["scores"]["test"][name] for record in final) for name in names}
