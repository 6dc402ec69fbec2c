"""The stage that gives a model new words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltatune.data import Data
from deltatune.store.atomic import write_folder
from deltatune.tasks.backbone import load_backbone, quiet
from deltatune.training.recipes.checking import rows_of
from deltatune.training.recipes.schema import Words
from deltatune.training.vocabulary import grow_embeddings_, learn_tokens, merge, tokens_per_character

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
