"""Where pretraining begins: a checkpoint that has the head an objective needs, or a new model that gets one."""

from __future__ import annotations

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


def initial_model(
    model: str, config: Path | None, tokenizer: str | None, objective: Task, method: str, folder: Path, seed: int
) -> str:
    """The model to train from: `model` itself, or `folder`/start, a model with new weights where some were missing.

    With `config` all weights are new; else only those of a head that the checkpoint lacks. New weights depend on the
    seed alone. Raises DeltatuneError where new weights would stay what they are because the method does not train them.
    """
    loads = objective.loads
    if config is None and tokenizer is not None:
        raise DeltatuneError("--tokenizer belongs to --config; a model comes with its own")
    if config is not None:
        if tokenizer is None:
            raise DeltatuneError("--config needs --tokenizer: a model folder or name whose tokenizer cuts the text")
        return _kept(folder / START, lambda: _from_config(config, tokenizer, loads, seed), method, "the whole model is")
    place, known = find_config(model)
    kind = auto_class(model, known, loads)
    with quiet():
        _, report = kind.from_pretrained(place, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    # load_backbone drops the pooler of a bare model: nothing reads it
    missing = [name for name in report["missing_keys"] if kind is not AutoModel or not name.startswith("pooler.")]
    if not missing:
        return model
    names = ", ".join(sorted(missing)[:3])

    def make() -> tuple[Any, Any]:
        with torch.random.fork_rng([]), quiet():
            torch.manual_seed(seed)
            return kind.from_pretrained(place, dtype=torch.float32, use_safetensors=True), load_tokenizer(model, place)

    return _kept(folder / START, make, method, f"its head is ({names}, ...)")


def _from_config(config: Path, tokenizer: str, loads: str, seed: int) -> tuple[Any, Any]:
    if not config.exists():
        raise DeltatuneError(f"--config {config}: there is no such file")
    words = load_tokenizer(tokenizer, find_config(tokenizer)[0])
    found = AutoConfig.from_pretrained(config)
    last = max(words.get_vocab().values())
    if found.get_text_config().vocab_size <= last:
        raise DeltatuneError(
            f"{config} has a vocab_size of {found.get_text_config().vocab_size:,}, but the tokenizer has ids up to "
            f"{last:,}; set it to {last + 1} or more"
        )
    with torch.random.fork_rng([]), quiet():
        torch.manual_seed(seed)
        return auto_class(str(config), found, loads).from_config(found), words


def _kept(place: Path, make: Any, method: str, what: str) -> str:
    """The folder of a model with new weights, written once."""
    trained = parse(method)
    whole = isinstance(trained, Unfreeze) and trained.layers is None and trained.part == "all"
    if not whole:
        raise DeltatuneError(
            f"{what} new here, and {trained!r} would leave new weights as random as they are; train Full() first"
        )
    if (place / MANIFEST).is_file():
        check_folder(place)
        return str(place)
    model, tokenizer = make()

    def fill(work: Path) -> None:
        with quiet():
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)

    write_folder(place, fill)
    return str(place)
