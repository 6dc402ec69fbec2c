"""Embeddings of new tokens: rows in a model's input embeddings and in its language-model head."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.training.tokenizer_extension.segmentation import Segmenter, spec_of, vocabulary_of

Init = Literal["mean", "pieces", "normal"]
COVARIANCE_SCALE = 1e-9
"""transformers samples new rows with the covariance of the old ones times this."""


@torch.no_grad()
def resize_embeddings_(
    model: Any,
    tokenizer: Any,
    old_size: int,
    *,
    init: Init = "pieces",
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
) -> int:
    """Give every token from id `old_size` on a row in the input and output embeddings; returns the number of rows.

    `pieces`: the mean of the rows of the old pieces that the token's text was split into (IndoBERTweet, Koto et al.
    2021, https://arxiv.org/abs/2109.04607; Fast Vocabulary Transfer, Gee et al. 2022,
    https://arxiv.org/abs/2402.09977). A token whose text was unknown gets the mean of all old rows.
    `mean`: the mean of all old rows. `normal`: sampled around that mean with 1e-9 times the old rows' covariance, as
    transformers does (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Old rows stay bit-equal. A tied head remains one tensor with the embeddings; an untied head and the bias of a head
    get their new rows by the same rule. Existing rows from `old_size` on are padding and are overwritten, so resize
    before training. Rows that pad to `pad_to_multiple_of` get the mean. `model.config.vocab_size` becomes the number
    returned. Raises DeltatuneError for sizes that do not fit and for a model with adapters attached.
    """
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    _check(model, size, old_size, init, pad_to_multiple_of)
    before, tied = _rows(model), _tied(model)
    # mean_resizing: the new rows are written below
    model.resize_token_embeddings(max(before, size), pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False)
    _check_resized(model, tied)
    sources = old_pieces(tokenizer, old_size) if init == "pieces" else []
    for name, table in _tables(model).items():
        old = table[:old_size]  # (V, D), a bias (V,)
        mean = old.mean(0, dtype=torch.float32)
        table[max(before, size) :] = mean.to(table)
        if init == "mean":
            table[old_size:size] = mean.to(table)
        elif init == "normal":
            table[old_size:size] = _sampled(old, size - old_size, generator_for(seed, name)).to(table)
        else:
            for i, ids in enumerate(sources):
                table[old_size + i] = (old[ids].mean(0, dtype=torch.float32) if ids else mean).to(table)
    return _rows(model)


def old_pieces(tokenizer: Any, old_size: int) -> list[list[int]]:
    """For every id from `old_size` on, the old ids that its text is split into without the new tokens.

    Unknown pieces are left out, so the list of a token that cannot be spelled is empty.
    """
    spec = spec_of(tokenizer)
    old_spec = _without_new_tokens(spec, old_size)
    segmenter, old_tokenizer = Segmenter(old_spec), Tokenizer.from_str(json.dumps(old_spec))
    texts = {token["id"]: token["content"] for token in spec["added_tokens"]}
    names = {i: piece for piece, i in vocabulary_of(spec).items()}
    sources: list[list[int]] = []
    for i in range(old_size, max([*texts, *names], default=-1) + 1):
        # An added token is plain text; a piece is spelled in the alphabet of the model.
        pieces = old_tokenizer.encode(texts[i], add_special_tokens=False).tokens if i in texts else []
        pieces = pieces or (segmenter.pieces(names[i]) if i in names and i not in texts else [])
        sources.append(
            [segmenter.vocab[piece] for piece in pieces if piece != segmenter.unknown and piece in segmenter.vocab]
        )
    return sources


def _without_new_tokens(spec: dict[str, Any], old_size: int) -> dict[str, Any]:
    """The tokenizer without its ids from `old_size` on, and without the merges that need them."""
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        model["vocab"] = model["vocab"][:old_size]
    else:
        model["vocab"] = {piece: i for piece, i in model["vocab"].items() if i < old_size}
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        pieces = model["vocab"].keys()
        model["merges"] = [(a, b) for a, b in model["merges"] if {a, b, a + b.removeprefix(prefix)} <= pieces]
    else:
        model.pop("merges")
    added = [token for token in spec["added_tokens"] if token["id"] < old_size]
    return {**spec, "model": model, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}


def _sampled(old: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Samples (rows, D) of the normal distribution with the old rows' mean and their covariance, scaled."""
    flat = old.float().reshape(len(old), -1).cpu()
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(COVARIANCE_SCALE * centred.T @ centred / len(old))
    noise = torch.randn(rows, len(values), generator=generator)
    sample: Tensor = mean + noise * values.clamp(min=0).sqrt() @ vectors.T
    return sample.reshape(rows, *old.shape[1:])


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _tables(model: Any) -> dict[str, Tensor]:
    """Every tensor with a row for each token, once: embeddings, an untied head, the bias of a head."""
    head = model.get_output_embeddings()
    tables: dict[str, Tensor] = {"input": model.get_input_embeddings().weight}
    if head is not None and not _tied(model):
        tables["output"] = head.weight
    if getattr(head, "bias", None) is not None:
        tables["bias"] = head.bias
    if getattr(model, "final_logits_bias", None) is not None:  # BART and its relatives, (1, V)
        tables["final_logits_bias"] = model.final_logits_bias[0]
    return tables


def _check(model: Any, size: int, old_size: int, init: str, multiple: int | None) -> None:
    rows = _rows(model)
    problems = []
    if init not in get_args(Init):
        problems.append(f"init={init!r} is unknown; choose one of {', '.join(get_args(Init))}")
    if multiple is not None and multiple < 1:
        problems.append(f"pad_to_multiple_of={multiple} is invalid; give a whole number of 1 or more")
    if hasattr(model, "deltatune"):
        problems.append("the model has adapters attached; resize the bare model, then attach")
    if not 1 <= old_size <= rows:
        problems.append(
            f"old_size={old_size} does not fit a model with {rows} rows; give the size of the tokenizer that this "
            "model was trained with (Extension.old_size)"
        )
    if size < old_size:
        problems.append(f"the tokenizer has {size} ids, fewer than the model's {old_size}; pass the extended tokenizer")
    raise_all(problems)


def _check_resized(model: Any, tied: bool) -> None:
    """Raise DeltatuneError if transformers did not resize every part of the model."""
    rows, name = _rows(model), type(model).__name__
    short = [f"{part}: {len(table)} rows" for part, table in _tables(model).items() if len(table) != rows]
    if short:
        raise DeltatuneError(f"{name} was resized to {rows} rows, except for {', '.join(short)}")
    if tied != _tied(model):
        raise DeltatuneError(f"resizing {name} untied its head from its embeddings; use a model without tied weights")
