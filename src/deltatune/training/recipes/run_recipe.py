"""Stages one after another: each starts from the model that the one before has written, and each may be gone on with.

OUT/1-NAME/             the stage's run: adapter, metrics.json
OUT/1-NAME/stage.json   what was asked of it, and what came of it: a stage that has both is finished
OUT/1-NAME/model        the model with that stage's change in its weights, read back and compared
OUT/model               the last stage's
OUT/pipeline.json       what each stage gained
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.merging import obstacles
from deltatune.models.loading import quiet
from deltatune.store import run_folder as runs
from deltatune.store.atomic_files import check_folder, read_json, write_file
from deltatune.store.fingerprint import contents_of
from deltatune.store.merged_model import RECORD, save_merged
from deltatune.training.job import Prepared, prepare, record_of, run
from deltatune.training.recipes.check_recipe import Looked, check_merges, look_at_stages, rows_of
from deltatune.training.recipes.recipe_files import as_yaml
from deltatune.training.recipes.schema import Recipe, Stage
from deltatune.training.recipes.steps import RECIPE, Step, Watch, grown, job_of, measured, unwatched
from deltatune.training.session import open_adapter

MODEL, PIPELINE, STAGE, BASE = "model", "pipeline.json", "stage.json", "0-base.json"


@dataclass(frozen=True)
class Place:
    """One stage and where its things go."""

    stage: Stage
    found: Looked
    number: int
    of: int
    out: Path

    @property
    def folder(self) -> Path:
        """The stage's own folder."""
        return self.out / f"{self.number}-{self.stage.name}"

    @property
    def target(self) -> Path:
        """Where the model goes that the stage makes."""
        return (self.out if self.number == self.of else self.folder) / MODEL

    @property
    def makes_model(self) -> bool:
        """Whether the stage ends in a model."""
        return self.stage.vocabulary is not None or self.stage.merge

    def step(self, model: str, ready: Prepared | None = None, finished: bool = False) -> Step:
        """What is about to be done, for who watches."""
        return Step(self.stage.name, self.folder, model, ready, finished, self.number, self.of)


def run_stages(
    recipe: Recipe, folder: Path, force: bool = False, watch: Watch = unwatched, again: str | None = None
) -> dict[str, Any]:
    """Do what is left of the stages and return what pipeline.json holds."""
    names = [stage.name for stage in recipe.stages]
    if again is not None and again not in names:
        raise DeltatuneError(f"--again {again}: no such stage{nearest(again, names)}; stages: {', '.join(names)}")
    found = look_at_stages(recipe)
    places = [Place(stage, found[stage.name], i, len(names), folder) for i, stage in enumerate(recipe.stages, 1)]
    _check_out(folder)
    loads = next((place.found.loads for place in places if place.stage.vocabulary is None), "text")
    held_out = rows_of(recipe.measure, raw=True) if recipe.measure else None
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / RECIPE, as_yaml(recipe))
    (folder / PIPELINE).unlink(missing_ok=True)  # until it is true again
    model, content = recipe.model, contents_of(recipe.model)
    before = measured(model, content, held_out, folder / BASE, loads) if held_out else None
    done: list[dict[str, Any]] = []
    redo = force
    for place in places:
        redo = redo or place.stage.name == again
        facts, redo = _stage(place, model, content, loads, redo, watch)
        if place.makes_model:
            model, content = str(place.target), contents_of(str(place.target))
            if held_out:
                facts["measure"] = measured(model, content, held_out, place.folder / "measure.json", loads)
        done.append(facts)
    result = {"model": recipe.model, "measure": before, "stages": done, "result": model}
    runs.write_whole(folder / PIPELINE, result)
    return result


def _stage(
    place: Place, model: str, content: str | None, loads: Any, redo: bool, watch: Watch
) -> tuple[dict[str, Any], bool]:
    """Do one stage, or find it done. Returns what came of it, and whether the later ones are to be done again."""
    asked = {"from": content, **_asked(place, model)}
    stored = _stored(place)
    changed = _changed(place, stored, asked) if stored and not redo else []
    facts = (stored or {}).get("facts")
    if facts and not redo and not changed and _whole(place, facts):
        with watch(place.step(model, finished=True)):
            return dict(facts), False
    place.folder.mkdir(parents=True, exist_ok=True)
    again = redo or bool(changed)
    if again:
        runs.clear(place.folder)
    runs.write_whole(place.folder / STAGE, {"asked": asked, "facts": None})
    write_file(place.folder / RECIPE, as_yaml(place.stage))
    facts = {"stage": place.stage.name, "from": model, **_work(place, model, loads, watch)}
    if place.makes_model:
        facts |= {"model": str(place.target), "content": contents_of(str(place.target))}
    runs.write_whole(place.folder / STAGE, {"asked": asked, "facts": facts})
    return dict(read_json(place.folder / STAGE)["facts"]), redo


def _work(place: Place, model: str, loads: Any, watch: Watch) -> dict[str, Any]:
    stage = place.stage
    if stage.vocabulary is not None:
        with watch(place.step(model)):
            return {"vocabulary": grown(stage.vocabulary, place.found.data, model, place.target, loads)}
    facts: dict[str, Any] = {"method": stage.method, "scores": _trained(place, model, watch)}
    if stage.merge:
        facts["merge"] = _merged(place, model)
    return facts


def _trained(place: Place, model: str, watch: Watch) -> dict[str, Any]:
    """The stage's training, gone on with if it was begun before."""
    stage = place.stage
    ready = prepare(job_of(stage, model, place.found))
    if stage.merge:
        check_merges(stage.method, obstacles(ready.session.adapter))
    assert stage.data is not None
    record = record_of(ready, stage.data.source)
    if not (place.folder / runs.RECORD).is_file():
        runs.write_whole(place.folder / runs.RECORD, record)  # the folder is ours: it has the stage's file
    before = runs.open_run(place.folder, record, force=False, option="out=")
    with watch(place.step(model, ready, before is not None)) as on_step:
        return run(ready, place.folder, record, on_step) if before is None else before


def _merged(place: Place, model_name: str) -> dict[str, Any]:
    """Write a stage's adapter into the model it was trained on."""
    session = open_adapter(place.folder, model_name)
    with quiet():
        save_merged(session.host, session.name, place.target, session.tokenizer)
    return dict(read_json(place.target / RECORD))


def _asked(place: Place, model: str) -> dict[str, Any]:
    """All that a stage's result depends on, but for the content of the model."""
    stage = place.stage
    assert stage.data is not None
    asked = {"model": model, "rows": runs.data_record(place.found.data, stage.data.source)}
    return asked | {"stage": stage.model_dump(mode="json", exclude={"name"})}


def _stored(place: Place) -> dict[str, Any] | None:
    path = place.folder / STAGE
    return read_json(path) if path.is_file() else None


def _changed(place: Place, stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Names of what differs: nothing, or the model it starts from, of which an earlier stage has made another.

    Raises DeltatuneError where it is the stage itself: what was trained before may be dear.
    """
    found = runs.differences(stored["asked"], asked)
    own = [one for one in found if one[0] != "from" and not (one[0] == "model" and place.number > 1)]
    if own:
        lines = [f"  {name.removeprefix('stage.')}: it was {was!r}, now it is {now!r}" for name, was, now in own[:12]]
        state = "finished" if stored.get("facts") else "begun"
        raise DeltatuneError(
            "\n".join([f"stage {place.stage.name} was {state} in {place.folder} with other words:", *lines])
            + f"\n--again {place.stage.name} does it and what follows again; out=NAME keeps both"
        )
    return [name for name, _, _ in found]


def _whole(place: Place, facts: dict[str, Any]) -> bool:
    """Whether the stage's model is there, as it was written."""
    if not place.makes_model:
        return (place.folder / runs.METRICS).is_file()
    if contents_of(str(place.target)) != facts.get("content"):
        return False  # removed, or another stage's
    check_folder(place.target)
    return True


def _check_out(folder: Path) -> None:
    """Raise DeltatuneError for a folder that holds something else; remove what a killed write left."""
    if folder.is_file():
        raise DeltatuneError(f"out={folder} is a file; choose another folder")
    names = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if RECIPE not in names and any(not name.startswith(".") for name in names):
        raise DeltatuneError(f"out={folder} holds files that are no run of a recipe; choose another folder")
    if runs.RECORD in names:
        raise DeltatuneError(f"out={folder} holds the run of a recipe without stages; choose another folder")
    for left in [*folder.glob(f".{MODEL}.*"), *folder.glob(f"*/.{MODEL}.*")]:
        shutil.rmtree(left, ignore_errors=True)


def folder_of(recipe: Recipe, name: str) -> Path:
    """Where a recipe's run goes."""
    return Path(recipe.out).expanduser() if recipe.out else Path("runs") / name


def run_recipe(
    recipe: Recipe, name: str, force: bool = False, watch: Watch = unwatched, again: str | None = None
) -> dict[str, Any]:
    """Do a whole recipe; returns what metrics.json or, with stages, pipeline.json holds.

    Called again it goes on, and what was finished is not done again: unless with `force`, or from stage `again` on.
    Raises DeltatuneError for everything that is wrong with the recipe, its data and its methods before anything runs.
    """
    folder = folder_of(recipe, name)
    if recipe.stages:
        return run_stages(recipe, folder, force, watch, again)
    if again is not None:
        raise DeltatuneError(f"--again {again}: this recipe has no stages; --force does it again")
    ready = prepare(job_of(recipe, recipe.model))
    assert recipe.data is not None
    record = record_of(ready, recipe.data.source)
    before = runs.open_run(folder, record, force, option="out=")
    write_file(folder / RECIPE, as_yaml(recipe))
    with watch(Step(name, folder, recipe.model, ready, before is not None)) as on_step:
        return run(ready, folder, record, on_step) if before is None else before
