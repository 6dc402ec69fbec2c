"""Model families that can be written as GGUF: which of llama.cpp's architectures computes the same, and with which
parameters. Everything in a config that such an architecture does not compute is a reason not to write the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = dict[str, Any]
"""Metadata by the key without the architecture's prefix."""


@dataclass(frozen=True)
class GGUFFamily:
    """One architecture of llama.cpp."""

    arch: str
    """Its name there."""
    activation: str
    """The activation that it computes."""
    turned: bool = False
    """Whether the rows of q and k stand in the order of the original Llama: pairs of a rotation side by side."""
    transposed: tuple[str, ...] = ()
    """Last parts of modules whose weight transformers stores (in, out)."""
    left_out: tuple[str, ...] = ()
    """Parts of names of tensors that are no weights."""
    rope: bool = True
    sliding: bool = False
    """Whether its config may ask for sliding windows, which llama.cpp's architecture does not have."""


FAMILIES: Mapping[str, GGUFFamily] = {
    "LlamaForCausalLM": GGUFFamily("llama", "silu", turned=True),
    "MistralForCausalLM": GGUFFamily("llama", "silu", turned=True, sliding=True),
    "Qwen2ForCausalLM": GGUFFamily("qwen2", "silu", sliding=True),
    "Qwen3ForCausalLM": GGUFFamily("qwen3", "silu", sliding=True),
    "GPT2LMHeadModel": GGUFFamily(
        "gpt2",
        "gelu_new",
        transposed=("c_attn", "c_proj", "c_fc"),
        left_out=(".attn.bias", ".attn.masked_bias"),
        rope=False,
    ),
}
"""By the class of transformers."""


def family_obstacles(kind: str, config: Any) -> list[str]:
    """Why a model of this class and config has no exact GGUF form here."""
    if kind not in FAMILIES:
        return [
            f"{kind} has no GGUF form here; there are: {', '.join(FAMILIES)}. Write the merged model (`deltatune "
            "merge`) and let llama.cpp's convert_hf_to_gguf.py convert its folder"
        ]
    family = FAMILIES[kind]
    problems = []
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    if activation != family.activation:
        problems.append(f"its activation is {activation}, and llama.cpp's {family.arch} computes {family.activation}")
    if family.rope and (kind_of_rope := _rope(config).get("rope_type", "default")) not in (
        "default",
        "linear",
        "llama3",
    ):
        problems.append(f"its positions are of type {kind_of_rope}; default, linear and llama3 can be written")
    for field, plain in _FIXED.items():
        if getattr(config, field, plain) != plain:
            problems.append(f"{field} is {getattr(config, field)}, and llama.cpp's {family.arch} computes {plain}")
    return problems


_FIXED = {
    "mlp_bias": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "partial_rotary_factor": 1.0,
}
"""Fields of configs that have one value in llama.cpp's architectures."""


def family_notes(kind: str, config: Any) -> list[str]:
    """What the file computes otherwise, where that is only in long texts."""
    window = getattr(config, "sliding_window", None)
    if FAMILIES[kind].sliding and window and getattr(config, "use_sliding_window", True):
        return [f"texts of more than {window} tokens differ: llama.cpp has no sliding window for this architecture"]
    return []


def metadata(kind: str, config: Any) -> Values:
    """The parameters of the architecture, by the keys of GGUF without its prefix."""
    if kind == "GPT2LMHeadModel":
        return {
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "block_count": config.n_layer,
            "feed_forward_length": config.n_inner or 4 * config.n_embd,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        }
    head = head_width(config)
    values: Values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(_rope(config).get("rope_theta", 10000.0)),
        "vocab_size": config.vocab_size,
    }
    if _rope(config).get("rope_type") == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(_rope(config)["factor"])}
    return values


def head_width(config: Any) -> int:
    """K: the width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rotation_factors(kind: str, config: Any) -> np.ndarray[Any, Any] | None:
    """Divisors (K/2,) of the rotation's frequencies for Llama 3.1's longer texts; None for all others."""
    rope = _rope(config)
    if not FAMILIES[kind].rope or rope.get("rope_type") != "llama3":
        return None
    width, base = head_width(config), float(rope.get("rope_theta", 10000.0))
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = float(rope["original_max_position_embeddings"])
    divisors = []
    for pair in range(width // 2):
        waves = old * base ** (-2 * pair / width) / (2 * math.pi)  # turns of this pair within the old length
        share = min(max((waves - low) / (high - low), 0.0), 1.0)  # 1: as before; 0: stretched by the factor
        divisors.append(1 / ((1 - share) / factor + share))
    return np.array(divisors, dtype=np.float32)


def placed(kind: str, config: Any, name: str, tensor: Tensor) -> Tensor:
    """A tensor (out, ...) in the layout of the architecture: rows of q and k in its order, maps as (out, in)."""
    family = FAMILIES[kind]
    module = name.rsplit(".", 2)[-2]
    if module in family.transposed and name.endswith(".weight"):
        tensor = tensor.T
    heads = _heads(config, module)
    return turned_rows(tensor, heads) if family.turned and heads else tensor


def row_order(kind: str, config: Any, module: str) -> int:
    """Heads by which the rows of a map are reordered; 0 for none."""
    return _heads(config, module.rpartition(".")[2]) if FAMILIES[kind].turned else 0


def turned_rows(tensor: Tensor, heads: int) -> Tensor:
    """Rows (heads * K, ...) in which the two halves of each head alternate."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return torch.transpose(halves, 1, 2).reshape(tensor.shape)


def _heads(config: Any, module: str) -> int:
    if module == "q_proj":
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if module == "k_proj" else 0


def _rope(config: Any) -> Mapping[str, Any]:
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return rope
