"""Suites of published data sets: GLUE and SuperGLUE, their tasks, and the metrics that a suite's average is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.regular_files import expanded
from deltatune.data.formats import is_data_file


@dataclass(frozen=True)
class Suite:
    """Data sets that papers report together, with an average."""

    name: str
    title: str
    hub: str
    """Its name on the hub; its tasks are the configurations there."""
    tasks: Mapping[str, tuple[str, ...]]
    """Task -> the metrics whose mean is the task's score in the suite's average."""
    left_out: tuple[str, ...] = ()
    """Tasks that are only compared if they are named, and why that is so in `remark`."""
    remark: str = ""


SUITES = {
    # Wang et al. 2019, table 1 and section 3, https://arxiv.org/abs/1804.07461
    "glue": Suite(
        "glue", "GLUE", "nyu-mll/glue",
        {
            "cola": ("matthews",), "sst2": ("accuracy",), "mrpc": ("f1", "accuracy"),
            "stsb": ("pearson", "spearman"), "qqp": ("f1", "accuracy"), "mnli": ("accuracy",),
            "qnli": ("accuracy",), "rte": ("accuracy",), "wnli": ("accuracy",),
        },
        ("wnli",),
        "WNLI is left out of GLUE, as papers do (its development rows repeat training sentences with other labels); to "
        "have it, name it besides, as nyu-mll/glue:wnli or by its folder",
    ),
    # Wang et al. 2019, table 1, https://arxiv.org/abs/1905.00537
    "superglue": Suite(
        "superglue", "SuperGLUE", "aps/super_glue",
        {
            "boolq": ("accuracy",), "cb": ("f1_macro", "accuracy"), "copa": ("accuracy",), "multirc": ("f1",),
            "record": ("f1", "em"), "rte": ("accuracy",), "wic": ("accuracy",), "wsc": ("accuracy",),
        },
        (),
        "MultiRC counts with the F1 of its answers alone, without the exact match of whole questions",
    ),
}  # fmt: skip
"""Name -> suite."""


@dataclass(frozen=True)
class SuiteSources:
    """Where the tasks of a suite are read."""

    suite: Suite
    sources: dict[str, str]
    """Task -> source."""
    further: dict[str, str]
    """The same for tasks that are left out: they count in the average if they are named besides."""
    notes: tuple[str, ...]


def open_suite(source: str) -> SuiteSources | None:
    """The tasks of `glue` (from the hub, or a folder of that name here) or of `glue=FOLDER`; None for other sources.

    A folder holds a folder or a file for each task, named after it in any case (`CoLA`, `sst-2`, `stsb.csv`); tasks
    that it lacks are a note. Raises DeltatuneError for a folder without any of them.
    """
    name, sign, rest = source.partition("=")
    suite = SUITES.get(_plain(name)) if sign or "/" not in source else None
    if suite is None or (sign and not rest):
        return None
    default = [task for task in suite.tasks if task not in suite.left_out]
    remark = (suite.remark,) if suite.remark else ()
    folder = expanded(rest if sign else source)
    if not sign and not folder.is_dir():
        if folder.exists():
            return None  # a file of that name
        hub = {task: f"{suite.hub}:{task}" for task in suite.tasks}
        return SuiteSources(suite, {task: hub[task] for task in default}, _left_out(suite, hub), remark)
    if not folder.is_dir():
        raise DeltatuneError(
            f"--data {source}: there is no folder {folder}; give one that holds a folder or a file for each task of "
            f"{suite.title}, or --data {suite.name} for the hub"
        )
    places, problems = _places(folder, suite)
    if not sign and not places:
        return None  # a data set that is called so
    raise_all(problems)
    here = {task: str(paths[0]) for task, paths in places.items()}
    found = {task: here[task] for task in default if task in here}
    if not found:
        raise DeltatuneError(
            f"--data {source}: {folder} holds no task of {suite.title}; it needs a folder or a file for each, named "
            f"{', '.join(default)}. {_holds(folder)}"
        )
    missing = [task for task in default if task not in found]
    note = f"{folder} has no {', '.join(missing)}: the average of {suite.title} is over {len(found)} tasks"
    return SuiteSources(suite, found, _left_out(suite, here), (*remark, *([note] if missing else [])))


def _left_out(suite: Suite, sources: Mapping[str, str]) -> dict[str, str]:
    return {task: sources[task] for task in suite.left_out if task in sources}


def _places(folder: Path, suite: Suite) -> tuple[dict[str, list[Path]], list[str]]:
    """The folders and files of each task, and tasks that have several."""
    places: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")) or not (path.is_dir() or is_data_file(path)):
            continue
        task = _plain(path.name if path.is_dir() else path.stem).removeprefix(suite.name)
        if task in suite.tasks:
            places.setdefault(task, []).append(path)
    problems = [
        f"{folder} has {' and '.join(path.name for path in paths)}: which one is {task}? Keep one of them."
        for task, paths in places.items()
        if len(paths) > 1
    ]
    return places, problems


def _holds(folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return f"It holds {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}." if names else "It is empty."


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
