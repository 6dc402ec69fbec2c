"""The training loop: forward and backward passes, gradient clipping, optimizer steps, evaluations and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.task import Task
from deltatune.training.optimizers.chunked_adamw import ChunkedAdamW
from deltatune.training.optimizers.make_optimizer import make_optimizer
from deltatune.training.reporting import Reporter
from deltatune.training.scaling.distributed import Processes
from deltatune.training.settings import Settings
from deltatune.training.training_loop import checkpoint
from deltatune.training.training_loop.gradient_check import GradientCheck, skippable_tensors, unread_tensors
from deltatune.training.training_loop.loss_diagnosis import Rates, diagnosis, gradients_text
from deltatune.training.training_loop.sampler import BatchLoader, MicroBatch

OnStep = Callable[[int, int, float, float], None]
"""Called after each optimizer step with (step, total steps, loss, learning rate)."""


@dataclass
class Progress:
    """What a run has done so far; every checkpoint stores it."""

    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) of every optimizer step."""
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, scores on the validation rows)."""
    seconds: float = 0.0
    """Time spent in steps, without evaluations and checkpoints."""
    rows: int = 0
    """Rows trained on, repeats counted."""
    moved: bool = False
    """Whether any trainable tensor has changed."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.history[-1][0] if self.history else 0


@dataclass(frozen=True)
class Step:
    """What one optimizer step reads."""

    number: int
    """From 1 on, over all epochs."""
    batches: Sequence[MicroBatch]
    """The forward passes of this process."""
    rows: int
    """Rows of all processes."""
    items: Mapping[str | None, float]
    """The number by which each part's summed loss is divided."""


class TrainingLoop:
    """Trains one adapter of a host: AdamW on `model`, a module that returns the loss (TaskModel or FeatureModel).

    Every process runs the same loop on its part of each step's rows. The loss of a step is the sum over all labelled
    items of all processes and forward passes, divided by their number; so gradients are summed, never averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        host: Host,
        name: str,
        task: Task,
        loader: BatchLoader,
        settings: Settings,
        reporter: Reporter,
        processes: Processes,
        out: Path | None = None,
        on_step: OnStep | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings.learning_rate` is set. `out` gets the checkpoints. `evaluate` is called after every epoch.

        `identity` describes the run: the processes must agree on it, and a checkpoint of another run is refused.
        """
        self.model, self.host, self.name, self.task, self.loader = model, host, name, task, loader
        self.settings, self.reporter, self.processes, self.out = settings, reporter, processes, out
        self.on_step, self.evaluate, self.identity = on_step, evaluate, dict(identity or {})
        self.progress = Progress()
        self.steps_per_epoch = loader.sampler.steps_per_epoch
        self.total_steps = settings.max_steps or math.ceil(settings.epochs * self.steps_per_epoch)
        self.last_step = self.total_steps
        """The step after which this call ends: a run may pause."""
        self.warmup_steps = warmup_steps_of(settings.warmup, self.total_steps)

        trainable, unread = host.trainable(name), unread_tensors(host, name, task)
        skippable = skippable_tensors(host, name)
        self.parameters = [parameter for n, parameter in trainable if n not in unread]
        self.gradient_check = GradientCheck(name, {n: p for n, p in trainable if n not in unread}, skippable)

        peak_rate = settings.peak_rate
        groups = host.adapters[name].parameter_groups(peak_rate, settings.weight_decay)
        groups.sort(key=lambda group: group["lr"] != peak_rate)  # the first group's rate is the one reported
        self.peak_rates = [group["lr"] for group in groups]
        self.optimizer = make_optimizer(settings.optimizer, groups, peak_rate, settings.optimizer_folder, out)
        names = {id(parameter): n for n, parameter in trainable}
        self.optimizer_names = [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def run(self, resume: Path | None = None, until: int | None = None) -> None:
        """Train to the last step, from the first one or from a checkpoint; `until` is an earlier step to pause after.

        Raises DeltatuneError for a checkpoint of another run, processes that differ, a trainable tensor that does not
        learn, and a loss that is not finite.
        """
        self.start(resume, until)
        started = time.perf_counter()
        for step in self.steps():
            loss, learning_rate = self.optimize_(step)
            self.record(step, loss, learning_rate, time.perf_counter() - started)
            started = time.perf_counter()

    def close(self) -> None:
        """Give up the file of a paged optimizer: no step follows."""
        if isinstance(self.optimizer, ChunkedAdamW):
            self.optimizer.close()

    def steps(self) -> Iterator[Step]:
        """The steps that are left, up to the one to pause after."""
        for number, batches in self.loader.steps(self.progress.step + 1, self.last_step):
            yield Step(number, batches, *self.step_items(batches))

    def optimize_(self, step: Step) -> tuple[float, float]:
        """One optimizer step: its loss over the rows of all processes, and the learning rate it was taken with."""
        return self.update_(step, self.backward(step))

    def backward(self, step: Step) -> Tensor:
        """Add the gradients of a step's forward passes in this process, and return their loss."""
        total = torch.zeros((), device=self.processes.device)
        self.model.train()
        for batch in step.batches:
            loss: Tensor = self.model(**self.arguments(batch, step.items))["loss"]
            if not batch.rows:  # a pass that only keeps the processes in step
                loss = loss * 0.0
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def update_(self, step: Step, total: Tensor) -> tuple[float, float]:
        """Take an optimizer step with the gradients that are there; `total` is the loss of this process's passes.

        Returns the loss over the rows of all processes and the learning rate. Raises DeltatuneError, before anything
        has changed, for a loss or gradients that are not finite, and after the step for a tensor that does not learn.
        """
        step_loss = float(self.processes.sum_(total))
        if not math.isfinite(step_loss):  # before the optimizer spreads it into the adapter
            raise DeltatuneError(f"the loss became {step_loss} in step {step.number}: {self.diagnosis(step)}")
        self.processes.sum_gradients_(self.parameters)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not math.isfinite(norm):
            gradients = {n: p.grad for n, p in self.gradient_check.parameters.items() if p.grad is not None}
            cause = gradients_text(gradients, self.host, self.rates_before(step.number))
            raise DeltatuneError(f"the gradients became {float(norm)} in step {step.number}: {cause}")
        if self.settings.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.max_grad_norm, norm)

        factor = schedule_factor(self.settings.schedule, step.number - 1, self.warmup_steps, self.total_steps)
        for group, peak_rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak_rate * factor
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.gradient_check.before_step()
        self.optimizer.step()
        self.gradient_check.after_step(learning_rate)
        self.progress.moved = self.gradient_check.has_moved
        if step.number == self.total_steps:  # before the last checkpoint, which would count as a finished run
            self.gradient_check.end(step.number, max(self.peak_rates))
        self.optimizer.zero_grad()
        return step_loss, learning_rate

    def record(self, step: Step, loss: float, learning_rate: float, seconds: float) -> None:
        """Note and report a step that took so long, score the validation rows and write a checkpoint if it is time."""
        self.progress.rows += step.rows
        self.progress.seconds += seconds
        self.progress.history.append((step.number, loss))
        if self.processes.is_main:
            metrics = {"loss": loss, "learning_rate": learning_rate}
            metrics |= {"rows_per_second": step.rows / seconds if seconds else 0.0, "seconds": self.progress.seconds}
            self.reporter.log_step(step.number, self.epoch, metrics)
        if self.evaluate is not None and step.number % self.steps_per_epoch == 0:
            self.add_scores(self.evaluate())
        if self.on_step is not None and self.processes.is_main:
            self.on_step(step.number, self.total_steps, loss, learning_rate)
        if self.out is not None and (step.number % self.checkpoint_every == 0 or step.number == self.last_step):
            self.save_checkpoint(self.out)

    def arguments(self, batch: MicroBatch, items: Mapping[str | None, float]) -> dict[str, Any]:
        """What the model is called with."""
        tensors = {name: tensor.to(self.processes.device) for name, tensor in batch.tensors.items()}
        return {**tensors, **({} if batch.part is None else {"part": batch.part}), "items": items[batch.part]}

    def rates_before(self, step: int) -> Rates:
        """Learning rates of the steps before this one."""
        factors = [
            schedule_factor(self.settings.schedule, i, self.warmup_steps, self.total_steps) for i in range(step - 1)
        ]
        recommended = self.host.adapters[self.name].method.learning_rate
        return Rates(max(factors, default=0.0) * max(self.peak_rates), recommended)

    def diagnosis(self, step: Step) -> str:
        """Why the loss of a step is not finite."""
        calls = [self.arguments(batch, step.items) for batch in step.batches if batch.rows]
        passes = [partial(self.model, **call) for call in calls]
        rates = self.rates_before(step.number)
        return diagnosis(self.host, self.name, calls, passes, rates, measured=self.processes.size == 1)

    def step_items(self, batches: Sequence[MicroBatch]) -> tuple[int, dict[str | None, float]]:
        """The rows of a step in all processes, and the number by which a part's summed loss is divided.

        That is the step's labelled items; of a mixture's part its own items, over the part's share of the step's rows.
        """
        parts: Mapping[str | None, Task] = self.task.parts if isinstance(self.task, Mixture) else {None: self.task}  # type: ignore[assignment]
        counts = {part: [0, 0] for part in parts}
        for batch in batches:
            if batch.rows:
                counts[batch.part][0] += batch.rows
                counts[batch.part][1] += parts[batch.part].items(batch.tensors["labels"])
        sums = self.processes.sum_counts(*(count for pair in counts.values() for count in pair))
        rows, items = sums[::2], sums[1::2]
        total = sum(rows)
        return total, {part: items[i] * (total / rows[i]) if items[i] else 1.0 for i, part in enumerate(parts)}

    @property
    def epoch(self) -> float:
        """Passes over the rows so far."""
        return self.progress.step / self.steps_per_epoch

    def add_scores(self, scores: dict[str, float]) -> None:
        """Store and report the validation scores after the last step; all processes take those of process 0."""
        scores = self.processes.broadcast(scores)
        self.progress.evaluations.append((self.progress.step, scores))
        if self.processes.is_main:
            self.reporter.log_scores(self.progress.step, self.epoch, scores)

    # --- start, checkpoints ---

    def start(self, resume: Path | None, until: int | None = None) -> None:
        """Give all processes the same adapter, seed them, and restore a checkpoint; `until`: see `run`."""
        self.last_step = self.total_steps if until is None else min(until, self.total_steps)
        if resume is not None:
            checkpoint.check_same_run(resume, self.identity)
        self.processes.check_equal(self.identity)
        self.processes.broadcast_tensors_([*self.host.adapters[self.name].state_dict().values()])
        checkpoint.seed_process(self.settings.seed, self.processes.rank)
        if resume is not None:
            self.load_checkpoint_(resume)
        self.gradient_check.start(self.progress.step, self.progress.moved)
        self.optimizer.zero_grad()
        if self.processes.is_main:
            self.reporter.start(self.progress.step, [step for step, _ in self.progress.evaluations])

    @property
    def checkpoint_every(self) -> int:
        """Optimizer steps between two checkpoints."""
        return self.settings.checkpoint_every or self.steps_per_epoch

    def save_checkpoint(self, out: Path) -> None:
        """Write the adapter and all that resuming needs."""
        optimizer, names, progress = self.optimizer, self.optimizer_names, self.progress
        checkpoint.save(
            out, progress.step, self.host, self.name, optimizer, names, vars(progress), self.identity, self.processes
        )

    def load_checkpoint_(self, folder: Path) -> None:
        """Restore the adapter, the optimizer, the random generators and the progress."""
        optimizer, names, required = self.optimizer, self.optimizer_names, self.gradient_check.required
        stored = checkpoint.load_(folder, self.host, self.name, optimizer, names, self.processes, required)
        self.progress = Progress(
            [(int(step), float(loss)) for step, loss in stored["history"]],
            [(int(step), dict(scores)) for step, scores in stored["evaluations"]],
            self.progress.seconds + stored["seconds"],
            stored["rows"],
            stored.get("moved", True),  # checkpoints of earlier versions do not say
        )


def warmup_steps_of(warmup: float, total_steps: int) -> int:
    """Steps below the peak rate at the start: a share of all steps, but never the last one."""
    return min(math.ceil(warmup * total_steps), total_steps - 1)


def schedule_factor(schedule: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0, as a fraction of its peak; above 0 at every step.

    The schedules of transformers, one step later: their rates of 0 before the first and after the last step are left
    out, so that no step is wasted.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decay_steps = max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, (total_steps - step) / decay_steps)
    if schedule == "cosine":
        progress = (step - warmup_steps) / decay_steps
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return 1.0
