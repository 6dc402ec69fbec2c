"""From data to a task: the kind the data are, with the fields that suit them, this model and this tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import nearest, raise_all
from deltatune.data import Data
from deltatune.models.architecture import reads_left_to_right
from deltatune.tasks.classification import Classify, is_number
from deltatune.tasks.extractive_qa import Span
from deltatune.tasks.generation import Generate
from deltatune.tasks.multilabel import ManyLabels
from deltatune.tasks.prompts.prompt_format import PRESETS
from deltatune.tasks.tagging import Tag
from deltatune.tasks.task import Task, default_of
from deltatune.tasks.task_registry import DATA_TASKS

LOOKED_AT = 500
"""Training answers whose lengths decide how long an answer may become."""
ROUND = 16
"""Tokens to whose multiple that length is rounded up."""
LONGEST = 256


@dataclass(frozen=True)
class Chosen:
    """A task, and a sentence for each field that was guessed."""

    task: Task
    notes: tuple[str, ...] = ()


def task_for(
    data: Data, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any] | None = None
) -> Chosen:
    """The task of these data for a model with this config; `over` sets single fields of it.

    Raises DeltatuneError for fields that this kind of task does not have, and for values they cannot have.
    """
    over = {name: value for name, value in (over or {}).items() if value is not None}
    kind: Any = DATA_TASKS[data.kind]
    check_known(kind, over)
    guessed: dict[str, Any] = {"text": data.text}
    if data.kind != "raw":
        guessed["label"] = data.label
    notes: list[str] = []
    if kind in (Classify, ManyLabels):
        guessed["labels"] = data.labels
        guessed |= _spread(data) if data.kind == "number" else {}
    elif kind is Tag:
        guessed |= {"tags": data.labels, "piece": "last" if reads_left_to_right(config.get_text_config()) else "first"}
    elif kind is Span:
        guessed["abstains"] = any(not row[data.label] for row in data.train)
        if "max_length" in over:
            guessed["stride"] = min(default_of(Span, "stride"), over["max_length"] // 3)
    elif kind is Generate:
        guessed |= _writing(data, tokenizer, over, notes)
    return Chosen(kind(**{**guessed, **over}), tuple(notes))


def check_known(kind: type[Any], over: Mapping[str, Any]) -> None:
    """Raise DeltatuneError listing the given fields that this kind of task does not have."""
    known = [field.name for field in fields(kind)]
    raise_all([
        f"{kind.__name__} has no {name!r}{nearest(name, known)}; it has: {', '.join(known)}"
        for name in over
        if name not in known
    ])  # fmt: skip


def shorter(task: Any, positions: int | None) -> Any:
    """The task with a max_length that so many positions hold."""
    if positions is None or task.max_length <= positions:
        return task
    less: dict[str, Any] = {"max_length": max(2, positions)}
    if isinstance(task, Span):
        less["stride"] = min(task.stride, positions // 3)
    if isinstance(task, Generate):
        less["new_tokens"] = min(task.new_tokens, max(1, positions // 2))
    return replace(task, **less)


def _spread(data: Data) -> dict[str, float]:
    """Where the training rows' numbers lie, so that a head that starts at zero starts among them."""
    values = [float(row[data.label]) for row in data.train if is_number(row.get(data.label))]
    center, scale = (float(np.mean(values)), float(np.std(values))) if values else (0.0, 1.0)
    return {"center": float(f"{center:.6g}"), "scale": float(f"{scale:.6g}") or 1.0}


def _writing(
    data: Data, tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Prompt, length of answers and metric for written text."""
    chat = data.text == ("messages",)
    prompt = over.get("prompt") or _prompt(data.text, bool(tokenizer.chat_template))
    answers = [_answer(row, data.label, chat) for row in data.train[:LOOKED_AT]]
    lengths = [len(ids) for ids in tokenizer(answers, add_special_tokens=False, verbose=False)["input_ids"]]
    long = int(np.quantile(lengths, 0.99)) + 1 if lengths else ROUND
    most = min(LONGEST, max(1, over.get("max_length", 2 * LONGEST) // 2))
    tokens = over.get("new_tokens", min(most, -(-long // ROUND) * ROUND))
    if "prompt" not in over:
        notes.append(f"the prompt is {prompt}, chosen by the columns; others: {', '.join(PRESETS)}, or a template")
    if "new_tokens" not in over:
        share = float(np.mean([length < tokens for length in lengths])) if lengths else 1.0
        notes.append(f"answers may have {tokens} tokens: {share:.0%} of the training answers have fewer")
    several = any(len(row.get("references") or ()) > 1 for row in data.validation)
    found = {"prompt": prompt, "new_tokens": tokens, "metric": "bleu" if several else "rougeL"}
    return found | {"characters": _without_spaces(answers), "max_length": max(512, 2 * tokens)}


def _prompt(columns: Sequence[str], template: bool) -> str:
    if columns == ("messages",):
        return "chat"
    if columns and columns[0] == "instruction":
        return "chat" if template else "alpaca"
    return "plain"


def _answer(row: Mapping[str, Any], label: str, chat: bool) -> str:
    return str(row["messages"][-1]["content"]) if chat else str(row[label])


def _without_spaces(texts: Sequence[str]) -> bool:
    """Whether a third of the letters are of scripts that write words without spaces between them."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    dense = sum("\u3040" <= letter <= "\u9fff" or "\u0e00" <= letter <= "\u0e7f" for letter in letters)
    return bool(letters) and dense * 3 >= len(letters)
