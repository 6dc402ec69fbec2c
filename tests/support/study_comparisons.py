"""Comparisons of a study with the summaries that its averages, series and recommendation read, without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BASE = 1_000_000


def comparison(
    scores: Mapping[str, float | None],
    *,
    data: str = "a",
    metric: str = "accuracy",
    better: Sequence[tuple[str, str]] = (),
    scored: Mapping[str, Mapping[str, float]] | None = None,
    more_scored: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    rows: int = 100,
    base_params: int = BASE,
    **at: Any,
) -> dict[str, Any]:
    """A finished comparison: method -> score (None: it failed), and the pairs that it has decided.

    `scored` has further metrics of a method, `more_scored` those on further test rows. Method `Full()` trains the base,
    every other one 1 % of it for each letter of its name.
    """
    place = {"data": data, "model": "builtin", "limit": None, "budget": None, "shots": None, **at}
    entries = []
    for method, score in scores.items():
        params = base_params if method == "Full()" else 10_000 * len(method.partition("(")[0])
        entries.append({
            "method": f"{method.removesuffix(')')}fitted)", "asked": method, "name": method, "metric": metric,
            "params": params, "head_params": 10, "adapter_bytes": 4 * params + 100, "score": score,
            "ci95": None if score is None else [score - 0.01, score + 0.01],
            "scores": {metric: score, **(scored or {}).get(method, {})},
            "more_scores": dict((more_scored or {}).get(method, {})),
        })  # fmt: skip
    fitted = {entry["asked"]: entry["method"] for entry in entries}
    pairs = [
        {"first": fitted[first], "second": fitted[second], "difference": 0.1, "ci": [0.05, 0.15], "verdict": "better"}
        for first, second in better
    ]
    summary = {
        "metric": metric, "methods": entries, "pairs": pairs, "base_params": base_params, "elapsed_seconds": 1.0,
        "data": {"rows": {"train": rows, "test": 50}}, "budget": None,
    }  # fmt: skip
    return {"at": place, "summary": summary, "error": None, "base_bytes": 4 * base_params, "train_rows": rows}


def unfinished(**at: Any) -> dict[str, Any]:
    """A comparison that has not run."""
    place = {"data": "a", "model": "builtin", "limit": None, "budget": None, "shots": None, **at}
    return {"at": place, "summary": None, "error": None, "base_bytes": None, "train_rows": None}
