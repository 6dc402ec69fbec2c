"""How an adapter is trained: the settings, and what this machine makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deltatune.core.errors import nearest, raise_all
from deltatune.core.validation import check_fields

TRACKERS = {
    "tensorboard": "TensorBoardCallback",
    "wandb": "WandbCallback",
    "mlflow": "MLflowCallback",
    "trackio": "TrackioCallback",
}
"""Experiment trackers by the name of their package, each with its callback in transformers."""


@dataclass(frozen=True)
class Settings:
    """AdamW with warm-up and a schedule, on batches of rows of similar length."""

    epochs: float = 3.0
    """Passes over the training rows; a fraction is allowed."""
    max_steps: int | None = None
    """Optimiser steps, instead of epochs."""
    batch_size: int = 32
    """Rows of one optimiser step."""
    accumulation: int = 1
    """Into how many forward passes a batch is split: less memory, the same result."""
    learning_rate: float | None = None
    """Peak rate; None takes the method's recommended one."""
    warmup: float = 0.06
    """Share of the steps in which the rate rises from 0 to its peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the rate does after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; biases, norms and other vectors have none."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    length_grouping: bool = True
    """Batches of rows of similar length: little padding, the same rows in every run of one seed."""
    packing: bool = False
    """Rows of a batch share sequences, kept apart by their positions: no padding, the same result (decoders only)."""
    checkpointing: bool = False
    """Each block's activations are computed again in backward: much less memory, about half more time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 runs the base's products in half precision; auto does where the machine is faster at it."""
    evaluate: Literal["end", "epoch"] = "end"
    """When the validation rows are scored."""
    checkpoint_every: int | None = None
    """Optimiser steps from one checkpoint to the next; None: one an epoch. The last step always has one."""
    report_to: tuple[str, ...] = ()
    """Trackers that get the figures of each step: tensorboard, wandb, mlflow, trackio."""
    seed: int = 0
    """Order of the rows and dropout."""

    def __post_init__(self) -> None:
        check_fields(self)
        low = {"batch_size": 1, "accumulation": 1, "max_steps": 1, "checkpoint_every": 1}
        values = {name: getattr(self, name) for name in low}
        wrong = {name: value for name, value in values.items() if value is not None and value < low[name]}
        problems = [f"{name} must be at least 1, not {value}" for name, value in wrong.items()]
        if self.epochs <= 0 or not math.isfinite(self.epochs):
            problems.append(f"epochs must be above 0, not {self.epochs}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.warmup <= 1:
            problems.append(f"warmup is a share of the steps, 0 to 1, not {self.warmup}")
        problems += [f"{n} must not be negative" for n in ("weight_decay", "max_grad_norm") if getattr(self, n) < 0]
        if self.accumulation > self.batch_size:
            problems.append(
                f"a batch of {self.batch_size} rows cannot be split into {self.accumulation} (accumulation)"
            )
        problems += [
            f"report_to: there is no {name!r}{nearest(name, TRACKERS)}; known: {', '.join(TRACKERS)}"
            for name in self.report_to
            if name not in TRACKERS
        ]
        raise_all(problems)
