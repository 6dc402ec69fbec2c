"""What a model makes of held-out text, before and after each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltatune.core.host import Host
from deltatune.data import Data
from deltatune.methods.unfreeze import Probe
from deltatune.store import runs
from deltatune.store.atomic import read_json
from deltatune.tasks import LanguageModel, longest_input
from deltatune.tasks.backbone import best_device, load_backbone
from deltatune.training.job import NAME
from deltatune.training.predict import predict
from deltatune.training.vocabulary import tokens_per_character

BLOCK = 256
"""Tokens that are read at once."""


def measured(model_name: str, content: str | None, data: Data, place: Path, loads: Any = "text") -> dict[str, float]:
    """Tokens per character of the test rows, and of models that write `bits_per_char` and more.

    Kept in the file `place`: asked again of the same model and rows, they are read from there.
    """
    asked = {"model": model_name, "content": content, "rows": runs.data_record(data, data.origin)}
    if place.is_file() and read_json(place).get("asked") == asked:
        return dict(read_json(place)["found"])
    model, tokenizer = load_backbone(model_name, answers=loads)
    texts = [row[data.text[0]] for row in data.test]
    found = {"tokens_per_char": float(tokens_per_character(tokenizer, texts))}
    if loads in ("text", "words") and not model.config.is_encoder_decoder:
        host = Host(model.to(best_device()))  # type: ignore[arg-type]
        host.attach(NAME, Probe(), head=False)  # nothing: the model as it is
        task = LanguageModel(text=data.text, max_length=min(BLOCK, longest_input(model) or BLOCK))
        encoded = task.encode(data.test, tokenizer)
        found |= task.score(predict(host, NAME, task, encoded, tokenizer), encoded.references)
    place.parent.mkdir(parents=True, exist_ok=True)
    runs.write_whole(place, {"asked": asked, "found": found})
    return found
