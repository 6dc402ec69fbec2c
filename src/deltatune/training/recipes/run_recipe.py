"""Recipe runner: one training, adapters together, or stages in order, each on the model of the one before.

OUT/1-NAME/             the run of a stage: adapter, metrics.json
OUT/1-NAME/stage.json   the configuration of the stage, and its result; a stage that has both is finished
OUT/1-NAME/model        the model with that stage's change merged, checked after reading it back
OUT/model               the model of the last stage
OUT/pipeline.json       the results of all stages
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.merging import merge_obstacles
from deltatune.core.quantization.schemes import scheme_text
from deltatune.models.loading import quiet
from deltatune.store import run_folder
from deltatune.store.atomic_files import check_folder, read_json, write_file
from deltatune.store.fingerprint import contents_of
from deltatune.store.folder_lock import FolderLock
from deltatune.store.merged_model import RECORD, save_merged
from deltatune.training.job import Prepared, prepare, record_of, run
from deltatune.training.open_session import open_adapter
from deltatune.training.recipes.check_recipe import TrainingData, check_merge, check_stages, load_rows
from deltatune.training.recipes.recipe_files import as_yaml
from deltatune.training.recipes.run_adapters import check_out, run_adapters
from deltatune.training.recipes.schema import Recipe, Stage
from deltatune.training.recipes.stages import (
    RECIPE,
    OnStage,
    StageInfo,
    evaluate_model,
    extend_vocabulary,
    job_of,
    silent,
)

MODEL, PIPELINE, STAGE, BASE = "model", "pipeline.json", "stage.json", "0-base.json"


def folder_of(recipe: Recipe, name: str) -> Path:
    """Folder of a recipe's run."""
    return expanded(recipe.out) if recipe.out else Path("runs") / name


def run_recipe(
    recipe: Recipe, name: str, force: bool = False, on_stage: OnStage = silent, again: str | None = None
) -> dict[str, Any]:
    """Run a whole recipe; returns the content of metrics.json, with stages of pipeline.json, with adapters of
    adapters.json.

    Called again it resumes; what was finished is not run again, unless with `force`, or from stage `again` on, or the
    adapter `again`.
    Raises DeltatuneError for every mistake in the recipe, its data and its methods before anything runs.
    """
    folder = folder_of(recipe, name)
    if recipe.stages:
        with FolderLock(folder, "out="):
            return run_stages(recipe, folder, force, on_stage, again)
    if recipe.adapters:
        with FolderLock(folder, "out="):
            return run_adapters(recipe, folder, force, on_stage, again)
    if again is not None:
        raise DeltatuneError(f"--again {again}: this recipe has no stages and no adapters; --force runs it again")
    model = "" if recipe.start and "model" not in recipe.model_fields_set else recipe.model
    prepared = prepare(job_of(recipe, model, quantize=recipe.quantize))
    if prepared.start is not None:
        prepared.start.check_apart(folder)
    record = record_of(prepared, recipe.source)
    with FolderLock(folder, "out="):
        before = run_folder.open_run(folder, record, force, option="out=")
        write_file(folder / RECIPE, as_yaml(recipe))
        with on_stage(StageInfo(name, folder, prepared.session.model, prepared, before is not None)) as on_step:
            return run(prepared, folder, record, on_step) if before is None else before


@dataclass(frozen=True)
class StageRun:
    """One stage of a run, and its folders."""

    stage: Stage
    training_data: TrainingData
    number: int
    total: int
    out: Path
    quantize: str | None = None
    """How the model that it trains on is stored."""

    @property
    def folder(self) -> Path:
        """The stage's own folder."""
        return self.out / f"{self.number}-{self.stage.name}"

    @property
    def target(self) -> Path:
        """Folder of the model that the stage writes."""
        return (self.out if self.number == self.total else self.folder) / MODEL

    @property
    def writes_model(self) -> bool:
        """Whether the stage ends in a model."""
        return self.stage.vocabulary is not None or self.stage.merge

    def info(self, model: str, prepared: Prepared | None = None, finished: bool = False) -> StageInfo:
        """What is about to run, for the display."""
        return StageInfo(self.stage.name, self.folder, model, prepared, finished, self.number, self.total)


def run_stages(
    recipe: Recipe, folder: Path, force: bool = False, on_stage: OnStage = silent, again: str | None = None
) -> dict[str, Any]:
    """Run the stages that are left and return the content of pipeline.json."""
    names = [stage.name for stage in recipe.stages]
    if again is not None and again not in names:
        raise DeltatuneError(f"--again {again}: no such stage{nearest(again, names)}; stages: {', '.join(names)}")
    checked = check_stages(recipe)
    stages = [
        StageRun(stage, checked[stage.name], i, len(names), folder, recipe.quantize)
        for i, stage in enumerate(recipe.stages, 1)
    ]
    check_out(folder, "stages")
    for draft in [*folder.glob(f".{MODEL}.*"), *folder.glob(f"*/.{MODEL}.*")]:  # of a killed process
        shutil.rmtree(draft, ignore_errors=True)
    loads = next((run.training_data.loads for run in stages if run.stage.vocabulary is None), "text")
    held_out = load_rows(recipe.measure, raw=True) if recipe.measure else None
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / RECIPE, as_yaml(recipe))
    (folder / PIPELINE).unlink(missing_ok=True)  # it is written again when all stages are finished
    model, fingerprint = recipe.model, contents_of(recipe.model)
    base_scores = evaluate_model(model, fingerprint, held_out, folder / BASE, loads) if held_out else None
    results: list[dict[str, Any]] = []
    redo = force
    for stage_run in stages:
        redo = redo or stage_run.stage.name == again
        result, redo = _run_stage(stage_run, model, fingerprint, loads, redo, on_stage)
        if stage_run.writes_model:
            model, fingerprint = str(stage_run.target), contents_of(str(stage_run.target))
            if held_out:
                path = stage_run.folder / "measure.json"
                result["measure"] = evaluate_model(model, fingerprint, held_out, path, loads)
        results.append(result)
    pipeline = {"model": recipe.model, "measure": base_scores, "stages": results, "result": model}
    run_folder.write_record(folder / PIPELINE, pipeline)
    return pipeline


def _run_stage(
    stage_run: StageRun, model: str, fingerprint: str | None, loads: Any, redo: bool, on_stage: OnStage
) -> tuple[dict[str, Any], bool]:
    """Run one stage unless it is finished. Returns its result, and whether the later stages must run again."""
    config = {"from": fingerprint, **_config(stage_run, model)}
    stored = _stored(stage_run)
    changed = bool(stored) and not redo and _has_changed(stage_run, stored or {}, config)
    result = (stored or {}).get("facts")
    if result and not redo and not changed and _is_complete(stage_run, result):
        with on_stage(stage_run.info(model, finished=True)):
            return dict(result), False
    stage_run.folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(stage_run.folder, "out="):
        if redo or changed:
            run_folder.clear(stage_run.folder)
        run_folder.write_record(stage_run.folder / STAGE, {"asked": config, "facts": None})
        write_file(stage_run.folder / RECIPE, as_yaml(stage_run.stage))
        result = {"stage": stage_run.stage.name, "from": model, **_execute(stage_run, model, loads, on_stage)}
        if stage_run.writes_model:
            result |= {"model": str(stage_run.target), "content": contents_of(str(stage_run.target))}
        run_folder.write_record(stage_run.folder / STAGE, {"asked": config, "facts": result})
    return dict(read_json(stage_run.folder / STAGE)["facts"]), redo


def _execute(stage_run: StageRun, model: str, loads: Any, on_stage: OnStage) -> dict[str, Any]:
    """Extend the vocabulary, or train and merge."""
    stage = stage_run.stage
    if stage.vocabulary is not None:
        data = stage_run.training_data.data
        with on_stage(stage_run.info(model)):
            return {"vocabulary": extend_vocabulary(stage.vocabulary, data, model, stage_run.target, loads)}
    method = stage.asked_method or f"from {stage.start}"
    result: dict[str, Any] = {"method": method, "scores": _train(stage_run, model, on_stage)}
    if stage.merge:
        result["merge"] = _merge(stage_run, model)
    return result


def _train(stage_run: StageRun, model: str, on_stage: OnStage) -> dict[str, Any]:
    """Train a stage's adapter, or resume its training."""
    stage = stage_run.stage
    prepared = prepare(job_of(stage, model, stage_run.training_data, stage_run.quantize))
    if stage.merge:
        check_merge(stage.method, merge_obstacles(prepared.session.adapter))
    assert stage.data is not None
    record = record_of(prepared, stage.data.source)
    if not (stage_run.folder / run_folder.RECORD).is_file():
        run_folder.write_record(stage_run.folder / run_folder.RECORD, record)  # the stage made the folder
    before = run_folder.open_run(stage_run.folder, record, force=False, option="out=")
    with on_stage(stage_run.info(model, prepared, before is not None)) as on_step:
        return run(prepared, stage_run.folder, record, on_step) if before is None else before


def _merge(stage_run: StageRun, model: str) -> dict[str, Any]:
    """Merge a stage's adapter into the model it was trained on."""
    session = open_adapter(stage_run.folder, model)
    with quiet():
        save_merged(session.host, session.name, stage_run.target, session.tokenizer)
    return dict(read_json(stage_run.target / RECORD))


def _config(stage_run: StageRun, model: str) -> dict[str, Any]:
    """Everything a stage's result depends on, except the content of the model."""
    stage = stage_run.stage
    assert stage.data is not None
    rows = run_folder.data_record(stage_run.training_data.data, stage.data.source)
    stored_as = scheme_text(stage_run.quantize) if stage.vocabulary is None else None
    stored = {} if stored_as is None else {"quantize": stored_as}
    return {"model": model, "rows": rows, "stage": stage.model_dump(mode="json", exclude={"name"}), **stored}


def _stored(stage_run: StageRun) -> dict[str, Any] | None:
    path = stage_run.folder / STAGE
    return read_json(path) if path.is_file() else None


def _has_changed(stage_run: StageRun, stored: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether the stage starts from another model than before, because an earlier stage was run again.

    Raises DeltatuneError if the stage's own configuration differs: its old result may have been expensive.
    """
    different = run_folder.differences(stored["asked"], config)
    changes = [row for row in different if row[0] != "from" and not (row[0] == "model" and stage_run.number > 1)]
    if changes:
        lines = [f"  {name.removeprefix('stage.')}: it was {old!r}, now it is {new!r}" for name, old, new in changes]
        state, name = "finished" if stored.get("facts") else "started", stage_run.stage.name
        raise DeltatuneError(
            "\n".join([f"stage {name} was {state} in {stage_run.folder} with a different configuration:", *lines[:12]])
            + f"\n--again {name} runs it and the later stages again; out=NAME keeps both"
        )
    return bool(different)


def _is_complete(stage_run: StageRun, result: dict[str, Any]) -> bool:
    """Whether the stage's result still exists as it was written."""
    if not stage_run.writes_model:
        if not (stage_run.folder / run_folder.METRICS).is_file():
            return False
        try:
            check_folder(stage_run.folder / run_folder.ADAPTER)
        except DeltatuneError as error:
            again = f"--again {stage_run.stage.name} trains it again"
            raise DeltatuneError(f"stage {stage_run.stage.name} was finished, but {error}\n{again}") from None
        return True
    if contents_of(str(stage_run.target)) != result.get("content"):
        return False  # removed, or another stage's
    check_folder(stage_run.target)
    return True
