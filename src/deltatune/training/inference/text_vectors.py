"""Vectors of texts, to compare them: the mean of a model's last hidden states over the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.models.loading import load_backbone
from deltatune.tasks.collator import collator_for
from deltatune.tasks.tokenization import longest_input
from deltatune.training.forward import attention_mask_of, base_outputs, hidden_states
from deltatune.training.inference.batches import device_of, map_batches

LONGEST_TEXT = 256
"""Tokens of a text that are read."""

_encoders: WeakKeyDictionary[Host, dict[str, tuple[Host, PreTrainedTokenizerBase]]] = WeakKeyDictionary()
_kept: WeakKeyDictionary[Host, dict[tuple[str, tuple[str, ...]], NDArray[Any]]] = WeakKeyDictionary()


def text_vectors(
    host: Host,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    encoder: str = "",
    keep: bool = False,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Vectors (N, D) of length 1, without any adapter and without a prompt.

    encoder: folder of another model that makes them, such as a sentence encoder, which is loaded once a host.
    keep: whether these texts will be asked for again; their vectors are then computed once for a host.
    Raises DeltatuneError for an encoder that cannot be loaded.
    """
    known, key = _kept.setdefault(host, {}), (encoder, tuple(texts))
    if keep and key in known:
        return known[key]
    if encoder:
        own, own_tokenizer = _encoder(host, encoder)
    else:
        own, own_tokenizer = host, tokenizer
    vectors = _vectors(own, own_tokenizer, texts, batch_size)
    if keep:
        known[key] = vectors
    return vectors


def forget_vectors(host: Host) -> None:
    """Drop the vectors that are kept for a host, so that what comes next costs as much as it would alone."""
    _kept.pop(host, None)


def _encoder(host: Host, folder: str) -> tuple[Host, PreTrainedTokenizerBase]:
    loaded = _encoders.setdefault(host, {})
    if folder not in loaded:
        try:
            model, tokenizer = load_backbone(folder)
        except DeltatuneError as error:
            raise DeltatuneError(f"cannot load the encoder that compares texts: {error}") from error
        loaded[folder] = Host(model.to(device_of(host))), tokenizer  # type: ignore[arg-type]
    return loaded[folder]


def _vectors(
    host: Host, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> NDArray[np.float32]:
    positions = longest_input(host.model)
    limit = LONGEST_TEXT if positions is None else min(LONGEST_TEXT, positions)
    encoding = tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)
    spare = [tokenizer.eos_token_id or tokenizer.unk_token_id or 0]  # an empty text has no token in some tokenizers
    rows = []
    for i, ids in enumerate(encoding["input_ids"]):
        row = {name: list(values[i]) for name, values in encoding.items()} if ids else {"input_ids": spare}
        rows.append({"attention_mask": [1] * len(row["input_ids"]), **row})
    if any("token_type_ids" in row for row in rows):
        rows = [{"token_type_ids": [0] * len(row["input_ids"]), **row} for row in rows]
    collate = collator_for(host.model, tokenizer, rows[0], positions)
    bfloat16 = uses_bfloat16(host.model, "auto")

    def means(batch: dict[str, Tensor]) -> Tensor:
        outputs = base_outputs(host, batch, bfloat16)
        encoded = getattr(outputs, "encoder_last_hidden_state", None)
        states = (hidden_states(outputs)[0] if encoded is None else encoded).float()  # (B, T, D)
        weights = attention_mask_of(batch)[..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)

    with host.using(None, training=False), torch.inference_mode():
        vectors = map_batches(rows, collate, batch_size, device_of(host), means)
    result: NDArray[np.float32] = vectors.cpu().numpy()
    return result
