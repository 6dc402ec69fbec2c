"""Recipe with several adapters: they are trained together on one base, each into an ordinary run folder.

OUT/NAME/        the run of an adapter, as a recipe with it alone writes it; its recipe.yaml is that recipe
OUT/adapters.json   the metrics of all adapters, written last
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.budget import fit_budget
from deltatune.core.errors import DeltatuneError, OutOfMemory, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import read_text
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.data import Data
from deltatune.models.loading import auto_class, empty_backbone, find_config
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.store import run_folder
from deltatune.store.atomic_files import read_json, write_file
from deltatune.store.folder_lock import FolderLock
from deltatune.training.continued.continued_training import Start
from deltatune.training.job import Prepared, complete, prepare, record_of
from deltatune.training.joint_training.train_together import train_together
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.open_session import loads_of, open_host, reads_pooler
from deltatune.training.recipes.check_recipe import load_rows, load_training_data
from deltatune.training.recipes.recipe_files import adapter_yaml, as_yaml
from deltatune.training.recipes.recipe_yaml import load_yaml
from deltatune.training.recipes.schema import JointAdapter, Recipe, Rows
from deltatune.training.recipes.stages import RECIPE, AdaptersInfo, OnStage, job_of
from deltatune.training.train_adapter import AdapterTraining, Outcome
from deltatune.training.training_loop.loop import OnStep

ADAPTERS = "adapters.json"


def run_adapters(recipe: Recipe, folder: Path, force: bool, on_stage: OnStage, again: str | None) -> dict[str, Any]:
    """Train the adapters that are not finished, together; returns the content of adapters.json.

    An adapter that fails stops alone: the others are finished and saved, and then its error is raised. Raises
    DeltatuneError for every mistake in the recipe, its data and its methods before anything runs.
    """
    names = list(recipe.adapters)
    if again is not None and again not in names:
        raise DeltatuneError(f"--again {again}: no such adapter{nearest(again, names)}; adapters: {', '.join(names)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DeltatuneError("several adapters are trained together by one process: start it without torchrun")
    check_out(folder, "adapters")
    base = SharedBase(recipe)
    prepared = base.prepare()
    records = {name: record_of(ready, recipe.adapters[name].source) for name, ready in prepared.items()}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(FolderLock(folder / name, "out="))
        stored = _open_folders(folder, records, [name for name in names if force or name == again])
        write_file(folder / RECIPE, as_yaml(recipe))
        (folder / ADAPTERS).unlink(missing_ok=True)
        for name in names:
            write_file(folder / name / RECIPE, adapter_yaml(recipe, name, str(folder / name)))
        finished = frozenset(name for name, metrics in stored.items() if metrics is not None)
        with on_stage(AdaptersInfo(folder, recipe.model, prepared, finished)) as on_step:
            metrics, problems = _train(base, prepared, folder, records, finished, on_step)
    raise_all(
        problems, f"{len(problems)} of {len(names)} adapters failed, the others are finished:" if problems else ""
    )
    result = {"model": recipe.model, "adapters": {name: metrics.get(name) or stored[name] for name in names}}
    run_folder.write_record(folder / ADAPTERS, result)
    return dict(read_json(folder / ADAPTERS))


class SharedBase:
    """The base of a recipe's adapters, opened once, as the kind of model that all their tasks need."""

    host: Host
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, recipe: Recipe) -> None:
        """Read the rows of every adapter. Raises DeltatuneError for what is wrong with any of them."""
        self.recipe = recipe
        with _problems_of_adapters() as check:
            rows = _EachOnce()
            self.data = {
                name: data
                for name, training in recipe.adapters.items()
                for data in check(name, load_training_data, training, rows)
            }

    def prepare(self) -> dict[str, Prepared]:
        """Attach and encode every adapter. Raises DeltatuneError for what is wrong with any of them."""
        loads, bare = self._kind()
        head = next(iter(self.recipe.adapters.values())).head
        self.host, self.tokenizer = open_host(self.recipe.model, loads, reads_pooler(head), self.recipe.quantize)
        shape = self._bare_shape() if bare else None
        with _problems_of_adapters() as check:
            return {
                name: ready
                for name, training in self.recipe.adapters.items()
                for ready in check(name, self._prepared, name, training, shape if name in bare else None)
            }

    def _prepared(self, name: str, training: JointAdapter, shape: Host | None) -> Prepared:
        job = job_of(training, self.recipe.model, self.data[name], self.recipe.quantize)
        if shape is not None:
            job = replace(job, method=repr(self._method_of_bare(training, shape)), budget=None)
        ready = prepare(job, open_base=lambda *asked: (self.host, self.tokenizer), name=name)
        if not ready.session.adapter.mixes and len(self.recipe.adapters) > 1:
            raise DeltatuneError(
                f"{ready.session.adapter.method!r} changes the base's own weights, which the other adapters share: "
                "train it by a recipe of its own"
            )
        return ready

    def _kind(self) -> tuple[Any, set[str]]:
        """What to load, and the adapters that alone would load the bare transformer, if it is a language model.

        Raises DeltatuneError for adapters that need other models.
        """
        _, config = find_config(self.recipe.model)
        loads = {name: loads_of(data.kinds) for name, data in self.data.items()}
        with _problems_of_adapters() as check:
            classes = {
                name: kind.__name__
                for name in loads
                for kind in check(name, auto_class, self.recipe.model, config, loads[name])
            }
        of_class = {kind: [name for name in classes if classes[name] == kind] for kind in classes.values()}
        heads = [kind for kind in of_class if kind != "AutoModel"]
        if len(heads) > 1:
            needed = "; ".join(f"{kind}: {', '.join(of_class[kind])}" for kind in heads)
            raise DeltatuneError(f"these adapters need models with other heads ({needed}): give each kind a recipe")
        pooled = [name for name, training in self.recipe.adapters.items() if reads_pooler(training.head)]
        if pooled and len(pooled) < len(classes):
            raise DeltatuneError(
                f"{', '.join(pooled)} read{'s' * (len(pooled) == 1)} the base's pooler, which the others' base does "
                "not have: give them a recipe of their own, or another pooling"
            )
        if not heads:
            return next(iter(loads.values())), set()
        return loads[of_class[heads[0]][0]], set(of_class.get("AutoModel", ()))

    def _bare_shape(self) -> Host:
        """The bare transformer without weights."""
        backbone = empty_backbone(self.recipe.model, "row")
        quantize_(backbone, self.recipe.quantize or "none")
        return Host(backbone)

    def _method_of_bare(self, training: JointAdapter, shape: Host) -> Method:
        """The method in the size and at the sites that it has on the bare transformer, as in a recipe of its own."""
        method = parse(training.method)
        if training.budget is not None:
            method = fit_budget(method, shape.sites, training.budget)
        here, there = (
            {site.name for part in method.parts for site in part.pick(sites)}
            for sites in (self.host.sites, shape.sites)
        )
        if here != there:
            raise DeltatuneError(
                f"{method!r} acts at {', '.join(sorted(here - there))} too where the base has a language-model head, "
                "as other adapters here need it; name its sites, or give it a recipe of its own"
            )
        return method


class _EachOnce:
    """Reads rows that several adapters name once."""

    def __init__(self) -> None:
        self.read: dict[tuple[str, bool], Data] = {}

    def __call__(self, rows: Rows, raw: bool = False, start: Start | None = None) -> Data:
        key = (rows.model_dump_json(exclude={"fields"}), raw)
        if key not in self.read:
            self.read[key] = load_rows(rows, raw, start)
        return self.read[key]


@contextmanager
def _problems_of_adapters() -> Iterator[Callable[..., list[Any]]]:
    """Within this context `check(name, make, *arguments)` is a list with what is made for an adapter, empty after an
    error; at its end the errors of all adapters are raised."""
    problems: list[str] = []

    def check(name: str, make: Callable[..., Any], *arguments: Any) -> list[Any]:
        try:
            return [make(*arguments)]
        except OutOfMemory:
            raise
        except DeltatuneError as error:
            problems.append(f"adapters.{name}: {error}")
            return []

    yield check
    raise_all(problems)


def _open_folders(
    folder: Path, records: Mapping[str, Mapping[str, Any]], again: list[str]
) -> dict[str, dict[str, Any] | None]:
    """Prepare the folder of every adapter; the metrics of those that are finished. Raises for what others hold."""
    with _problems_of_adapters() as check:
        return {
            name: metrics
            for name, record in records.items()
            for metrics in check(
                name, run_folder.open_run, folder / name, record, name in again, "out=", f"--again {name}"
            )
        }


def _train(
    base: SharedBase,
    prepared: Mapping[str, Prepared],
    folder: Path,
    records: Mapping[str, Mapping[str, Any]],
    finished: frozenset[str],
    on_step: OnStep | None,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Train and score the adapters that are left. Returns their metrics, and the errors of those that failed."""
    due = [name for name in prepared if name not in finished]
    for name in finished:
        prepared[name].session.detach()
    steps = _AllSteps({name: prepared[name] for name in due}, on_step)
    trainings = [_training_of(prepared[name], folder / name, steps.of(name)) for name in due]
    outcomes = train_together(base.host, trainings, base.tokenizer, base.recipe.most_rows) if due else []
    metrics, problems = {}, []
    for name, outcome in zip(due, outcomes, strict=True):
        try:
            if not isinstance(outcome, Outcome):
                raise outcome
            metrics[name] = complete(prepared[name], folder / name, records[name], outcome, together=len(due))
        except OutOfMemory:
            raise
        except DeltatuneError as error:
            problems.append(f"adapters.{name}: {error}")
        prepared[name].session.detach()
    return metrics, problems


def _training_of(ready: Prepared, folder: Path, on_step: OnStep) -> AdapterTraining:
    session, encoded = ready.session, ready.encoded
    return AdapterTraining(
        session.name, session.task, encoded["train"], encoded["validation"], ready.settings,
        out=folder / run_folder.CHECKPOINTS, on_step=on_step, reports=folder,
    )  # fmt: skip


class _AllSteps:
    """The steps of all trainings as those of one."""

    def __init__(self, due: Mapping[str, Prepared], on_step: OnStep | None) -> None:
        self.on_step, self.done = on_step, dict.fromkeys(due, 0)
        self.total = sum(steps_of(ready.settings, len(ready.encoded["train"])) for ready in due.values())

    def of(self, name: str) -> OnStep:
        """What is called after each step of one training."""

        def step(number: int, total: int, loss: float, learning_rate: float) -> None:
            self.done[name] = number
            if self.on_step is not None:
                self.on_step(sum(self.done.values()), self.total, loss, learning_rate)

        return step


def check_out(folder: Path, kind: str) -> None:
    """Raise DeltatuneError for a folder that holds something else than a run of a recipe with this key."""
    if folder.is_file():
        raise DeltatuneError(f"out={folder} is a file; choose another folder")
    names = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if RECIPE not in names and any(not name.startswith(".") for name in names):
        raise DeltatuneError(f"out={folder} holds files that are not a run of a recipe; choose another folder")
    if run_folder.RECORD in names:
        raise DeltatuneError(f"out={folder} holds the run of a recipe without {kind}; choose another folder")
    if RECIPE in names:
        others = False
        with suppress(DeltatuneError):  # one that cannot be read says nothing
            content = load_yaml(read_text(folder / RECIPE, "recipe"), folder / RECIPE)
            others = isinstance(content, dict) and kind not in content
        if others:
            raise DeltatuneError(f"out={folder} holds the run of a recipe without {kind}; choose another folder")
