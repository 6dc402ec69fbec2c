"""What a model makes of held-out text, before and after each stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.data import Data
from deltatune.methods.base_weights.unfreeze import Probe
from deltatune.models.loading import load_backbone, quiet
from deltatune.store import run_folder as runs
from deltatune.store.atomic_files import read_json, write_folder
from deltatune.tasks import LanguageModel, longest_input
from deltatune.training.inference.prediction import predict
from deltatune.training.job import Job, Prepared
from deltatune.training.loop import OnStep
from deltatune.training.recipes.check_recipe import Looked, look, rows_of
from deltatune.training.recipes.schema import Run, Words
from deltatune.training.session import NAME, open_host
from deltatune.training.tokenizer_extension import grow_embeddings_, learn_tokens, merge, tokens_per_character

BLOCK = 256
"""Tokens that are read at once."""


def measured(model_name: str, content: str | None, data: Data, place: Path, loads: Any = "text") -> dict[str, float]:
    """Tokens per character of the test rows, and of models that write `bits_per_char` and more.

    Kept in the file `place`: asked again of the same model and rows, they are read from there.
    """
    asked = {"model": model_name, "content": content, "rows": runs.data_record(data, data.origin)}
    if place.is_file() and read_json(place).get("asked") == asked:
        return dict(read_json(place)["found"])
    host, tokenizer = open_host(model_name, loads)
    texts = [row[data.text[0]] for row in data.test]
    found = {"tokens_per_char": float(tokens_per_character(tokenizer, texts))}
    if loads in ("text", "words") and not host.sites.facts.encoder_decoder:
        host.attach(NAME, Probe(), head=False)  # nothing: the model as it is
        task = LanguageModel(text=data.text, max_length=min(BLOCK, longest_input(host.model) or BLOCK))
        encoded = task.encode(data.test, tokenizer)
        found |= task.score(predict(host, NAME, task, encoded, tokenizer), encoded.references)
    place.parent.mkdir(parents=True, exist_ok=True)
    runs.write_whole(place, {"asked": asked, "found": found})
    return found


PROBES = 2000
"""Texts that tell how much of what the model reads already is cut as before."""


def grown(words: Words, data: Data, model_name: str, target: Path, loads: Any = "text") -> dict[str, Any]:
    """Learn words from the training texts and write the model with room for them; returns what changed."""
    column = data.text[0]
    known = _texts(words)
    model, tokenizer = load_backbone(model_name, answers=loads)
    learned = learn_tokens((row[column] for row in data.train), tokenizer, words.size, min_count=words.min_count)
    bigger, growth = merge(tokenizer, learned, probes=known)
    rows = grow_embeddings_(
        model, bigger, growth.old_size, init=words.init, pad_to_multiple_of=words.pad_to_multiple_of
    )

    def fill(work: Path) -> None:
        model.save_pretrained(work)
        bigger.save_pretrained(work)

    with quiet():
        write_folder(target, fill)
    held_out = [row[column] for row in data.test]
    return {
        "tokens": growth.size,
        "before": growth.old_size,
        "added": len(growth.added),
        "dropped": list(growth.dropped),
        "rows": rows,
        "tokens_per_char": [tokens_per_character(tokenizer, held_out), tokens_per_character(bigger, held_out)],
        "known_unchanged": growth.unchanged,
    }


def _texts(words: Words) -> list[str]:
    if words.known is None:
        return []
    data = rows_of(words.known, raw=True)
    return [row[data.text[0]] for rows in data.splits().values() for row in rows][:PROBES]


RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Step:
    """What is about to be done."""

    name: str
    folder: Path
    model: str
    """What it starts from."""
    ready: Prepared | None = None
    """The training; None where nothing is trained, and for a stage that was finished before."""
    finished: bool = False
    """Whether it was done before, and is not done again."""
    number: int = 0
    """Which of the stages it is, from 1; 0 without stages."""
    of: int = 0
    """How many stages there are."""


Watch = Callable[[Step], AbstractContextManager[OnStep | None]]
"""A context for a step, which yields what is called after each step of its training."""


def unwatched(step: Step) -> AbstractContextManager[OnStep | None]:
    """Nothing is shown."""
    return nullcontext()


def job_of(part: Run, model: str, found: Looked | None = None) -> Job:
    """What a recipe or a stage asks for."""
    found = found or look(part)
    return Job(model, found.data, part.method, part.budget, part.task, part.head, part.settings, found.objective)
