"""Forecast for a pair of methods that is not told apart: how many more seeds, or test rows, would decide it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from deltatune.comparison.statistics.verdicts import PairVerdict, rows_needed, seeds_needed

MOST_SEEDS = 30
"""Further seeds beyond which seeds count as hopeless."""
MOST_ROWS = 20
"""Times as many test rows beyond which rows do."""
FIELDS = {field.name for field in dataclasses.fields(PairVerdict)} - {"low", "high"} | {"ci"}


class Forecast(NamedTuple):
    """What would decide a pair if its difference stays as it is; both None: neither within reach."""

    seeds: int | None
    """More seeds of both methods."""
    rows: int | None
    """More test rows, where seeds alone would not do."""


def forecast(pair: Mapping[str, Any], margin: float | None = None, examples: float | None = None) -> Forecast | None:
    """The forecast for an undecided entry of `summary["pairs"]`; None for a decided one, or one that says too little.

    margin: within which methods are equal; examples: test rows so far.
    """
    numbers = [pair.get(name) for name in ("difference", "row_error", "seed_error", "level")] + list(
        pair.get("ci") or ()
    )
    is_known = {"look", "runs"} <= pair.keys() and len(numbers) == 6
    if pair.get("verdict") != "undecided" or not is_known or not all(isinstance(n, int | float) for n in numbers):
        return None
    verdict = PairVerdict.from_json({name: value for name, value in pair.items() if name in FIELDS})
    seeds = seeds_needed(verdict, margin, MOST_SEEDS)
    if seeds or not examples:
        return Forecast(seeds or None, None)
    rows = rows_needed(verdict, round(examples), margin)
    return Forecast(None, rows if rows and rows <= MOST_ROWS * examples else None)
