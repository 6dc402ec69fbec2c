"""VB-LoRA: the parts of all of LoRA's matrices are mixtures of a few vectors from one bank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import bucket
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng, SharedModule
from deltatune.core.method import Method, View, at_least, check_dropout
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.low_rank.low_rank_bank import LowRankBank, wide
from deltatune.methods.low_rank.shared_input import few_tokens


class VectorBank(SharedModule):
    """The vectors (h, b) of which all sites choose."""

    def __init__(self, vectors: int, length: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(vectors, length))

    def init_(self, rng: Rng) -> None:
        nn.init.uniform_(self.vectors, -0.02, 0.02, generator=rng("vectors"))

    def forward(self) -> Tensor:
        """(h, b)."""
        return self.vectors


class MixtureBank(LowRankBank):
    """LoRA's stacks: the mixtures are made when an adapter is put in, and its vectors are not needed any more."""

    reads_shared = True

    @staticmethod
    def padded_rank(delta: Any) -> int:
        return bucket(len(delta.logits_A))

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        vectors = tensors["shared.vectors"]
        A, B = (mixed(wide(tensors[name]), vectors, delta.k) for name in ("logits_A", "logits_B"))
        self.write_factors_(slot, A.flatten(1), B.mT.flatten(0, 1))


def mixed(logits: Tensor, vectors: Tensor, k: int) -> Tensor:
    """The parts (..., b) for logits (..., h), each a mixture of k vectors of (h, b)."""
    top, chosen = logits.topk(k, dim=-1)
    parts: Tensor = (top.softmax(-1).unsqueeze(-1) * vectors[chosen].to(logits.dtype)).sum(-2)  # over (..., k, b)
    return parts


class BankMixture(Delta):
    """`Δ = B A x`; each part (b,) of a row of A and of a column of B is Σ softmax(top k of its logits) ⊙ vectors.

    logits_A (r, in / b, h), logits_B (out / b, r, h).
    """

    capabilities = Capabilities(merges=True)
    bank_form = MixtureBank

    def __init__(self, k: int, dropout: float) -> None:
        super().__init__()
        self.k, self.dropout = k, dropout
        self.bank: list[VectorBank] = []
        """The bank of all sites; in a list, so that it is saved once."""

    def connect_(self, bank: VectorBank, width_in: int, width_out: int, r: int) -> None:
        """Take the bank, whose vectors tell how many logits there are."""
        vectors, length = bank.vectors.shape
        self.bank, self.k = [bank], min(self.k, vectors)
        self.logits_A = nn.Parameter(torch.empty(r, width_in // length, vectors))
        self.logits_B = nn.Parameter(torch.empty(width_out // length, r, vectors))

    def init_(self, rng: Rng, base: nn.Module) -> None:
        for name in ("logits_A", "logits_B"):
            nn.init.normal_(self.get_parameter(name), std=0.1, generator=rng(name))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r)."""
        A, B = (mixed(logits, self.bank[0](), self.k) for logits in (self.logits_A, self.logits_B))
        return A.flatten(1), B.mT.flatten(0, 1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        A, B = self.factors()
        dtype = A.dtype if few_tokens(x, A) else x.dtype
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(F.linear(x.to(dtype), A.to(dtype)), B.to(dtype)).to(h.dtype)

    def low_rank_factors(self) -> tuple[Tensor, Tensor, float]:
        A, B = self.factors()
        return A.detach(), B.detach(), 1.0

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        A, B = self.factors()
        return {"weight": (base["weight"].double() + B.double() @ A.double()).to(base["weight"].dtype)}


@dataclass(frozen=True)
class VBLoRA(Method):
    """h ← h + B A x, each part of A and B a mixture of the k vectors of one bank that its logits prefer

    Li et al. 2024, https://arxiv.org/abs/2405.15179. Only the k weights and indices of each part are needed after
    training, so that PEFT's files can be very small; ours hold all logits. Not the base at first: B A is small.
    """

    r: int = 4
    """Rank."""
    vectors: int = 256
    """Number h of vectors in the bank."""
    length: int = 256
    """Length b of a vector: the largest common divisor of the widths of all matrices that is not above it."""
    k: int = 2
    """How many vectors a part mixes."""
    dropout: float = 0.0
    """Dropout on the branch's input only."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""

    size_field: ClassVar[str | None] = "vectors"
    learning_rate: ClassVar[float] = 2e-2
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View("B A x", "parallel", "output of each chosen matrix", "add")

    def check(self) -> None:
        at_least(self, r=1, vectors=1, length=1, k=1)
        check_dropout(self)

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear",))

    def common_length(self, picked: Sequence[Site]) -> int:
        """The length of the vectors for these sites."""
        common = math.gcd(*(width for site in picked for width in (site.width_in, site.width_out)))
        return max(n for n in range(1, min(self.length, common) + 1) if common % n == 0)

    def build(self, site: Site) -> Delta:
        return BankMixture(self.k, self.dropout)

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        return VectorBank(self.vectors, self.common_length(picked))

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, BankMixture)
        assert isinstance(shared, VectorBank)
        delta.connect_(shared, site.width_in, site.width_out, self.r)

    def parts_of_matrices(self, picked: Sequence[Site]) -> int:
        """How many mixtures all matrices consist of."""
        return sum(site.width_in + site.width_out for site in picked) // self.common_length(picked) * self.r

    def count(self, sites: Sites) -> int:
        picked = self.pick(sites)
        return self.vectors * (self.common_length(picked) + self.parts_of_matrices(picked))

    def limit(self, sites: Sites) -> int:
        return max(self.k, self.k * self.parts_of_matrices(self.pick(sites)))  # more are never chosen
