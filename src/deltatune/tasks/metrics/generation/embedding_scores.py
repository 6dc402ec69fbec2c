"""BERTScore and a MoverScore: similarity of the contextual embeddings of a text and its references."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError
from deltatune.models.hardware import best_device
from deltatune.models.loading import find_config, load_backbone
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score

Vectors = NDArray[np.float32]
"""Embeddings of the tokens of one text (T, D), each of length 1."""

LAYERS = {
    "bert-base-uncased": 9, "bert-large-uncased": 18, "bert-base-multilingual-cased": 9, "bert-base-chinese": 8,
    "roberta-base": 10, "roberta-large": 17, "roberta-large-mnli": 19, "distilroberta-base": 5,
    "distilbert-base-uncased": 5, "distilbert-base-multilingual-cased": 5, "xlm-roberta-base": 9,
    "xlm-roberta-large": 17, "scibert_scivocab_uncased": 8, "scibert_scivocab_cased": 9,
}  # fmt: skip
"""The layer that the package bert-score takes of a model, by the last part of its name; of others the last one."""
BATCH = 64
"""Texts of a forward pass."""
SHORT = 1e-6
"""Length below which an embedding is not scaled to 1."""


@dataclass(frozen=True)
class TokenVectors:
    """The tokens of one text, special ones included, and their embeddings."""

    ids: list[int]
    vectors: Vectors
    words: NDArray[np.bool_]
    """Which tokens are not special (T,)."""


@dataclass
class TextEncoder:
    """An encoder at one layer. It keeps the embeddings of the texts of the last call alone."""

    model: Any
    tokenizer: Any
    layer: int
    known: dict[str, TokenVectors] = field(default_factory=dict)

    @torch.no_grad()
    def encode(self, texts: Iterable[str]) -> dict[str, TokenVectors]:
        """The embeddings of each text, cut at the longest input of the model."""
        wanted = list(dict.fromkeys(texts))
        self.known = {text: self.known[text] for text in wanted if text in self.known}
        new = sorted((text for text in wanted if text not in self.known), key=len)
        for start in range(0, len(new), BATCH):
            chunk = new[start : start + BATCH]
            # bert-score strips texts, and byte-level tokenizers see the first word as one inside a sentence
            lead = " " if type(self.tokenizer).__name__.startswith(("Roberta", "GPT2")) else ""
            batch = self.tokenizer(
                [lead + text.strip() for text in chunk], padding=True, truncation=True, max_length=self._longest(),
                return_tensors="pt", return_special_tokens_mask=True, verbose=False,
            ).to(self.model.device)  # fmt: skip
            special = batch.pop("special_tokens_mask").cpu().numpy()
            hidden = self.model(**batch, output_hidden_states=True).hidden_states[self.layer].float().cpu().numpy()
            mask = batch["attention_mask"].cpu().numpy().astype(bool)
            for text, ids, vectors, real, not_word in zip(
                chunk, batch["input_ids"].tolist(), hidden, mask, special, strict=True
            ):
                lengths = np.linalg.norm(vectors[real], axis=-1, keepdims=True)
                kept = [token for token, flag in zip(ids, real, strict=True) if flag]
                scaled = np.asarray(vectors[real] / np.maximum(lengths, SHORT), np.float32)
                self.known[text] = TokenVectors(kept, scaled, not_word[real] == 0)
        return self.known

    def _longest(self) -> int:
        config = self.model.config
        positions = int(getattr(config, "max_position_embeddings", 512))
        offset = 2 if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert") else 0
        return min(int(self.tokenizer.model_max_length), positions - offset)


def check_encoder(metric: str, model: str, layer: int) -> None:
    """Raise DeltatuneError unless a metric of embeddings has a model with this layer, and packages."""
    if not model:
        raise DeltatuneError(
            f"{metric} compares embeddings of an encoder: name it with metric_model (--metric-model), a folder or "
            "a name on the hub such as roberta-large"
        )
    _, config = find_config(model)
    layers = getattr(config, "num_hidden_layers", None)
    if config.is_encoder_decoder or layers is None:
        raise DeltatuneError(f"metric_model={model}: {metric} needs an encoder, and this is a {config.model_type}")
    if not 0 <= layer <= layers:
        raise DeltatuneError(f"metric_layer={layer}: {model} has layers 1 to {layers} (0: the usual one)")
    if metric == "mover":
        _linear_program()


@lru_cache(maxsize=1)
def text_encoder(model: str, layer: int) -> TextEncoder:
    """The encoder of a folder or hub name, loaded once."""
    backbone, tokenizer = load_backbone(model)
    usual = LAYERS.get(Path(model).name, backbone.config.num_hidden_layers)
    return TextEncoder(backbone.to(best_device()), tokenizer, layer or usual)  # type: ignore[arg-type]


def bertscore(
    predictions: Sequence[str], references: Sequence[Sequence[str]], model: str, layer: int = 0
) -> CorpusScore:
    """F1 of greedily matched embeddings, the best of the references; Zhang et al. 2020, https://arxiv.org/abs/1904.09675.

    Without idf weights and without rescaling, as the package bert-score computes it by default. An empty text has 0.
    """
    embedded = text_encoder(model, layer).encode([*predictions, *(text for row in references for text in row)])
    return mean_score([
        max(greedy_f1(embedded[text], embedded[reference]) for reference in row)
        for text, row in zip(predictions, references, strict=True)
    ])  # fmt: skip


def greedy_f1(candidate: TokenVectors, reference: TokenVectors) -> float:
    """F1 of the mean of each word's largest cosine; special tokens can be matched, but do not count."""
    if not candidate.words.any() or not reference.words.any():
        return 0.0
    cosines = candidate.vectors @ reference.vectors.T  # (T, T')
    precision = float(cosines.max(1)[candidate.words].mean())
    recall = float(cosines.max(0)[reference.words].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def mover(predictions: Sequence[str], references: Sequence[Sequence[str]], model: str, layer: int = 0) -> CorpusScore:
    """1 - the earth mover's distance of the embedded words, the best of the references.

    Words are weighted by idf, among the predictions and among the references, and distances are Euclidean between
    embeddings of length 1: MoverScore's unigrams (Zhao et al. 2019, https://arxiv.org/abs/1909.02622) at one layer of
    any encoder, with its stop words and its word pieces kept.
    """
    embedded = text_encoder(model, layer).encode([*predictions, *(text for row in references for text in row)])
    of_texts = _idf([embedded[text] for text in predictions])
    of_references = _idf([embedded[text] for row in references for text in row])
    return mean_score([
        max(1 - _distance(embedded[text], embedded[reference], of_texts, of_references) for reference in row)
        for text, row in zip(predictions, references, strict=True)
    ])  # fmt: skip


def _idf(texts: Sequence[TokenVectors]) -> dict[int, float]:
    """log((N + 1) / (texts with the token + 1)) by token; never 0, so that a text always has words that count."""
    counts = Counter(token for text in texts for token in set(text.ids))
    return {token: max(math.log((len(texts) + 1) / (count + 1)), 1e-3) for token, count in counts.items()}


def _distance(
    candidate: TokenVectors, reference: TokenVectors, of_texts: dict[int, float], of_references: dict[int, float]
) -> float:
    if not candidate.words.any() or not reference.words.any():
        return 1.0  # a score of 0
    sides = []
    for text, idf in ((candidate, of_texts), (reference, of_references)):
        weights = np.array([idf[token] for token, word in zip(text.ids, text.words, strict=True) if word])
        sides.append((text.vectors[text.words].astype(np.float64), weights / weights.sum()))
    (x, a), (y, b) = sides
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return earth_movers_distance(a, b, np.sqrt(np.maximum(squared, 0.0)))


def earth_movers_distance(a: NDArray[Any], b: NDArray[Any], costs: NDArray[Any]) -> float:
    """The smallest cost of moving the masses a (n,) to b (m,), both of sum 1, with costs (n, m)."""
    n, m = costs.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.tile(np.eye(m), n)
    constraints, masses = np.vstack([rows, columns])[:-1], np.concatenate([a, b])[:-1]  # one follows from the others
    result = _linear_program()(costs.ravel(), A_eq=constraints, b_eq=masses, bounds=(0, None), method="highs")
    if not result.success:
        raise DeltatuneError(f"the earth mover's distance was not found: {result.message}")
    return float(result.fun)


def _linear_program() -> Callable[..., Any]:
    try:
        from scipy.optimize import linprog  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeltatuneError("mover solves a linear program with scipy: pip install scipy") from error
    program: Callable[..., Any] = linprog
    return program
