"""Plan of a study: every combination of its axes is an ordinary comparison, in a folder of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.comparison.report.number_format import model_labels
from deltatune.comparison.report.study_results import UNQUANTIZED
from deltatune.comparison.study.study_sources import SuiteSets
from deltatune.core.errors import DeltatuneError, raise_all

if TYPE_CHECKING:
    from deltatune.comparison.plans.plan import Plan

BUILTIN = "builtin"
"""The model that comes with the package; it is not in the names of folders."""
LONGEST_NAME = 60
"""Characters of one value in the name of a folder, and of the study in that of its own."""
MOST_COMPARISONS = 1000
STUDY, PAGE = "study.json", "study.html"
AXES = ("model", "quantize", "data", "limit", "budget", "shots")
"""In the order in which a study goes through them: a model is loaded once for all that is done with it."""
LABELLED = ("data", "model", "quantize", "limit", "budget", "shots")
"""In the order in which labels name them."""


@dataclass(frozen=True)
class Point:
    """The place of one comparison on the axes of a study."""

    data: str
    """Name of the data set."""
    model: str = BUILTIN
    limit: int | None = None
    """Training rows; None: all."""
    budget: str | int | None = None
    """Budget of every method with a size; None: sizes as written."""
    shots: int | None = None
    """Training rows of each class in a draw; None: all."""
    quantize: str | None = None
    """How the base is stored, such as nf4; None: as it was published."""

    def to_json(self) -> dict[str, Any]:
        """Plain data: {"data", "model", "limit", "budget", "shots", "quantize"}."""
        return {axis.name: getattr(self, axis.name) for axis in fields(self)}

    def describe(self, varied: Iterable[str], models: Iterable[str] = ()) -> str:
        """The point for people, on the axes that the study varies: `sst2, nf4, 200 rows, budget 0.5%`.

        Its model's name is long enough to tell it from `models`.
        """
        texts = {
            "data": self.data,
            "model": model_labels([*models, self.model])[self.model],
            "limit": "all rows" if self.limit is None else f"{self.limit:,} rows",
            "budget": "sizes as written" if self.budget is None else f"budget {self.budget}",
            "shots": "all rows" if self.shots is None else f"{self.shots} shots",
            "quantize": self.quantize or UNQUANTIZED,
        }
        return ", ".join(texts[axis] for axis in LABELLED if axis in set(varied))


@dataclass(frozen=True)
class Axes:
    """The values of every axis; a study is their product."""

    data: tuple[str, ...]
    model: tuple[str, ...] = (BUILTIN,)
    limit: tuple[int | None, ...] = (None,)
    budget: tuple[str | int | None, ...] = (None,)
    shots: tuple[int | None, ...] = (None,)
    quantize: tuple[str | None, ...] = (None,)

    def __post_init__(self) -> None:
        problems = []
        for axis in AXES:
            values = getattr(self, axis)
            texts = ["none" if value is None else str(value) for value in values]
            problems += [f"--{axis} {text} is given twice" for text in dict.fromkeys(texts) if texts.count(text) > 1]
            problems += [] if values else [f"{axis}: a study needs at least one value"]
        problems += [
            f"--{axis} {value}: the number of rows must be at least 1"
            for axis in ("limit", "shots")
            for value in getattr(self, axis)
            if value is not None and value < 1
        ]
        raise_all(problems)
        if (number := len(self.points())) > MOST_COMPARISONS:
            raise DeltatuneError(f"these are {number:,} comparisons; a study has at most {MOST_COMPARISONS:,}")

    @property
    def varied(self) -> tuple[str, ...]:
        """The axes with more than one value."""
        return tuple(axis for axis in LABELLED if len(getattr(self, axis)) > 1)

    def describe(self, point: Point) -> str:
        """What tells a point from the others, for people."""
        return point.describe(self.varied or ("data",), self.model)

    def points(self) -> tuple[Point, ...]:
        """Every combination; those that share a model follow one another, then those that share data."""
        return tuple(
            Point(**dict(zip(AXES, values, strict=True))) for values in product(*(getattr(self, axis) for axis in AXES))
        )

    def to_json(self) -> list[dict[str, Any]]:
        """[{"name", "values"}] of the axes with more than one value; the data alone if there is none."""
        return [{"name": axis, "values": list(getattr(self, axis))} for axis in self.varied or ("data",)]


MakePlan = Callable[[Point, Path, Mapping[str, Any]], "Plan"]
"""(point, folder, options of `make_plan` for this comparison) -> the plan of a comparison."""


@dataclass(frozen=True)
class StudyPlan:
    """A study: its axes, and how the plan of each comparison is made."""

    name: str
    out: Path
    axes: Axes
    make: MakePlan
    folders: Mapping[Point, str]
    """Folder of each comparison within `out`, in the order in which they run."""
    minutes: float | None = None
    """Time for the whole study; each comparison gets an equal share of what is left."""
    tasks: int | None = None
    """Number of tasks for which totals are computed, besides the number of data sets."""
    suites: tuple[SuiteSets, ...] = ()
    notes: tuple[str, ...] = ()
    published: tuple[Mapping[str, Any], ...] = ()
    """Figures of papers, shown beside the measured ones: {"method", "at", "metric", "value", "source"}."""

    @property
    def points(self) -> tuple[Point, ...]:
        """The comparisons in the order in which they run."""
        return tuple(self.folders)


def make_study_plan(
    axes: Axes,
    make: MakePlan,
    *,
    out: str | Path | None = None,
    name: str = "",
    minutes: float | None = None,
    tasks: int | None = None,
    suites: Sequence[SuiteSets] = (),
    notes: Sequence[str] = (),
    published: Sequence[Mapping[str, Any]] = (),
) -> StudyPlan:
    """A study of these axes; nothing is read yet. Raises DeltatuneError for values that no study can have."""
    problems = [] if minutes is None or minutes > 0 else [f"--minutes {minutes:g}: a study needs more than 0 minutes"]
    problems += [] if tasks is None or tasks >= 1 else [f"--tasks {tasks}: the number of tasks must be at least 1"]
    raise_all(problems)
    name = name or study_name(axes, suites)
    folder = Path(out) if out is not None else Path("runs") / _part(name.replace(", ", "-"))
    folders = folder_names(axes.points())
    more = tuple(suites), tuple(notes), tuple(published)
    return StudyPlan(name, folder, axes, make, folders, minutes, tasks, *more)


def study_name(axes: Axes, suites: Sequence[SuiteSets] = ()) -> str:
    """`sst2, trec6 by limit`: the data sets, or their suites, and the other axes."""
    members = {name for each in suites for name in each.tasks}
    names = [*(each.suite.name for each in suites), *(name for name in axes.data if name not in members)]
    others = [axis for axis in axes.varied if axis != "data"]
    shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
    return ", ".join(shown) + (f" by {' and '.join(others)}" if others else "")


def folder_names(points: Sequence[Point]) -> dict[Point, str]:
    """A readable folder for each point, made of its own values alone, so that a study can grow and resume.

    Points whose names would be equal, also where case makes no difference, get a hash of their values in addition.
    """
    names = {point: _folder_name(point) for point in points}
    taken = [name.casefold() for name in (*names.values(), STUDY, PAGE)]
    return {
        point: name if taken.count(name.casefold()) == 1 else f"{name}-{_hash(repr(point))}"
        for point, name in names.items()
    }


def _folder_name(point: Point) -> str:
    """`bert-base-sst2-limit200-budget0.5percent`: as a comparison's own folder, then what is not the default."""
    model = [] if point.model == BUILTIN else [_part(Path(point.model).name or point.model)]
    others = [("", point.quantize), ("limit", point.limit), ("budget", point.budget), ("shots", point.shots)]
    return "-".join([*model, _part(point.data), *(f"{axis}{_part(str(v))}" for axis, v in others if v is not None)])


def _part(text: str) -> str:
    """A value as a part of a folder's name; long ones are cut and get a hash."""
    plain = re.sub(r"[^\w.]+", "-", text.replace("%", "percent")).strip("-.") or "unnamed"
    return plain if len(plain) <= LONGEST_NAME else f"{plain[:LONGEST_NAME].rstrip('-.')}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
