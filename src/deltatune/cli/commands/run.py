"""`deltatune run`: a recipe file, single or in stages, from the first line to the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.commands.train import introduce, report
from deltatune.cli.options import OUTPUT, Json, option
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.help_screen import fields_of
from deltatune.cli.ui.live import TrainingProgress
from deltatune.cli.ui.screen import print_json, say, show, table
from deltatune.core.errors import DeltatuneError
from deltatune.store import run_folder as runs

if TYPE_CHECKING:
    from deltatune.training.recipes import Step

MEASURES = {"tokens_per_char": "tokens/char", "bits_per_char": "bits/char"}
"""What may be compared between stages: perplexity is a number a token, and the tokens change."""


def run(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE", help="Values in place of the file's; null takes one away.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, option("--force", panel=OUTPUT, help="Do everything again, also what was finished, and replace it.")
    ] = False,
    again: Annotated[
        str | None,
        option("--again", panel=OUTPUT, metavar="STAGE", help="Do this stage and those after it again."),
    ] = None,
    schema: Annotated[
        bool, option("--schema", panel=OUTPUT, help="Print the JSON schema of recipes, for editors, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Do what a recipe says: one training, or stages one after another.

    Interrupted, the same command goes on. Values of the file are changed by NAME=VALUE; stages go by their names.

      deltatune run recipes/classify.yaml data=reviews.csv settings.epochs=5
      deltatune run recipes/chinese-llama.yaml stages.instruct.settings.epochs=2 --again instruct
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
    print(as_yaml(asked), file=sys.stderr if as_json else sys.stdout, flush=True)
    watching = Watching(quiet=as_json)
    try:
        result = run_recipe(asked, recipe.stem, force, watching, again)
    except KeyboardInterrupt:
        raise Interrupted(watching.kept()) from None
    if as_json:
        print_json(result)
    elif asked.stages:
        report_stages(result, folder)
    elif watching.last is not None and watching.last.ready is not None:
        report(watching.last.ready.session.task, result, folder, use=asked.objective is None)


class Watching:
    """Says what each step of a recipe will do, and shows a progress line under it."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.last: Step | None = None

    @contextmanager
    def __call__(self, step: Step) -> Iterator[Any]:
        """A context for one step."""
        self.last = step
        if not self.quiet:
            self._introduce(step)
        if step.ready is None or step.finished:
            yield None
            return
        with TrainingProgress(len(step.ready.encoded["train"]), step.ready.settings.batch_size) as progress:
            yield progress

    def _introduce(self, step: Step) -> None:
        if step.number:
            state = "finished before" if step.finished else "training" if step.ready else "new words"
            say(f"Stage {step.number} of {step.of}, {step.name}: {state}")
        if step.ready is not None and not step.finished:
            introduce(step.ready, step.model, step.folder)
        elif step.ready is not None and not step.number:
            introduce(step.ready, step.model, step.folder)
            show("This run was finished before; --force does it again.\n")

    def kept(self) -> str:
        """What an interruption leaves."""
        from deltatune.training import checkpoint

        if self.last is None:
            return "nothing was done yet"
        last = checkpoint.newest(self.last.folder / runs.CHECKPOINTS)
        stages = f"what came before stage {self.last.name} is finished, " if self.last.number > 1 else ""
        if last is None:
            return f"{stages}no checkpoint of {self.last.name} yet, so the same command begins it anew"
        step = last.name.removeprefix(checkpoint.PREFIX)
        return f"{stages}step {step} is kept in {last}, and the same command goes on from there"


def report_stages(result: Mapping[str, Any], folder: Path) -> None:
    """A line for each stage: what it did, and what was measured after it."""
    lines = [("0 base", str(result["model"]), "")]
    found = [result.get("measure") or {}]
    for number, stage in enumerate(result["stages"], start=1):
        merge = stage.get("merge")
        lines.append((f"{number} {stage['stage']}", _did(stage), f"{merge['difference']:.1g}" if merge else ""))
        found.append(stage.get("measure") or {})
    shown = [name for name in MEASURES if any(name in one for one in found)]
    rows = [
        [*line, *(f"{one[name]:.3f}" if name in one else "" for name in shown)]
        for line, one in zip(lines, found, strict=True)
    ]
    names = ["merged within", *(MEASURES[name] for name in shown)]
    show(table(["stage", "what", *names], rows, right=names), "")
    last = result["stages"][-1]
    if "model" not in last:
        say(f"Adapter: {folder / '-'.join([str(len(lines) - 1), last['stage']]) / runs.ADAPTER}")
    say(f"Model: {result['result']}")


def _did(stage: Mapping[str, Any]) -> str:
    words = stage.get("vocabulary")
    if words is None:
        return str(stage["method"])
    same = words["known_unchanged"]
    return f"{words['added']} new tokens" + ("" if same is None else f", {same:.1%} of known texts cut as before")


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
