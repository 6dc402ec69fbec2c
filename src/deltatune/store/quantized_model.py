"""Saving a quantised model as a folder that transformers reads, with bitsandbytes, and deltatune without."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import FourBit, Scheme
from deltatune.core.quantization.stored_weights import is_linear, stored_bytes
from deltatune.models.loading import quiet
from deltatune.models.quantization.streaming import load_streamed
from deltatune.store.atomic_files import read_json, write_folder, write_json

CONFIG = "config.json"
WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class SavedQuantized:
    """The result of saving a quantised model."""

    folder: Path
    """The model's folder, for `load_backbone` and `from_pretrained`."""
    scheme: Scheme
    """How its linear maps are stored."""
    bytes: int
    """Bytes of its weight files."""
    notes: tuple[str, ...] = ()
    """What other programs cannot do with it."""


def save_quantized(
    model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> SavedQuantized:
    """Write a model that `quantize_` or `load_backbone(quantize=...)` made as a model folder, atomically.

    The tensors have bitsandbytes' names, and config.json says how they are stored: `from_pretrained` of transformers
    reads the folder where bitsandbytes is installed, `load_backbone` anywhere. What was written is read back and
    compared bit by bit. Adapters of a Host are no part of it. Raises DeltatuneError for a model without quantised
    weights or with several schemes, a folder with other content, and a file that does not read back; then no folder is
    written.
    """
    if not isinstance(model, PreTrainedModel):
        raise DeltatuneError(f"{type(model).__name__} is not a model of transformers and has no folder format")
    maps = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    schemes = list({module.scheme: None for module in maps.values()})
    if not maps:
        raise DeltatuneError("this model has no weights that quantize_ made; quantise it first, or use save_pretrained")
    if len(schemes) > 1:
        raise DeltatuneError(
            f"the weights are stored in several ways, {', '.join(scheme.text for scheme in schemes)}; a folder has one"
        )
    entry, notes = quantization_config(model, schemes[0], maps)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("deltatune.")}
    written = 0

    def fill(work: Path) -> None:
        nonlocal written
        before = copy.copy(vars(model.config))
        try:
            type(model).save_pretrained(model, work, state_dict=dict(state))
        finally:  # it names its own class and type in the config
            vars(model.config).clear()
            vars(model.config).update(before)
        config = {key: value for key, value in read_json(work / CONFIG).items() if key != "deltatune"}
        write_json(work / CONFIG, {**config, "quantization_config": entry})
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        _verify(model, work, state)
        written = sum(file.stat().st_size for file in work.glob(WEIGHTS))

    with quiet():
        write_folder(Path(folder), fill, stored_bytes(model))
    return SavedQuantized(Path(folder), schemes[0], written, notes)


def quantization_config(
    model: PreTrainedModel, scheme: Scheme, maps: Mapping[str, QuantizedLinear]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The entry of config.json that tells transformers how the weights are stored, and notes on what it cannot say."""
    entry: dict[str, Any] = {"quant_method": "bitsandbytes", "llm_int8_threshold": 6.0}
    four = isinstance(scheme, FourBit)
    entry |= {"load_in_4bit": four, "load_in_8bit": not four}
    if isinstance(scheme, FourBit):
        entry |= {
            "bnb_4bit_quant_type": scheme.name,
            "bnb_4bit_use_double_quant": scheme.double,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
        }
    with torch.device("meta"), quiet():
        plain = type(model)(copy.deepcopy(model.config))
    linear = {path: module for path, module in plain.named_modules() if is_linear(module)}
    entry["llm_int8_skip_modules"] = _skipped(model, [path for path in linear if path not in maps], list(maps))
    kept = list(getattr(plain, "_keep_in_fp32_modules", None) or [])
    held = [path for path in maps if not should_convert_module(path, kept)]
    other = [path for path in maps if path in linear and type(linear[path]) not in (nn.Linear, Conv1D)]
    notes = []
    if held or other:
        what = f"keeps {held[0]} in float32" if held else f"quantises no {type(linear[other[0]]).__name__}"
        notes.append(
            f"transformers {what} and cannot load this folder; deltatune can. For transformers quantise with --sites "
            f"that leave out {len({*held, *other})} of the {len(maps)} matrices"
        )
    if isinstance(scheme, FourBit):
        uneven = [path for path, module in maps.items() if module.in_features % scheme.block]
        if uneven:
            notes.append(
                f"{len(uneven)} matrices have rows that are no whole number of blocks of {scheme.block}, such as "
                f"{uneven[0]}: bitsandbytes 0.50 fails or computes wrongly there on a CPU"
            )
    return entry, tuple(notes)


def _skipped(model: PreTrainedModel, plain: Sequence[str], quantized: Sequence[str]) -> list[str]:
    """Names for `llm_int8_skip_modules`, with which transformers leaves the plain maps alone and no others.

    A model may be loaded with a head or without: names are listed with the prefix of the bare model and without. A name
    that also fits a quantised map, as transformers reads it, is written as an expression that fits itself alone.
    """
    prefix = f"{model.base_model_prefix}."
    names = list(dict.fromkeys(name for path in plain for name in (path, path.removeprefix(prefix))))
    bare = [name for path in quantized for name in (path, path.removeprefix(prefix), prefix + path)]

    def exact(name: str) -> str:
        fits_others = not all(should_convert_module(path, [name]) for path in bare)
        return f"^({re.escape(prefix)})?{re.escape(name)}$" if fits_others else name

    return [exact(name) for name in names]


def _verify(model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Raise DeltatuneError unless the folder holds a model with the same tensors, bit by bit."""
    config = type(model.config).from_pretrained(folder)
    loaded, report = load_streamed(type(model), str(folder), config, None)
    read = loaded.state_dict()
    left_out = {str(name) for name in report["missing_keys"]}  # a pooler that was dropped at loading comes back empty
    wrong = sorted(({*state} ^ {*read}) - left_out) + [
        name for name in state if name in read and not _same(state[name].detach().cpu(), read[name])
    ]
    if wrong:
        raise DeltatuneError(
            f"the quantised model, read back, differs in {len(wrong)} tensors, such as {wrong[0]}; nothing was written"
        )


def _same(written: Tensor, read: Tensor) -> bool:
    """Whether two tensors hold the same values; 16-bit weights are read as float32."""
    return torch.equal(written.to(read.dtype) if written.is_floating_point() else written, read)
