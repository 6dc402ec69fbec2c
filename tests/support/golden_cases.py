"""Reads the cases of tests/golden/ and compares with them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)

FOLDER = Path(__file__).parents[1] / "golden"
PROVENANCE: dict[str, Any] = json.loads((FOLDER / "provenance.json").read_text())
MODELS = {
    "bert": (BertModel, BertConfig),
    "gpt2": (GPT2Model, GPT2Config),
    "llama": (LlamaModel, LlamaConfig),
    "t5": (T5Model, T5Config),
}
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
Tensors = dict[str, torch.Tensor]


def tensors(case: str, prefix: str = "") -> Tensors:
    """The tensors of a case, or those under a prefix, which is cut off."""
    found = load_file(FOLDER / PROVENANCE[case]["file"])
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def close(mine: torch.Tensor, theirs: torch.Tensor, what: str = "output", loose: float = 1.0) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-4 * loose, atol=2e-5 * loose, msg=lambda m: f"{what}: {m}")


def base(kind: str) -> PreTrainedModel:
    """The tiny base of the whole-model cases, in eval mode."""
    cls, config = MODELS[kind]
    (settings,) = PROVENANCE[kind]["settings"].values()
    options = {"add_pooling_layer": False} if kind == "bert" else {}
    model = cls(config(**settings), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # a tensor that the case leaves out is all zero
    missing, unexpected = model.load_state_dict(tensors(kind, "base."), strict=False)
    assert not unexpected
    assert all(name in TIED or name in PROVENANCE[kind]["formula"] for name in missing)
    return model.eval()


def run(model: nn.Module, case: str) -> torch.Tensor:
    """Last hidden state (B, T, D) for a case's input."""
    given = tensors(case, "input.")
    more = {"decoder_input_ids": given["decoder_ids"]} if "decoder_ids" in given else {}
    out: torch.Tensor = model(input_ids=given["ids"], attention_mask=given["mask"], **more).last_hidden_state
    return out
