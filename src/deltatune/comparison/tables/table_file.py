"""Files of table recipes: YAML and overrides to a checked recipe, whose published figures belong to its experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltatune.comparison.study.study_sources import DataSets, name_data_sets
from deltatune.comparison.tables.table_schema import (
    KINDS,
    Compare,
    Continual,
    Dimension,
    FactWordings,
    Latency,
    Published,
    TableRecipe,
)
from deltatune.core.errors import nearest, raise_all
from deltatune.data.published.suites import open_suite
from deltatune.training.recipes.recipe_files import checked_section, recipe_content
from deltatune.training.recipes.schema import PartRows


def is_table(content: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file describes a table, and not a training or stages."""
    return any(kind in content for kind in KINDS) or "published" in content


def read_table(path: str | Path, overrides: Sequence[str] = ()) -> TableRecipe:
    """Read a table recipe from a YAML file, with overrides such as `compare.limit=200`, which become a note.

    Its paths are relative to the working directory. Raises DeltatuneError listing everything that is wrong. A published
    figure of a method or a place that the experiment lacks is an error, but where overrides have changed the experiment
    it is left out.
    """
    content = recipe_content(path, overrides)
    recipe = checked_section(content, TableRecipe, str(path))
    changes = [override for override in overrides if not override.startswith("out=")]
    stray = stray_figures(recipe)
    if not changes:
        problems = [problem for each in stray.values() for problem in each]
        raise_all(problems, f"{path}: these published figures stand beside nothing:" if problems else "")
        return recipe
    notes = [*recipe.notes, f"changed from the recipe, which the published figures are for: {', '.join(changes)}"]
    if stray:
        what = "1 published figure is" if len(stray) == 1 else f"{len(stray)} published figures are"
        notes.append(f"{what} of other methods or places and left out")
    kept = [figure for number, figure in enumerate(recipe.published, start=1) if number not in stray]
    return recipe.model_copy(update={"notes": notes, "published": kept})


def stray_figures(recipe: TableRecipe) -> dict[int, list[str]]:
    """Why no measured figure can stand beside a published one, by its number: other methods, or other places."""
    methods, places = methods_of(recipe), places_of(recipe)
    found = {number: list(_strange(figure, methods, places)) for number, figure in enumerate(recipe.published, start=1)}
    return {number: [f"published {number}: {text}" for text in texts] for number, texts in found.items() if texts}


def _strange(figure: Published, methods: Sequence[str], places: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if methods and figure.method not in methods:
        yield f"there is no method {figure.method!r}{nearest(figure.method, methods)}; methods: {', '.join(methods)}"
    for axis, value in figure.at.items():
        if axis not in places:
            yield f"there is no {axis!r}{nearest(axis, places)}; places: {', '.join(places)}"
        elif places[axis] and str(value) not in places[axis]:
            known = places[axis]
            yield f"{axis} {value} is not there{nearest(str(value), known)}; values: {', '.join(known)}"


def methods_of(recipe: TableRecipe) -> list[str]:
    """The methods as results name them; of facts the wordings, of latencies also the bare model."""
    experiment = recipe.experiment
    if isinstance(experiment, FactWordings):
        return experiment.wordings
    return [*(["bare"] if isinstance(experiment, Latency) else []), *experiment.methods]


def places_of(recipe: TableRecipe) -> dict[str, list[str]]:
    """The axes of the experiment's figures and their values as texts; no values where any may come."""
    experiment = recipe.experiment
    if isinstance(experiment, Compare):
        axes = {name: getattr(experiment, name) for name in ("model", "quantize", "limit", "budget", "shots")}
        axes = {"data": list(data_sets(experiment.data)[0].sources), **axes}
    elif isinstance(experiment, Dimension):
        axes = {"data": list(data_sets(experiment.data)[0].sources), "model": experiment.model}
    elif isinstance(experiment, Continual):
        axes = {"mode": list(experiment.modes)}
    elif isinstance(experiment, FactWordings):
        axes = {"model": experiment.model, "relation": experiment.relations}
    elif isinstance(experiment, Latency):
        axes = {"batch": experiment.batches, "length": experiment.lengths or [], "form": []}
    else:
        axes = {}
    return {name: [str(value) for value in values] for name, values in axes.items()}


def data_sets(data: Mapping[str, PartRows]) -> tuple[DataSets, dict[str, PartRows]]:
    """The data sets of an experiment, suites taken apart, and the rows of each by its name.

    Sources without a name are named as `deltatune compare` names them.
    """
    unnamed = all(name == rows.source for name, rows in data.items())
    given: Any = [rows.source for rows in data.values()] if unnamed else {n: rows.source for n, rows in data.items()}
    sets = name_data_sets(given)
    by_source = {rows.source: rows for rows in data.values()}
    suites = [rows for source, rows in by_source.items() if unnamed and open_suite(source) is not None]
    options = suites[0] if len(suites) == 1 else PartRows(source="suite", limit=None)
    if not unnamed:
        return sets, dict(data)
    return sets, {
        name: by_source.get(str(source)) or options.model_copy(update={"source": str(source)})
        for name, source in sets.sources.items()
    }
