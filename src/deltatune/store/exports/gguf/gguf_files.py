"""GGUF files: a whole model, or a LoRA alone, which llama.cpp applies with a scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data.formats.file_format import first_few
from deltatune.store.exports.gguf.gguf_families import (
    FAMILIES,
    Values,
    metadata,
    placed,
    rotation_factors,
    row_order,
    turned_rows,
)
from deltatune.store.exports.gguf.gguf_package import gguf_package
from deltatune.store.exports.lora_factors import LoRAFactors

QUANTIZATIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""GGUF's name of each type."""
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}
"""Numbers of `general.file_type`."""
BLOCK = 32
"""Values of one block of Q8_0, which lie in one row."""


def write_model(
    source: Path, kind: str, config: Any, tokenizer: Values, file: Path, dtype: str, title: str
) -> list[str]:
    """Write a model folder of transformers (safetensors) as one GGUF file. Returns the names of its tensors.

    tokenizer: its metadata, as `tokenizer_metadata` makes it.
    """
    gguf = gguf_package()
    writer = gguf.GGUFWriter(file, FAMILIES[kind].arch)
    writer.add_type("model")
    writer.add_name(title)
    _add_values(writer, kind, metadata(kind, config))
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in tokenizer.items():
        _add(writer, key if key == "chat_template" else f"ggml.{key}", value, "tokenizer.")
    factors = rotation_factors(kind, config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    names = _names(gguf, kind, config)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    written, lost = [], []
    for name, tensor in _tensors(source):
        if any(part in name for part in FAMILIES[kind].left_out) or (tied and name == "lm_head.weight"):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            lost.append(name)
            continue
        _add_tensor(gguf, writer, target, placed(kind, config, name, tensor), dtype)
        written.append(target)
    raise_all([f"llama.cpp's {FAMILIES[kind].arch} has no place for {first_few(lost, 4)}"] if lost else [])
    _finish(writer)
    return written


def write_adapter(kind: str, config: Any, factors: LoRAFactors, file: Path, dtype: str, title: str) -> None:
    """Write a LoRA alone. llama.cpp multiplies BA by alpha / rank, and by the scale with which it is applied."""
    gguf = gguf_package()
    writer = gguf.GGUFWriter(file, FAMILIES[kind].arch)
    writer.add_type("adapter")
    writer.add_name(title)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", factors.scale * factors.rank)
    for name, tensor in adapter_tensors(kind, config, factors).items():
        _add_tensor(gguf, writer, name, tensor, dtype)
    _finish(writer)


def adapter_tensors(kind: str, config: Any, factors: LoRAFactors) -> dict[str, Tensor]:
    """A (R, in) and B (out, R) by GGUF's names, B's rows in the architecture's order."""
    names = _names(gguf_package(), kind, config)
    tensors = {}
    for path, (a, b) in factors.pairs.items():
        target = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        if target is None:
            raise DeltatuneError(f"llama.cpp's {FAMILIES[kind].arch} has no place for a change of {path}")
        heads = row_order(kind, config, path)
        tensors[f"{target}.lora_a"] = a
        tensors[f"{target}.lora_b"] = turned_rows(b, heads) if heads else b
    return tensors


def has_place(kind: str, config: Any, path: str) -> bool:
    """Whether the architecture has a tensor for the weight of a module."""
    return _names(gguf_package(), kind, config).get_name(f"{path}.weight", try_suffixes=(".weight",)) is not None


# ---- inside


def _names(gguf: Any, kind: str, config: Any) -> Any:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == FAMILIES[kind].arch)
    return gguf.get_tensor_name_map(arch, config.num_hidden_layers)


def _tensors(source: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder, one at a time."""
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise DeltatuneError(f"{source} holds no safetensors")
    for file in files:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (no mapping)
                yield name, content.get_tensor(name)


def _add_values(writer: Any, kind: str, values: Values) -> None:
    for key, value in values.items():
        _add(writer, key, value, f"{FAMILIES[kind].arch}.")


def _add(writer: Any, key: str, value: Any, prefix: str) -> None:
    """Add a value with the type that GGUF has for it."""
    if isinstance(value, bool):
        writer.add_bool(prefix + key, value)
    elif isinstance(value, str):
        writer.add_string(prefix + key, value)
    elif isinstance(value, int):
        writer.add_uint32(prefix + key, value)
    elif isinstance(value, float):
        writer.add_float32(prefix + key, value)
    else:
        writer.add_array(prefix + key, value)


def _add_tensor(gguf: Any, writer: Any, name: str, tensor: Tensor, dtype: str) -> None:
    """Add a tensor; vectors stay float32, and rows that Q8_0's blocks do not divide become float16."""
    values = tensor.detach().to(torch.float32).contiguous().cpu().numpy()
    stored = "float32" if values.ndim == 1 else dtype
    if stored == "q8_0" and values.shape[-1] % BLOCK:
        stored = "float16"
    if stored == "float32":
        writer.add_tensor(name, values)
    elif stored == "float16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        code = gguf.GGMLQuantizationType[QUANTIZATIONS[stored]]
        writer.add_tensor(name, gguf.quants.quantize(values, code), raw_dtype=code)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_tensors(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a GGUF file by name, as float32."""
    gguf = gguf_package()
    reader = gguf.GGUFReader(file)
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
