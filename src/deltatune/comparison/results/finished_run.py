"""Finished comparisons and studies, read from their folders: summary.json or study.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltatune.comparison.results.records import OTHERS, RESULTS
from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.regular_files import check_regular, expanded, read_text
from deltatune.core.input_validation.strict_json import loads

SUMMARY, STUDY = "summary.json", "study.json"
REPORTS = {SUMMARY: "report.html", STUDY: "study.html"}
"""Files of finished runs, and the page beside each."""


@dataclass(frozen=True)
class FinishedRun:
    """What a comparison or a study has written."""

    folder: Path
    kind: Literal["comparison", "study"]
    content: Mapping[str, Any]
    """summary.json or study.json."""

    @property
    def report(self) -> Path:
        """The page beside it."""
        return self.folder / REPORTS[STUDY if self.kind == "study" else SUMMARY]


def read_finished(path: str | Path) -> FinishedRun:
    """Read a run folder, or the summary.json or study.json in one.

    Raises DeltatuneError for a path that is not there, holds something else, or is not finished yet.
    """
    place = expanded(Path(path))
    folder = place.parent if place.name in REPORTS and not place.is_dir() else place
    if not folder.is_dir():
        raise DeltatuneError(_absent(place))
    for name in (STUDY, SUMMARY):
        if (folder / name).exists():
            return _read(folder, name)
    if (folder / RESULTS).exists():
        raise DeltatuneError(
            f"{path} has no {SUMMARY} yet: the comparison is not finished; `deltatune watch {path}` shows where it is, "
            "and the command that began it resumes it"
        )
    other = next((what for file, what in OTHERS.items() if (folder / file).exists()), None)
    inner = sorted(file.parent.name for name in REPORTS for file in folder.glob(f"*/{name}"))
    hint = f"; it holds {other}" if other else f"; did you mean one of: {', '.join(inner[:8])}" if inner else ""
    raise DeltatuneError(f"{path} holds no comparison and no study ({SUMMARY} or {STUDY}){hint}")


def _read(folder: Path, name: str) -> FinishedRun:
    file = folder / name
    check_regular(file)
    content = loads(read_text(file), file)
    needed = ("comparisons", "methods") if name == STUDY else ("methods", "metric", "model", "data", "recommendation")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        kind = "study" if name == STUDY else "comparison of methods"
        raise DeltatuneError(f"{file} is of no {kind}: it has no {', '.join(missing)}")
    return FinishedRun(folder, "study" if name == STUDY else "comparison", content)


def _absent(place: Path) -> str:
    """That there is no such folder, with the ones beside it that hold runs."""
    if place.exists():
        return f"{place} is a file; name the folder of a comparison or a study"
    beside = place.parent
    runs = sorted({file.parent.name for name in (*REPORTS, RESULTS) for file in beside.glob(f"*/{name}")})
    hint = nearest(place.name, runs) or (f"; {beside} has {', '.join(runs[:8])}" if runs else "")
    return f"there is no folder {place}{hint}"
