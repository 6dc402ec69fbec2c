"""Where a comparison or a study is, read from its folder while it runs, after its end, or after it was killed."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deltatune.comparison.results.finished_run import STUDY, SUMMARY, read_finished
from deltatune.comparison.results.progress_file import PROGRESS
from deltatune.comparison.results.records import RESULTS
from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.input_validation.strict_json import loads
from deltatune.store.folder_lock import owner_of
from deltatune.tasks.metrics.metric_facts import lower_is_better

State = Literal["running", "finished", "stopped", "not begun"]


@dataclass(frozen=True)
class MethodState:
    """What is known of a method so far."""

    method: str
    runs: int = 0
    """Finished trainings, those that paused included."""
    failed: int = 0
    validation: float | None = None
    """The best mean of its learning rates on the validation rows."""
    rate: float | None = None
    """That learning rate."""
    test: float | None = None
    """Mean on the test rows, once it has been tested."""
    tested: int = 0
    """Tested runs."""


@dataclass(frozen=True)
class RunState:
    """One comparison: its progress, and the results so far."""

    folder: Path
    name: str
    """The folder's path from the one that is watched; "" for that itself."""
    state: State
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    elapsed_seconds: float | None = None
    now: tuple[str, ...] = ()
    """What is being computed."""
    metric: str = ""
    methods: tuple[MethodState, ...] = ()
    """The best so far first."""
    sentence: str = ""
    """The recommendation, or what can be said before there is one."""
    failures: tuple[str, ...] = ()
    report: Path | None = None


@dataclass(frozen=True)
class StudyState:
    """A study: its comparisons in order."""

    folder: Path
    name: str
    state: State
    runs: tuple[RunState, ...] = ()
    sentence: str = ""
    report: Path | None = None


@dataclass
class StateReader:
    """Reads a run folder again and again; what has not changed is not read twice. Nothing is written."""

    folder: Path
    _kept: dict[Path, tuple[tuple[int, int], Any]] = field(default_factory=dict)
    """Parsed files with the size and time they had."""

    def __post_init__(self) -> None:
        """Raises DeltatuneError for a folder that is not there, or that holds no comparison and no study."""
        self.folder = expanded(self.folder)
        if self.folder.name in (SUMMARY, STUDY, RESULTS) and not self.folder.is_dir():
            self.folder = self.folder.parent
        if not self._has_run(self.folder) and not self._inner():
            read_finished(self.folder)  # says what is wrong

    def read(self) -> RunState | StudyState:
        """The state now."""
        study = self._json(self.folder / STUDY)
        inner = self._inner()
        if study is None and (self._has_run(self.folder) or not inner):
            return self._run(self.folder, "")
        return self._study(study or {}, inner)

    def _has_run(self, folder: Path) -> bool:
        return any((folder / name).exists() for name in (RESULTS, SUMMARY, PROGRESS, STUDY))

    def _inner(self) -> list[Path]:
        """Folders of comparisons in a study's folder."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and self._has_run(path))

    def _study(self, study: Mapping[str, Any], inner: list[Path]) -> StudyState:
        planned = [str(each.get("folder") or "") for each in study.get("comparisons") or ()]
        names = planned or [path.name for path in inner]
        inside = [
            name for name in names if name and (self.folder / name).resolve().is_relative_to(self.folder.resolve())
        ]
        runs = tuple(self._run(self.folder / name, name) for name in inside)
        running = owner_of(self.folder) is not None or any(run.state == "running" for run in runs)
        errors = {str(each.get("folder")) for each in study.get("comparisons") or () if each.get("error")}
        over = bool(runs) and all(run.state == "finished" or run.name in errors for run in runs)
        sentence = str((study.get("recommendation") or {}).get("sentence") or "")
        report = self.folder / "study.html"
        return StudyState(
            self.folder,
            str(study.get("name") or self.folder.name),
            "running" if running else "finished" if over else "stopped",
            runs,
            sentence,
            report if report.is_file() else None,
        )

    def _run(self, folder: Path, name: str) -> RunState:
        progress = self._json(folder / PROGRESS) or {}
        records = self._records(folder / RESULTS)
        summary = self._json(folder / SUMMARY)
        running = owner_of(folder) is not None
        finished = not running and summary is not None and "methods" in summary
        state: State = "running" if running else "finished" if finished else "stopped"
        if not (records or progress or finished or running):
            return RunState(folder, name, "not begun")
        report = folder / "report.html"
        parts: dict[str, Any] = {
            "done": int(progress.get("done") or len(records)),
            "total": int(progress.get("total") or 0),
            "elapsed_seconds": progress.get("elapsed_seconds"),
            "report": report if report.is_file() else None,
        }
        if finished and summary is not None:
            return _finished(folder, name, summary, parts)
        metric = next((str(record["metric"]) for record in records if record.get("metric")), "")
        methods = _methods(records, metric)
        now = tuple(map(_step, progress.get("now") or ())) if state == "running" else ()
        said = str(progress.get("sentence") or "")
        return RunState(
            folder, name, state, metric=metric, methods=methods, now=now, failures=_failures(records),
            seconds_left=progress.get("seconds_left") if state == "running" else None,
            sentence=" ".join(filter(None, [said, _so_far(methods, metric)])), **parts,
        )  # fmt: skip

    def _json(self, file: Path) -> Any:
        """A JSON object, or None where there is none: files are replaced whole, but may be of anything."""
        return self._parsed(file, lambda data: content if isinstance(content := loads(data, file), dict) else None)

    def _records(self, file: Path) -> list[dict[str, Any]]:
        def parse(data: bytes) -> list[dict[str, Any]]:
            records = []
            for line in data.decode("utf-8", "replace").split("\n")[:-1]:  # the last may be being written
                try:
                    record = loads(line, file)
                except DeltatuneError:
                    continue
                if isinstance(record, dict):  # without what is long
                    records.append({key: record.get(key) for key in KEYS})
            return records

        return self._parsed(file, parse) or []

    def _parsed(self, file: Path, parse: Any) -> Any:
        try:
            facts = os.stat(file)
            identity = (facts.st_size, facts.st_mtime_ns)
            if file in self._kept and self._kept[file][0] == identity:
                return self._kept[file][1]
            value = parse(file.read_bytes()) if file.is_file() else None
        except (OSError, DeltatuneError):
            return None
        self._kept[file] = identity, value
        return value


KEYS = ("cell", "stage", "method", "learning_rate", "seed", "draw", "until", "status", "error", "metric", "scores")
"""What of a record the state is made of."""


def _finished(folder: Path, name: str, summary: Mapping[str, Any], parts: Mapping[str, Any]) -> RunState:
    """The state of a comparison that has its summary: the final scores."""
    metric = str(summary.get("metric") or "")
    sign = -1 if lower_is_better(metric) else 1
    methods = [
        MethodState(
            str(row.get("method")), tested=len(row.get("seed_scores") or ()), test=row.get("score"),
            rate=row.get("learning_rate"), validation=_best_tried(row.get("search") or (), sign),
        )
        for row in summary.get("methods") or ()
    ]  # fmt: skip
    methods.sort(key=lambda each: (each.test is None, -sign * (each.test or 0.0)))
    failures = tuple(f"{run.get('method')}: {_first_line(run.get('error'))}" for run in summary.get("failed") or ())
    return RunState(
        folder, name, "finished", metric=metric, methods=tuple(methods), failures=failures,
        sentence=str((summary.get("recommendation") or {}).get("sentence") or ""),
        **{**parts, "elapsed_seconds": summary.get("elapsed_seconds")},
    )  # fmt: skip


def _best_tried(search: Any, sign: int) -> float | None:
    scores = [float(score) for _, score in search if isinstance(score, int | float)]
    return max(scores, key=lambda score: sign * score) if scores else None


def _methods(records: list[dict[str, Any]], metric: str) -> tuple[MethodState, ...]:
    """The methods of the records, the best validation score first."""
    sign = -1 if lower_is_better(metric) else 1
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(str(record.get("method")), []).append(record)
    methods = []
    for method, each in by_method.items():
        trained = [record for record in each if record.get("stage") in ("search", "seed")]
        scores: dict[float, dict[Any, float]] = {}
        for record in trained:  # of a run that paused the last record counts
            score = _score(record, "validation", metric)
            if score is not None:
                runs = scores.setdefault(float(record.get("learning_rate") or 0.0), {})
                runs[record.get("seed"), record.get("draw")] = score
        means = {rate: statistics.mean(runs.values()) for rate, runs in scores.items()}
        rate = max(means, key=lambda rate: sign * means[rate]) if means else None
        tests = [score for record in each if record.get("stage") == "final"
                 if (score := _score(record, "test", metric)) is not None]  # fmt: skip
        methods.append(
            MethodState(
                method,
                runs=sum(record.get("status") == "ok" for record in trained),
                failed=sum(record.get("status") != "ok" for record in each),
                validation=None if rate is None else means[rate],
                rate=rate or None,
                test=statistics.mean(tests) if tests else None,
                tested=len(tests),
            )
        )
    methods.sort(key=lambda each: (each.validation is None, -sign * (each.validation or 0.0)))
    return tuple(methods)


def _score(record: Mapping[str, Any], split: str, metric: str) -> float | None:
    value = ((record.get("scores") or {}).get(split) or {}).get(metric)
    return float(value) if isinstance(value, int | float) and record.get("status") == "ok" else None


def _so_far(methods: tuple[MethodState, ...], metric: str) -> str:
    """What can be said before the end; never a recommendation of test scores that are not all there."""
    known = [each for each in methods if each.validation is not None]
    if not known:
        return "No run has finished yet."
    first = known[0]
    return (
        f"So far {first.method} leads with {first.validation:.3f} {metric} on the validation rows, of {len(known)} "
        f"method{'s' if len(known) > 1 else ''} with a finished run. This may change."
    )


def _failures(records: list[dict[str, Any]]) -> tuple[str, ...]:
    """What failed and did not succeed later, after a resumption."""
    done = {record.get("cell") for record in records if record.get("status") == "ok"}
    return tuple(
        f"{record.get('method')}: {_first_line(record.get('error'))}"
        for record in records
        if record.get("status") == "failed" and record.get("cell") not in done
    )


def _first_line(error: object) -> str:
    return str(error or "no message").partition("\n")[0]


def _step(now: Mapping[str, Any]) -> str:
    """`LoRA(r=12), lr 0.002, seed 0: step 40 of 160, loss 0.512`."""
    text = str(now.get("text") or "")
    if not now.get("steps"):
        return text
    loss = now.get("loss")
    shown = f", loss {loss:.3f}" if isinstance(loss, int | float) else ""
    return f"{text}: step {now.get('step')} of {now['steps']}{shown}"
