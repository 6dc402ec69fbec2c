"""UniPELT: several methods at once, each with a gate computed from the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from deltatune.core.method import Method, View
from deltatune.core.union import Compound, Union
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.methods.combinations.gated import gated
from deltatune.methods.low_rank.lora import LoRA
from deltatune.methods.prompts.prefix import Prefix

_PAPER = Prefix(length=10) + LoRA(r=8, alpha=8.0) + Bottleneck(size=48, form="pfeiffer")


@dataclass(frozen=True)
class UniPELT(Compound):
    """h ← h + Σ_i g_i(x)·Δ_i(x, h), g_i(x) = mean_t σ(w_i·x_t + b_i)

    Mao et al. 2022, https://arxiv.org/abs/2110.07577
    Any union can be gated: `UniPELT(LoRA() + Prefix())`. Each method has a gate at each site. The paper's prefix runs
    through an MLP while it is trained (`Prefix(length=10, mlp=512)`), and LoRA's gate replaces its α/r, 1 here.
    The mean is over real tokens (the reference counts padding too). In decoders a mean over the text would look into
    the future, so each token has its own gate.
    """

    methods: Method = _PAPER
    """The methods to gate."""

    learning_rate: ClassVar[float] = 2e-3
    view: ClassVar[View] = View("Σ g(x)·Δ(x, h)", "parallel", "those of its methods", "gated")

    @property
    def union(self) -> Method:
        return Union(gated(self.methods.parts))

    @property
    def size(self) -> int | None:
        return self.methods.size

    def sized(self, size: int) -> Method:
        return replace(self, methods=self.methods.sized(size))

    def with_token_ids(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        return replace(self, methods=self.methods.with_token_ids(tokenize, labels))

    def finished(self) -> Method:
        return replace(self, methods=self.methods.finished())
