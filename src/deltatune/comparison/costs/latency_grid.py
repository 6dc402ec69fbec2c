"""Grid of inference times: batch sizes and text lengths, and what is measured in each cell.

The grid of Hu et al. 2021 (LoRA), table 1 and appendix B, https://arxiv.org/abs/2106.09685: rows 1, 16 and 32, tokens
128, 256 and 512, on GPT-2 medium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deltatune.core.errors import raise_all

LENGTHS = (128, 256, 512)
MOST_REPEATS = 10_000

Form = Literal["bare", "unmerged", "merged"]


@dataclass(frozen=True)
class LatencyGrid:
    """What is measured."""

    batches: tuple[int, ...] = (1, 16, 32)
    """Rows of one forward pass."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each row; None for those of 128, 256 and 512 that the model and the methods have positions for."""
    repeats: int = 15
    """Timed forward passes of each method and of the bare model in each cell; medians are compared."""
    task: Literal["classify", "lm"] = "classify"
    """The bare transformer, or the model with its language-model head, whose matrix is part of the time."""
    precision: str = "auto"
    """auto, float32 or bfloat16."""

    def __post_init__(self) -> None:
        sizes = {"batch": self.batches, "length": () if self.lengths is None else self.lengths}
        problems = [f"{name} must be at least 1, not {n}" for name, values in sizes.items() for n in values if n < 1]
        twice = [(name, n) for name, values in sizes.items() for n in dict.fromkeys(values) if values.count(n) > 1]
        problems += [f"{name} {n} is given twice; give it once" for name, n in twice]
        if not self.batches or self.lengths == ():
            problems.append("a grid needs at least one batch size and one length")
        if not 3 <= self.repeats <= MOST_REPEATS:
            problems.append(f"repeats must be from 3 to {MOST_REPEATS:,}, not {self.repeats}: medians are compared")
        raise_all(problems)


@dataclass(frozen=True)
class LatencyRow:
    """One method, in one form, in one cell of the grid."""

    method: str
    """Its text form; "" for the bare model."""
    form: Form
    batch: int
    length: int
    milliseconds: float
    """Median of a forward pass of the whole batch."""
    quartiles: tuple[float, float]
    """Half of the forward passes took a time between these, in milliseconds."""
    ratio: float
    """Median over the turns of the time divided by the bare model's in the same turn."""
    ratio_ci: tuple[float, float] | None
    """95 % interval of that median; None for fewer than 6 repeats."""


@dataclass(frozen=True)
class MeasuredMethod:
    """A method whose latency is measured."""

    method: str
    """Its text form."""
    asked: str
    """As the user wrote it."""
    params: int
    """Trainable parameters."""
    tokens: int
    """Tokens by which it makes each text longer."""
    merges: bool
    obstacle: str
    """Why it cannot be merged; "" if it can."""
