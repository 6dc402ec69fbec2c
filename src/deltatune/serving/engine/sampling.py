"""The choice of the next tokens from logits, for rows that each have their own settings."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.serving.engine.requests import Sampling

COLDEST = 1e-5
"""Lower temperatures take the likeliest token: float32 has no room for logits divided by less."""


class Choice(NamedTuple):
    """The next token of a row."""

    token: int
    logprob: float | None
    """Under the model's own distribution, if the row reports it."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens under it."""


class RowSampler:
    """What one row's choices depend on: its settings, its tokens so far and its random draws."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.prompt = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset()
        self.counts: dict[int, int] = {}
        """How often each token was generated."""
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed
        self.draws = (
            generator_for(seed, f"sampling.{' '.join(map(str, prompt))}") if sampling.temperature >= COLDEST else None
        )

    @property
    def takes_largest(self) -> bool:
        """Whether the largest logit decides, and nothing else is asked for."""
        return self.draws is None and not self.changes_logits and self.sampling.logprobs is None

    @property
    def changes_logits(self) -> bool:
        """Whether a bias or a penalty acts."""
        own = self.sampling
        return bool(own.logit_bias or own.frequency_penalty or own.presence_penalty or own.repetition_penalty != 1)

    def count(self, token: int) -> None:
        """Note that a token was generated."""
        self.counts[token] = self.counts.get(token, 0) + 1

    def choose(self, logits: Tensor) -> Choice:
        """The next token of logits (V,) in float32."""
        own = self.sampling
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        reported: Tensor | None = None
        if own.logprobs is not None:
            reported = logits.log_softmax(-1)
            values, ids = reported.topk(min(own.logprobs, len(reported)))
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        token = self._token(self._changed(logits) if self.changes_logits else logits)
        if reported is not None:
            logprob = float(reported[token])
        return Choice(token, logprob, top)

    def _token(self, logits: Tensor) -> int:
        if self.draws is None:
            return int(logits.argmax())
        kept = _likeliest(logits / self.sampling.temperature, self.sampling)
        # The largest sum of logit and Gumbel noise is a draw from the distribution: Gumbel 1954.
        noise = torch.empty(len(kept)).exponential_(generator=self.draws).log_()
        return int((kept - noise.to(kept.device)).argmax())

    def _changed(self, logits: Tensor) -> Tensor:
        own, logits = self.sampling, logits.clone()
        _add_(logits, own.logit_bias)
        if own.repetition_penalty != 1:
            ids = torch.tensor(sorted(token for token in self.prompt | self.counts.keys() if token < len(logits)))
            values = logits[ids]
            logits[ids] = torch.where(values > 0, values / own.repetition_penalty, values * own.repetition_penalty)
        if own.frequency_penalty or own.presence_penalty:
            _add_(logits, {
                token: -(own.frequency_penalty * count + own.presence_penalty) for token, count in self.counts.items()
            })  # fmt: skip
        return logits


def choose_tokens(logits: Tensor, samplers: Sequence[RowSampler]) -> list[Choice | DeltatuneError]:
    """The next token of each row of logits (B, V), or an error for a row whose logits are not finite numbers."""
    largest, ids = logits.max(-1)
    finite, first = torch.isfinite(largest).tolist(), ids.tolist()
    return [
        DeltatuneError("the model's logits are not finite: the adapter's values, or its weight, are too large")
        if not finite[i]
        else Choice(first[i], None, ())
        if sampler.takes_largest
        else sampler.choose(logits[i])
        for i, sampler in enumerate(samplers)
    ]


def _likeliest(logits: Tensor, own: Sampling) -> Tensor:
    """Logits (V,) with -inf for tokens that min_p, top_k and top_p leave out."""
    if own.min_p:
        logits = logits.masked_fill(logits < logits.max() + math.log(own.min_p), -torch.inf)
    if 0 < own.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(own.top_k).values[-1], -torch.inf)
    if own.top_p < 1:
        values, order = logits.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)  # the probability of likelier tokens
        gone = before >= own.top_p
        gone[0] = False
        logits = logits.clone()
        logits[order[gone]] = -torch.inf
    return logits


def _add_(logits: Tensor, amounts: Mapping[int, float]) -> None:
    pairs = [(token, amount) for token, amount in amounts.items() if token < len(logits)]
    if pairs:
        ids = torch.tensor([token for token, _ in pairs], device=logits.device)
        logits[ids] += torch.tensor([amount for _, amount in pairs], dtype=logits.dtype, device=logits.device)
