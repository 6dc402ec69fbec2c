"""Model card of an adapter on the hub, written from what is known of it; licence and prose are the author's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deltatune.core.host import Host
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.strict_json import dumps

PIPELINES = {
    "classify": "text-classification",
    "many": "text-classification",
    "tag": "token-classification",
    "span": "question-answering",
    "generate": "text-generation",
    "lm": "text-generation",
}
"""The hub's name of each task."""


def model_card(host: Host, name: str, repo_id: str, tags: Iterable[str] = ()) -> str:
    """A README.md with the hub's metadata: base, library, tags, task; method, sizes, data and scores where known."""
    adapter = host.adapters[name]
    base = str(getattr(getattr(host.model, "config", None), "_name_or_path", "") or "")
    extra = adapter.extra
    task = extra.get("task")
    kind = str(task.get("task", "")) if isinstance(task, Mapping) else ""
    meta: dict[str, Any] = {"library_name": "deltatune", "tags": ["deltatune", "adapter", *tags]}
    if base and not base.startswith(("/", ".", "~")):
        meta |= {"base_model": base, "base_model_relation": "adapter"}
    if kind in PIPELINES:
        meta["pipeline_tag"] = PIPELINES[kind]
    facts = [
        ("Method", f"`{adapter.method!r}`"),
        ("Base", f"{host.sites.facts.architecture} {_code(base) if base else '(no name known)'}"),
        ("Parameters", f"{adapter.count:,}" + (f", head {adapter.head_count:,}" if adapter.head_count else "")),
        *([("Task", _code(kind))] if kind else []),
        *_labels(task),
        *((title, _code(extra[key])) for key, title in (("data", "Data"), ("source", "Data")) if key in extra),
        *_rows(adapter.trained_rows),
        *_scores(extra.get("scores")),
    ]
    lines = ["---", *(f"{key}: {dumps(value, repo_id)}" for key, value in meta.items()), "---", ""]
    lines += [f"# {repo_id.partition('/')[2] or repo_id}", "", "An adapter for a frozen base, made with deltatune.", ""]
    lines += ["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in facts), ""]
    lines += ["```python", "import deltatune", ""]
    lines += ["host = deltatune.Host(model)  # the base above, from transformers' from_pretrained"]
    lines += [f'host.load("{repo_id}")', "```", ""]
    lines += ["Licence, intended use and limits: to be written by the author.", ""]
    return "\n".join(lines)


def _labels(task: Any) -> list[tuple[str, str]]:
    labels = next((task[key] for key in ("labels", "tags") if task.get(key)), ()) if isinstance(task, Mapping) else ()
    if not isinstance(labels, (list, tuple)) or not labels:
        return []
    shown = ", ".join(_code(label) for label in labels[:12])
    return [("Labels", shown + (f" and {len(labels) - 12} more" if len(labels) > 12 else ""))]


def _rows(rows: Any) -> list[tuple[str, str]]:
    if rows is None or not len(rows.train):
        return []
    return [("Trained on", f"{len(rows.train):,} rows" + ("" if rows.complete else ", and on others"))]


def _scores(scores: Any) -> list[tuple[str, str]]:
    if not isinstance(scores, Mapping):
        return []
    return [
        (f"Score: {_plain(key)}", f"{value:.4g}")
        for key, value in scores.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _code(value: Any) -> str:
    """A value as code of Markdown, in one line of a table."""
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    text = shortened(value, quoted=False).replace("`", "'").replace("|", "/")
    return " ".join(text.split())
