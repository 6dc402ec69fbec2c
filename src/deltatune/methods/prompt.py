"""Prompt tuning: trained vectors in front of the embedded input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites import Site, Sites, require


class SoftPrompt(Delta):
    """`h ← P[i]` at the i-th virtual token, P (P, D); real tokens stay."""

    def __init__(self, length: int, site: Site, init: str, ids: tuple[int, ...]) -> None:
        super().__init__()
        self.tokens = length
        self.vocabulary = site.width_in
        self.prompt = nn.Parameter(torch.empty(length, site.width_out))
        self.init, self.ids = init, ids

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.uniform_(self.prompt, -0.5, 0.5, generator=rng("prompt"))
        if self.init != "uniform":  # the first 5,000 rows are the most frequent pieces in SentencePiece's order
            first = min(5000, self.vocabulary)
            drawn = torch.randperm(first, generator=rng("vocabulary")).repeat(1 + self.tokens // first)[: self.tokens]
            self.prompt.copy_(base(drawn.to(next(base.parameters()).device)))
        if self.ids:
            given = torch.tensor(self.ids[: self.tokens], device=next(base.parameters()).device)
            self.prompt[: len(given)] = base(given).to(self.prompt)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.add(h, x) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        index = x - self.vocabulary  # (B, T), negative at real tokens
        vectors = F.embedding(index.clamp(0, self.tokens - 1), self.prompt.to(h.dtype))  # (B, T, D)
        mine = ((index >= 0) & (index < self.tokens)).unsqueeze(-1)
        return torch.where(mine, vectors if weight == 1.0 else h + weight * (vectors - h), h)


@dataclass(frozen=True)
class Prompt(Method):
    """[P; E(x)]: P trained vectors in front of the embedded tokens; encoder-decoders get them at the encoder

    Lester et al. 2021, https://arxiv.org/abs/2104.08691
    Not the identity at the start: the model sees P more tokens.
    """

    length: int = 20
    """Virtual tokens P."""
    init: Literal["vocabulary", "uniform", "ids"] = "vocabulary"
    """`vocabulary`: drawn from the first 5,000 rows; `uniform`: U(-0.5, 0.5); `ids`: the given tokens, then drawn."""
    ids: tuple[int, ...] = ()
    """Token ids whose embeddings the first vectors start from: a text, or the words of the labels."""

    size_field: ClassVar[str | None] = "length"
    learning_rate: ClassVar[float] = 2e-2
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View("P[i] − h", "none", "input embeddings at virtual tokens", "replace")

    def check(self) -> None:
        at_least(self, length=1)
        if bool(self.ids) != (self.init == "ids"):
            raise DeltatuneError("Prompt: init='ids' and ids=(...) go together; Prompt(init='ids', ids=(2023, 2003))")

    def pick(self, sites: Sites) -> list[Site]:
        found = [site for site in sites.values() if site.kind == "embed"]
        require(found, "token embeddings to put a prompt at", sites)
        if sites.facts.encoder_decoder:
            found = [site for site in found if site.name.startswith("encoder.")]
            require(found, "token embeddings in its encoder", sites)
        return found[:1]

    def build(self, site: Site) -> Delta:
        return SoftPrompt(self.length, site, self.init, self.ids)

    def cost(self, site: Site) -> int:
        return self.length * site.width_out

    def limit(self, sites: Sites) -> int:
        return max(1, (sites.facts.positions or 1024) // 2)


def words_to_ids(words: Mapping[int, str] | list[str], tokenizer: object) -> tuple[int, ...]:
    """Token ids of words (the labels of a task, or a text split as wished) for `Prompt(init="ids", ids=...)`."""
    texts = words if isinstance(words, list) else list(words.values())
    return tuple(i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[operator]
