"""Comparisons from Python: `compare` runs one or a study, `open_results` opens a finished one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.exports import best_score, rows_of, verdict
from deltatune.comparison.report.figures.standalone_tradeoff import Figure, tradeoff_figure
from deltatune.comparison.report.html_page import recommendation_section
from deltatune.comparison.report.method_results import method_results
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.study_results import StudyResults, mean_results
from deltatune.comparison.results.finished_run import FinishedRun, read_finished
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.option_words import rewording
from deltatune.core.method import Method

if TYPE_CHECKING:
    from deltatune.comparison.works.cells import OnEvent
    from deltatune.data import Data

FEW_SHOT_STEPS = 100
"""Steps with `shots` unless settings are given: a few epochs of a few rows would be a handful of steps."""
FEW_SHOT_BATCH = 8
"""Rows of such a step."""
SHOWN_ROWS = 20
"""Methods in the table that a notebook shows."""


class Best(NamedTuple):
    """The recommended method of a comparison."""

    method: str | None
    """None if no method has a score."""
    score: float | None
    """Its mean test score."""
    adapter: Path | None
    """Folder of its adapter of the first seed, which `predict` and the command line open; None in a study."""


@dataclass(frozen=True)
class ComparisonResult:
    """The results of a comparison, or of a study of several, as its folder has them."""

    run: FinishedRun

    @property
    def summary(self) -> Mapping[str, Any]:
        """Everything: the content of summary.json, or of study.json."""
        return self.run.content

    @property
    def folder(self) -> Path:
        """Where it is stored."""
        return self.run.folder

    @property
    def report(self) -> Path:
        """The page to open in a browser."""
        return self.run.report

    @property
    def recommendation(self) -> str:
        """What to use, how sure that is and what it costs, in a few sentences."""
        return str((self.summary.get("recommendation") or {}).get("sentence") or "")

    @property
    def best(self) -> Best:
        """The recommended method: of those that are not told apart from the best, the one that trains least."""
        method = (self.summary.get("recommendation") or {}).get("method")
        if self.run.kind == "study":
            averages = {row["method"]: row for row in self.summary.get("averages") or ()}
            return Best(method, formats.number(averages.get(method) or {}, "mean"), None)
        entries: list[Mapping[str, Any]] = [row for row in self.summary["methods"] if row["method"] == method]
        row = entries[0] if entries else {}
        adapter = self.folder / str(row["adapter"]) if row.get("adapter") else None
        return Best(method, formats.number(row, "score"), adapter if adapter and adapter.is_dir() else None)

    def table(self) -> Any:
        """A pandas DataFrame with a row for each method; of a study for each method of each comparison."""
        return _pandas().DataFrame(rows_of(self.run))

    def pairs(self) -> Any:
        """A pandas DataFrame with a row for each pair of methods: the difference, its interval, the verdict."""
        rows = []
        for at, summary in self._summaries():
            for pair in summary.get("pairs") or ():
                low, high = pair.get("ci") or (None, None)
                row = {name: pair.get(name) for name in ("first", "second", "difference")}
                rows.append({**at, **row, "ci_low": low, "ci_high": high, "verdict": pair.get("verdict")})
        columns = ["first", "second", "difference", "ci_low", "ci_high", "verdict"]
        return _pandas().DataFrame(rows, columns=[*(list(rows[0])[:-6] if rows else []), *columns])

    def plot(self, ax: Any = None) -> Any:
        """Draw score against trained parameters, with 95 % intervals; of a study the means. Returns matplotlib's axes.

        ax: axes to draw into; by default those of a new figure.
        """
        if ax is None:
            ax = _package("matplotlib.pyplot", "plots need matplotlib. Install it: pip install matplotlib").subplots()[
                1
            ]
        points = self._points()
        for label, params, score, interval in points:
            errors = [[score - interval[0]], [interval[1] - score]] if interval else None
            ax.errorbar([params], [score], yerr=errors, fmt="o", capsize=3, label=label)
            ax.annotate(label, (params, score), textcoords="offset points", xytext=(6, 4), fontsize=8)
        positive = [params for _, params, _, _ in points if params > 0]
        if positive:  # logarithmic, but with a place for methods that train nothing besides the head
            ax.set_xscale("symlog", linthresh=min(positive) / 2)
        metric = self.summary.get("metric") or f"{StudyResults(self.summary).metric}, mean"
        ax.set_xlabel("trained parameters")
        ax.set_ylabel(f"test {metric}")
        return ax

    def figure(self) -> Figure:
        """The report's figure of score against trained parameters; a notebook shows it, `save(path)` writes the SVG."""
        if self.run.kind == "comparison":
            metric, budget = str(self.summary["metric"]), self.summary.get("budget")
            return tradeoff_figure(method_results(self.summary), metric, budget)
        results = StudyResults(self.summary)
        return tradeoff_figure(mean_results(results), f"{results.metric}, mean", None)

    def _points(self) -> list[tuple[str, float, float, tuple[float, float] | None]]:
        """Label, trained parameters, score and interval of each method that has them."""
        if self.run.kind == "study":
            methods = StudyResults(self.summary).methods
            return [(m.label, m.params, m.mean, None) for m in methods if m.params is not None and m.mean is not None]
        results = method_results(self.summary)
        return [(r.label, r.number("params") or 0.0, r.score, r.interval) for r in results if r.score is not None]

    def _summaries(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Every comparison: its place in the study, its summary."""
        if self.run.kind == "comparison":
            return [({}, self.summary)]
        results = StudyResults(self.summary)
        return [(each.at, each.summary) for each in results.comparisons if each.summary is not None]

    def __repr__(self) -> str:
        methods = len(self.summary["methods"])
        return f"ComparisonResult({str(self.folder)!r}: {methods} methods, recommended {self.best.method})"

    def _repr_html_(self) -> str:
        """The recommendation and a compact table, for notebooks."""
        head, rows = self._html_rows()
        more = f"<p>and {len(rows) - SHOWN_ROWS} more</p>" if len(rows) > SHOWN_ROWS else ""
        headings = "".join(f"<th>{html(name)}</th>" for name in head)
        body = "".join(f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in row)}</tr>" for row in rows[:SHOWN_ROWS])
        table = f"<table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table>"
        return f"<div>{recommendation_section({'sentence': self.recommendation})}{table}{more}</div>"

    def _html_rows(self) -> tuple[list[str], list[list[str]]]:
        if self.run.kind == "study":
            methods = StudyResults(self.summary).methods
            ranked = [[m.asked, formats.score(m.mean), "–" if m.rank is None else f"{m.rank:.1f}"] for m in methods]
            return ["method", "mean", "rank"], ranked
        results = method_results(self.summary)
        best = best_score(self.summary, results)
        rows = []
        for result in results:
            ends = result.interval
            interval = f"{formats.score(ends[0])} to {formats.score(ends[1])}" if ends else formats.MISSING
            params = formats.count(result.number("params"))
            rows.append(
                [str(result.row["method"]), formats.score(result.score), interval, verdict(result, best), params]
            )
        return ["method", str(self.summary["metric"]), "95 % interval", "verdict", "trained"], rows


OF_PYTHON = {
    **{
        name: name
        for name in ("data", "model", "budget", "limit", "shots", "quantize", "text", "label", "out", "minutes")
    },
    **{name: name for name in ("seeds", "rates", "margin", "draws", "workers", "executor", "tasks")},
    "method": "methods",
    **{name: f"task[{name.replace('-', '_')!r}]" for name in ("metric", "positive", "prompt", "beams", "max-length")},
}
"""Arguments of `compare` by the options of `deltatune compare`."""


@rewording(OF_PYTHON)
def compare(
    data: Any,
    *,
    model: str | Iterable[str] = "builtin",
    methods: Sequence[str | Method] | None = None,
    budget: Any = "auto",
    limit: int | Iterable[int | None] | None = None,
    shots: int | Iterable[int | None] | None = None,
    quantize: str | Iterable[str | None] | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    out: str | Path | None = None,
    minutes: float | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> ComparisonResult:
    """Compare methods on a model and data, as `deltatune compare` does, and return the results.

    - `data`: a file, a folder, a name on the hub, "python-docs", or what `deltatune.data.read` returns. Several of
      them (a list, or a mapping with names), and "glue" or "superglue", make a study.
    - `model`: a folder, a name on the hub, or "builtin".
    - `methods`: text forms such as "LoRA(r=8)", or methods; by default the families with a size and three references.
    - `budget`: "0.5%", "300k" or a number for all methods; None: the sizes that they are written with. "auto" is 0.5 %
      for the default methods and None for others.
    - `limit`: training rows to keep; `shots`: training rows of each class in a draw.
    - `quantize`: how the base is stored: "nf4", "fp4", "int8" or None; ["none", "nf4"] compares the base with itself.
    - `text`, `label`: columns of files; for other options of reading pass the result of `deltatune.data.read`.
    - `out`: the folder, by default in runs/; an interrupted comparison goes on there.
    - `minutes`: time for all. `on_event`: called with the progress.
    - `options`: those of `make_plan` in `deltatune.comparison.plans.make_plan` (seeds, rates, margin, workers, ...).

    Several values of `model`, `limit`, `budget`, `shots` or `quantize` make a study too. Raises DeltatuneError with
    everything that is wrong before anything is trained.
    """
    from deltatune.comparison.plans.make_plan import DEFAULT_BUDGET, DEFAULT_METHODS
    from deltatune.comparison.study import name_data_sets

    _check_options(options)
    options["methods"] = tuple(DEFAULT_METHODS if methods is None else _methods(methods))
    if budget == "auto":
        budget = DEFAULT_BUDGET if methods is None else None
    axes = {"model": model, "limit": limit, "budget": budget, "shots": shots, "quantize": quantize}
    axes = {name: _single(value) for name, value in axes.items()}
    if shots is not None and "settings" not in options:
        from deltatune.training import Settings

        options["settings"] = Settings(max_steps=FEW_SHOT_STEPS, batch_size=FEW_SHOT_BATCH)
    source = data if isinstance(data, Mapping) else _single(data)
    is_suite = isinstance(source, str) and len(name_data_sets(source).sources) > 1
    if is_suite or isinstance(source, Mapping) or any(isinstance(value, list) for value in (source, *axes.values())):
        return _study(source, axes, text, label, out, minutes, on_event, options)
    return _comparison(source, axes, text, label, out, minutes, on_event, options)


def open_results(folder: str | Path) -> ComparisonResult:
    """The results of a finished comparison or study. Raises DeltatuneError if there are none in the folder."""
    return ComparisonResult(read_finished(folder))


def _comparison(
    source: Any, axes: dict[str, Any], text: Sequence[str], label: str | None, out: Any, minutes: Any,
    on_event: OnEvent | None, options: dict[str, Any],
) -> ComparisonResult:  # fmt: skip
    from deltatune.comparison.plans.make_plan import make_plan
    from deltatune.comparison.plans.time_plan import fit_minutes
    from deltatune.comparison.run_comparison import run
    from deltatune.store.folder_lock import FolderLock

    rows = _read(source, text, label, axes.pop("limit"))
    plan = make_plan(rows, out=out, minutes=minutes, **axes, **options)
    with FolderLock(plan.out, "out="):
        plan = fit_minutes(plan)
        run(plan, on_event)
    return open_results(plan.out)


def _study(
    source: Any, axes: dict[str, Any], text: Sequence[str], label: str | None, out: Any, minutes: Any,
    on_event: OnEvent | None, options: dict[str, Any],
) -> ComparisonResult:  # fmt: skip
    from deltatune.comparison.study import StudyStage, run_study

    folders: list[Path] = [] if out is None else [Path(out)]

    def follow(stage: StudyStage) -> AbstractContextManager[OnEvent | None]:
        folders.append(stage.plan.out.parent)
        return nullcontext(on_event)

    columns = _columns(text, label)
    run_study(source, **axes, out=out, minutes=minutes, columns=columns, on_stage=follow, **options)
    return open_results(folders[0])


def _read(source: Any, text: Sequence[str], label: str | None, limit: int | None) -> Data:
    """The rows of a source; of those that were read already so many as `limit` says."""
    from deltatune.comparison.study import Point
    from deltatune.comparison.study.study_run import LastData

    return LastData({"": source}, _columns(text, label))(Point("", limit=limit))


def _columns(text: Sequence[str], label: str | None) -> dict[str, Any]:
    """Options of `read` for the columns that are named."""
    return {**({"text": tuple(text)} if text else {}), **({"label": label} if label else {})}


def _methods(methods: Any) -> list[str | Method]:
    """The methods as a list; a single one may stand alone."""
    return [methods] if isinstance(methods, str | Method) else list(methods)


def _single(value: Any) -> Any:
    """A list of several values; one value, or a list of one, as that."""
    if value is None or isinstance(value, str | int | float | Path) or not isinstance(value, Iterable):
        return value
    values = list(value)
    return values[0] if len(values) == 1 else values


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise DeltatuneError for options that there are not."""
    from deltatune.comparison.plans.make_plan import make_plan

    known = [*inspect.signature(make_plan).parameters, *inspect.signature(compare).parameters]
    known = [name for name in dict.fromkeys(known) if name not in ("options", "open_base")]
    raise_all([f"compare has no option {name}{nearest(name, known)}" for name in options if name not in known])


def _pandas() -> Any:
    return _package("pandas", "tables need pandas. Install it: pip install pandas")


def _package(name: str, message: str) -> Any:
    """A package that is not needed elsewhere. Raises DeltatuneError with the install line."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DeltatuneError(message) from None
