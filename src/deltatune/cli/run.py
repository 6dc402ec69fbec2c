"""`deltatune run`: a recipe file, single or in stages, from the first line to the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.endings import Interrupted
from deltatune.cli.options import OUTPUT, Json, option
from deltatune.cli.progress import TrainingProgress
from deltatune.cli.screen import facts, print_json, say, show, table
from deltatune.cli.texts import fields_of
from deltatune.cli.train import introduce
from deltatune.comparison.formats import score
from deltatune.core.errors import DeltatuneError
from deltatune.store import runs

if TYPE_CHECKING:
    from deltatune.training.job import Prepared


def run(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE", help="Values in place of the file's.", show_default=False),
    ] = None,
    force: Annotated[bool, option("--force", panel=OUTPUT, help="Do again what was finished, and replace it.")] = False,
    schema: Annotated[
        bool, option("--schema", panel=OUTPUT, help="Print the JSON schema of recipes, for editors, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Do what a recipe says: one training, or stages one after another.

    Interrupted, the same command goes on. Values of the file are changed by NAME=VALUE; stages go by their names.

      deltatune run recipes/classify.yaml data.source=reviews.csv
      deltatune run recipes/chinese-llama.yaml stages.instruct.settings.epochs=2
    """
    need_extras()
    if schema:
        print_json(schema_of())
        return
    if recipe is None:
        raise DeltatuneError("name a recipe: deltatune run recipes/classify.yaml")
    from deltatune.training.recipes import as_yaml, folder_of, read_recipe, run_recipe

    asked = read_recipe(recipe, overrides or [])
    folder = folder_of(asked, recipe.stem)
    show(as_yaml(asked), stderr=as_json)
    try:
        result = run_recipe(asked, recipe.stem, force, watching(folder, quiet=as_json))
    except KeyboardInterrupt:
        raise Interrupted("what is finished is kept, and the same command goes on from there") from None
    if as_json:
        print_json(result)
    elif asked.stages:
        report_stages(result)
        say(f"Model: {result['result']}")
    else:
        show(facts([(split, scores(result[split])) for split in ("validation", "test")]), "")
        say(f"Adapter: {folder / runs.ADAPTER}")


def watching(folder: Path, quiet: bool) -> Any:
    """A progress line for every training of the recipe, under what it will do."""

    @contextmanager
    def watch(name: str, ready: Prepared) -> Iterator[Any]:
        if not quiet:
            introduce(ready, str(ready.host.model.name_or_path), folder)
        with TrainingProgress(len(ready.encoded["train"]), ready.settings.batch_size) as progress:
            yield progress

    return watch


def report_stages(result: Mapping[str, Any]) -> None:
    """A line for each stage: what it did, and what was measured after it."""
    rows = [["0 base", result["model"], *measures(result.get("measure"))]]
    for number, stage in enumerate(result["stages"], start=1):
        grown = stage.get("vocabulary")
        did = f"{grown['added']} new tokens" if grown else str(stage.get("method"))
        rows.append([f"{number} {stage['stage']}", did, *measures(stage.get("measure"))])
    names = ["tokens/char", "bits/char", "perplexity"]
    show(table(["stage", "", *names], rows, right=names), "")


def measures(found: Mapping[str, float] | None) -> list[str]:
    """Three numbers, or nothing."""
    return [f"{found[name]:.3f}" for name in ("tokens_per_char", "bits_per_char", "perplexity")] if found else [""] * 3


def scores(found: Mapping[str, float]) -> str:
    """Scores in a line."""
    return "  ".join(f"{name} {score(value)}" for name, value in found.items())


def need_extras() -> None:
    """Raise with the line that installs what recipes need."""
    try:
        import pydantic
        import yaml
    except ImportError as error:
        raise DeltatuneError(f'recipes need {error.name}. Install it: pip install "deltatune[recipes]"') from None
    del pydantic, yaml


def schema_of() -> dict[str, Any]:
    """The JSON schema of recipes, each word with its description."""
    from deltatune.training.recipes import Recipe

    found = Recipe.model_json_schema()
    known = fields_of("training/settings.py", "Settings")
    for name, place in found["$defs"]["Settings"]["properties"].items():
        place["description"] = known[name].help
    found["title"] = "deltatune recipe"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
