"""Stages of a recipe: their progress information, their vocabulary extension, and their evaluation on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.data import Data
from deltatune.methods.base_weights.unfreeze import Probe
from deltatune.models.loading import load_backbone, quiet
from deltatune.store import run_folder
from deltatune.store.atomic_files import read_json, write_folder
from deltatune.tasks import LanguageModel
from deltatune.training.job import Job, Prepared
from deltatune.training.open_session import open_host
from deltatune.training.recipes.check_recipe import TrainingData, load_rows, load_training_data
from deltatune.training.recipes.schema import Training, Vocabulary
from deltatune.training.session import Session
from deltatune.training.tokenizer_extension import add_tokens, learn_tokens, resize_embeddings_, tokens_per_character
from deltatune.training.training_loop.loop import OnStep

RECIPE = "recipe.yaml"
"""Name of the recipe's file in a run's folder."""


@dataclass(frozen=True)
class StageInfo:
    """What is about to run: a stage, or the only training of a recipe without stages."""

    name: str
    folder: Path
    model: str
    """The model it starts from."""
    prepared: Prepared | None = None
    """The training; None for a vocabulary stage, and for a stage that was finished before."""
    finished: bool = False
    """Whether it was finished before and is not run again."""
    number: int = 0
    """Number of the stage, from 1; 0 for a recipe without stages."""
    total: int = 0
    """Number of stages."""


@dataclass(frozen=True)
class AdaptersInfo:
    """Several adapters that are about to be trained together."""

    folder: Path
    model: str
    prepared: Mapping[str, Prepared]
    """Each adapter's training, by name."""
    finished: frozenset[str]
    """Those that were finished before and are not trained again."""


OnStage = Callable[[StageInfo | AdaptersInfo], AbstractContextManager[OnStep | None]]
"""Returns a context around a stage or several adapters, which yields the callback for the steps of a training."""


def silent(stage: StageInfo | AdaptersInfo) -> AbstractContextManager[OnStep | None]:
    """Show nothing."""
    return nullcontext()


def job_of(training: Training, model: str, checked: TrainingData | None = None, quantize: str | None = None) -> Job:
    """The job of a recipe or a stage on this model, stored as `quantize` says."""
    checked = checked or load_training_data(training)
    return Job(
        model,
        checked.data,
        training.asked_method,
        training.budget,
        training.task_fields,
        training.head,
        training.settings,
        checked.objective,
        start=checked.start,
        new_labels=training.new_labels,
        source=training.source,
        quantize=quantize,
        init=training.init,
    )


# ---- evaluation

BLOCK = 256
"""Tokens of a block of text."""


def evaluate_model(
    model: str, fingerprint: str | None, data: Data, path: Path, loads: Any = "text"
) -> dict[str, float]:
    """Tokens per character of the test rows, and for language models `bits_per_char` and other scores.

    The result is stored in the file `path` and read from there if the model and the rows are the same.
    """
    config = {"model": model, "content": fingerprint, "rows": run_folder.data_record(data, data.origin)}
    if path.is_file() and read_json(path).get("asked") == config:
        return dict(read_json(path)["found"])
    host, tokenizer = open_host(model, loads)
    texts = [row[data.text[0]] for row in data.test]
    scores = {"tokens_per_char": float(tokens_per_character(tokenizer, texts))}
    if loads == "text" and not host.sites.facts.encoder_decoder:
        session = Session(model, host, tokenizer, LanguageModel(text=data.text, max_length=BLOCK))
        session.attach(Probe(), 0, head=False)  # the model as it is
        session = session.limited(session.free_positions())
        scores |= session.score(session.encode(data.test))
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_record(path, {"asked": config, "found": scores})
    return scores


# ---- vocabulary

KNOWN_TEXTS = 2000
"""Most texts of the original domain on which a changed tokenization is measured."""


def extend_vocabulary(
    vocabulary: Vocabulary, data: Data, model_name: str, target: Path, loads: Any = "text"
) -> dict[str, Any]:
    """Learn tokens from the training texts and write the model with rows for them; returns what changed."""
    column = data.text[0]
    known = _known_texts(vocabulary)
    model, tokenizer = load_backbone(model_name, answers=loads)
    texts = (row[column] for row in data.train)
    learned = learn_tokens(texts, tokenizer, vocabulary.size, min_count=vocabulary.min_count)
    extended, extension = add_tokens(tokenizer, learned, known_texts=known)
    rows = resize_embeddings_(
        model,
        extended,
        extension.old_size,
        init=vocabulary.init,
        pad_to_multiple_of=vocabulary.pad_to_multiple_of,
    )

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        extended.save_pretrained(folder)

    with quiet():
        write_folder(target, write)
    held_out = [row[column] for row in data.test]
    return {
        "tokens": extension.size,
        "before": extension.old_size,
        "added": len(extension.added),
        "dropped": list(extension.dropped),
        "rows": rows,
        "tokens_per_char": [tokens_per_character(tokenizer, held_out), tokens_per_character(extended, held_out)],
        "known_unchanged": extension.unchanged,
    }


def _known_texts(vocabulary: Vocabulary) -> list[str]:
    if vocabulary.known is None:
        return []
    data = load_rows(vocabulary.known, raw=True)
    return [row[data.text[0]] for rows in data.splits().values() for row in rows][:KNOWN_TEXTS]
