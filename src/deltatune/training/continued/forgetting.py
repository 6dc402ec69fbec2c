"""Forgetting: the test rows of an adapter's earlier trainings, so that it can be scored on them again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.trained_rows import overlap
from deltatune.data.read_data import read_source
from deltatune.tasks import Encoded, Generate, Prefer
from deltatune.training.continued.continued_training import Start
from deltatune.training.continued.preference_task import generation_task
from deltatune.training.session import Session


@dataclass(frozen=True)
class EarlierData:
    """The test rows of an earlier training, encoded for the adapter."""

    source: str
    session: Session
    """The session with the task of these rows: its columns, or one part of a mixture."""
    encoded: Encoded

    def scores(self) -> dict[str, float]:
        """Scores of the session's adapter as it is now."""
        return self.session.score(self.encoded)


def earlier_data(session: Session, start: Start, new_sources: Collection[str]) -> tuple[list[EarlierData], list[str]]:
    """The test rows of the earlier trainings that can still be read, and a note for each that cannot.

    Data that the new training reads itself are left out, and so are test rows most of which were trained on: then the
    splits are other ones than at that training.
    """
    data: dict[str, EarlierData] = {}
    notes = []
    for source, own in _sessions(session, start):
        if source in data or any(_same_source(source, new) for new in new_sources):
            continue
        task = own.task
        try:
            rows = read_source(source, text=task.text, label=task.label or None, kind=task.label_kind).test
            encoded = own.encode(rows)
        except DeltatuneError as error:
            reason = " ".join(str(error).splitlines()[:2])  # the first line of a list is no reason yet
            notes.append(f"scores on the earlier data {source} are left out: {reason}")
            continue
        known, hashes = session.adapter.trained_rows, encoded.row_hashes
        if known is not None and hashes is not None and 2 * overlap(hashes, known.train).rows > len(hashes):
            notes.append(f"scores on the earlier data {source} are left out: its test rows were trained on")
            continue
        data[source] = EarlierData(source, own, encoded)
    return list(data.values()), notes


def _sessions(session: Session, start: Start) -> Iterator[tuple[str, Session]]:
    """The source of every earlier training, and the session with its columns."""
    trained = start.task
    if trained is not None and trained.label_kind != session.task.label_kind:  # it learns preferences now
        session = replace(session, task=trained)
    for parent in start.parents():
        data, columns = parent["data"] or {}, parent["columns"]
        parts: Mapping[str, Any] = data.get("parts") or {}
        for name, part in parts.items():
            own = session.for_part(name)
            yield str(part["source"]), _with_columns(own, columns[name])
        if not parts and data.get("source"):
            own = session
            if isinstance(session.task, Prefer) and parent.get("task") == Generate.name:  # it wrote texts first
                task = generation_task(session.task, columns["text"], columns["label"])
                own = replace(session, task=task)
            yield str(data["source"]), _with_columns(own, columns)


def _with_columns(session: Session, columns: Mapping[str, Any]) -> Session:
    changes: dict[str, Any] = {"text": tuple(columns["text"])}
    if columns["label"]:
        changes["label"] = columns["label"]
    return replace(session, task=replace(session.task, **changes))  # type: ignore[type-var]


def _same_source(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
