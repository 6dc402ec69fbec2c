"""Initialisation of a model for pretraining: new weights for a missing head, or for a whole model of a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from deltatune.core.errors import DeltatuneError, OutOfMemory, is_out_of_memory
from deltatune.core.input_validation.regular_files import check_regular
from deltatune.core.registry import parse
from deltatune.methods.base_weights.unfreeze import Unfreeze
from deltatune.models.loading import auto_class, find_config, load_tokenizer, quiet
from deltatune.store.atomic_files import MANIFEST, check_folder, digest, read_json, write_folder, write_json
from deltatune.store.fingerprint import contents_of
from deltatune.tasks import Task, tokenizer_fingerprint

START, ORIGIN = "start", "origin.json"
"""Folder of the initialised model within a run, and in it what the model was made of."""


def initial_model(
    model: str,
    config: Path | None,
    tokenizer: str | None,
    objective: Task,
    method: str,
    folder: Path,
    seed: int,
    force: bool = False,
) -> str:
    """The model that pretraining starts from: `model` itself, or `folder`/start, a model with new weights.

    With `config` all weights are new; otherwise only those of a head that the checkpoint lacks. New weights depend on
    the seed alone. Raises DeltatuneError if the method would not train the new weights, and if the folder holds a start
    that was made of something else, or other files; with `force` that start is made again.
    """
    check_own_folder(folder)
    if config is None and tokenizer is not None:
        raise DeltatuneError("--tokenizer requires --config; a model comes with its own tokenizer")
    start = folder / START
    if config is not None and model != "builtin":
        raise DeltatuneError(
            f"--config {config} starts from new weights, so that --model {model} would not be read; leave one out"
        )
    if config is not None:
        if tokenizer is None:
            raise DeltatuneError("--config requires --tokenizer: the name or folder of a model with the tokenizer")
        check_trains_new_weights(method, "the whole model")
        origin = {
            "config": digest(config_file(config)),
            "tokenizer": tokenizer_fingerprint(load_tokenizer(tokenizer, find_config(tokenizer)[0])),
            "loads": objective.loads,
            "seed": seed,
        }
        return write_once(start, origin, lambda: model_from_config(config, tokenizer, objective.loads, seed), force)
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

    origin = {"model": contents_of(str(path)), "loads": objective.loads, "seed": seed}
    return write_once(start, origin, model_with_new_head, force)


def model_from_config(config: Path, tokenizer_name: str, loads: str, seed: int) -> tuple[Any, Any]:
    """A model with new weights, and its tokenizer. Raises DeltatuneError for a vocabulary that is too small."""
    tokenizer = load_tokenizer(tokenizer_name, find_config(tokenizer_name)[0])
    content = read_json(config_file(config))
    if not isinstance(content.get("model_type"), str):
        raise DeltatuneError(
            f"--config {config} does not name a model_type, such as bert; is it a model's config.json?"
        )
    try:
        model_config = AutoConfig.for_model(**content)
    except (ValueError, TypeError, KeyError) as error:
        raise DeltatuneError(f"--config {config} is not the config of a model: {error}") from None
    vocab_size, last_id = model_config.get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if vocab_size <= last_id:
        raise DeltatuneError(
            f"{config} has a vocab_size of {vocab_size:,}, but the tokenizer has ids up to {last_id:,}; set it to "
            f"{last_id + 1} or more"
        )
    with torch.random.fork_rng([]), quiet():
        torch.manual_seed(seed)
        model_class = auto_class(str(config), model_config, loads)
        try:
            return model_class.from_config(model_config), tokenizer
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(f"a model of --config {config} does not fit into memory: {error}") from None
            raise DeltatuneError(f"--config {config} describes no possible model: {error}") from None


def check_trains_new_weights(method: str, new_part: str) -> None:
    """Raise DeltatuneError unless the method trains every weight: new weights must not stay random."""
    parsed = parse(method)
    if not (isinstance(parsed, Unfreeze) and parsed.layers is None and parsed.part == "all"):
        raise DeltatuneError(
            f"{new_part} is newly initialised, and {parsed!r} would leave the new weights untrained; train Full() first"
        )


def config_file(config: Path) -> Path:
    """The config.json that the option names: the file, or a folder with it."""
    path = config / "config.json" if config.is_dir() else config
    if not config.exists():
        raise DeltatuneError(f"--config {config}: there is no such file")
    check_regular(path, "config")
    return path


def check_own_folder(folder: Path) -> None:
    """Raise DeltatuneError for a folder that holds other things than a pretraining run."""
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    others = sorted(set(others) - {START, "run", "model"})
    if others:
        raise DeltatuneError(
            f"--out {folder} holds files that are not a run of deltatune pretrain ({', '.join(others[:3])}); choose "
            "another folder"
        )


def write_once(folder: Path, origin: dict[str, Any], make: Callable[[], tuple[Any, Any]], force: bool = False) -> str:
    """Write the model and the tokenizer that `make` returns, unless an earlier start of the run has done so.

    `origin`: what they are made of, as plain data. Raises DeltatuneError for an earlier start of another origin.
    """
    if (folder / MANIFEST).is_file() and not force:
        check_folder(folder)
        stored = read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}
        changed = [name for name in dict.fromkeys([*stored, *origin]) if stored.get(name) != origin.get(name)]
        if changed:
            raise DeltatuneError(
                f"{folder} was made from another {', '.join(changed)}; --out NAME keeps both, --force starts again"
            )
        return str(folder)
    model, tokenizer = make()

    def fill(draft: Path) -> None:
        with quiet():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        write_json(draft / ORIGIN, origin)

    write_folder(folder, fill)
    return str(folder)
