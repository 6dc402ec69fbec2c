"""What a search for the intrinsic dimension found: plain data, a sentence, and methods of that many parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deltatune.comparison.baseline import majority
from deltatune.comparison.dimension import Found
from deltatune.comparison.plan import DEFAULT_METHODS, Plan
from deltatune.comparison.question import Point, Question
from deltatune.comparison.recommend import percent
from deltatune.comparison.summary import versions
from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.sites import Sites
from deltatune.core.text import parse


def answer(plan: Plan, question: Question, found: Found, elapsed: float) -> dict[str, Any]:
    """Everything about a search, as JSON takes it."""
    result: dict[str, Any] = {
        "schema": 1,
        "name": plan.name,
        "model": plan.model,
        "data": {
            "name": plan.data.name,
            "origin": plan.data.origin,
            "rows": {n: len(r) for n, r in plan.splits.items()},
        },
        "metric": plan.task.metric,
        "question": dataclasses.asdict(question),
        "base_params": plan.host.sites.base_params,
        "head_params": plan.head_params,
        "majority": majority(plan),
        "target": found.target,
        "dimension": found.dimension,
        "below": found.below,
        "full": _entry(found.full, found),
        "points": [_entry(point, found) for point in found.points],
        "methods": equivalents(plan.host.sites, found.dimension) if found.dimension else [],
        "seeds": list(plan.seeds),
        "settings": dataclasses.asdict(plan.settings) | {"max_length": plan.task.to_json().get("max_length")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "elapsed_seconds": elapsed,
        "versions": versions(),
    }
    return result | {"sentence": sentence(result)}


def _entry(point: Point, found: Found) -> dict[str, Any]:
    reaches = None if point.dimension is None else point.score >= found.target
    return dataclasses.asdict(point) | {"reaches": reaches}


def equivalents(
    sites: Sites, dimension: int, methods: Sequence[str | Method] = DEFAULT_METHODS
) -> list[dict[str, Any]]:
    """For each method with a size the smallest that trains at least `dimension` parameters; the fewest first."""
    found = []
    for given in methods:
        method = parse(given) if isinstance(given, str) else given
        if method.size is None:
            continue
        try:
            smallest = _smallest(method, sites, dimension)
        except DeltatuneError:  # this model has no such sites
            continue
        params = smallest.count(sites)
        if params >= dimension:
            found.append({"method": repr(smallest), "params": params, "times": params / dimension})
    return sorted(found, key=lambda entry: entry["params"])


def _smallest(method: Method, sites: Sites, dimension: int) -> Method:
    if method.sized(1).count(sites) >= dimension:
        return method.sized(1)
    below = fit_budget(method, sites, dimension - 1)  # the largest that is too small
    return method.sized(min((below.size or 0) + 1, method.limit(sites)))


def sentence(result: Mapping[str, Any]) -> str:
    """The finding in words, with what to make of it."""
    question, metric = result["question"], result["metric"]
    share = f"{100 * question['fraction']:g} %"
    what = (
        f"the {metric} of full fine-tuning" if question["of"] == "full" else f"what full fine-tuning gains in {metric}"
    )
    goal = f"{share} of {what} ({result['target']:.3f})"
    dimension = result["dimension"]
    if dimension is None:
        largest = max(point["dimension"] for point in result["points"])
        text = f"No dimension up to {largest:,} reaches {goal}; raise --max or train longer."
    elif dimension == 0:
        text = (
            f"The head alone reaches {goal}: no weight of the model has to change for it. Use Probe(), or ask for "
            "more: --fraction 0.99, or --of gain for a share of what full fine-tuning adds."
        )
    else:
        of = percent(dimension / result["base_params"])
        bound = f", {result['below']:,} do not" if result["below"] else ""
        text = f"{dimension:,} numbers ({of} of the model's) reach {goal}{bound}."
        if result["methods"]:
            first = result["methods"][0]
            text += f" The smallest of the usual methods with as many is {first['method']}, with {first['params']:,}."
    return text + _warning(result)


def _warning(result: Mapping[str, Any]) -> str:
    """Said where full fine-tuning itself may be no better than no model at all."""
    known = (result["majority"] or {}).get("score")
    if known is None or result["full"]["test"] > known:
        return ""
    return (
        f" Beware: full fine-tuning scores {result['full']['test']:.3f} on the test rows, no better than always "
        f"answering the most frequent label ({known:.3f}); a share of that says nothing."
    )
