"""What is to be said before a run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatune.tasks import Encoded


def cut_notes(task: Any, encoded: dict[str, Encoded]) -> list[str]:
    """What is to be said of rows that were longer than the task allows."""
    cut = [f"{rows.truncated} of {rows.examples} {split}" for split, rows in encoded.items() if rows.truncated]
    if not cut:
        return []
    if task.to_json()["task"] == "span":
        return [f"read in windows of {task.max_length} tokens because they are longer: {', '.join(cut)} passages"]
    return [f"cut at {task.max_length} tokens because they are longer: {', '.join(cut)} texts"]
