"""IDPG: virtual tokens whose vectors a small network computes from the row's own text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.capabilities import Needs
from deltatune.core.delta import Delta, Rng
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.prompts.prompt import at_input, at_virtual_tokens, drawn_vectors, longest_prompt


class GeneratedPrompt(Delta):
    """`h ← P(x)[i]` at the i-th virtual token of a row x, `P(x) = W₂ gelu(W₁ x̄ + b₁) + b₂` (P, D); real tokens stay.

    x̄ (D,) is the mean of the frozen embeddings of the row's real tokens, in decoders of its prompt's, divided by the
    standard deviation of the table, so that it has a size of about 1 in every model.
    """

    spread: Tensor
    """The standard deviation of the base's token embeddings; computed from the base, not saved."""

    def __init__(self, length: int, hidden: int, site: Site) -> None:
        super().__init__()
        self.length, self.vocabulary = length, site.width_in
        self.needs = Needs(virtual_tokens=length, prompt_ids=True, answer_offsets=True)
        width = site.width_out
        self.W1 = nn.Parameter(torch.empty(hidden, width))
        self.b1 = nn.Parameter(torch.empty(hidden))
        self.W2 = nn.Parameter(torch.empty(length * width, hidden))
        self.b2 = nn.Parameter(torch.empty(length, width))
        self.register_buffer("spread", torch.empty(()), persistent=False)

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        # As in the authors' code W₁ is drawn from N(0, 0.02) and b₁ is 0. There W₂ is too, and b₂ is 0: prompts near
        # zero. Here they start as a Prompt() does, from the vocabulary, the same for all rows.
        nn.init.normal_(self.W1, std=0.02, generator=rng("W1"))
        nn.init.zeros_(self.b1)
        nn.init.zeros_(self.W2)
        self.b2.copy_(drawn_vectors(base, self.length, self.vocabulary, rng("b2")))
        weight = self.base.weight
        self.spread = weight.to(torch.promote_types(weight.dtype, torch.float32)).std()

    def vectors(self, prompt: Tensor) -> Tensor:
        """P(x) (B, P, D) of the prompts' token ids (B, T), -1 where there is none."""
        W1 = self.W1
        text = (prompt >= 0).unsqueeze(-1)
        embedded = F.embedding(prompt.clamp(min=0), self.base.weight)  # (B, T, D)
        mean = (embedded * text).sum(1, dtype=W1.dtype) / text.sum(1).clamp(min=1)  # (B, D)
        low = F.gelu(F.linear(mean / self.spread.to(W1.dtype), W1, self.b1))  # (B, hidden)
        return F.linear(low, self.W2).view(-1, *self.b2.shape) + self.b2

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.add(h, x) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if self.prompt_ids is None:  # a decoder's step behind an encoder, without the encoder's text
            return h
        index = x - self.vocabulary  # (B, T), negative at real tokens
        places = index.clamp(0, self.length - 1).unsqueeze(-1).expand(-1, -1, h.shape[-1])
        vectors = self.vectors(self.prompt_ids).to(h.dtype).gather(1, places)  # (B, T, D)
        return at_virtual_tokens(h, index, vectors, self.length, weight)


@dataclass(frozen=True)
class IDPG(Method):
    """[P(x); E(x)], P(x) = W₂ gelu(W₁ x̄ + b₁) + b₂: P virtual tokens made from the text x itself, x̄ its mean embedding

    Wu et al. 2022, https://arxiv.org/abs/2204.04497
    Each row has vectors of its own. x̄ is the mean over the model's own token embeddings, frozen unless `Embeddings()`
    trains them too (the paper's variants use GloVe vectors or a pass of the model). In decoders it is over the prompt
    alone, in training as in generation, so a text that is all answer (language modelling) is refused. Not the identity
    at the start: the model sees P more tokens, and at first they are the same for all texts, as those of `Prompt`.
    """

    length: int = 5
    """Virtual tokens P; 5 in the paper."""
    hidden: int = 16
    """Width of the layer between; 16 in the authors' code."""

    size_field: ClassVar[str | None] = "length"
    learning_rate: ClassVar[float] = 1e-2
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View(
        "P(x)[i] − h, P(x) = W₂ gelu(W₁ x̄)", "none", "input embeddings at virtual tokens", "replace"
    )

    def check(self) -> None:
        at_least(self, length=1, hidden=1)

    def pick(self, sites: Sites) -> list[Site]:
        return at_input(sites)

    def build(self, site: Site) -> Delta:
        return GeneratedPrompt(self.length, self.hidden, site)

    def cost(self, site: Site) -> int:
        D = site.width_out
        return (D + 1) * self.hidden + (self.hidden + 1) * self.length * D

    def limit(self, sites: Sites) -> int:
        return longest_prompt(sites)
