"""Totals of a study: the parameters and the bytes on disk of all its tasks, or of a thousand, with the base once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from deltatune.comparison.study.set_averages import Comparison, entry_of

FLOAT32 = 4
"""Bytes of a parameter, where a study does not say how many the base has."""


def totals(comparisons: Sequence[Comparison], methods: Sequence[str], tasks: int | None = None) -> list[dict[str, Any]]:
    """For every method, on each model and budget, what all data sets need together, one adapter for each.

    [{"method", "at": {"model", "budget", "quantize"}, "tasks": N, "params", "bytes", "copies"}]: trained parameters
    with heads, the bytes on disk of the base and N adapters, and those of N fine-tuned copies of the base. N is the
    number of data sets, and `tasks` if it is given: then each task counts as the mean of those that were measured.
    Where a data set was compared at several limits or shots, the last one counts. Methods without a score on some set
    are left out.
    """
    groups: dict[tuple[Any, ...], dict[str, Comparison]] = {}
    for comparison in comparisons:
        if comparison["summary"] is not None:
            at = comparison["at"]
            groups.setdefault((at["model"], at["budget"], at.get("quantize")), {})[at["data"]] = comparison
    found = []
    for (model, budget, quantize), by_set in groups.items():
        base = next(iter(by_set.values()))
        plain_bytes = FLOAT32 * base["summary"]["base_params"]
        base_bytes = base.get("base_bytes") or plain_bytes
        copy_bytes = base_bytes if quantize is None else plain_bytes  # 4 bits cannot be fine-tuned in place
        for method in methods:
            entries = [entry_of(comparison["summary"], method) for comparison in by_set.values()]
            known = [entry for entry in entries if entry is not None]
            if len(known) < len(entries):
                continue
            for number in dict.fromkeys([len(entries), *([tasks] if tasks else [])]):
                at = {"model": model, "budget": budget, "quantize": quantize}
                row = {"method": method, "at": at, "tasks": number}
                found.append(row | _total(known, number, base_bytes, copy_bytes))
    return found


def _total(entries: Sequence[Mapping[str, Any]], tasks: int, base_bytes: int, copy_bytes: int) -> dict[str, int]:
    params = mean(entry["params"] + (entry.get("head_params") or 0) for entry in entries)
    size = mean(entry.get("adapter_bytes") or 0 for entry in entries)
    return {
        "params": round(tasks * params),
        "bytes": round(base_bytes + tasks * size),
        "copies": tasks * copy_bytes,
    }
