"""Task of a data set: its class by the kind of labels, its fields by the data, the model and the tokenizer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data import Data, LabelKind
from deltatune.data.columns.column_names import REJECTED
from deltatune.data.mixture_data import MixtureData
from deltatune.models.architecture import sees_all_at_last_token
from deltatune.tasks.classification import Classify, is_number
from deltatune.tasks.diffusion.text_to_image import TextToImage
from deltatune.tasks.extractive_qa import ExtractiveQA
from deltatune.tasks.generation import Generate
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.media_rows import longest_sound
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.tasks.metrics.positive_class import positive_class
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.multilabel import MultiLabel
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.prompts.prompt_format import PRESETS
from deltatune.tasks.reasoning import Reason
from deltatune.tasks.tagging import Tag
from deltatune.tasks.task import Task, default_of
from deltatune.tasks.task_registry import DATA_TASKS

ANSWERS_MEASURED = 500
"""Training answers whose lengths decide the limit of generated answers."""
LENGTH_MULTIPLE = 16
"""Tokens to whose multiple that limit is rounded up."""
LONGEST_ANSWER = 256
"""Largest limit in tokens that is inferred."""


@dataclass(frozen=True)
class InferredTask:
    """A task, and a sentence for each field that was inferred."""

    task: Task
    notes: tuple[str, ...] = ()


def task_for(
    data: Data, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any] | None = None
) -> InferredTask:
    """The task of these data for a model with this config; `over` sets single fields of it.

    Raises DeltatuneError for fields that the task does not have, and for values they cannot have.
    """
    over = {name: value for name, value in (over or {}).items() if value is not None}
    check_task_fields(data, over)
    if isinstance(data, MixtureData):
        return _mixture_for(data, config, tokenizer, over)
    task: Any = task_class(data.kind, over)
    inferred: dict[str, Any] = {"text": data.text}
    if data.kind != "raw":
        inferred["label"] = data.label
    notes: list[str] = []
    if task in (Classify, LabelWords, MultiLabel):
        inferred["labels"] = data.labels
        inferred |= _standardisation(data) if data.kind == "number" else {}
        inferred |= _media_fields(data, tokenizer) if data.inputs != "text" else {}
        if data.kind == "classes" and len(data.labels) == 2 and "positive" not in over:
            notes += _positive_notes(data.labels)
    elif task is Tag:
        inferred["tags"] = data.labels
        inferred["piece"] = "last" if sees_all_at_last_token(config.get_text_config()) else "first"
    elif task is ExtractiveQA:
        inferred["abstains"] = any(not row[data.label] for row in data.train)
        if "max_length" in over:
            inferred["stride"] = min(default_of(ExtractiveQA, "stride"), over["max_length"] // 3)
    elif task is Generate:
        inferred |= _generation_fields(data, tokenizer, over, notes)
    elif task is Prefer:
        inferred |= _preference_fields(data, tokenizer, over, notes)
    elif task is TextToImage and "resolution" not in over:
        inferred["resolution"] = tokenizer.resolution  # of an ImagePipeline
        notes.append(
            f"pictures of {inferred['resolution']} x {inferred['resolution']} pixels, those of the model's config"
        )
    chosen = task(**{**inferred, **over})
    if data.metric in chosen.metrics and "metric" not in over:
        chosen = replace(chosen, metric=data.metric)
        notes.append(f"{data.name} is scored by {data.metric}, its published metric; --metric chooses another one")
    return InferredTask(chosen, tuple(notes))


def _mixture_for(
    data: MixtureData, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any]
) -> InferredTask:
    """The mixture of the parts' tasks; `over["parts"]` sets fields of the parts."""
    fields_of = over.get("parts") or {}
    parts = {name: task_for(part, config, tokenizer, fields_of.get(name)) for name, part in data.parts.items()}
    notes = [f"{name}: {note}" for name, part in parts.items() for note in part.notes]
    mixture = Mixture({name: part.task for name, part in parts.items()}, over.get("temperature", 1.0))
    shares = mixture.shares({name: len(part.train) for name, part in data.parts.items()})
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    lower = [f"{n}.{p.metric}" for n, p in mixture.parts.items() if lower_is_better(p.metric)]
    notes.append(
        f"rows are sampled by size with temperature {mixture.temperature:g}: {listed}; each row weighs the same"
    )
    if lower:
        notes.append(f"in the mean score m counts as 1/(1 + m) for {', '.join(lower)}, where lower is better")
    return InferredTask(mixture, tuple(notes))


def check_task_fields(data: Data, over: Mapping[str, Any]) -> None:
    """Raise DeltatuneError listing the given fields that the task of these data does not have."""
    if not isinstance(data, MixtureData):
        _refuse_text_fields(data, over)
        check_fields_of(task_class(data.kind, over), over)
        return
    check_fields_of(Mixture, over)
    parts = over.get("parts") or {}
    raise_all([
        f"{name!r} is not a part of this mixture{nearest(name, data.parts)}; parts: {', '.join(data.parts)}"
        for name in parts
        if name not in data.parts
    ])  # fmt: skip
    for name, values in parts.items():
        _refuse_text_fields(data.parts[name], values or {})
        check_fields_of(task_class(data.parts[name].kind, values or {}), values or {})


def task_class(kind: LabelKind, over: Mapping[str, Any]) -> type[Task]:
    """The class of the task of data of a kind: label words for classes where a template or words are given.

    Raises DeltatuneError for a template or words with labels of another kind.
    """
    asked = [name for name in ("template", "words") if over.get(name)]
    if asked and kind != "classes":
        raise DeltatuneError(
            f"{' and '.join(asked)}: label words are for one class a row, and these data are for "
            f"{DATA_TASKS[kind].__name__}; leave {'them' if asked[1:] else 'it'} out"
        )
    if asked:
        return LabelWords
    own = {field.name for field in fields(LabelWords)} - {field.name for field in fields(Classify)}
    if kind == "classes" and (alone := [name for name in over if name in own]):
        raise DeltatuneError(
            f"{', '.join(alone)}: a field of label words, which need a template too, such as "
            "template='{text} It was {mask}.'"
        )
    return DATA_TASKS[kind]


def task_classes(data: Data, over: Mapping[str, Any]) -> list[type[Task]]:
    """The class of the task of these data, or those of a mixture's parts, with these fields."""
    if not isinstance(data, MixtureData):
        return [task_class(data.kind, over)]
    fields_of = over.get("parts") or {}
    return [task_class(part.kind, fields_of.get(name) or {}) for name, part in data.parts.items()]


def check_fields_of(task: type[Task], over: Mapping[str, Any]) -> None:
    """Raise DeltatuneError listing the given fields that this class of task does not have."""
    names = [field.name for field in fields(task)]  # type: ignore[arg-type]
    raise_all([
        f"{task.__name__} has no {name!r}{nearest(name, names)}; it has: {', '.join(names)}"
        for name in over
        if name not in names
    ])  # fmt: skip


def shorter(task: Any, positions: int | None) -> Any:
    """The task with a max_length of at most this many positions."""
    if positions is None or task.max_length <= positions:
        return task
    if isinstance(task, Mixture):
        return replace(task, parts={name: shorter(part, positions) for name, part in task.parts.items()})
    limits: dict[str, Any] = {"max_length": max(2, positions)}
    if isinstance(task, ExtractiveQA):
        limits["stride"] = min(task.stride, positions // 3)
    if isinstance(task, Generate):
        limits["new_tokens"] = min(task.new_tokens, max(1, positions // 2))
    if isinstance(task, Reason):
        limits["answer_tokens"] = min(task.answer_tokens, max(1, positions // 4))
    return replace(task, **limits)


def _positive_notes(labels: Sequence[str]) -> list[str]:
    """What to say where no rule tells which of two classes is the positive one."""
    if positive_class(labels) is not None:
        return []
    first, last = labels
    return [
        f"f1, precision and recall are of {last!r}, the last of the two classes: their names do not say which one is "
        f"positive; --positive {shlex.quote(first)} chooses the other"
    ]


TEXT_FIELDS = ("max_length", "template", "words", "mark")
"""Fields of tasks that are for text alone."""


def _refuse_text_fields(data: Data, over: Mapping[str, Any]) -> None:
    """Raise DeltatuneError for fields of texts where rows are files, and for those of sounds where they are not."""
    given = [name for name in TEXT_FIELDS if over.get(name)] if data.inputs != "text" else []
    raise_all([f"{name}: it is for texts, and these rows hold {data.inputs} files; leave it out" for name in given])
    if over.get("max_seconds") and data.inputs != "audio":
        raise DeltatuneError(f"max_seconds: it is for sounds, and these rows hold {data.inputs}; leave it out")


def _media_fields(data: Data, processor: Any) -> dict[str, Any]:
    """What a row is, and of sounds the longest one."""
    if data.inputs == "image":
        return {"inputs": "image"}
    return {
        "inputs": "audio",
        "max_seconds": longest_sound(data.train, data.text[0], getattr(processor, "longest_seconds", None)),
    }


def _standardisation(data: Data) -> dict[str, float]:
    """Mean and standard deviation of the training values, so that a head that starts at zero predicts their mean."""
    values = [float(row[data.label]) for row in data.train if is_number(row.get(data.label))]
    center, scale = (float(np.mean(values)), float(np.std(values))) if values else (0.0, 1.0)
    return {"center": float(f"{center:.6g}"), "scale": float(f"{scale:.6g}") or 1.0}


def _generation_fields(
    data: Data, tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Prompt, length of answers and metric for text generation."""
    chat = data.text == ("messages",)
    prompt = over.get("prompt") or _prompt(data.text, bool(tokenizer.chat_template))
    answers = [_answer(row, data.label, chat) for row in data.train[:ANSWERS_MEASURED]]
    new_tokens = _new_tokens(answers, tokenizer, over, notes)
    if "prompt" not in over:
        notes.append(_prompt_note(prompt))
    has_references = any(len(row.get("references") or ()) > 1 for row in data.validation)
    return {
        "prompt": prompt,
        "new_tokens": new_tokens,
        "metric": "bleu" if has_references else "rougeL",
        "characters": _without_spaces(answers),
        "max_length": max(512, 2 * new_tokens),
    }


def _preference_fields(
    data: Data, tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Prompt and lengths for preferences."""
    rows = data.train[:ANSWERS_MEASURED]
    answers = [str(row[column]) for row in rows for column in (data.label, REJECTED)]
    new_tokens = _new_tokens(answers, tokenizer, over, notes)
    prompt = over.get("prompt") or _pair_prompt(rows, data.text, answers, bool(tokenizer.chat_template))
    if "prompt" not in over:
        notes.append(_prompt_note(prompt))
    return {"prompt": prompt, "new_tokens": new_tokens, "max_length": max(512, 2 * new_tokens)}


def _pair_prompt(rows: Sequence[Mapping[str, Any]], text: Sequence[str], answers: Sequence[str], template: bool) -> str:
    """chat for conversations; the text as it is where most answers go on behind it, with a blank."""
    if any(not isinstance(row[text[0]], str) for row in rows):
        return "chat"
    if len(text) == 1 and 2 * sum(answer[:1].isspace() for answer in answers) > len(answers):
        return f"{{{text[0]}}}"
    return _prompt(text, template)


def _prompt_note(prompt: str) -> str:
    return f"the prompt is {prompt}, inferred from the columns; others: {', '.join(PRESETS)}, or a template"


def _new_tokens(
    answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, over: Mapping[str, Any], notes: list[str]
) -> int:
    """The limit of generated answers in tokens: what nearly all of these answers need."""
    tokens = tokenizer(list(answers), add_special_tokens=False, verbose=False)["input_ids"] if answers else []
    lengths = [len(ids) for ids in tokens]
    quantile = int(np.quantile(lengths, 0.99)) + 1 if lengths else default_of(Generate, "new_tokens")
    limit = min(LONGEST_ANSWER, max(1, over.get("max_length", 2 * LONGEST_ANSWER) // 2))
    new_tokens = over.get("new_tokens", min(limit, -(-quantile // LENGTH_MULTIPLE) * LENGTH_MULTIPLE))
    if "new_tokens" not in over:
        share = float(np.mean([length < new_tokens for length in lengths])) if lengths else 0.0
        known = f": {share:.0%} of the training answers have fewer" if lengths else ""
        notes.append(f"answers may have {new_tokens} tokens{known}")
    return int(new_tokens)


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
