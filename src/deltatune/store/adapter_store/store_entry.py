"""Entries of an adapter store: what is known of a stored adapter without opening it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.strict_json import loads
from deltatune.store.adapter_store.adapter_names import checked_name
from deltatune.store.config_checks import wrong_types
from deltatune.store.peft.peft_folder import StoredPeft
from deltatune.store.stored_adapter import StoredAdapter

Scores = Mapping[str, Mapping[str, float]]
"""Metrics by split: `{"test": {"accuracy": 0.93}}`."""
SPLITS = ("test", "validation")
"""Splits whose scores count, the first one that an adapter has."""
DIGEST = re.compile(r"[0-9a-f]{32}")
"""The form of a digest."""
MAX_TAG = 64
"""Characters of a tag."""
MAX_COUNT = 2**48
"""Bytes or values that nothing has more of."""
FORMATS = ("deltatune", "peft")
"""Formats of adapters' folders that a store keeps."""


@dataclass(frozen=True)
class BaseFacts:
    """The base that an adapter was trained on."""

    name: str = ""
    architecture: str = ""
    parameters: int = 0
    shapes: str = ""
    """Fingerprint of its shapes; empty where the adapter does not say."""
    content: str = ""
    """Fingerprint of its weights."""
    bytes: int = 0
    """Bytes of its weights."""


@dataclass(frozen=True)
class Entry:
    """One adapter of a store."""

    name: str
    digest: str
    """Hash of its content: changes when the content is replaced."""
    format: str = "deltatune"
    """`deltatune` or `peft`: the format of its folder."""
    method: str = ""
    """The method's text, such as `LoRA(r=8)`."""
    task: str = ""
    """Kind of the task, such as `classify`; empty where the adapter does not say."""
    labels: tuple[str, ...] = ()
    """Classes or tags of the task."""
    data: str = ""
    """The data that it was trained on, as they were named."""
    base: BaseFacts = field(default_factory=BaseFacts)
    metric: str = ""
    """The task's primary metric."""
    scores: Scores = field(default_factory=dict)
    bytes: int = 0
    """Bytes of its files."""
    parameters: int = 0
    """Values of its tensors, its head left out."""
    added: str = ""
    """When it was added, in UTC: `2026-11-22T09:00:00Z`."""
    tags: tuple[str, ...] = ()

    @property
    def score(self) -> tuple[str, float] | None:
        """The primary metric and its value on the test rows, else on the validation rows; None without scores."""
        splits = [split for split in (*SPLITS, *self.scores) if self.scores.get(split)]
        if not splits:
            return None
        scores = self.scores[splits[0]]
        metric = self.metric if self.metric in scores else next(iter(scores))
        return metric, scores[metric]

    def to_json(self) -> dict[str, Any]:
        """The entry as plain data."""
        return {**asdict(self), "labels": list(self.labels), "tags": list(self.tags)}


def entry_from_json(text: str | bytes, where: str | Path) -> Entry:
    """An entry from its file. Raises DeltatuneError for anything else."""
    content = loads(text, where)
    problems = (
        wrong_types(content, _TYPES) if isinstance(content, dict) else [f"it is {shortened(content)}, not an object"]
    )
    if not problems:
        problems = [f"{name} is missing" for name in ("name", "digest") if name not in content]
        problems += [f"{name} is unknown" for name in content if name not in _TYPES]
        base = content.get("base", {})
        problems += wrong_types(base, _BASE_TYPES, "base.")
        problems += [f"base.{name} is unknown" for name in base if name not in _BASE_TYPES]
        problems += _beyond_counts(content) + _beyond_counts(base, "base.")
        if content.get("format", FORMATS[0]) not in FORMATS:
            problems.append(f"format is {shortened(content['format'])}, it must be one of {', '.join(FORMATS)}")
        problems += [
            f"{name} must be a list of texts"
            for name in ("labels", "tags")
            if not all(isinstance(item, str) for item in content.get(name, ()))
        ]
    raise_all(problems, f"the entry {where} is damaged:" if problems else "")
    lists = {name: tuple(content.get(name, ())) for name in ("labels", "tags")}
    scores = checked_scores(content.get("scores", {}), f"the entry {where}")
    checked_name(content["name"])
    if not DIGEST.fullmatch(content["digest"]):
        raise DeltatuneError(f"the entry {where} is damaged: {shortened(content['digest'])} is no digest")
    return Entry(**{**content, **lists, "scores": scores, "base": BaseFacts(**content.get("base", {}))})


def describe(
    name: str, digest: str, stored: StoredAdapter, size: int, given: Given, run_scores: Mapping[str, Any]
) -> Entry:
    """The entry of an adapter that was read. What the user gave counts more than what the folder says."""
    common: dict[str, Any] = {
        "name": name,
        "digest": digest,
        "bytes": size,
        "added": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tags": given.tags,
    }
    if isinstance(stored, StoredPeft):
        origin = stored.extra["origin"]
        return Entry(
            format="peft",
            method=repr(stored.method),
            task=given.task or "",
            base=BaseFacts(name=str(origin.get("base_model_name_or_path") or "")),
            scores=given.scores or {},
            parameters=_values(stored.tensors),
            **common,
        )
    extra, base = stored.extra, stored.base or {}
    told: dict[str, Any] = task if isinstance(task := extra.get("task"), dict) else {}
    known = extra["scores"] if isinstance(extra.get("scores"), dict) else run_scores
    training = known.get("training") if isinstance(known.get("training"), dict) else {}
    labels = told.get("labels")
    return Entry(
        method=repr(stored.method),
        task=given.task or str(told.get("task") or ""),
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
        data=str(data.get("source") or "") if isinstance(data := extra.get("data"), dict) else "",
        base=BaseFacts(
            name=str(base.get("name") or extra.get("model") or base.get("architecture") or ""),
            architecture=str(base.get("architecture") or ""),
            parameters=_whole(base.get("parameters")),
            shapes=str(base.get("shapes") or ""),
            content=str(base.get("content") or ""),
            bytes=_whole((training or {}).get("base_bytes")) or 4 * _whole(base.get("parameters")),
        ),
        metric=str(told.get("metric") or ""),
        scores=given.scores if given.scores is not None else _numbers(known),
        parameters=_values(stored.tensors),
        **common,
    )


@dataclass(frozen=True)
class Given:
    """What the user says about adapters that are added."""

    task: str | None = None
    tags: tuple[str, ...] = ()
    scores: Scores | None = None

    @property
    def anything(self) -> bool:
        """Whether anything is said."""
        return self != Given()


def given_facts(task: str | None, tags: Sequence[str], scores: Mapping[str, Any] | None) -> Given:
    """What the user says, checked. Raises DeltatuneError listing all that is wrong."""
    if isinstance(tags, str):
        raise DeltatuneError(f"tags={tags!r} is one text; give a list of tags")
    problems = [f"the tag {shortened(tag)} {why}" for tag in tags if (why := _tag_problem(tag))]
    if task is not None and not (isinstance(task, str) and 0 < len(task) <= MAX_TAG and task.isprintable()):
        problems.append(f"the task {shortened(task)} must have 1 to {MAX_TAG} printable characters")
    raise_all(problems)
    checked = None if scores is None else checked_scores(scores, "the scores")
    return Given(task, tuple(dict.fromkeys(tags)), checked)


def checked_scores(scores: Any, where: str) -> Scores:
    """Scores by split; numbers without a split are those of the test rows. Raises DeltatuneError for anything else."""
    if not isinstance(scores, Mapping):
        raise DeltatuneError(f"{where}: scores are an object such as {{'test': {{'accuracy': 0.93}}}}")
    plain = {name: value for name, value in scores.items() if _is_number(value)}
    splits = {name: value for name, value in scores.items() if name not in plain}
    problems = [
        f"{where}: {name} is {shortened(value)}, it must be a number, or an object of numbers"
        for name, value in splits.items()
        if not isinstance(value, Mapping) or not all(_is_number(number) for number in value.values())
    ]
    problems += [
        f"{where}: {shortened(name)} is no name of a split or a metric"
        for name in _names(scores)
        if not isinstance(name, str)
    ]
    raise_all(problems)
    merged = {name: dict(value) for name, value in splits.items()}
    if plain:
        merged["test"] = {**merged.get("test", {}), **plain}
    return {split: {metric: float(number) for metric, number in values.items()} for split, values in merged.items()}


def _names(scores: Mapping[Any, Any]) -> list[Any]:
    """The names of splits and of metrics."""
    return [*scores, *(name for value in scores.values() if isinstance(value, Mapping) for name in value)]


def _beyond_counts(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What to say of numbers of bytes and of values that cannot be."""
    return [
        f"{prefix}{name} is {shortened(value)}, it must be from 0 to {MAX_COUNT}"
        for name, value in content.items()
        if type(value) is int and not 0 <= value <= MAX_COUNT
    ]


def _tag_problem(tag: object) -> str | None:
    if not isinstance(tag, str) or not tag.strip() or tag != tag.strip():
        return "must be a text without blanks around it"
    if len(tag) > MAX_TAG or not tag.isprintable() or "," in tag:
        return f"must have at most {MAX_TAG} printable characters and no comma"
    return None


def _numbers(scores: Mapping[str, Any]) -> Scores:
    """The scores of a run by split, without the facts of its training."""
    return {
        split: {metric: float(value) for metric, value in values.items() if _is_number(value)}
        for split in SPLITS
        if isinstance(values := scores.get(split), dict)
    }


def _values(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.startswith("head."))


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 < value <= MAX_COUNT else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,), "digest": (str,), "format": (str,), "method": (str,), "task": (str,), "labels": (list,),
    "data": (str,), "base": (dict,), "metric": (str,), "scores": (dict,), "bytes": (int,), "parameters": (int,),
    "added": (str,), "tags": (list,),
}  # fmt: skip
"""Fields of an entry's file."""
_BASE_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,), "architecture": (str,), "parameters": (int,), "shapes": (str,), "content": (str,), "bytes": (int,),
}  # fmt: skip
