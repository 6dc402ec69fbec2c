"""Stages one after another: each starts from the model that the one before has written, and each may be gone on with.

OUT/1-NAME/           the stage's run: adapter, metrics.json
OUT/1-NAME/model      the model with that stage's change in its weights, read back and compared
OUT/model             the last stage's
OUT/pipeline.json     what each stage gained
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from deltatune.core.errors import raise_all
from deltatune.core.folding import obstacles
from deltatune.core.host import Host
from deltatune.methods.unfreeze import Probe
from deltatune.store import runs
from deltatune.store.atomic import MANIFEST, check_folder, read_json, write_file, write_folder
from deltatune.store.folder import read_config
from deltatune.store.whole import RECORD, save_merged
from deltatune.tasks import LanguageModel, longest_input, task_from_json
from deltatune.tasks.backbone import best_device, load_backbone, quiet
from deltatune.training.job import NAME, Prepared
from deltatune.training.predict import predict
from deltatune.training.recipes.reading import as_yaml
from deltatune.training.recipes.running import RECIPE, Watch, rows_of, run_part, unwatched
from deltatune.training.recipes.schema import Recipe, Source, Stage
from deltatune.training.vocabulary import grow_embeddings_, learn_tokens, merge, tokens_per_character

MODEL, PIPELINE, GREW, MERGED = "model", "pipeline.json", "vocabulary.json", "merged.json"
PROBES = 200
"""Texts of the old language that tell how much of it is cut as before."""
BLOCK = 256


def run_stages(recipe: Recipe, folder: Path, force: bool = False, watch: Watch = unwatched) -> dict[str, Any]:
    """Do what is left of the stages and return what pipeline.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / RECIPE, as_yaml(recipe))
    model = recipe.model
    found: list[dict[str, Any]] = []
    before = measured(model, recipe.measure, folder / "0-base.json") if recipe.measure else None
    for number, stage in enumerate(recipe.stages, start=1):
        place = folder / f"{number}-{stage.name}"
        last = number == len(recipe.stages)
        target = folder / MODEL if last else place / MODEL
        facts: dict[str, Any] = {"stage": stage.name, "from": model}
        if stage.vocabulary is not None:
            facts["vocabulary"] = grown(stage, model, target, place, force)
        else:
            accept = partial(check_merges, stage.name) if stage.merge else None
            facts["scores"] = run_part(stage, model, place, stage.name, force, watch, accept)
            facts["method"] = stage.method
            if stage.merge:
                facts["merge"] = merged(stage, model, place, target, force)
        if stage.vocabulary is not None or stage.merge:
            model = str(target)
            facts["model"] = model
            if recipe.measure:
                facts["measure"] = measured(model, recipe.measure, place / "measure.json")
        found.append(facts)
    result = {"model": recipe.model, "measure": before, "stages": found, "result": model}
    write_file(folder / PIPELINE, _json(result))
    return result


def grown(stage: Stage, model_name: str, target: Path, place: Path, force: bool) -> dict[str, Any]:
    """Learn words from the stage's texts and write the model with room for them. Done before, it is not done again."""
    words, asked = stage.vocabulary, _asked(stage, model_name)
    assert words is not None
    assert stage.data is not None
    if _done(target, place / GREW, asked, force):
        return dict(read_json(place / GREW)["facts"])
    data = rows_of(stage.data, raw=True)
    model, tokenizer = load_backbone(model_name, answers="text")
    learned = learn_tokens((row[data.text[0]] for row in data.train), tokenizer, words.size, min_count=words.min_count)
    bigger, growth = merge(tokenizer, learned)
    rows = grow_embeddings_(
        model, bigger, growth.old_size, init=words.init, pad_to_multiple_of=words.pad_to_multiple_of
    )
    facts = {
        "tokens": growth.size,
        "before": growth.old_size,
        "added": len(growth.added),
        "rows": rows,
        "tokens_per_char": [_rate(tokenizer, data), _rate(bigger, data)],
    }

    def fill(work: Path) -> None:
        model.save_pretrained(work)
        bigger.save_pretrained(work)

    with quiet():
        write_folder(target, fill)
    place.mkdir(parents=True, exist_ok=True)
    write_file(place / GREW, _json({"asked": asked, "facts": facts}))
    return facts


def check_merges(stage: str, ready: Prepared) -> None:
    """Raise DeltatuneError before a training whose result could not be written into the model."""
    adapter = ready.host.adapters[NAME]
    found = obstacles(adapter)
    if adapter.head is not None:
        found = [f"its adapter for {ready.task.describe()} has a head, which is no part of the model", *found]
    raise_all([f"stage {stage} cannot be merged: {one}; say merge: false, or choose otherwise" for one in found])


def merged(stage: Stage, model_name: str, place: Path, target: Path, force: bool) -> dict[str, Any]:
    """Write a stage's adapter into the model it was trained on. Done before, it is not done again."""
    asked = {"adapter": str(place), "digest": _digest(place / runs.ADAPTER)}
    if _done(target, place / MERGED, asked, force):
        return dict(read_json(target / RECORD))
    task = task_from_json(read_config(place / runs.ADAPTER)["extra"]["task"])
    model, tokenizer = load_backbone(model_name, answers=getattr(task, "loads", task.answers))
    host = Host(model.to(best_device()))  # type: ignore[arg-type]
    host.load(place / runs.ADAPTER, name=NAME)
    with quiet():
        save_merged(host, NAME, target, tokenizer)
    write_file(place / MERGED, _json({"asked": asked}))
    return dict(read_json(target / RECORD))


def measured(model_name: str, source: Source, place: Path) -> dict[str, float]:
    """Tokens per character, and bits per character, of a model on the test rows of raw text."""
    data = rows_of(source, raw=True)
    asked = {"model": model_name, "digest": _digest(Path(model_name)), "rows": len(data.test)}
    if place.is_file() and read_json(place).get("asked") == asked:
        return dict(read_json(place)["found"])
    model, tokenizer = load_backbone(model_name, answers="text")
    host = Host(model.to(best_device()))  # type: ignore[arg-type]
    host.attach(NAME, Probe(), head=False)  # nothing: the model as it is
    task = LanguageModel(text=data.text, max_length=min(BLOCK, longest_input(model) or BLOCK))
    answers = predict(host, NAME, task, data.test, tokenizer)
    found = {"tokens_per_char": _rate(tokenizer, data), **task.score(answers, answers)}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_file(place, _json({"asked": asked, "found": found}))
    return found


def _rate(tokenizer: Any, data: Any) -> float:
    return float(tokens_per_character(tokenizer, [row[data.text[0]] for row in data.test]))


def _done(target: Path, stored: Path, asked: dict[str, Any], force: bool) -> bool:
    """Whether a stage's model is there, whole, and of this stage."""
    if force or not (target / MANIFEST).is_file() or not stored.is_file():
        return False
    if read_json(stored).get("asked") != asked:
        return False
    check_folder(target)
    return True


def _asked(stage: Stage, model_name: str) -> dict[str, Any]:
    return {"model": model_name, "digest": _digest(Path(model_name)), **stage.model_dump(mode="json")}


def _digest(folder: Path) -> str | None:
    """What a folder written here holds, by its manifest; None for others."""
    path = folder / MANIFEST
    return str(sorted(read_json(path)["files"].items())) if path.is_file() else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=float) + "\n"
