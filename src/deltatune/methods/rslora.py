"""rsLoRA: LoRA scaled so that its rank does not decide how much it learns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltatune.methods.lora import LoRA


@dataclass(frozen=True)
class RsLoRA(LoRA):
    """h ← h + (α/√r)·B A x

    Kalajdzievski 2023, https://arxiv.org/abs/2312.03732. With α/r the update shrinks as r grows; with α/√r its size
    and that of its gradients stay.
    """

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """Below LoRA's: at the default r and alpha the update is multiplied by √8 times as much."""
        return 1e-3 / math.sqrt(self.ratio)

    def scale(self, r: int) -> float:
        """What the update of rank r is multiplied by."""
        return self.alpha / math.sqrt(r)
