"""transformers.Trainer for adapters: their parameters alone are optimised and saved, quietly, and resumed exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments, get_scheduler

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.tasks.task import Task
from deltatune.training import checkpoint
from deltatune.training import checkpoint as state
from deltatune.training.gradient_check import Watch, idle, resting
from deltatune.training.reporting import Reporter
from deltatune.training.sampler import Batches
from deltatune.training.scaling.distributed import by_hand
from deltatune.training.settings import Settings

OnStep = Callable[[int, int, float, float], None]
"""Called after each optimiser step with (step, total, loss, learning rate)."""


@dataclass
class Progress:
    """What happened so far; a checkpoint carries it on."""

    history: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) of every optimiser step."""
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, scores on the validation rows)."""
    seconds: float = 0.0
    """Time spent in steps, without evaluations and checkpoints."""
    rows: int = 0
    """Rows trained on, repeats counted."""


class DeltaTrainer(Trainer):
    """Trains one adapter of a host through `model`, a module with a loss around it (Tuned or Probe)."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        host: Host,
        name: str,
        task: Task,
        loader: Batches,
        settings: Settings,
        args: TrainingArguments,
        on_step: OnStep | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        identity: Mapping[str, Any] | None = None,
        reports: Path | None = None,
    ) -> None:
        """`settings.learning_rate` is set. `identity` tells runs apart: a checkpoint of another is refused."""
        self.host, self.name, self.task, self.settings = host, name, task, settings
        self.loader, self.on_step, self.evaluation = loader, on_step, evaluate
        self.identity = dict(identity or {})
        self.progress = Progress()
        self.clock, self.counted = 0.0, (0, 0.0)
        self.reporter = Reporter(reports, settings.report_to, args, host.model)
        self.world = loader.order.world
        unread = idle(host, name)
        self.parameters = [(n, p) for n, p in host.trainable(name) if n not in unread]
        model._is_accelerate_prepared = True  # type: ignore[assignment]  # so that it is not wrapped: see `training_step`
        with by_hand():
            super().__init__(model, args, train_dataset=loader.dataset)
        self.remove_callback(PrinterCallback)
        left_out = resting(host, name)
        self.add_callback(Watch(name, [(n, p) for n, p in self.parameters if n not in left_out]))

    def create_accelerator_and_postprocess(self) -> None:
        """Without moving anything, and without the full garbage collection (0.2 s and more) at the start of a run."""
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False
        self.accelerator.free_memory = lambda *objects: list(objects)

    # --- rows, optimiser, schedule ---

    def get_train_dataloader(self) -> Batches:
        """The loader as given: accelerate would shuffle it with the global random state."""
        return self.loader

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The forward passes of one step, and over how many items their summed loss is divided."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        rows = [int(batch.pop("rows", len(batch["labels"]))) for batch in batches]
        items = [self.task.items(batch["labels"]) * bool(count) for batch, count in zip(batches, rows, strict=True)]
        for batch, count in zip(batches, rows, strict=True):
            batch["share"] = float(count > 0)
        all_rows, all_items = self.world.sums(sum(rows), sum(items))
        self.progress.rows += all_rows
        return batches, all_items

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The loss of one pass, 0 of one that only keeps the processes in step."""
        share = inputs.pop("share", 1.0)
        loss = super().compute_loss(model, inputs, *args, **options)
        return loss if share == 1 else loss * share

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A pass; after a step's last one the processes share what they found.

        The Trainer multiplies each process's loss by their number, so that the mean of the gradients is the sum.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.world.average_gradients_([p for _, p in self.parameters])
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the adapter's tensors; those of one dimension do not decay, some have a rate of their own."""
        if self.optimizer is None:
            rate = self.settings.learning_rate or 0.0
            groups = self.groups()
            self.names = [n for members in groups.values() for n, _ in members]
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": [p for _, p in members], "weight_decay": decay, "lr": factor * rate}
                    for (factor, decay), members in groups.items()
                ],
                lr=rate,
                fused=all(p.device.type in ("cpu", "cuda", "mps") for _, p in self.parameters),
            )
        return self.optimizer

    def groups(self) -> dict[tuple[float, float], list[tuple[str, nn.Parameter]]]:
        """Parameters by (factor on the learning rate, weight decay); those of factor 1 first: their rate is shown."""
        factors = self.host.adapters[self.name].rates()
        found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.parameters:
            decay = self.settings.weight_decay if parameter.dim() > 1 else 0.0
            found.setdefault((factors.get(name, 1.0), decay), []).append((name, parameter))
        order = sorted(found, key=lambda group: (group[0] != 1.0, group[0], -group[1]))
        return {group: found[group] for group in order}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, then the schedule of the settings."""
        if self.lr_scheduler is None:
            kind = self.settings.schedule
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = get_scheduler(
                "constant_with_warmup" if kind == "constant" else kind,
                optimizer,
                math.ceil(self.settings.warmup * num_training_steps),
                num_training_steps,
            )
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # the adapter's tensors alone: going through all of the base's takes longer than the norm itself
        return torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], self.args.max_grad_norm)

    # --- after each step ---

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's report of a step: kept, handed to `on_step`, and checked. Nothing is printed."""
        if "loss" not in logs:
            return  # the closing summary
        step, loss, rate = self.state.global_step, float(logs["loss"]), float(logs["learning_rate"])
        self._stop_clock()
        done, seconds = self.progress.rows - self.counted[0], self.progress.seconds - self.counted[1]
        self.counted = self.progress.rows, self.progress.seconds
        if not math.isfinite(loss):
            raise DeltatuneError(f"the loss became {loss} in step {step} (rate {rate:.2g}); lower the learning_rate")
        self.progress.history.append((step, loss))
        figures = {"rows_per_second": done / seconds if seconds else 0.0, "seconds": self.progress.seconds}
        if self.world.first:
            self.reporter.step(step, self.state.epoch or 0.0, {"loss": loss, "learning_rate": rate, **figures})
        if self.evaluation is not None and step % self.steps_per_epoch == 0:
            self.scored(self.evaluation())
        if self.on_step is not None and self.world.first:
            self.on_step(step, self.state.max_steps, loss, rate)
        self.clock = time.perf_counter()

    def scored(self, scores: dict[str, float]) -> None:
        """Keep and report the scores after the last step; all processes take process 0's."""
        scores, step = self.world.told(scores), self.state.global_step
        self.progress.evaluations.append((step, scores))
        if self.world.first:
            self.reporter.scores(step, self.state.epoch or 0.0, scores)

    def _stop_clock(self) -> None:
        self.progress.seconds += time.perf_counter() - self.clock

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return math.ceil(len(self.loader) / self.args.gradient_accumulation_steps)

    # --- checkpoints ---

    def resumable(self) -> Path | None:
        """The checkpoint to go on from, if there is one; what a killed run left beside it is removed."""
        if self.args.save_strategy == "no":
            return None
        out = Path(str(self.args.output_dir))
        if self.world.first and out.is_dir():
            checkpoint.tidy(out)
        return self.world.told(checkpoint.newest(out) if self.world.first else None)

    def run(self, resume: Path | None) -> None:
        """Train from the start, or from a checkpoint on. Raises DeltatuneError if that one is of another run."""
        if resume is not None:
            state.check_same_run(resume, checkpoint.record_of(resume, "run")["identity"], self.identity)
        self.world.check_agree(self.identity)
        self.world.copy_([*self.host.adapters[self.name].state_dict().values()])
        state.seed_process(self.settings.seed, self.world.rank)
        if resume is None and self.world.first:
            self.reporter.begin(0, [])
        self.clock, self.counted = time.perf_counter(), (self.progress.rows, self.progress.seconds)
        try:
            self.train(resume_from_checkpoint=str(resume) if resume else None)
        finally:
            if self.optimizer is not None:
                self.optimizer.state.clear()  # the moments go now, not when the cycles around a Trainer are collected

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter alone, as the host does."""
        self._save_adapter(Path(output_dir or str(self.args.output_dir)))

    def _save_adapter(self, folder: Path) -> None:
        self.host.save(self.name, folder, training=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        drawn = self.world.gathered((state.random_tensors(), state.random_record()))
        if self.world.first:
            self._write_checkpoint(drawn)
        self.clock = time.perf_counter()

    def _write_checkpoint(self, drawn: Sequence[tuple[dict[str, Tensor], dict[str, Any]]]) -> None:
        tensors = {
            "optimizer": state.optimizer_tensors(self.optimizer, self.names),
            "random": state.of_processes([tensors for tensors, _ in drawn]),
        }
        scheduler: Any = self.lr_scheduler
        optimizer: Any = self.optimizer
        run = {
            "identity": self.identity,
            "progress": vars(self.progress),
            "scheduler": scheduler.state_dict(),
            "rates": [group["lr"] for group in optimizer.param_groups],
            "random": [record for _, record in drawn],
        }
        records = {"run": run, "trainer_state": vars(self.state) | {"stateful_callbacks": {}}}
        checkpoint.write(Path(str(self.args.output_dir)), self.state.global_step, self._save_adapter, tensors, records)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoint.load_adapter_(self.host, self.name, folder)
        stored = checkpoint.record_of(folder, "run")["progress"]
        self.progress.history = [(int(step), float(loss)) for step, loss in stored["history"]]
        self.progress.evaluations = [(int(step), dict(scores)) for step, scores in stored["evaluations"]]
        self.progress.seconds += stored["seconds"]
        self.progress.rows = stored["rows"]
        self.counted = self.progress.rows, self.progress.seconds
        if self.world.first:
            self.reporter.begin(checkpoint.step_of(folder), [step for step, _ in self.progress.evaluations])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_schedule_(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random(Path(checkpoint), self.world.rank)


def load_schedule_(trainer: DeltaTrainer, folder: Path) -> None:
    """Give a trainer the optimiser's and the schedule's state of a checkpoint."""
    run = checkpoint.record_of(folder, "run")
    tensors: dict[str, Tensor] = checkpoint.tensors_of(folder, "optimizer")
    state.load_optimizer_(trainer.optimizer, trainer.names, tensors, run["rates"])
    scheduler: Any = trainer.lr_scheduler
    scheduler.load_state_dict(run["scheduler"])


def load_random(folder: Path, rank: int) -> None:
    """Put a process's random generators where a checkpoint has them; one that it did not know keeps its own."""
    records = checkpoint.record_of(folder, "run")["random"]
    if rank < len(records):
        state.restore_random(state.of_process(checkpoint.tensors_of(folder, "random"), rank), records[rank])


def names_of(parameters: Sequence[tuple[str, nn.Parameter]]) -> dict[str, list[int]]:
    """Shapes by name: part of what tells runs apart."""
    return {name: list(parameter.shape) for name, parameter in parameters}
