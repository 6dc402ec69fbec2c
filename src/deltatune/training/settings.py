"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.input_validation.option_names import NamedOptions
from deltatune.training.optimizers.make_optimizer import arithmetic_of
from deltatune.training.optimizers.state_bytes import is_paged

TRACKERS = {
    "tensorboard": "TensorBoardCallback",
    "wandb": "WandbCallback",
    "mlflow": "MLflowCallback",
    "trackio": "TrackioCallback",
}
"""Experiment trackers by the name of their package, each with its callback in transformers."""


AUTO: Literal["auto"] = "auto"
"""The learning rate that a search on the validation rows chooses."""
MOST_EPOCHS = 1_000_000
MEMORY_ONLY = ("optimizer_folder", "offload_activations")
"""Fields that say where memory is, and are no part of a run's record."""
SAME_RESULT = ("checkpointing", "report_to", "compile")
"""Fields of the record that do not change the result."""
SCHEDULE_VERSION = 2
"""Version of the warm-up: in version 1 the first step had a rate of 0."""


@dataclass(frozen=True)
class Settings(NamedOptions):
    """AdamW with warm-up and a schedule, on batches of rows of similar length."""

    epochs: float = 3.0
    """Passes over the training rows; a fraction is allowed."""
    max_steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 32
    """Rows of one optimizer step."""
    accumulation: int = 1
    """Split each batch into this many forward passes; the batch size stays the same."""
    learning_rate: float | Literal["auto"] | None = None
    """Peak learning rate; None: the one recommended for the method and the number of steps; auto: searched."""
    warmup: float = 0.06
    """Fraction of the steps in which the learning rate rises to its peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate schedule after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases, norms and other vectors do not decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping: the largest norm of all gradients together; 0 turns it off."""
    length_grouping: bool = True
    """Make batches of rows of similar length, for little padding; the batches depend on the seed alone."""
    optimizer: Literal["adamw", "paged-adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """AdamW; paged: its states in a file, on a GPU in bitsandbytes' paged memory; 8bit: its states in 8 bits."""
    packing: bool = False
    """Pack several rows into one sequence (decoders only)."""
    checkpointing: bool = False
    """Gradient checkpointing: activations are computed again in backward. Much less memory, about half more time."""
    offload_activations: bool = False
    """What the forward pass keeps for the backward pass: on a GPU in the host's memory, on a CPU in a file."""
    optimizer_folder: str | None = None
    """Folder, on a disk, of the files of a paged optimizer and of activations; None: the checkpoints' one."""
    compile: Literal["off", "on", "auto"] = "off"
    """torch.compile of the blocks that are trained through, the same within rounding; auto: where that is faster."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 runs the base under bfloat16 autocast; auto does so on hardware that is faster in bfloat16."""
    evaluate: Literal["end", "epoch"] = "end"
    """When the validation rows are scored: at the end, or after every epoch as well."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints; None: one per epoch. The last step always has a checkpoint."""
    report_to: tuple[str, ...] = ()
    """Experiment trackers that get the metrics of each step: tensorboard, wandb, mlflow, trackio."""
    seed: int = 0
    """Random seed for shuffling and dropout."""

    def __post_init__(self) -> None:
        check_fields(self)
        counts = {name: getattr(self, name) for name in ("batch_size", "accumulation", "max_steps", "checkpoint_every")}
        problems = [f"{name} must be at least 1, not {n}" for name, n in counts.items() if n is not None and n < 1]
        if self.epochs <= 0 or not math.isfinite(self.epochs):
            problems.append(f"epochs must be above 0, not {self.epochs}")
        if isinstance(self.learning_rate, float) and not 0 < self.learning_rate < math.inf:
            problems.append(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.optimizer_folder is not None and not is_paged(self.optimizer) and not self.offload_activations:
            problems.append(
                f"optimizer_folder={self.optimizer_folder!r} is for paged optimizers and offload_activations, and the "
                f"optimizer is {self.optimizer}; leave it out"
            )
        if self.offload_activations and self.compile != "off":
            problems.append(
                f"compile={self.compile!r}: compiled blocks keep their own activations, which offload_activations does "
                "not move; leave one of them out"
            )
        if self.epochs > MOST_EPOCHS:
            problems.append(f"epochs must be at most {MOST_EPOCHS:,}, not {self.epochs:g}")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed must be 0 to {2**32 - 1:,}, not {self.seed}")
        if not 0 <= self.warmup <= 1:
            problems.append(f"warmup is a fraction of the steps, 0 to 1, not {self.warmup}")
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

    @property
    def peak_rate(self) -> float:
        """The learning rate as a number. Raises DeltatuneError where it is still to be set or searched."""
        if not isinstance(self.learning_rate, float):
            raise DeltatuneError(
                f"learning_rate={self.learning_rate!r}: a number is needed here; auto is searched by train, one "
                "adapter at a time"
            )
        return self.learning_rate

    def record(self, device: str = "cpu") -> dict[str, Any]:
        """The fields as plain data, for the record of a run; optimizers with the same bits have one name.

        device: where the trained tensors are, "cpu" or "cuda".
        """
        fields = {name: value for name, value in asdict(self).items() if name not in MEMORY_ONLY}
        fields["optimizer"] = arithmetic_of(self.optimizer, device)
        if fields["optimizer"] == "adamw":  # as in records of versions that had no other
            del fields["optimizer"]
        return fields

    def facts(self) -> dict[str, Any]:
        """The fields that determine a result, as plain data."""
        return {name: value for name, value in self.record().items() if name != "compile"}

    def identity(self, device: str = "cpu") -> dict[str, Any]:
        """The fields in which a run must equal the one that it resumes."""
        return {name: value for name, value in self.record(device).items() if name not in SAME_RESULT}

    def schedule_version(self) -> int | None:
        """Version of the learning rates that these settings mean; None where all versions agree: without a warm-up."""
        return SCHEDULE_VERSION if self.warmup > 0 else None
