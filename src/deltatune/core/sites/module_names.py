"""Module names: the one table of which leaf of a block plays which role.

With `blocks` and `discovery` it holds all that depends on Hugging Face's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

ATTENTION: dict[str, frozenset[str]] = {
    "q": frozenset({"q", "query", "q_proj", "q_lin", "query_proj", "wq", "to_q"}),
    "k": frozenset({"k", "key", "k_proj", "k_lin", "key_proj", "wk", "to_k"}),
    "v": frozenset({"v", "value", "v_proj", "v_lin", "value_proj", "wv", "to_v"}),
    "o": frozenset(
        {"o", "o_proj", "out_proj", "out_lin", "output_proj", "c_proj", "wo", "Wo", "dense", "proj", "output"}
        | {"to_out"}
    ),
    "qkv": frozenset({"c_attn", "qkv_proj", "Wqkv", "query_key_value", "qkv", "in_proj", "to_qkv"}),
}
FFN: dict[str, frozenset[str]] = {
    "gate": frozenset({"gate_proj", "wi_0", "w1"}),
    "in": frozenset(
        {"fc1", "c_fc", "up_proj", "wi", "wi_1", "w3", "lin1", "dense_h_to_4h", "fc_in", "ffn", "intermediate.dense"}
        | {"intermediate_dense", "feed_forward.intermediate", "proj_mlp"}
    ),
    "out": frozenset(
        {
            "fc2",
            "c_proj",
            "down_proj",
            "wo",
            "Wo",
            "w2",
            "lin2",
            "dense_4h_to_h",
            "fc_out",
            "ffn_output",
            "output.dense",
            "output_dense",
            "feed_forward.output",
        }
    ),
    "gate_up": frozenset({"gate_up_proj", "Wi"}),
}
ADDED = {"add_q_proj": "q", "add_k_proj": "k", "add_v_proj": "v", "to_add_out": "o"}
"""Maps of the second stream, the prompt's, that joins an image's in one attention (Stable Diffusion 3, Flux)."""
POSITIONS = frozenset({"position_embeddings", "wpe", "rotary_emb"})
"""Modules called with position ids: plain tables and rotary embeddings."""
INTERLEAVED = frozenset({"query_key_value", "in_proj"})
"""Fused projections whose output is stored head by head, (q k v) in each."""
CONTIGUOUS = frozenset({"mpt"})
"""Model types with their own attention code that still store all q, then all k, then all v."""
BIDIRECTIONAL = frozenset({"bert-generation"})
"""Model types with a causal and without a masked language model that still are encoders, unless `is_decoder=True`."""
EMBED_PROJECT = frozenset(
    {"embeddings_project", "embedding_hidden_mapping_in", "embedding_transformation", "project_in"}
    | {"feature_projection.projection", "embeddings.projection"}
)
"""Projections from the embeddings' width to the blocks'."""
FINAL_NORMS = frozenset({"embedding_norm", "emb_layer_norm_after"})
"""Norms after the last block whose names suggest embeddings: LFM2's, ESM's."""
EMBED_NORMS = frozenset({"pre_layrnorm", "pre_layernorm", "feature_projection.layer_norm"})
"""Norms before the first block whose names do not suggest embeddings: CLIP's (its spelling), wav2vec 2.0's."""


ATTENTION_NORMS = (".sa_",)
"""Parts of the paths of norms that follow attention without being inside it: DistilBERT's `sa_layer_norm`."""
RELATIVE_EMBEDDINGS = "rel_embeddings"
"""Attribute of the modules that hold embeddings of relative positions, with a norm beside them: DeBERTa's."""
DISTANCE_MAPS = ("query_proj", "key_proj")
"""Leaves of an attention with `share_att_key` that project relative positions beside the text: DeBERTa's."""
WINDOW, WINDOW_MAPS = "one_sided_attn_window_size", ("query", "key", "value")
"""Attribute of attention in windows, and its maps, which get the rows in the second dimension: Longformer's, LED's."""
TEXT_POSITIONS = "position_embedding"
"""A position table that takes position ids if it has the model's longest sequence: in CLIP and SigLIP the image
encoder's table has the same name, and counts patches."""

Flag = Literal["pre_norm", "narrow_sublayers", "grouped_qkv", "multi_query"]


class ConfigKey(NamedTuple):
    """A boolean key of some families' configurations that decides how their modules are read."""

    key: str
    families: str
    reason: str


CONFIG_KEYS: dict[Flag, ConfigKey] = {
    "pre_norm": ConfigKey(
        "do_stable_layer_norm",
        "wav2vec 2.0, HuBERT, WavLM",
        "the norm beside the blocks is their last layer if set, else it comes before the first block",
    ),
    "narrow_sublayers": ConfigKey(
        "use_bottleneck", "MobileBERT", "the sublayers are narrower than the residual stream, so it is not a site"
    ),
    "grouped_qkv": ConfigKey(
        "new_decoder_architecture", "Falcon 40B", "the fused projection holds each group's queries, key and value"
    ),
    "multi_query": ConfigKey(
        "multi_query", "Falcon 7B, GPTBigCode", "all queries come first, then the one key and value of all heads"
    ),
}


def flag(config: Any, name: Flag) -> bool | None:
    """Value of a configuration key, or None in families without it."""
    value = getattr(config, CONFIG_KEYS[name].key, None)
    return None if value is None else bool(value)


def is_expert(path: str) -> bool:
    """Whether a path leads into a mixture of experts, each of which sees only some tokens."""
    return any("expert" in part.lower() for part in path.split("."))


def names_embeddings(path: str) -> bool:
    """Whether the norm at `path`, outside the blocks, belongs to the embeddings and does not follow the last block."""
    parts = path.split(".")
    listed = ".".join(parts[-2:]) in EMBED_NORMS or parts[-1] in EMBED_NORMS
    return listed or ("emb" in path.lower() and parts[-1] not in FINAL_NORMS)


def in_attention(path: str) -> bool:
    """Whether a path within a block runs through an attention module (the leaf itself aside)."""
    return any("attn" in part.lower() or "attention" in part.lower() for part in path.split(".")[:-1])


def names_added_stream(path: str) -> bool:
    """Whether the feed-forward network at a path is that of the prompt's stream, beside the image's."""
    return any(word in path.split(".")[-1].lower() for word in ("context", "txt", "text", "encoder", "added"))


def in_cross_attention(path: str) -> bool:
    """Whether that attention reads the encoder."""
    parts = [part.lower() for part in path.split(".")[:-1]]
    return any("cross" in part or "encdec" in part or part == "encoder_attn" for part in parts)


def role_of(path: str, roles: Mapping[str, str]) -> str | None:
    """Role of the linear map at `path` within its block: `attn.q`, `cross.v`, `ffn.in`, or None.

    `roles` are the user's own names first: leaf (or the last two components) to role.
    """
    parts = path.split(".")
    leaf, pair = parts[-1], ".".join(parts[-2:])
    for name in (pair, leaf):
        if name in roles:
            return roles[name]
    if is_expert(path):
        return None
    if in_attention(path):
        group = "cross" if in_cross_attention(path) else "attn"
        return next((f"{group}.{role}" for role, names in ATTENTION.items() if leaf in names), None)
    return next((f"ffn.{role}" for role, names in FFN.items() if leaf in names or pair in names), None)
