"""`Data`: rows in their splits, with the names of their columns, the task they are for and the type of their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any, Literal, get_args

from deltatune.data.media.media_files import Inputs, MediaFile, kind_of

Row = dict[str, Any]
"""One example: column -> value."""

Splits = dict[str, list[Row]]
"""Name of a split -> its rows."""

SPLITS = ("train", "validation", "test")

TaskName = Literal["classify", "regression", "tag", "span", "generate", "lm", "prefer", "image"]
"""What a model is trained to do: classification, regression, tagging, extractive QA, generation, language modelling,
preferences, text to image."""

TASKS: tuple[TaskName, ...] = get_args(TaskName)

LabelKind = Literal["classes", "number", "many", "tags", "span", "text", "raw", "pairs", "image", "mixture"]
"""What the label of a row is.

- `classes`: a class name (single-label classification)
- `number`: a number (regression)
- `many`: any number of class names (multilabel classification)
- `tags`: a tag for each token
- `span`: the answers, as spans of the context
- `text`: an output text
- `raw`: nothing, the text itself is learned
- `pairs`: the answer that was chosen; the rejected one is beside it
- `image`: a picture, of which the text is the caption
- `mixture`: several tasks, each with labels of its own (`MixtureData`)
"""

TASK_OF: dict[LabelKind, TaskName] = {
    "classes": "classify",
    "many": "classify",
    "number": "regression",
    "tags": "tag",
    "span": "span",
    "text": "generate",
    "raw": "lm",
    "pairs": "prefer",
    "image": "image",
}
"""The task that each kind of label is for."""


@dataclass(frozen=True)
class Data:
    """Rows to train on, to select models with and to evaluate on. Rows keep every column they came with."""

    name: str
    """Short name for run folders: the stem of the file, or the name of the folder or of the data set."""
    origin: str
    """The files or the data set that was read, for the record."""
    text: tuple[str, ...]
    """The text columns: a text or a pair of texts (classification), the tokens (tagging), question and context
    (extractive QA), the inputs (generation), the documents (language modelling), the prompts (preferences)."""
    label: str
    """The label column; "" for language modelling. For chats it is the text column: the last message is the output."""
    kind: LabelKind
    """The type of a label: str for classes and text, float for number, list[str] for many and tags, a list of
    {"text": str, "start": int} for span. Rows of kind text also have `references`, a list[str], those of kind pairs
    `rejected`, a str."""
    labels: tuple[str, ...]
    """The class names in sorted order (by value where all are numbers), or the tags with O first; else empty."""
    train: list[Row]
    """Rows to train on."""
    validation: list[Row]
    """Rows that select the learning rate and the epoch."""
    test: list[Row]
    """Rows that are scored once, at the end."""
    more_tests: Splits = field(default_factory=dict)
    """Further rows that are scored at the end, by the name of their split, such as `test_mismatched`."""
    metric: str = ""
    """The metric with which the published data set is scored, such as `matthews` for CoLA; "" where none is known."""
    notes: tuple[str, ...] = ()
    """Everything that was inferred and every split that was made, one sentence each."""
    problems: tuple[str, ...] = ()
    """Why these data cannot be trained on, one sentence each; empty unless they were read with `strict=False`."""

    @property
    def task(self) -> TaskName:
        """The task that the data are for."""
        return TASK_OF[self.kind]

    @property
    def inputs(self) -> Inputs:
        """What a model reads of a row: text, or the image or the sound in the file that the text column names."""
        return kind_of(row.get(self.text[0]) for row in self.train) if len(self.text) == 1 else "text"

    def splits(self) -> Splits:
        """The splits by name: train, validation, test, and those of `more_tests`."""
        return {"train": self.train, "validation": self.validation, "test": self.test, **self.more_tests}


def texts(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """The text columns of a row, each as one string. Two rows with equal texts are the same input to a model."""
    values = [row[column] for column in columns]
    return tuple([value if type(value) is str else as_text(value) for value in values])


def as_text(value: Any) -> str:
    """A string unchanged, a media file's name in the data, the tokens of a list joined by blanks, a chat's messages
    without the final answer."""
    if isinstance(value, MediaFile):
        return value.given
    if isinstance(value, list) and value and isinstance(value[0], dict) and "content" in value[0]:
        answered = value[-1]["role"] == "assistant"
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in (value[:-1] if answered else value))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every column of the rows in order of first appearance. Rows of a JSON file may have different columns."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


# --- data in figures ---

Figures = dict[str, Any]


def describe(data: Data) -> Figures:
    """What was read, and for each split the rows, the lengths of the texts and the labels, as plain data."""
    return {
        "name": data.name,
        "origin": data.origin,
        "task": data.task,
        "kind": data.kind,
        "text": list(data.text),
        **({} if data.inputs == "text" else {"inputs": data.inputs}),
        "label": data.label,
        "notes": list(data.notes),
        "splits": {split: _split_figures(rows, data) for split, rows in data.splits().items()},
    }


def _split_figures(rows: list[Row], data: Data) -> Figures:
    lengths = {column: _lengths(texts) for column, texts in _texts(rows, data).items()} if data.inputs == "text" else {}
    figures: Figures = {"rows": len(rows), "lengths": lengths}
    if data.kind == "number":
        values = [row[data.label] for row in rows]
        figures["values"] = {"least": min(values), "median": median(values), "largest": max(values)} if values else {}
    elif data.kind in ("classes", "many", "tags"):
        counts = Counter(name for row in rows for name in _names(row[data.label]))
        figures["labels"] = dict(counts.most_common())
    elif data.kind == "span":
        figures["unanswerable"] = sum(not row[data.label] for row in rows)
    elif data.kind == "text":
        figures["references"] = sum(len(row["references"]) for row in rows) / len(rows) if rows else 0.0
    return figures


def _names(label: Any) -> Iterable[str]:
    return label if isinstance(label, list) else [label]


def _texts(rows: list[Row], data: Data) -> dict[str, list[str]]:
    """Column -> its texts: the inputs, and the outputs or answers."""
    texts = {column: [as_text(row[column]) for row in rows] for column in data.text}
    if data.kind == "span":
        texts[data.label] = [answer["text"] for row in rows for answer in row[data.label]]
    elif data.kind == "text":
        chat = data.label in data.text
        texts["answer" if chat else data.label] = [row["references"][0] if chat else row[data.label] for row in rows]
    return texts


def _lengths(texts: Sequence[str]) -> Figures:
    """Median and longest, in words (separated by white space) and in characters."""
    units = {"words": [len(text.split()) for text in texts], "characters": [len(text) for text in texts]}
    return {
        unit: {"median": median(lengths), "longest": max(lengths)} if lengths else {"median": 0, "longest": 0}
        for unit, lengths in units.items()
    }
