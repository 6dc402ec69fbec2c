"""Multi-task mixture: one adapter learns several tasks of any kind, each with a head of its own or the LM head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data import LabelKind
from deltatune.data.mixture_data import PART, marked
from deltatune.models.architecture import Answers, Loads
from deltatune.tasks.classification import Classify
from deltatune.tasks.extractive_qa import ExtractiveQA
from deltatune.tasks.generation import Generate
from deltatune.tasks.heads import HeadConfig, Heads, HeadsConfig
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.language_modeling import LanguageModel
from deltatune.tasks.metrics.corpus_score import CorpusScore
from deltatune.tasks.metrics.mean_score import MeanScore, PartScore, comparable
from deltatune.tasks.multilabel import MultiLabel
from deltatune.tasks.tagging import Tag
from deltatune.tasks.task import Encoded, Row, Task

PART_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classify, LabelWords, MultiLabel, Tag, ExtractiveQA, Generate, LanguageModel)
}
"""The tasks that a part may have."""

Pair = Sequence[Any]
"""(part, answer) or (part, reference) of a row; a list when it was read from JSON."""


@dataclass(frozen=True)
class MixtureEncoded(Encoded):
    """Encoded rows of a mixture: the pieces of all parts, one part after the other."""

    parts: Mapping[str, Encoded] = field(default_factory=dict)
    """The encoded rows of each part that has any, in the order of `rows`."""
    part_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The row (0 to N - 1) of the data that each row of a part is."""

    @property
    def examples(self) -> int:
        """N, the number of rows."""
        return sum(encoded.examples for encoded in self.parts.values())

    @property
    def references(self) -> list[Pair]:
        """(part, reference) of each row."""
        return self.in_row_order({name: encoded.references for name, encoded in self.parts.items()})

    def in_row_order(self, values: Mapping[str, Iterable[Any]]) -> list[Pair]:
        """(part, value) of the N rows, from the values of each part's rows; arrays become lists."""
        pairs: list[Any] = [None] * self.examples
        for name, part_values in values.items():
            for row, value in zip(self.part_rows[name], part_values, strict=True):
                pairs[row] = (name, value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value)
        return pairs

    def pieces(self) -> dict[str, range]:
        """The indices in `rows` of each part's pieces."""
        ends = np.cumsum([0, *(len(encoded) for encoded in self.parts.values())]).tolist()
        return {name: range(*ends[i : i + 2]) for i, name in enumerate(self.parts)}


@dataclass(frozen=True)
class Mixture(Task):
    """Several tasks as one. Each row knows its part (`marked`) and is encoded, answered and scored as its part does.

    Parts are sampled in proportion to their sizes to the power 1/temperature (Raffel et al. 2020, section 3.5.2,
    https://arxiv.org/abs/1910.10683): 1 is proportional, large values make the parts equally frequent. A step's loss is
    Σ_p (n_p / n) · (loss of part p / its items in the step), with n_p of the step's n rows in part p: each row weighs
    the same, however many tokens its answer has.
    """

    parts: Mapping[str, Task]
    """The tasks by name."""
    temperature: float = 1.0
    """Temperature of the sampling; large values even out the parts."""

    name: ClassVar[str] = "mixture"
    answers: ClassVar[Answers] = "row"
    label_kind: ClassVar[LabelKind] = "mixture"
    metrics: ClassVar[tuple[str, ...]] = ("mean",)
    metric: ClassVar[str] = "mean"  # type: ignore[misc]
    """The mean of the parts' primary metrics; a metric m that is better when lower counts as 1/(1 + m)."""

    def __post_init__(self) -> None:
        problems = [
            f"part {name!r} is a {type(part).__name__}; the parts of a mixture are: "
            f"{', '.join(task.__name__ for task in PART_TASKS.values())}"
            for name, part in self.parts.items()
            if type(part) not in PART_TASKS.values()
        ]
        if len(self.parts) < 2:
            problems.append(f"a mixture needs at least two tasks, this has {len(self.parts)}")
        if not 0 < self.temperature < float("inf"):
            problems.append(f"temperature must be above 0 and finite, not {self.temperature}")
        raise_all(problems)

    @property
    def loads(self) -> Loads:  # type: ignore[override]
        """One model for all parts: a language model if a part needs one; the other heads read its hidden states."""
        return max((part.loads for part in self.parts.values() if part.loads in ("text", "words")), default="row")

    @property
    def max_length(self) -> int:
        """Longest input in tokens of any part."""
        return max(int(part.max_length) for part in self.parts.values())  # type: ignore[attr-defined]

    def part(self, name: str) -> Task:
        """The task of one part. Raises DeltatuneError for a name that no part has."""
        self._check_names([name])
        return self.parts[name]

    def marked(self, rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
        """Rows of all parts, each with its part's name, in one list."""
        self._check_names(rows)
        return [row for name, members in rows.items() for row in marked(members, name)]

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The share of each part in the rows that are sampled, given how many it has."""
        largest = max(sizes.values())  # relative sizes: a small temperature makes large powers
        weights = {name: (size / largest) ** (1 / self.temperature) for name, size in sizes.items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    # --- rows to tokens, heads ---

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> MixtureEncoded:
        """Tokenise rows of `marked`, each as its part does. Raises DeltatuneError with the problems of all parts."""
        part_rows = self._rows_of_parts([row.get(PART) for row in rows])
        parts, problems = {}, []
        for name, numbers in part_rows.items():
            try:
                parts[name] = self.parts[name].encode(
                    [rows[i] for i in numbers],
                    tokenizer,
                    positions=positions,
                    positions_taken=positions_taken,
                    labelled=labelled,
                    joined=joined,
                )
            except DeltatuneError as error:
                problems.append(f"part {name}: {error}")
        raise_all(problems)
        pieces = [piece for encoded in parts.values() for piece in encoded.rows]
        truncated = sum(encoded.truncated for encoded in parts.values())
        return MixtureEncoded(pieces, truncated, parts=parts, part_rows=part_rows)

    def _rows_of_parts(self, names: Sequence[Any]) -> dict[str, list[int]]:
        """The rows of each part, given the part of each row."""
        unmarked = next((i for i, name in enumerate(names) if name not in self.parts), None)
        if unmarked is not None:
            raise DeltatuneError(
                f"row {unmarked} belongs to no part of this mixture: {PART}={names[unmarked]!r}; parts: "
                f"{', '.join(self.parts)}; Mixture.marked marks rows"
            )
        rows = {name: [i for i, part in enumerate(names) if part == name] for name in self.parts}
        return {name: numbers for name, numbers in rows.items() if numbers}

    def head_config(self, config: PretrainedConfig, **over: Any) -> HeadConfig | None:
        """None: each part has a head of its own (`make_head`)."""
        return None

    def make_head(self, config: PretrainedConfig, seed: int = 0, **over: Any) -> Heads | None:  # type: ignore[override]
        """The heads of all parts that have one; `over` changes fields of those that classify a whole row."""
        heads = {
            name: part.head_config(config, **(over if part.answers == "row" else {}))
            for name, part in self.parts.items()
        }
        own = {name: head for name, head in heads.items() if head is not None}
        return Heads(HeadsConfig(own), seed) if own else None

    def columns(self, name: str) -> slice:
        """The classes of one part in the one head of all classes that mixtures of earlier versions have."""
        names = list(self.parts)
        start = sum(len(self.parts[other].labels) for other in names[: names.index(name)])
        return slice(start, start + len(self.parts[name].labels))

    # --- losses: each part's own ---

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Raises DeltatuneError: a loss is that of a part."""
        raise DeltatuneError(f"a mixture has no loss of its own; its parts have: {', '.join(self.parts)}")

    def items(self, labels: Tensor) -> int:
        """Raises DeltatuneError, as `loss` does."""
        raise DeltatuneError(f"a mixture has no items of its own; its parts have: {', '.join(self.parts)}")

    # --- answers and scores ---

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> Any:
        """Answers of no rows; the parts collect their own."""
        return []

    def _by_part(self, pairs: Sequence[Pair]) -> dict[str, tuple[list[int], Any]]:
        """The rows and the values of each part: arrays for those that classify rows, else lists."""
        parts = {}
        for name, rows in self._rows_of_parts([pair[0] for pair in pairs]).items():
            values = [pairs[row][1] for row in rows]
            parts[name] = (rows, np.asarray(values) if self.parts[name].answers == "row" else values)
        return parts

    def decode(self, answers: Sequence[Pair]) -> list[dict[str, Any]]:
        """`{"part": name}` and the part's answer, for each row."""
        decoded: list[Any] = [None] * len(answers)
        for name, (rows, values) in self._by_part(answers).items():
            for row, answer in zip(rows, self.parts[name].decode(values), strict=True):
                decoded[row] = {"part": name, **answer}
        return decoded

    def corpus_scores(
        self, answers: Sequence[Pair], references: Sequence[Pair], names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """The mean of the primary metrics, and every metric of every part as `part.metric`."""
        scores: dict[str, CorpusScore] = {}
        primary = []
        known = self._by_part(references)
        for name, (rows, values) in self._by_part(answers).items():
            part = self.parts[name]
            asked = (part.metric,) if names is not None and tuple(names) == (self.metric,) else None
            part_scores = part.corpus_scores(values, known[name][1], asked)
            first = sorted(part_scores, key=lambda metric: metric != part.metric)
            scores |= {f"{name}.{metric}": PartScore(part_scores[metric], rows) for metric in first}
            primary.append((scores[f"{name}.{part.metric}"], part.metric))
        return {self.metric: MeanScore(primary), **scores}

    def mean_of(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The scores of a mixture from those of its parts."""
        primary = [
            comparable(scores[name][part.metric], part.metric) for name, part in self.parts.items() if name in scores
        ]
        each = {f"{name}.{metric}": value for name, part in scores.items() for metric, value in part.items()}
        return {self.metric: float(np.mean(primary)), **each}

    def metric_name(self, metric: str) -> str:
        """A part's metric with what its name leaves open."""
        part, _, own = metric.partition(".")
        return f"{part} {self.parts[part].metric_name(own)}" if part in self.parts else metric

    def describe(self) -> str:
        """One line."""
        parts = "; ".join(f"{name}: {part.describe()}" for name, part in self.parts.items())
        return f"a mixture of {len(self.parts)} tasks. {parts}"

    # --- plain data ---

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        parts = {name: part.to_json() for name, part in self.parts.items()}
        return {"task": self.name, "parts": parts, "temperature": self.temperature}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mixture:
        """Read `to_json`'s result."""
        names = ("parts", "temperature")
        problems = [f"the stored mixture lacks {name!r}" for name in names if name not in data]
        problems += [
            f"the stored mixture has {name!r}, which is unknown" for name in data if name not in ("task", *names)
        ]
        parts = data.get("parts", {})
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            problems.append("the parts of the stored mixture must be an object of tasks by their names")
        if "temperature" in data and type(data["temperature"]) not in (int, float):
            problems.append(f"the temperature of the stored mixture is {data['temperature']!r}, it must be a number")
        raise_all(problems)
        kinds = {name: str(part.get("task", Classify.name)) for name, part in data["parts"].items()}
        raise_all([
            f"part {name!r} of the stored mixture is an unknown task {kind!r}{nearest(kind, PART_TASKS)}"
            for name, kind in kinds.items()
            if kind not in PART_TASKS
        ])  # fmt: skip
        parts = {name: PART_TASKS[kinds[name]].from_json(part) for name, part in data["parts"].items()}
        return cls(parts, data["temperature"])

    def _check_names(self, names: Iterable[str]) -> None:
        raise_all([
            f"{name!r} is not a part of this mixture{nearest(name, self.parts)}; parts: {', '.join(self.parts)}"
            for name in names
            if name not in self.parts
        ])  # fmt: skip
