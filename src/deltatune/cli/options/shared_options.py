"""Options that several commands share. Help texts and defaults come from the dataclasses that hold the values."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.ui.help_screen import OUTPUT as OUTPUT
from deltatune.cli.ui.help_screen import fields_of
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.regular_files import expanded

if TYPE_CHECKING:
    from deltatune.data import Data as Dataset

DATA, METHOD, TRAINING = "Model and data", "Method and head", "Training"
"""Groups of options on the help screen."""

SETTINGS = fields_of("training/settings.py", "Settings")
HEAD = fields_of("tasks/heads.py", "HeadConfig")
TASK = fields_of("tasks/classification.py", "Classify")
GENERATE = fields_of("tasks/generation.py", "Generate")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def option(*names: str, panel: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A typer option of a group. Outputs are found at home for ~, which shells leave as it is in --out=~/runs."""
    if "--out" in names:
        more["callback"] = lambda value: None if value is None else expanded(value)
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


def one_of(name: str, choices: Sequence[str]) -> Callable[[str | None], str | None]:
    """A callback of an option that raises DeltatuneError for a value that is not one of the choices."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            field = name.removeprefix("--").replace("-", "_")
            allowed = ", ".join(map(repr, choices))
            raise DeltatuneError(f"{name} {value}: {field} must be one of {allowed}{nearest(value, choices)}")
        return value

    check.choices = tuple(choices)  # type: ignore[attr-defined]  # for tab completion
    return check


CHECK_PRECISION = one_of("--precision", SETTINGS["precision"].choices)

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
    "A file (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .conll, .bio, .iob, .iob2, .conllu, .txt or "
    "WebNLG's .xml), a folder with train, dev and test files, one of texts, or one with a folder of texts, images or "
    "sounds for each class, the name of a data set on the hub, or python-docs (the documentation of this Python: texts "
    "from ten areas)."
)
Data = Annotated[str, option("--data", "-d", panel=DATA, metavar="DATA", help=SOURCE)]
Kind = Annotated[
    str | None,
    option(
        "--task",
        panel=DATA,
        metavar="KIND",
        help="classify, regression, tag, span, generate, lm, prefer or image. Default: inferred from the columns.",
    ),
]
Text = Annotated[
    list[str] | None,
    option(
        "--text",
        panel=DATA,
        metavar="COLUMN",
        help="The text column; give it again for a pair or more. Default: inferred.",
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
Shots = Annotated[
    int | None,
    option(
        "--shots",
        panel=DATA,
        metavar="ROWS",
        help="Train on a draw of this many rows of each class, and choose by as many validation rows.",
    ),
]
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
        help="Primary metric. Classes: accuracy, f1, precision, recall, f1_macro, f1_micro or matthews; several "
        "labels: f1_micro, f1_macro, accuracy or hamming; numbers: pearson, spearman or mse; entities: f1, "
        "precision, recall, f1_macro or accuracy; plain tags: accuracy, f1_macro or f1_micro; spans: f1 or em; "
        "generation: rougeL, bleu, rouge1, rouge2, meteor, chrf, nist, cider, ter, em or perplexity; raw text: "
        "perplexity, loss, bits_per_char or bits_per_byte; preferences: accuracy, reward_margin or preference_loss; "
        "pictures: loss. Default: the published metric of a known data set, "
        "else the first of them. Generation has on request logical_form (WikiSQL's queries), final_answer (what a "
        "chain of thought ends in: a number, a choice, a text), and bertscore, mover and bleurt, which take "
        "--metric-model.",
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
        help="Longest answer in new tokens (max_new_tokens). "
        "Default: estimated from the lengths of the training answers.",
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
Steps = Annotated[
    int | None,
    option("--steps", panel=TRAINING, metavar="NUMBER", help=f"{SETTINGS['max_steps'].help}.", min=1),
]
BatchSize = Annotated[
    int, option("--batch-size", panel=TRAINING, metavar="ROWS", help=f"{SETTINGS['batch_size'].help}.")
]
Accumulation = Annotated[
    int, option("--accumulation", panel=TRAINING, metavar="NUMBER", help=f"{SETTINGS['accumulation'].help}.")
]
Packing = Annotated[bool, option("--packing/--no-packing", panel=TRAINING, help=f"{SETTINGS['packing'].help}.")]
Compile = Annotated[
    str,
    option(
        "--compile",
        panel=TRAINING,
        metavar="KIND",
        help=f"off, on or auto. {SETTINGS['compile'].help}.",
        callback=one_of("--compile", SETTINGS["compile"].choices),
    ),
]
Precision = Annotated[
    str,
    option(
        "--precision",
        panel=TRAINING,
        metavar="KIND",
        help=f"auto, float32 or bfloat16. {SETTINGS['precision'].help}.",
        callback=CHECK_PRECISION,
    ),
]
PrecisionOrDefault = Annotated[
    str | None,
    option(
        "--precision",
        panel=TRAINING,
        metavar="KIND",
        help="auto, float32 or bfloat16.",
        callback=CHECK_PRECISION,
    ),
]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print the result as JSON, errors too.")]
JsonLines = Annotated[bool, option("--json", panel=OUTPUT, help="Print JSON lines, errors too.")]
Force = Annotated[bool, option("--force", panel=OUTPUT, help="Delete the run in that folder and train again.")]
ADAPTER = option(
    "--adapter", "-a", panel=DATA, metavar="FOLDER", help="A trained adapter, or the folder of its training run."
)
Adapter = Annotated[str, ADAPTER]
AdapterIfAny = Annotated[str | None, ADAPTER]
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
    option("--other-base", panel=DATA, help="Load onto a base whose weights differ from those at training."),
]
Weight = Annotated[
    float,
    option(
        "--weight",
        panel=DATA,
        metavar="NUMBER",
        help="Factor on the adapter's change: 0 is the model without it, 1 the adapter as trained. A head is used "
        "whole.",
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
        help="Input of the classifier: mean over the tokens, cls (first token), last (last token), pooler (the base's "
        "own). Default: mean; last for decoders.",
        callback=one_of("--pooling", HEAD["pooling"].choices),
    ),
]
InitialValues = Annotated[
    str | None,
    option(
        "--init",
        panel=METHOD,
        metavar="NAME",
        help="Initial values of a LoRA: eva, from the training rows, or loftq, from what --quantize loses. Default: A "
        "drawn, B zero.",
        callback=one_of("--init", ("eva", "loftq")),
    ),
]
Dense = Annotated[bool, option("--dense/--no-dense", panel=METHOD, help=f"{HEAD['dense'].help}.")]


def head_of(pooling: str | None, dense: bool) -> dict[str, Any]:
    """The fields of the head that the options set."""
    return {"dense": dense, **({} if pooling is None else {"pooling": pooling})}


TASK_NAMES = {
    "classify": "classification",
    "tag": "tagging",
    "span": "question answering",
    "lm": "language modelling",
    "prefer": "preferences",
    "image": "text to image",
}
"""Tasks in words, where these differ from the value of --task."""


def generation_fields(
    data: Dataset,
    prompt: str | None,
    new_tokens: int | None,
    beams: int | None,
    metric_model: str | None = None,
) -> dict[str, Any]:
    """The fields of a generation task that the options set. Raises DeltatuneError if the data are for another task."""
    fields = {"prompt": prompt, "new_tokens": new_tokens, "beams": beams, "metric_model": metric_model}
    if data.task == "prefer" and metric_model is None:
        return {name: value for name, value in fields.items() if name != "metric_model"}
    if data.task != "generate":
        task = TASK_NAMES.get(data.task, data.task)
        raise_all([f"--{name.replace('_', '-')} is for generation; this task is {task}" for name in set_values(fields)])
    return fields


def set_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set."""
    return {name: value for name, value in options.items() if value is not None}


def read_fields(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Values of `--set NAME=VALUE` by name; a value that is not a Python literal is a string.

    Raises DeltatuneError for an assignment without =, and for a name that is given twice.
    """
    fields: dict[str, Any] = {}
    for assignment in assignments or ():
        name, value = _read_field(assignment)
        if name in fields:
            raise DeltatuneError(f"--set {name} is given twice ({fields[name]!r} and {value!r}); give it once")
        fields[name] = value
    return fields


def _read_field(assignment: str) -> tuple[str, Any]:
    name, sign, value = assignment.partition("=")
    if not sign:
        raise DeltatuneError(f"--set {assignment}: NAME=VALUE is needed, such as --set max_length=128")
    try:
        literal = ast.literal_eval(value)
        repr(literal)  # a number that no message could show is no value either
        return name, literal
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return name, value
