"""Folders of quantised tiny models, and their comparison."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deltatune.models.quantization.quantize_model import quantize_
from deltatune.store.quantized_model import save_quantized
from support.models import inputs, tiny, tiny_tokenizer


def logits(model: PreTrainedModel, kind: str) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**inputs(kind, "lm"))[0]
    return output


def written(folder: Path, kind: str = "llama", scheme: str = "nf4", **sizes: Any) -> PreTrainedModel:
    model = tiny(kind, "lm", **sizes)
    quantize_(model, scheme)
    save_quantized(model, folder, tiny_tokenizer())
    return model


def assert_equal(one: PreTrainedModel, other: PreTrainedModel) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
