"""Metrics of a run: a file of JSON lines beside the checkpoints, and experiment trackers such as TensorBoard."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.regular_files import check_regular
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.store.atomic_files import append_line, make_folder, write_file
from deltatune.store.run_folder import STEP_METRICS, TENSORBOARD
from deltatune.training.settings import TRACKERS, Settings

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

FILE = STEP_METRICS


def check_installed(names: Sequence[str]) -> None:
    """Raise DeltatuneError for trackers whose package is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    raise_all([f"report_to: {name} is not installed: pip install {name}" for name in missing])


class Reporter:
    """Writes down every step and every evaluation; without a folder and without trackers it does nothing.

    A context manager, at whose end the trackers are closed.
    """

    def __init__(self, folder: Path | None, settings: Settings, device: torch.device, model: nn.Module) -> None:
        """`folder` gets metrics.jsonl and TensorBoard's files; trackers get the settings and the model's config."""
        self.folder, self.settings, self.device, self.model = folder, settings, device, model
        self.trackers: list[TrainerCallback] = []
        """Callbacks of transformers, which start and feed the trackers."""

    def start(self, step: int, evaluated: Collection[int]) -> None:
        """Begin after `step`. Removes lines that a stopped run wrote beyond it, and evaluations not in `evaluated`."""
        if self.folder is not None:
            make_folder(self.folder)
            path = self.folder / FILE
            lines = [line for line in read(path) if line["step"] <= step and in_checkpoint(line, evaluated)]
            write_file(path, "".join(f"{dumps(line, path)}\n" for line in lines))
        if self.settings.report_to:
            self._start_trackers(step)

    def log_step(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Metrics of one optimizer step: loss, learning_rate, rows_per_second, seconds."""
        self._write({"step": step, "epoch": round(epoch, 6), **metrics})
        self._track(step, epoch, metrics)

    def log_scores(self, step: int, epoch: float, scores: Mapping[str, float]) -> None:
        """Scores on the validation rows after a step."""
        self._write({"step": step, "epoch": round(epoch, 6), "scores": dict(scores)})
        self._track(step, epoch, {f"eval_{name}": value for name, value in scores.items()})

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self.trackers:
            tracker.on_train_end(self.args, self.state, self.control, model=self.model)
        self.trackers = []

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.folder is not None:
            append_line(self.folder / FILE, dumps(line, nonfinite="null"), sync=False)

    def _track(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            self.state.global_step, self.state.epoch = step, epoch
            tracker.on_log(self.args, self.state, self.control, model=self.model, logs=dict(metrics))

    def _start_trackers(self, step: int) -> None:
        from transformers import TrainerControl, TrainerState

        self.args, self.state, self.control = self._training_arguments(), TrainerState(), TrainerControl()
        self.state.global_step = step
        self.trackers = [self._tracker(name, step) for name in self.settings.report_to]
        for tracker in self.trackers:
            tracker.on_train_begin(self.args, self.state, self.control, model=self.model)

    def _training_arguments(self) -> TrainingArguments:
        """The settings in the form in which transformers' callbacks send them to the trackers."""
        from transformers import TrainingArguments

        settings = self.settings
        return TrainingArguments(
            output_dir=str(self.folder or "."),
            use_cpu=self.device.type == "cpu",
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            per_device_train_batch_size=settings.batch_size // settings.accumulation,
            gradient_accumulation_steps=settings.accumulation,
            learning_rate=settings.peak_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            report_to="none",
        )

    def _tracker(self, name: str, step: int) -> TrainerCallback:
        from transformers.integrations import integration_utils

        callback: Any = getattr(integration_utils, TRACKERS[name])
        if name != "tensorboard":
            return callback()  # type: ignore[no-any-return]
        from torch.utils.tensorboard import SummaryWriter

        # in the run's folder; what a stopped run wrote beyond the checkpoint is hidden
        folder = None if self.folder is None else str(self.folder / TENSORBOARD)
        return callback(SummaryWriter(folder, purge_step=step + 1))  # type: ignore[no-any-return]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that is incomplete."""
    if not path.exists():
        return []
    check_regular(path)
    complete, lines = path.read_bytes().split(b"\n")[:-1], []  # what follows the last end of a line: killed meanwhile
    for number, text in enumerate(complete, 1):
        line = loads(text, f"{path} line {number}")
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            raise DeltatuneError(f"{path} line {number} is no line of metrics; remove the file and start again")
        lines.append(line)
    return lines


def in_checkpoint(line: Mapping[str, Any], evaluated: Collection[int]) -> bool:
    """Whether a line is of a step, or of an evaluation that the checkpoint has."""
    return "scores" not in line or line["step"] in evaluated
