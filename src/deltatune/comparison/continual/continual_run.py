"""Continual-learning run: every method learns the tasks in each way; a killed run goes on where it stopped.

OUT/run.json, OUT/metrics.json          the configuration, and the result
OUT/trainings/1-METHOD-seed0/MODE/NAME  an adapter; beside it NAME.json, the scores after its training
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltatune.comparison.continual.continual_plan import ContinualPlan, Mode
from deltatune.comparison.continual.transfer import over_seeds, transfer
from deltatune.comparison.run_comparison import slug
from deltatune.core.method import Method
from deltatune.store import run_folder
from deltatune.store.atomic_files import read_json
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.heads import Head, Heads
from deltatune.training.session import Session

TRAININGS = "trainings"
JOINT = "all"
"""Name of the adapter that learns all tasks together."""

LONGEST_NAME = 60
"""Characters of a method in the name of its folder."""
LOADED = "loaded-again"
"""Name of the scores of all adapters for one task each, read back from disk after the last training."""

OnTraining = Callable[[str, Mapping[str, float]], None]
"""Called after each training with its description and the scores by task."""


def run(plan: ContinualPlan, on_training: OnTraining | None = None, force: bool = False) -> dict[str, Any]:
    """Run what is left of a plan and return the result, which is stored as metrics.json in its folder.

    Raises DeltatuneError for a folder with another run.
    """
    with FolderLock(plan.out):
        if force and (plan.out / run_folder.RECORD).is_file():  # trainings never stand beside another run's record
            (plan.out / run_folder.METRICS).unlink(missing_ok=True)
            shutil.rmtree(plan.out / TRAININGS, ignore_errors=True)
        before = run_folder.open_run(plan.out, plan.record(), force)
        return _run(plan, on_training or (lambda text, scores: None)) if before is None else before


def _run(plan: ContinualPlan, on_training: OnTraining) -> dict[str, Any]:
    """Run the trainings that are left."""
    for draft in [*(plan.out / TRAININGS).rglob(".*")]:  # of a killed process: no other one has the folder now
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
    entries = []
    for method in plan.methods:
        results: dict[Mode, list[dict[str, Any]]] = {mode: [] for mode in plan.modes}
        counts: dict[str, int] = {}
        for seed in plan.seeds:
            learner = _Learner(plan, method, seed, on_training)
            for mode in plan.modes:
                results[mode].append({"seed": seed, **learner.learn(mode)})
            counts = learner.counts
        entry: dict[str, Any] = {
            "method": repr(method),
            "learning_rate": plan.settings_of(method, 0).learning_rate,
            **counts,
        }
        entries.append(entry | {mode: over_seeds(each) for mode, each in results.items()})
    tasks = [
        {
            "name": name,
            "source": plan.data.sources.get(name, plan.data.parts[name].origin),
            "metric": part.metric,
            "rows": {split: rows.examples for split, rows in plan.encoded[name].items()},
        }
        for name, part in plan.mixture.parts.items()
    ]
    result = {"model": plan.session.model, "tasks": tasks, "methods": entries}
    run_folder.finish(plan.out, result)
    return result


@dataclass
class _Learner:
    """One method at one seed: learns the tasks in every way."""

    plan: ContinualPlan
    method: Method
    seed: int
    on_training: OnTraining

    def __post_init__(self) -> None:
        number = self.plan.methods.index(self.method) + 1  # two methods may have the same slug
        name = f"{number}-{slug(repr(self.method))[:LONGEST_NAME]}-seed{self.seed}"
        self.folder = self.plan.out / TRAININGS / name
        self.counts: dict[str, int] = {}
        """Trained parameters, without and with heads, of one adapter."""

    @property
    def session(self) -> Session:
        """The session of all tasks."""
        return self.plan.session

    def learn(self, mode: Mode) -> dict[str, Any]:
        """The matrix of scores and what follows from it."""
        learn = {"apart": self._apart, "sequential": self._sequential, "joint": self._joint}[mode]
        metrics = [part.metric for part in self.plan.mixture.parts.values()]
        matrix = [[row[name][metrics[j]] for j, name in enumerate(row)] for row in learn()]
        if mode == "joint":
            return {"matrix": matrix, "average": transfer(matrix, metrics)["average"]}
        return {"matrix": matrix, **transfer(matrix, metrics)}

    def _apart(self) -> list[dict[str, dict[str, float]]]:
        """An adapter for each task; at the end all of them are loaded and scored again."""
        names = self.plan.names
        own = {}
        for i, name in enumerate(names):
            own[name] = self._stored("apart", i, name, lambda name=name: self._train_alone(name))[name]  # type: ignore[misc]
        final = self._stored("apart", len(names), LOADED, self._load_and_score)
        rows = [{name: own[name] for name in names[: i + 1]} for i in range(len(names) - 1)]
        return [*rows, final]

    def _train_alone(self, name: str) -> dict[str, dict[str, float]]:
        session = self._own(name)
        session.attach(self.method, self.seed, session.make_head(self.seed))
        self._train(session, name, self._place("apart", name))
        self._save(session, name, "apart", name)
        return {name: self._scores(session, name)}

    def _load_and_score(self) -> dict[str, dict[str, float]]:
        scores = {}
        for name in self.plan.names:
            session = self._own(name)
            session.host.load(self._place("apart", name), name=session.name)
            scores[name] = self._scores(session, name)
            session.detach()
        return scores

    def _sequential(self) -> list[dict[str, dict[str, float]]]:
        """One adapter, with a head for each task, that learns the tasks in order."""
        names, rows = self.plan.names, []
        for i, name in enumerate(names):
            rows.append(self._stored("sequential", i, name, lambda i=i: self._train_next(i)))  # type: ignore[misc]
            if i:
                shutil.rmtree(self._place("sequential", names[i - 1]), ignore_errors=True)  # the later one has it all
        return rows

    def _train_next(self, index: int) -> dict[str, dict[str, float]]:
        """Go on with the adapter of the task before, then score it on all tasks so far."""
        session, names = self.session, self.plan.names
        if index:
            session.host.load(self._place("sequential", names[index - 1]), name=session.name)
        else:
            session.attach(self.method, self.seed, session.make_head(self.seed))
        heads, name = session.adapter.head, names[index]
        own = self._own(name)
        self._swap_head_(heads, name)
        self._train(own, name, self._place("sequential", name))
        scores = {}
        for each in names[: index + 1]:
            self._swap_head_(heads, each)
            scores[each] = self._scores(self._own(each), each)
        session.adapter.head = heads
        self._save(session, None, "sequential", name)
        return scores

    def _swap_head_(self, heads: Any, name: str) -> None:
        """Give the adapter the head of one task; a task without one uses the language-model head."""
        own = isinstance(heads, Heads) and name in heads.config.parts
        head: Head | None = heads.of(name) if own else None
        self.session.adapter.head = head

    def _joint(self) -> list[dict[str, dict[str, float]]]:
        """One adapter that learns all tasks together, as a mixture."""
        return [self._stored("joint", 0, JOINT, self._train_together)]

    def _train_together(self) -> dict[str, dict[str, float]]:
        session = self.session
        session.attach(self.method, self.seed, session.make_head(self.seed))
        settings, place = self.plan.settings_of(self.method, self.seed), self._place("joint", JOINT)
        session.train(self.plan.together, None, settings, out=_checkpoints(place))
        self._save(session, None, "joint", JOINT)
        return {name: self._scores(session.for_part(name), name) for name in self.plan.names}

    # --- one training ---

    def _own(self, name: str) -> Session:
        """The session of one task as its own, not as a part: the adapter has one head."""
        return replace(self.session, task=self.plan.mixture.part(name))

    def _place(self, mode: str, name: str) -> Path:
        return self.folder / mode / name

    def _train(self, session: Session, name: str, place: Path) -> None:
        settings = self.plan.settings_of(self.method, self.seed)
        splits = self.plan.encoded[name]
        session.train(splits["train"], None, settings, out=_checkpoints(place))

    def _scores(self, session: Session, name: str) -> dict[str, float]:
        return session.score(self.plan.encoded[name]["test"])

    def _save(self, session: Session, name: str | None, mode: str, title: str) -> None:
        """Keep an adapter as `deltatune train` does, so that it can be used."""
        adapter = session.adapter
        self.counts = {"params": adapter.count, "head_params": adapter.head_count}
        data = self.plan.data
        part = data if name is None else data.parts[name]
        source = data.origin if name is None else data.sources.get(name, part.origin)
        extra = {
            **session.to_json(),
            "method": repr(adapter.method),
            "data": run_folder.data_record(part, source),
            "settings": {"precision": self.plan.settings.precision},
        }
        session.host.save(session.name, self._place(mode, title), extra=extra)

    def _stored(self, mode: str, number: int, name: str, compute: Callable[[], Any]) -> dict[str, dict[str, float]]:
        """Scores by task after a training: those of an earlier session, or those of `compute`."""
        file = self.folder / mode / f"{number + 1}-{name}.json"
        done = file.is_file()
        if not done:
            try:
                scores = compute()
            finally:
                self.session.detach()
            file.parent.mkdir(parents=True, exist_ok=True)
            run_folder.write_record(file, {"scores": scores, "counts": self.counts})
        stored = read_json(file)
        self.counts = dict(stored["counts"]) or self.counts
        shutil.rmtree(_checkpoints(self._place(mode, name)), ignore_errors=True)
        metrics = {each: self.plan.mixture.parts[each].metric for each in stored["scores"]}
        what = {"apart": name, "sequential": f"after {number + 1}. {name}", "joint": "all tasks"}[mode]
        text = f"{self.method!r}, seed {self.seed}, {mode}, {what}"
        self.on_training(text, {each: stored["scores"][each][metric] for each, metric in metrics.items()})
        order: Sequence[str] = self.plan.names  # a file's keys need not be in order
        return {each: stored["scores"][each] for each in order if each in stored["scores"]}


def _checkpoints(place: Path) -> Path:
    return place.with_name(f"{place.name}-checkpoints")
