"""Initialisation of a model for pretraining: new weights for a missing head, or for a whole model of a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from deltatune.core.errors import DeltatuneError
from deltatune.core.registry import parse
from deltatune.methods.base_weights.unfreeze import Unfreeze
from deltatune.models.loading import auto_class, find_config, load_tokenizer, quiet
from deltatune.store.atomic_files import MANIFEST, check_folder, write_folder
from deltatune.tasks import Task

START = "start"
"""Folder of the initialised model within a run."""


def initial_model(
    model: str, config: Path | None, tokenizer: str | None, objective: Task, method: str, folder: Path, seed: int
) -> str:
    """The model that pretraining starts from: `model` itself, or `folder`/start, a model with new weights.

    With `config` all weights are new; otherwise only those of a head that the checkpoint lacks. New weights depend on
    the seed alone. Raises DeltatuneError if the method would not train the new weights.
    """
    if config is None and tokenizer is not None:
        raise DeltatuneError("--tokenizer requires --config; a model comes with its own tokenizer")
    start = folder / START
    if config is not None:
        if tokenizer is None:
            raise DeltatuneError("--config requires --tokenizer: the name or folder of a model with the tokenizer")
        check_trains_new_weights(method, "the whole model")
        return write_once(start, lambda: model_from_config(config, tokenizer, objective.loads, seed))
    path, model_config = find_config(model)
    model_class = auto_class(model, model_config, objective.loads)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    with quiet():
        _, report = model_class.from_pretrained(path, **options, output_loading_info=True)
    # load_backbone drops the pooler of a bare model: nothing reads it
    missing = [n for n in report["missing_keys"] if model_class is not AutoModel or not n.startswith("pooler.")]
    if not missing:
        return model
    check_trains_new_weights(method, f"its head ({', '.join(sorted(missing)[:3])}, ...)")

    def model_with_new_head() -> tuple[Any, Any]:
        with torch.random.fork_rng([]), quiet():
            torch.manual_seed(seed)
            return model_class.from_pretrained(path, **options), load_tokenizer(model, path)

    return write_once(start, model_with_new_head)


def model_from_config(config: Path, tokenizer_name: str, loads: str, seed: int) -> tuple[Any, Any]:
    """A model with new weights, and its tokenizer. Raises DeltatuneError for a vocabulary that is too small."""
    if not config.exists():
        raise DeltatuneError(f"--config {config}: there is no such file")
    tokenizer = load_tokenizer(tokenizer_name, find_config(tokenizer_name)[0])
    model_config = AutoConfig.from_pretrained(config)
    vocab_size, last_id = model_config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if vocab_size <= last_id:
        raise DeltatuneError(
            f"{config} has a vocab_size of {vocab_size:,}, but the tokenizer has ids up to {last_id:,}; set it to "
            f"{last_id + 1} or more"
        )
    with torch.random.fork_rng([]), quiet():
        torch.manual_seed(seed)
        return auto_class(str(config), model_config, loads).from_config(model_config), tokenizer


def check_trains_new_weights(method: str, new_part: str) -> None:
    """Raise DeltatuneError unless the method trains every weight: new weights must not stay random."""
    parsed = parse(method)
    if not (isinstance(parsed, Unfreeze) and parsed.layers is None and parsed.part == "all"):
        raise DeltatuneError(
            f"{new_part} is newly initialised, and {parsed!r} would leave the new weights untrained; train Full() first"
        )


def write_once(folder: Path, make: Callable[[], tuple[Any, Any]]) -> str:
    """Write the model and the tokenizer that `make` returns, unless an earlier start of the run has done so."""
    if (folder / MANIFEST).is_file():
        check_folder(folder)
        return str(folder)
    model, tokenizer = make()

    def fill(draft: Path) -> None:
        with quiet():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)

    write_folder(folder, fill)
    return str(folder)
