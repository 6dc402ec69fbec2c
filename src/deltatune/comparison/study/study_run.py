"""Study run: the comparisons one after another, each resumed from its own folder; study.json is whole after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.comparison import run_comparison
from deltatune.comparison.plans.make_plan import DEFAULT_BUDGET, make_plan
from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.records import OTHERS, RESULTS, Records
from deltatune.comparison.study.quantization_verdicts import QuantizationVerdicts
from deltatune.comparison.study.study_plan import STUDY, Axes, Point, StudyPlan, make_study_plan
from deltatune.comparison.study.study_sources import Source, name_data_sets
from deltatune.comparison.study.study_summary import write_study
from deltatune.comparison.works.cells import OnEvent
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.quantization.schemes import scheme_text
from deltatune.data import Data
from deltatune.data.read_data import read_source
from deltatune.data.splits import first_by_hash
from deltatune.store.atomic_files import CannotWrite, read_json, remove_drafts
from deltatune.store.folder_lock import FolderLock
from deltatune.training.open_session import open_host


@dataclass(frozen=True)
class StudyStage:
    """A comparison of a study whose turn it is."""

    number: int
    """From 1 on."""
    total: int
    point: Point
    plan: Plan


OnStage = Callable[[StudyStage], AbstractContextManager[OnEvent | None]]
"""What follows the events of one comparison; entered before it begins, left when it has ended."""


class LastHost:
    """Opens models as `open_host` does and keeps the last one, which comparisons that share it use one by one."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] | None = None
        self.opened: tuple[Host, PreTrainedTokenizerBase] | None = None
        self.problems: dict[tuple[Any, ...], DeltatuneError] = {}
        """Of models that cannot be opened: a hub that does not answer is asked once."""

    def __call__(
        self, model: str, loads: Any = "row", pooler: bool = False, quantize: str | None = None
    ) -> tuple[Host, PreTrainedTokenizerBase]:
        """The model, loaded unless it was the last one. Raises what `open_host` does."""
        key = (model, loads, pooler, quantize)
        if key in self.problems:
            raise self.problems[key]
        if self.opened is None or self.key != key:
            self.forget_()  # before another one is loaded: two need not fit into memory
            try:
                self.opened, self.key = open_host(*key), key
            except DeltatuneError as error:
                self.problems[key] = error
                raise
        return self.opened

    def forget_(self) -> None:
        """Let go of the model: what failed on it may have left it changed."""
        self.key, self.opened = None, None


def run(study: StudyPlan, on_stage: OnStage | None = None) -> dict[str, Any]:
    """Run what is left of a study and return its summary; study.json and study.html are written after each comparison.

    All plans are made before the first training; DeltatuneError lists the problems of all combinations. A comparison
    that fails later is recorded, and the others go on. With `minutes` each gets an equal share of the time that is
    left, and those that would begin after the end keep for the next run of the same study.
    """
    with FolderLock(study.out):
        check_folder(study.out)
        hosts = LastHost()
        check(study, hosts)
        remove_drafts(study.out)
        return _run(study, hosts, on_stage or (lambda stage: nullcontext(None)))


def _run(study: StudyPlan, hosts: LastHost, on_stage: OnStage) -> dict[str, Any]:
    clock = TimeShares(study)
    results: dict[Point, dict[str, Any]] = {}
    verdicts = QuantizationVerdicts(study.axes)
    summary = write_study(study, results, verdicts)
    for number, point in enumerate(study.points, start=1):
        share = clock.share(point)
        if share is not None and share <= 0:
            results[point] = {"error": f"not run: the {study.minutes:g} minutes were up; the same command goes on"}
            continue
        timed = {} if share is None else {"minutes": share}
        if timed:  # known before it begins: a killed comparison goes on with the rows that were chosen for its time
            results[point] = timed
            write_study(study, results, verdicts)
        try:
            plan = study.make(point, study.out / study.folders[point], {"open_base": hosts, **timed})
            with on_stage(StudyStage(number, len(study.points), point, plan)) as on_event:
                found = run_comparison.run(plan, on_event)
            results[point] = {**timed, "summary": found, **_sizes(plan, found)}
            verdicts.add_(point, plan, found)
        except CannotWrite:  # nor could the next ones be stored
            raise
        except Exception as error:
            hosts.forget_()
            kind = "" if isinstance(error, DeltatuneError) else f"{type(error).__name__}: "
            results[point] = {**timed, "error": f"{kind}{error}"}
        summary = write_study(study, results, verdicts)
    return write_study(study, results, verdicts) if study.minutes is not None else summary


def _sizes(plan: Plan, summary: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the base's weights, and training rows before shots are drawn of them."""
    rows = len(plan.data.train) if plan.shots is not None else summary["data"]["rows"]["train"]
    return {"base_bytes": plan.session.host.base.bytes, "train_rows": rows}


class TimeShares:
    """The minutes of each comparison: an equal share of what is left, or what it had when it was begun earlier."""

    def __init__(self, study: StudyPlan) -> None:
        """Read the shares of an earlier run with as many minutes: a comparison goes on with the rows of its start."""
        self.end = None if study.minutes is None else time.monotonic() + 60 * study.minutes
        self.left = list(study.points)
        """Comparisons that still need time."""
        self.earlier: dict[Point, float] = {}
        path = study.out / STUDY
        before = read_json(path) if study.minutes is not None and path.is_file() else {}
        if before.get("minutes") != study.minutes:
            return
        stored = {str(each.get("at")): each for each in before.get("comparisons") or ()}
        for point in study.points:
            each = stored.get(str(point.to_json())) or {}
            if each.get("minutes"):
                self.earlier[point] = each["minutes"]
            if each.get("summary"):
                self.left.remove(point)

    def share(self, point: Point) -> float | None:
        """Minutes of the comparison whose turn it is; 0 if the time is up, None without a limit."""
        if self.end is None:
            return None
        finished = point not in self.left
        minutes = max(0.0, (self.end - time.monotonic()) / 60)
        share = minutes / max(1, len(self.left))
        if not finished:
            self.left.remove(point)
        return self.earlier.get(point, share) if finished or minutes else 0.0


def check_folder(folder: Path) -> None:
    """Raise DeltatuneError for a folder that holds something else than a study."""
    others = {**OTHERS, RESULTS: "a single comparison"}
    del others[STUDY]
    other = next((name for name in others if (folder / name).exists()), None)
    if other is not None:
        raise DeltatuneError(f"--out {folder} holds {others[other]} ({other}); choose another folder for the study")


def check(study: StudyPlan, open_base: LastHost | None = None) -> None:
    """Make the plan of every comparison and drop it. Raises DeltatuneError with the problems of all combinations."""
    hosts = open_base or LastHost()
    problems: dict[str, list[str]] = {}
    for point in study.points:
        folder = study.out / study.folders[point]
        try:
            study.make(point, folder, {"open_base": hosts})
            Records(folder)
        except DeltatuneError as error:
            problems.setdefault(str(error), []).append(study.axes.describe(point))
    indented = {problem.replace("\n", "\n  "): places for problem, places in problems.items()}
    raise_all([f"{'; '.join(_first(places))}: {problem}" for problem, places in indented.items()])


def _first(places: list[str]) -> list[str]:
    return places if len(places) <= 4 else [*places[:3], f"{len(places) - 3} more"]


def run_study(
    data: Source | Iterable[Source] | Mapping[str, Source],
    *,
    model: str | Iterable[str] = "builtin",
    limit: int | Iterable[int | None] | None = None,
    budget: str | int | Iterable[str | int | None] | None = DEFAULT_BUDGET,
    shots: int | Iterable[int | None] | None = None,
    quantize: str | Iterable[str | None] | None = None,
    out: str | Path | None = None,
    name: str = "",
    minutes: float | None = None,
    tasks: int | None = None,
    columns: Mapping[str, Any] | None = None,
    published: Sequence[Mapping[str, Any]] = (),
    on_stage: OnStage | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compare methods on every combination of data sets, models, numbers of rows, budgets, shots and quantisations.

    Each of the first six is a value or several. `data` are paths, names or `Data`; "glue" and "superglue" are all
    tasks of the suite, "glue=FOLDER" those in a folder; a mapping names them. `columns` are options of
    `deltatune.data.read` (text, label, task), the other `options` those of `make_plan` (methods, seeds, settings, ...).
    Writes study.json, study.html and a folder for each comparison to `out` (default: runs/NAME), and goes on with what
    an earlier run has left. `minutes` is the time for all; `tasks` a number of tasks for which totals are computed;
    `published` figures of papers, [{"method", "at", "metric", "value", "source"}], which the report shows beside those
    measured. Returns the content of study.json. Raises DeltatuneError with the problems of all combinations before the
    first training.
    """
    sets = name_data_sets(data)
    schemes = tuple(map(scheme_text, _values(quantize)))
    axes = Axes(tuple(sets.sources), _values(model), _values(limit), _values(budget), _values(shots), schemes)
    reader = LastData(sets.sources, columns or {})

    def make(point: Point, folder: Path, more: Mapping[str, Any]) -> Plan:
        shared = {"model": point.model, "budget": point.budget, "shots": point.shots, "out": folder}
        shared["quantize"] = "none" if len(schemes) > 1 and point.quantize is None else point.quantize
        return make_plan(reader(point), **{**options, **shared, **more})

    study = make_study_plan(
        axes,
        make,
        out=out,
        name=name,
        minutes=minutes,
        tasks=tasks,
        suites=sets.suites,
        notes=sets.notes,
        published=published,
    )
    return run(study, on_stage)


class LastData:
    """Reads the data of a point and keeps the last: comparisons on the same rows follow one another."""

    def __init__(self, sources: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        self.sources, self.columns = sources, columns
        self.key: tuple[str, int | None] | None = None
        self.data: Data | None = None

    def __call__(self, point: Point) -> Data:
        """The data set of a point with its number of training rows."""
        key = (point.data, point.limit)
        if self.data is None or self.key != key:
            source = self.sources[point.data]
            given = isinstance(source, Data)
            limit = point.limit
            self.data = _limited(source, limit) if given else read_source(source, limit=limit, **self.columns)
            self.key = key
        return self.data


def _limited(data: Data, limit: int | None) -> Data:
    """The data with so many training rows, the first by a hash of their texts: fewer are among more."""
    if limit is None:
        return data
    return replace(data, train=first_by_hash(data.train, data.text, data.label, limit))


def _values(value: Any) -> tuple[Any, ...]:
    return (value,) if value is None or isinstance(value, str | int) else tuple(value)
