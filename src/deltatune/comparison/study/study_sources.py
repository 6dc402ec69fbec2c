"""The data sets of a study: suites taken apart, and a short name for each that no other has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data import Data
from deltatune.data.published.suites import Suite, SuiteSources, open_suite

Source = str | Path | Data


@dataclass(frozen=True)
class SuiteSets:
    """The data sets of a study that are tasks of a suite."""

    suite: Suite
    tasks: Mapping[str, str]
    """Name of the data set in the study -> task of the suite."""


@dataclass(frozen=True)
class DataSets:
    """The data sets of a study by name, and the suites among them."""

    sources: Mapping[str, Any]
    """Name -> source: a path, a name on the hub, or `Data`."""
    suites: tuple[SuiteSets, ...] = ()
    notes: tuple[str, ...] = ()
    """What suites leave out."""


def name_data_sets(data: Source | Iterable[Source] | Mapping[str, Source]) -> DataSets:
    """Name the data sets of a study; `glue`, `superglue` and `glue=FOLDER` stand for all tasks of the suite.

    A mapping has the names. Others are named after the file, the folder or the set of the hub; where two have one name,
    the folders above tell them apart. Raises DeltatuneError for a source that is given twice, and for none at all.
    """
    if isinstance(data, Mapping):
        found = DataSets(dict(data))
    else:
        found = _named([data] if isinstance(data, str | Path | Data) else list(data))
    named = found.sources
    if not named:
        raise DeltatuneError("a study needs at least one data set")
    places: dict[str, list[str]] = {}
    for name, source in named.items():
        places.setdefault(_place(source), []).append(name)
    raise_all([
        f"--data {place} is given {len(names)} times: leave {len(names) - 1} of them out"
        for place, names in places.items()
        if len(names) > 1
    ])  # fmt: skip
    return found


def _named(sources: list[Source]) -> DataSets:
    opened = [open_suite(source) if isinstance(source, str) else None for source in sources]
    suites = [each for each in opened if each is not None]
    titles = [each.suite.title for each in suites]
    raise_all(
        [f"--data has {title} twice: leave one out" for title in dict.fromkeys(titles) if titles.count(title) > 1]
    )
    found: list[tuple[Source, str]] = []
    """Every data set, with its task where it is one of a suite."""
    for source, suite in zip(sources, opened, strict=True):
        found += [(source, "")] if suite is None else [(place, task) for task, place in suite.sources.items()]
    names = _unique([_long_names(source, task) for source, task in found])
    named = dict(zip(names, (source for source, _ in found), strict=True))
    members = tuple(SuiteSets(each.suite, _members(each, named)) for each in suites)
    return DataSets(named, members, tuple(note for each in suites for note in each.notes))


def _members(suite: SuiteSources, named: Mapping[str, Source]) -> dict[str, str]:
    """The data sets that are tasks of a suite, also those that it leaves out and the user names."""
    tasks = {_place(place): task for task, place in (suite.sources | suite.further).items()}
    places = {name: _place(source) for name, source in named.items()}
    return {name: tasks[place] for name, place in places.items() if place in tasks}


def _unique(names: list[list[str]]) -> list[str]:
    """The shortest name of each that is unique; each has ever longer ones. Equal ones to the end get a number."""
    lengths = [0] * len(names)
    while True:
        chosen = [each[length] for each, length in zip(names, lengths, strict=True)]
        twice = [i for i, name in enumerate(chosen) if chosen.count(name) > 1]
        longer = [i for i in twice if lengths[i] + 1 < len(names[i])]
        if not longer:
            break
        for i in longer:
            lengths[i] += 1
    counts: dict[str, int] = {}
    for i, name in enumerate(chosen):
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            chosen[i] = f"{name}-{counts[name]}"
    return chosen


def _long_names(source: Source, task: str = "") -> list[str]:
    """Names of a source, from short to long: `train.csv` of a folder is `train`, `reviews-train`, ..."""
    if isinstance(source, Data):
        return [source.name]
    parts = [part for part in re.split(r"[/\\:]+", str(source)) if part not in ("", ".", "..", "~")] or [str(source)]
    path = Path(str(source)).expanduser()
    if path.is_file():
        parts[-1] = path.stem
    whole = ["-".join(parts[-n:]) for n in range(1, len(parts) + 1)]
    if ":" in str(source) and not path.exists():  # a configuration of a hub set, `nyu-mll/glue:cola`
        task = task or parts[-1]
    return list(dict.fromkeys([task, *whole] if task else whole))


def _place(source: Source) -> str:
    """What two sources have in common that are the same."""
    if isinstance(source, Data):
        return f"{source.origin} ({id(source)})"
    path = Path(str(source)).expanduser()
    return str(path.resolve()) if path.exists() else str(source)
