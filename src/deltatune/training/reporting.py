"""Where the figures of a run go: a file of JSON lines beside the checkpoints, and the trackers that are asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deltatune.core.errors import nearest, raise_all
from deltatune.store.atomic_files import write_file
from deltatune.store.run_folder import FIGURES, TENSORBOARD

FILE = FIGURES
TRACKERS = {
    "tensorboard": "TensorBoardCallback",
    "wandb": "WandbCallback",
    "mlflow": "MLflowCallback",
    "trackio": "TrackioCallback",
}
"""The trackers by name, each with transformers' callback for it. The name is the package's, too."""


def unknown(names: Sequence[str]) -> list[str]:
    """What is wrong with names of trackers, whatever is installed."""
    return [
        f"report_to: there is no {name!r}{nearest(name, TRACKERS)}; known: {', '.join(TRACKERS)}"
        for name in names
        if name not in TRACKERS
    ]


def check_installed(names: Sequence[str]) -> None:
    """Raise DeltatuneError for trackers whose package is not here."""
    missing = [name for name in names if find_spec(name) is None]
    raise_all([f"report_to: {name} is not installed: pip install {name}" for name in missing])


class Reporter:
    """Writes every step and evaluation down; with no folder and no trackers it does nothing.

    A context: trackers end with it.
    """

    def __init__(self, folder: Path | None, names: Sequence[str], args: TrainingArguments, model: nn.Module) -> None:
        """`folder` gets metrics.jsonl and TensorBoard's files; `model` is told to trackers with its config."""
        check_installed(names)
        self.folder, self.names, self.args, self.model = folder, names, args, model
        self.trackers: list[TrainerCallback] = []
        self.state, self.control = TrainerState(), TrainerControl()

    def begin(self, step: int, evaluated: Collection[int]) -> None:
        """Go on after `step`: what a stopped run wrote beyond it is cut, and evaluations that are not `evaluated`."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / FILE
            kept = [line for line in read(path) if line["step"] <= step and known(line, evaluated)]
            write_file(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self.state.global_step = step
        self.trackers = [self._tracker(name, step) for name in self.names]
        for tracker in self.trackers:
            tracker.on_train_begin(self.args, self.state, self.control, model=self.model)

    def step(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """Figures of one optimiser step: loss, learning_rate, rows_per_second, seconds."""
        self._write({"step": step, "epoch": round(epoch, 6), **figures})
        self._track(step, epoch, figures)

    def scores(self, step: int, epoch: float, scores: Mapping[str, float]) -> None:
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
            with (self.folder / FILE).open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")

    def _track(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        self.state.global_step, self.state.epoch = step, epoch
        for tracker in self.trackers:
            tracker.on_log(self.args, self.state, self.control, model=self.model, logs=dict(figures))

    def _tracker(self, name: str, step: int) -> TrainerCallback:
        from transformers.integrations import integration_utils

        maker: Any = getattr(integration_utils, TRACKERS[name])
        if name != "tensorboard":
            return maker()  # type: ignore[no-any-return]
        from torch.utils.tensorboard import SummaryWriter

        # in the run's folder; what a stopped run wrote beyond the checkpoint is hidden
        place = None if self.folder is None else str(self.folder / TENSORBOARD)
        return maker(SummaryWriter(place, purge_step=step + 1))  # type: ignore[no-any-return]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one that was cut off is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # killed while writing
            break
    return found


def known(line: Mapping[str, Any], evaluated: Collection[int]) -> bool:
    """Whether a line is of a step, or of an evaluation that the checkpoint knows."""
    return "scores" not in line or line["step"] in evaluated
