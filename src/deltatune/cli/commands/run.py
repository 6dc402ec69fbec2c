"""`deltatune run`: run a recipe file: one training, several adapters, several stages, or a table of a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.shared_options import OUTPUT, Json, option
from deltatune.cli.ui.adapters_screen import introduce_adapters, report_adapters
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import fields_of
from deltatune.cli.ui.live import StepsProgress, TrainingProgress
from deltatune.cli.ui.screen import print_json, say, show, table
from deltatune.cli.ui.table_screen import run_table_on_screen
from deltatune.cli.ui.training_screen import introduce, kept_step, report
from deltatune.core.errors import DeltatuneError
from deltatune.store import run_folder

if TYPE_CHECKING:
    from deltatune.training.recipes import AdaptersInfo, StageInfo

MEASURES = {"tokens_per_char": "tokens/char", "bits_per_char": "bits/char"}
"""Scores that are comparable between stages; perplexity is not, because stages may change the tokens."""


def run(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE", help="Values that replace the file's; null removes one.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, option("--force", panel=OUTPUT, help="Run everything again, also what is finished, and replace it.")
    ] = False,
    again: Annotated[
        str | None,
        option(
            "--again",
            panel=OUTPUT,
            metavar="NAME",
            help="Run this stage and the later ones again, or this one of several adapters.",
        ),
    ] = None,
    schema: Annotated[
        bool,
        option(
            "--schema",
            panel=OUTPUT,
            help="Print the JSON schema of recipes, for editors, and stop; with RECIPE that of its kind.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: one training, several adapters together, several stages in order, or a paper's table.

    After an interruption the same command resumes. NAME=VALUE changes a value of the file; stages and adapters go by
    their names. A table's report shows its published figures beside those measured here.

      deltatune run recipes/classify.yaml data=reviews.csv settings.epochs=5
      deltatune run recipes/together.yaml adapters.prefix.settings.learning_rate=1e-2 --again prefix
      deltatune run recipes/chinese-llama.yaml stages.instruct.settings.epochs=2 --again instruct
      deltatune run recipes/tables/glue-roberta.yaml compare.model=distilroberta-base compare.limit=1000
    """
    need_extras()
    table = recipe is not None and is_table_file(recipe)
    if schema:
        print_json(table_schema() if table else recipe_schema())
        return
    if recipe is None:
        raise DeltatuneError("name a recipe: deltatune run recipes/classify.yaml")
    from deltatune.training.recipes.recipe_words import recipe_words

    with recipe_words(recipe, overrides or []):
        _run(recipe, overrides or [], table, force, again, as_json)


def _run(recipe: Path, overrides: list[str], table: bool, force: bool, again: str | None, as_json: bool) -> None:
    """Run a recipe, and print what came of it."""
    if table:
        if again is not None or force:
            given = "--force" if force else f"--again {again}"
            raise DeltatuneError(f"{given} is not for a table, which resumes; give out=FOLDER for a new run")
        run_table_on_screen(recipe, overrides, as_json)
        return
    from deltatune.training.recipes import AdaptersInfo, StageInfo, as_yaml, folder_of, read_recipe, run_recipe

    resolved = read_recipe(recipe, overrides)
    folder = folder_of(resolved, recipe.stem)
    say(as_yaml(resolved), aside=True)
    progress = RecipeProgress()
    try:
        result = run_recipe(resolved, recipe.stem, force, progress, again)
    except KeyboardInterrupt:
        raise Interrupted(progress.kept()) from None
    if as_json:
        print_json(result)
    elif resolved.stages:
        report_stages(result, folder)
    elif isinstance(progress.stage, AdaptersInfo):
        report_adapters(progress.stage.prepared, result["adapters"], folder)
    elif isinstance(progress.stage, StageInfo) and progress.stage.prepared is not None:
        report(progress.stage.prepared.session.task, result, folder, use=resolved.objective is None)


class RecipeProgress:
    """Introduces each stage of a recipe, and shows a progress line under it."""

    def __init__(self) -> None:
        self.stage: StageInfo | AdaptersInfo | None = None
        """The stage that runs, or ran last, or all adapters."""

    @contextmanager
    def __call__(self, stage: StageInfo | AdaptersInfo) -> Iterator[Any]:
        """A context for one stage, or for several adapters."""
        self.stage = stage
        if isinstance(stage.prepared, Mapping):
            introduce_adapters(stage)
            with StepsProgress() as progress:
                yield progress
            return
        self._introduce(stage)
        if stage.prepared is None or stage.finished:
            yield None
            return
        with TrainingProgress(len(stage.prepared.encoded["train"]), stage.prepared.settings.batch_size) as progress:
            yield progress

    def _introduce(self, stage: StageInfo) -> None:
        if stage.number:
            state = "finished before" if stage.finished else "training" if stage.prepared else "vocabulary"
            say(f"Stage {stage.number} of {stage.total}, {stage.name}: {state}", aside=True)
        if stage.prepared is not None and not stage.finished:
            introduce(stage.prepared, stage.folder)
        elif stage.prepared is not None and not stage.number:
            introduce(stage.prepared, stage.folder)
            show("This run was finished before; --force runs it again.\n", aside=True)

    def kept(self) -> str:
        """What is kept after an interruption."""
        if self.stage is None:
            return "nothing was run yet"
        if isinstance(self.stage.prepared, Mapping):
            return f"what was stored is kept in the folders in {self.stage.folder}; the same command resumes"
        finished = f"the stages before {self.stage.name} are finished, " if self.stage.number > 1 else ""
        kept = kept_step(self.stage.folder)
        return f"{finished}{kept or f'no checkpoint of {self.stage.name} yet; the same command starts it again'}"


def report_stages(result: Mapping[str, Any], folder: Path) -> None:
    """A row for each stage: its method, and the scores after it."""
    lines = [("0 base", str(result["model"]), "")]
    scores = [result.get("measure") or {}]
    for number, stage in enumerate(result["stages"], start=1):
        merge = stage.get("merge")
        lines.append((f"{number} {stage['stage']}", _summary(stage), f"{merge['difference']:.1g}" if merge else ""))
        scores.append(stage.get("measure") or {})
    names = [name for name in MEASURES if any(name in row for row in scores)]
    rows = [
        [*line, *(f"{row[name]:.3f}" if name in row else "" for name in names)]
        for line, row in zip(lines, scores, strict=True)
    ]
    headers = ["merged within", *(MEASURES[name] for name in names)]
    show(table(["stage", "what", *headers], rows, right=headers), "")
    last = result["stages"][-1]
    if "model" not in last:
        say(f"Adapter: {folder / '-'.join([str(len(lines) - 1), last['stage']]) / run_folder.ADAPTER}")
    say(f"Model: {result['result']}")


def _summary(stage: Mapping[str, Any]) -> str:
    vocabulary = stage.get("vocabulary")
    if vocabulary is None:
        return str(stage["method"])
    unchanged = vocabulary["known_unchanged"]
    known = "" if unchanged is None else f", {unchanged:.1%} of known texts keep their tokens"
    return f"{vocabulary['added']} new tokens{known}"


def need_extras() -> None:
    """Raise DeltatuneError with the command that installs what recipes need."""
    try:
        import pydantic
        import yaml
    except ImportError as error:
        raise DeltatuneError(f'recipes need {error.name}. Install it: pip install "deltatune[recipes]"') from None
    del pydantic, yaml


def is_table_file(recipe: Path) -> bool:
    """Whether a file describes a table; of files that cannot be read whoever reads them tells."""
    from deltatune.comparison.tables import is_table
    from deltatune.training.recipes.recipe_files import recipe_content

    return is_table(recipe_content(recipe))


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes, each key with its description."""
    from deltatune.training.recipes import Recipe

    return _described(Recipe.model_json_schema(), "deltatune recipe")


def table_schema() -> dict[str, Any]:
    """The JSON schema of table recipes, each key with its description."""
    from deltatune.comparison.tables import TableRecipe

    return _described(TableRecipe.model_json_schema(), "deltatune table recipe")


def _described(schema: dict[str, Any], title: str) -> dict[str, Any]:
    """The schema with the descriptions of settings, which pydantic does not know."""
    settings = fields_of("training/settings.py", "Settings")
    for name, entry in schema["$defs"]["Settings"]["properties"].items():
        entry["description"] = settings[name].help
    schema["title"] = title
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
