"""The study of a table recipe: every combination of its models, data sets, rows, budgets and shots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.study.study_plan import Axes, Point, StudyPlan, make_study_plan
from deltatune.comparison.tables.table_file import data_sets
from deltatune.comparison.tables.table_schema import Compare, TableRecipe
from deltatune.core.errors import DeltatuneError
from deltatune.data import Data
from deltatune.training.recipes.check_recipe import load_rows
from deltatune.training.recipes.schema import PartRows


def study_of_table(recipe: TableRecipe, out: Path) -> StudyPlan:
    """The study of a recipe with `compare`; nothing is read yet. Its report has the published figures.

    Raises DeltatuneError for values that no study can have.
    """
    compare = recipe.compare
    if compare is None:
        raise DeltatuneError(f"{recipe.title} is not a comparison: its experiment is {recipe.kind}")
    sets, rows = data_sets(compare.data)
    axes = Axes(
        tuple(sets.sources),
        tuple(compare.model),
        tuple(compare.limit),
        tuple(compare.budget),
        tuple(compare.shots),
        tuple(compare.quantize),
    )
    reader = PointRows(rows)

    def make(point: Point, folder: Path, more: Mapping[str, Any]) -> Plan:
        data = reader(point.data, point.limit)
        return make_plan(
            data,
            **{
                **options_of(compare),
                "model": point.model,
                "budget": point.budget,
                "shots": point.shots,
                "quantize": point.quantize,
                "task": compare.task | rows[point.data].fields,
                "out": folder,
                **more,
            },
        )

    return make_study_plan(
        axes,
        make,
        out=out,
        name=recipe.title,
        minutes=compare.minutes,
        tasks=compare.tasks,
        suites=sets.suites,
        notes=[*sets.notes, *recipe.notes],
        published=recipe.figures(),
    )


def options_of(compare: Compare) -> dict[str, Any]:
    """What all comparisons share; without what is not set."""
    optional = {name: getattr(compare, name) for name in ("draws", "seeds", "margin", "workers", "executor")}
    return {
        "methods": compare.methods,
        "rates": compare.rates,
        "settings": compare.settings,
        "head": compare.head,
        "prompts": compare.prompts.options,
        **{name: value for name, value in optional.items() if value not in (None, "")},
    }


class PointRows:
    """Reads the rows of a data set and keeps the last: what is done on the same rows follows one another."""

    def __init__(self, rows: Mapping[str, PartRows]) -> None:
        self.rows = rows
        self.last: tuple[str, int | None, Data] | None = None

    def __call__(self, name: str, limit: int | None) -> Data:
        """The data set with so many training rows, or with its own limit."""
        if self.last is None or self.last[:2] != (name, limit):
            rows = self.rows[name]
            rows = rows if limit is None else rows.model_copy(update={"limit": limit})
            self.last = (name, limit, load_rows(rows))
        return self.last[2]
