"""Tiny random models, made from configs in memory: nothing is downloaded.

    model = tiny("llama", "lm")
    model(**inputs("llama"))

Sizes differ, so that swapped axes fail: width 32, ffn 48, 4 heads of 8 (Llama: 2 key-value heads).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from deltatune.testing.tiny_configs import FAMILIES, READS, SEQ2SEQ, SHAPES

Kind = Literal[
    "bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "qwen2", "gpt_neox", "opt", "t5", "bart", "mpnet"
]
"""Families on which the laws are checked; `tiny` and `inputs` also take those of `testing.tiny_configs`."""
Head = Literal["classify", "lm"] | None

PAD, BOS, EOS, UNK, MASK = range(5)
VOCABULARY = 101
POSITIONS = 128
LABELS = 3

ENCODER_DECODERS = {"t5", "bart", "whisper", *SEQ2SEQ}
RIGHT_PADDED = {"bart"}
"""Kinds with learned positions and no position ids: padding on the left moves their tokens."""
ENCODERS = {"bert", "roberta", "distilbert", "mpnet"}

_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_MIDDLE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.1,
}
_GROUPED = {**_MIDDLE, "num_key_value_heads": 2, "head_dim": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_MIDDLE},
    # RoBERTa and MPNet count positions from the padding id + 1.
    "roberta": {**_MIDDLE, "max_position_embeddings": POSITIONS + PAD + 1, "type_vocab_size": 1},
    "mpnet": {**_MIDDLE, "max_position_embeddings": POSITIONS + PAD + 1},
    "distilbert": {
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.1,
    },
    "gpt2": {
        "n_embd": 32,
        "n_inner": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": POSITIONS,
        "initializer_range": 0.1,
    },
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "gpt_neox": _MIDDLE,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "init_std": 0.1,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD},
    "bart": {
        "d_model": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "init_std": 0.1,
        "decoder_start_token_id": EOS,
        "forced_eos_token_id": None,
    },
}


def tiny(kind: Kind | str, head: Head = None, seed: int = 0, dropout: bool = True, **config: Any) -> PreTrainedModel:
    """Make a fresh model of this kind in eval mode, the same for the same seed.

    `dropout=False` sets every dropout to 0, so that training mode computes the same; `config` changes single settings.
    Each is made once and then copied, which takes half the time.
    """
    key = repr((kind, head, seed, dropout, sorted(config.items()), torch.get_default_dtype()))
    if key not in _made:
        _made[key] = _make(kind, head, seed, dropout, config)
    return copy.deepcopy(_made[key])


_made: dict[str, PreTrainedModel] = {}
"""Models that are copied and never used themselves."""


def _make(kind: str, head: Head, seed: int, dropout: bool, config: dict[str, Any]) -> PreTrainedModel:
    given = {**_SPECIAL, **(CONFIGS[kind] if kind in CONFIGS else FAMILIES[kind]), **config}
    settings = AutoConfig.for_model(given.pop("model_type", kind), vocab_size=VOCABULARY, num_labels=LABELS, **given)
    for name, value in {} if dropout else settings.to_dict().items():
        if "drop" in name and not isinstance(value, bool):
            setattr(settings, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _class(kind, head).from_config(settings)
        _wake_(model)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def _class(kind: Kind | str, head: Head) -> Any:
    if head == "classify":
        return AutoModelForSequenceClassification
    if head == "lm":
        if kind in ENCODER_DECODERS:
            return AutoModelForSeq2SeqLM
        return AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
    return AutoModel


@torch.no_grad()
def _wake_(model: PreTrainedModel) -> None:
    """Move biases and norms off 0 and 1: a forgotten or doubled bias must change the output."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


def inputs(
    kind: Kind | str,
    head: Head = None,
    *,
    rows: int = 3,
    length: int = 7,
    seed: int = 0,
    padding: Literal["right", "left", "none"] = "right",
) -> dict[str, Any]:
    """Make random tokens and their mask, both (rows, length); every row but the first is shorter by some padding.

    Encoder-decoders get decoder tokens too, (rows, 4), except to classify: their decoder reads the input again. Image
    and audio families get images or sounds in place of tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind in READS:
        name, shape = SHAPES[READS[kind]]
        return {name: torch.randn(rows, *shape, generator=generator), **_decoder_tokens(kind, rows, generator)}
    ids = torch.randint(MASK + 1, VOCABULARY, (rows, length), generator=generator)
    ids[:, -1] = EOS  # BART's classifier reads the last end token of a row
    mask = torch.ones_like(ids)
    if padding != "none":
        for row in range(1, rows):
            gone = 1 + (row - 1) % (length - 1)
            mask[row, :gone] = 0
            ids[row, :gone] = PAD
        if padding == "right":
            for row in range(rows):
                gone = int((mask[row] == 0).sum())
                ids[row], mask[row] = ids[row].roll(-gone), mask[row].roll(-gone)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    return batch if head == "classify" else batch | _decoder_tokens(kind, rows, generator)


def _decoder_tokens(kind: str, rows: int, generator: torch.Generator) -> dict[str, Any]:
    if kind not in ENCODER_DECODERS:
        return {}
    return {"decoder_input_ids": torch.randint(MASK + 1, VOCABULARY, (rows, 4), generator=generator)}
