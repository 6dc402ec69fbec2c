"""A mixture of tasks: one shared adapter learns them all, and each keeps classes of its own in one head."""

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
from deltatune.data import Kind
from deltatune.models.architecture import Answers
from deltatune.tasks.classification import Classify
from deltatune.tasks.heads import HeadConfig
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.task import Encoded, Row, Task

TASK = "task"
"""The column that says which task a row belongs to."""


@dataclass(frozen=True)
class Mixture(Task):
    """Several classifications as one task: the head has all their classes, and a row's loss sees those of its task.

    Sampled in proportion to their sizes to the power 1/temperature (Raffel et al. 2020, section 3.5.2,
    https://arxiv.org/abs/1910.10683): 1 is proportional, large values make the tasks equally frequent.
    """

    parts: Mapping[str, Classify]
    """The tasks by name."""
    temperature: float = 1.0
    """How even the mixture is."""

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
        """Training rows of all tasks, each marked with its task; `total` (all rows, if None) in the mixture's shares.

        Rows of a task that is to be more frequent than it is large come again. Training shuffles them.
        """
        self._check_names(rows)
        sizes = {name: len(members) for name, members in rows.items()}
        weights = {name: size ** (1 / self.temperature) for name, size in sizes.items()}
        total = sum(sizes.values()) if total is None else total
        mixed = []
        for name, members in rows.items():
            count = round(total * weights[name] / sum(weights.values()))
            mixed += [{**members[i % len(members)], TASK: name} for i in range(count)]
        return mixed

    def marked(self, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
        """Rows of all tasks, each once, marked with its task: for validation."""
        self._check_names(rows)
        return [{**row, TASK: name} for name, members in rows.items() for row in members]

    def only(self, name: str) -> Part:
        """One of the tasks, reading its classes out of the mixture's head: to predict and to score with."""
        self._check_names({name: ()})
        start, _ = self._range(name)
        return Part(**asdict(self.parts[name]), start=start, total=self.outputs)

    # --- what training asks of a task ---

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        room: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """Tokenise marked rows, each as its own task does; labels are the classes' places in the head."""
        unmarked = [i for i, row in enumerate(rows) if row.get(TASK) not in self.parts]
        if unmarked:
            first = rows[unmarked[0]].get(TASK)
            raise DeltatuneError(
                f"row {unmarked[0]} belongs to no task of this mixture: {TASK}={first!r}; tasks: "
                f"{', '.join(self.parts)}; Mixture.mix marks rows"
            )
        found: list[Any] = [None] * len(rows)
        truncated = 0
        for name, part in self.parts.items():
            mine = [i for i, row in enumerate(rows) if row[TASK] == name]
            options: dict[str, Any] = {"positions": positions, "room": room, "labelled": labelled}
            encoded = part.encode([rows[i] for i in mine], tokenizer, **options)
            start, _ = self._range(name)
            truncated += encoded.truncated
            for i, row in zip(mine, encoded, strict=True):
                found[i] = {**row, "label": row["label"] + start} if labelled else row
        return Encoded(found, truncated=truncated)

    @property
    def outputs(self) -> int:
        """Classes of all tasks."""
        return sum(len(part.labels) for part in self.parts.values())

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig:
        """The head that the first task would have, with room for all classes."""
        first = next(iter(self.parts.values()))
        return first.head_config(config, **{**over, "outputs": self.outputs})

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each row over the classes of its own task, summed."""
        task = torch.tensor(self._owners(), device=labels.device)  # (C,)
        others = task[None, :] != task[labels][:, None]  # (B, C)
        return F.cross_entropy(logits.float().masked_fill(others, -torch.inf), labels, reduction="sum")

    def items(self, labels: Tensor) -> int:
        """Rows of the batch."""
        return len(labels)

    def score(self, logits: NDArray[Any], references: NDArray[Any]) -> dict[str, float]:
        """Every task's metrics as `task.metric`, and the mean of the primary ones."""
        scores: dict[str, float] = {}
        primary = []
        owners = np.asarray(self._owners())[references]
        for number, name in enumerate(self.parts):
            mine = owners == number
            if mine.any():
                part = self.only(name)
                found = part.score(logits[mine], references[mine] - part.start)
                scores |= {f"{name}.{metric}": value for metric, value in found.items()}
                primary.append(found[part.metric])
        return {"mean": float(np.mean(primary)), **scores}

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> NDArray[Any]:
        """Logits (N, C) of the rows, which are one piece each."""
        return np.stack(pieces) if len(pieces) else np.zeros((0, self.outputs), np.float32)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The mean of the tasks' primary metrics."""
        return ("mean",)

    @property
    def data_kind(self) -> Kind:
        """One class per row."""
        return "classes"

    def corpus_scores(
        self, answers: Any, references: Any, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """As `predictions`."""
        raise DeltatuneError(f"measure one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    def describe(self) -> str:
        """One line."""
        return f"a mixture of {', '.join(self.parts)}"

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Which task a row belongs to is not in its logits. Raises DeltatuneError with the way that knows it."""
        raise DeltatuneError(f"predict with one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        """As `predictions`."""
        raise DeltatuneError(f"predict with one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    def measure(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """As `predictions`."""
        raise DeltatuneError(f"measure one task of the mixture: mixture.only({next(iter(self.parts))!r})")

    # --- plain data ---

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        parts = {name: part.to_json() for name, part in self.parts.items()}
        return {TASK: "mixture", "parts": parts, "temperature": self.temperature}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mixture:
        """Read `to_json`'s result."""
        missing = [f"the stored mixture lacks {name!r}" for name in ("parts", "temperature") if name not in data]
        raise_all(missing)
        parts = {name: Classify.from_json(part) for name, part in data["parts"].items()}
        return cls(parts, data["temperature"])

    def _range(self, name: str) -> tuple[int, int]:
        names = list(self.parts)
        start = sum(len(self.parts[before].labels) for before in names[: names.index(name)])
        return start, start + len(self.parts[name].labels)

    def _owners(self) -> list[int]:
        """Number of the task that each class belongs to."""
        return [number for number, part in enumerate(self.parts.values()) for _ in part.labels]

    def _check_names(self, rows: Mapping[str, Any]) -> None:
        known = ", ".join(self.parts)
        raise_all([
            f"{name!r} is no task of this mixture{nearest(name, self.parts)}; tasks: {known}"
            for name in rows
            if name not in self.parts
        ])  # fmt: skip


@dataclass(frozen=True)
class Part(Classify):
    """A classification whose logits are some columns of a larger head."""

    start: int = 0
    """Its first column."""
    total: int = 0
    """All columns."""

    def predictions(self, logits: NDArray[Any]) -> NDArray[Any]:
        return super().predictions(self._mine(logits))

    def decode(self, logits: NDArray[Any]) -> list[dict[str, Any]]:
        return super().decode(self._mine(logits))

    def _mine(self, logits: NDArray[Any]) -> NDArray[Any]:
        return logits[:, self.start : self.start + len(self.labels)] if logits.shape[1] == self.total else logits
