"""Multi-task mixture: one adapter learns several classifications, and each has its own classes in one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data import LabelKind
from deltatune.models.architecture import Answers
from deltatune.tasks.classification import Classify
from deltatune.tasks.heads import HeadConfig
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.task import Encoded, Row, Task

TASK_COLUMN = "task"
"""The column with the name of a row's task."""


@dataclass(frozen=True)
class Mixture(Task):
    """Several classifications as one task: the head has all classes, and a row's loss is over those of its task.

    Tasks are sampled in proportion to their sizes to the power 1/temperature (Raffel et al. 2020, section 3.5.2,
    https://arxiv.org/abs/1910.10683): 1 is proportional, large values make the tasks equally frequent.
    """

    parts: Mapping[str, Classify]
    """The tasks by name."""
    temperature: float = 1.0
    """Temperature of the sampling; large values even out the tasks."""

    name: ClassVar[str] = "mixture"
    answers: ClassVar[Answers] = "row"
    metric: ClassVar[str] = "mean"  # type: ignore[misc]
    """The mean of the tasks' primary metrics."""

    def __post_init__(self) -> None:
        numbers = [name for name, part in self.parts.items() if not part.labels]
        problems = [f"task {name!r} is a regression; a mixture takes classifications" for name in numbers]
        if len(self.parts) < 2:
            problems.append(f"a mixture needs at least two tasks, this has {len(self.parts)}")
        if not self.temperature > 0:
            problems.append(f"temperature must be above 0, not {self.temperature}")
        raise_all(problems)

    def mix(self, rows: Mapping[str, Sequence[Row]], total: int | None = None) -> list[dict[str, Any]]:
        """Training rows of all tasks, each with its task's name, in proportion: `total` rows, by default all.

        Rows are repeated where a task gets more than it has. Training shuffles them.
        """
        self._check_names(rows)
        sizes = {name: len(members) for name, members in rows.items()}
        weights = {name: size ** (1 / self.temperature) for name, size in sizes.items()}
        total = sum(sizes.values()) if total is None else total
        mixed = []
        for name, members in rows.items():
            count = round(total * weights[name] / sum(weights.values()))
            mixed += [{**members[i % len(members)], TASK_COLUMN: name} for i in range(count)]
        return mixed

    def marked(self, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
        """Rows of all tasks, each once, with its task's name: for validation."""
        self._check_names(rows)
        return [{**row, TASK_COLUMN: name} for name, members in rows.items() for row in members]

    def only(self, name: str) -> Part:
        """One of the tasks with its part of the mixture's head: to predict and to score."""
        self._check_names({name: ()})
        start, _ = self._range(name)
        return Part(**asdict(self.parts[name]), start=start, total=self.outputs)

    # --- the task ---

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Tokenise rows of `mix` or `marked`, each as its task does; labels are class numbers of the whole head."""
        unmarked = [i for i, row in enumerate(rows) if row.get(TASK_COLUMN) not in self.parts]
        if unmarked:
            first = rows[unmarked[0]].get(TASK_COLUMN)
            raise DeltatuneError(
                f"row {unmarked[0]} belongs to no task of this mixture: {TASK_COLUMN}={first!r}; tasks: "
                f"{', '.join(self.parts)}; Mixture.mix marks rows"
            )
        token_rows: list[Any] = [None] * len(rows)
        truncated = 0
        for name, part in self.parts.items():
            indices = [i for i, row in enumerate(rows) if row[TASK_COLUMN] == name]
            options: dict[str, Any] = {"positions": positions, "positions_taken": positions_taken, "labelled": labelled}
            encoded = part.encode([rows[i] for i in indices], tokenizer, **options)
            start, _ = self._range(name)
            truncated += encoded.truncated
            for i, row in zip(indices, encoded, strict=True):
                token_rows[i] = {**row, "label": row["label"] + start} if labelled else row
        return Encoded(token_rows, truncated=truncated)

    @property
    def outputs(self) -> int:
        """Classes of all tasks."""
        return sum(len(part.labels) for part in self.parts.values())

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """The first task's head with the classes of all tasks."""
        first = next(iter(self.parts.values()))
        return first.head_config(config, **{**over, "outputs": self.outputs})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each row over the classes of its own task, summed."""
        task = torch.tensor(self._tasks_of_classes(), device=labels.device)  # (C,)
        others = task[None, :] != task[labels][:, None]  # (B, C)
        return F.cross_entropy(logits.float().masked_fill(others, -torch.inf), labels, reduction="sum")

    def items(self, labels: Tensor) -> int:
        """Rows of the batch."""
        return len(labels)

    def score(self, logits: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        """Every task's metrics as `task.metric`, and the mean of the primary ones."""
        scores: dict[str, float] = {}
        primary = []
        tasks = np.asarray(self._tasks_of_classes())[references]
        for number, name in enumerate(self.parts):
            members = tasks == number
            if members.any():
                part = self.only(name)
                part_scores = part.score(logits[members], references[members] - part.start)
                scores |= {f"{name}.{metric}": value for metric, value in part_scores.items()}
                primary.append(part_scores[part.metric])
        return {"mean": float(np.mean(primary)), **scores}

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> NDArray[Any]:
        """Logits (N, C); each row is one piece."""
        return np.stack(pieces) if len(pieces) else np.zeros((0, self.outputs), np.float32)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The mean of the tasks' primary metrics."""
        return ("mean",)

    @property
    def label_kind(self) -> LabelKind:
        """One class per row."""
        return "classes"

    def corpus_scores(
        self, answers: Any, references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """Raises DeltatuneError, as `predictions` does."""
        raise DeltatuneError(f"measure one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    def describe(self) -> str:
        """One line."""
        return f"a mixture of {', '.join(self.parts)}"

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Raises DeltatuneError: logits do not tell a row's task. Predict with `only`."""
        raise DeltatuneError(f"predict with one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        """Raises DeltatuneError, as `predictions` does."""
        raise DeltatuneError(f"predict with one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    def measure(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """Raises DeltatuneError, as `predictions` does."""
        raise DeltatuneError(f"measure one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    # --- plain data ---

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        parts = {name: part.to_json() for name, part in self.parts.items()}
        return {"task": self.name, "parts": parts, "temperature": self.temperature}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mixture:
        """Read `to_json`'s result."""
        missing = [f"the stored mixture lacks {name!r}" for name in ("parts", "temperature") if name not in data]
        raise_all(missing)
        parts = {name: Classify.from_json(part) for name, part in data["parts"].items()}
        return cls(parts, data["temperature"])

    def _range(self, name: str) -> tuple[int, int]:
        names = list(self.parts)
        start = sum(len(self.parts[other].labels) for other in names[: names.index(name)])
        return start, start + len(self.parts[name].labels)

    def _tasks_of_classes(self) -> list[int]:
        """The number of each class's task."""
        return [number for number, part in enumerate(self.parts.values()) for _ in part.labels]

    def _check_names(self, rows: Mapping[str, Any]) -> None:
        names = ", ".join(self.parts)
        raise_all([
            f"{name!r} is not a task of this mixture{nearest(name, self.parts)}; tasks: {names}"
            for name in rows
            if name not in self.parts
        ])  # fmt: skip


@dataclass(frozen=True)
class Part(Classify):
    """A classification whose logits are some columns of a larger head."""

    start: int = 0
    """First column of the classification."""
    total: int = 0
    """Number of columns of the head."""

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        return super().predictions(self._columns(logits))

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        return super().decode(self._columns(logits))

    def _columns(self, logits: NDArray[Any]) -> NDArray[Any]:
        return logits[:, self.start : self.start + len(self.labels)] if logits.shape[1] == self.total else logits
