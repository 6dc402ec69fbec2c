"""MAM, the mix-and-match adapter: a short prefix in attention, a wide parallel bottleneck over the FFN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from deltatune.core.method import Method, View, at_least
from deltatune.core.union import Compound
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.methods.prompts.prefix import Prefix


@dataclass(frozen=True)
class MAM(Compound):
    """a ← softmax(q [P_k; K]ᵀ/√d) [P_v; V] in attention; h ← h + s·U relu(D x) over the FFN

    He et al. 2022, https://arxiv.org/abs/2110.04366
    Their finding: a small budget is best spent in attention (a prefix of 30), a large one on the FFN (width 512).
    """

    length: int = 30
    """Positions of the prefix; 16 for understanding tasks in the paper."""
    size: int = 512
    """Width of the parallel bottleneck; 16 for understanding tasks in the paper."""
    scale: float = 4.0
    """The multiplier s; 2 for understanding tasks in the paper."""
    mlp: int = 0
    """Width of the network that reparametrises the prefix while training; 800 in the paper, 0 trains it directly."""

    size_field: ClassVar[str | None] = "size"
    learning_rate: ClassVar[float] = 1e-3
    view: ClassVar[View] = View("prefix + U relu(D x)", "parallel", "attention heads; FFN output", "scaled")

    def check(self) -> None:
        at_least(self, length=1, size=1, mlp=0)

    @property
    def union(self) -> Method:
        return Prefix(length=self.length, mlp=self.mlp) + Bottleneck(self.size, form="parallel", scale=self.scale)

    def sized(self, size: int) -> Method:
        """The same with both parts scaled, in the paper's proportion."""
        return replace(self, size=size, length=max(1, round(self.length * size / self.size)))

    def finished(self) -> Method:
        return replace(self, mlp=0)
