"""A trained adapter that reads demonstrations, such as one of MetaICL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.prompting.prompt_method import attach_prompt
from deltatune.store.run_folder import find_adapter
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.task import Task
from deltatune.tasks.task_registry import task_from_json
from deltatune.training.session import Session


def attach_reader(session: Session, method: Method, folder: str, task: Task, seed: int) -> Session:
    """The session with this task and the adapter in a folder attached; without a folder with one without tensors.

    Raises DeltatuneError for an adapter with a head of its own.
    """
    if not folder:
        return attach_prompt(session, method, task, seed)
    found = replace(session, task=task, head={})
    adapter = found.host.load(find_adapter(Path(folder)), name=found.name)
    if adapter.head is not None:
        found.detach()
        raise DeltatuneError(
            f"the adapter in {folder} has a classification head, and demonstrations are answered by the language "
            "model's own; use an adapter of MetaICL or Cloze"
        )
    return found


def reader_notes(found: Session, folder: str, scoring: str) -> list[str]:
    """Whether the adapter learned another score of classes than the one that is asked for."""
    stored = (found.adapter.extra or {}).get("task")
    if not (folder and stored):
        return []
    task = task_from_json(stored)
    parts = task.parts.values() if isinstance(task, Mixture) else (task,)
    learned = {"channel" if part.scoring == "channel" else "" for part in parts if isinstance(part, LabelWords)}
    if not learned or ("channel" if scoring == "channel" else "") in learned:
        return []
    right = "'channel'" if learned == {"channel"} else "'likelihood'"
    return [f"the adapter in {folder} was trained for scoring={right}, and is asked with {scoring!r}"]
