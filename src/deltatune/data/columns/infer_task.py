"""The task that the columns are for, where there is no doubt; else an error with the tasks that they could be for."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.core.errors import DeltatuneError
from deltatune.data.columns.choose_columns import ambiguous, candidates, choose_columns
from deltatune.data.columns.column_names import CHOICES, LABELS, by_normalised, is_id, normalised
from deltatune.data.columns.column_rules import RULES, Candidate, are_parallel, media_columns
from deltatune.data.columns.column_values import column_examples, looks_like_label, looks_like_text
from deltatune.data.dataset import Row, TaskName, columns_of

ROWS_PER_CLASS = 5
"""Rows for each different output on average; with at least that many, outputs look like classes."""
ENOUGH_ROWS = 20
"""Rows from which on the values of a column are judged."""

CLASS_LABELS = ("label", "labels", "gold_label")
"""Names of columns that hold a class, whatever else a row has."""


def infer_task(rows: Sequence[Row], text: Sequence[str], label: str | None) -> tuple[TaskName | None, str]:
    """The task and a note, or (None, "") where the columns are those of classification or regression.

    `text` and `label` are what the user named; the task never contradicts them. Raises DeltatuneError where it is not
    clear, with the options to choose from.
    """
    _refuse_choices(rows, text)
    media = set(media_columns(rows, columns_of(rows)))
    if media.intersection(text):
        return None, ""
    for task in RULES:
        likely = candidates(task, rows, text, label)
        if not likely:
            continue
        if media.intersection(likely[0][0]):
            return None, ""
        _, answer = likely[0]
        if task == "generate" and _few_outputs(rows, answer):
            if normalised(answer) in LABELS or all(isinstance(row.get(answer), bool) for row in rows):
                return None, ""
            raise DeltatuneError(_classes_or_outputs(rows, likely[0]))
        if task == "generate" and label is None and (class_label := _class_label(rows)):
            raise DeltatuneError(_label_beside_output(rows, likely[0], class_label))
        if ambiguous(likely):
            listed = "".join(f"\n  --task {task} {_options(candidate)}" for candidate in likely)
            raise DeltatuneError(f"the task is {task}, but which columns it is for is not clear. Name them:{listed}")
        return task, f"the task is {task}, inferred from the names of the columns"
    if text and label:
        if len(text) == 1 and are_parallel(rows, text[0], label, strings=False):
            return "tag", f"the task is tag, since {text[0]!r} and {label!r} hold lists of one length"
        _refuse_texts_as_labels(rows, (tuple(text), label))
    return None, ""


def other_tasks(rows: Sequence[Row]) -> str:
    """What to add to an error on unclear columns: the other tasks that these columns could be for."""
    media = media_columns(rows, columns_of(rows))  # these tasks read texts
    names = [name for name in columns_of(rows) if not is_id(name) and name not in media]
    texts = [name for name in names if looks_like_text([row.get(name) for row in rows])]
    options = []
    if len(texts) > 1:
        options += [f"  --task generate --text {texts[0]} --label {label}" for label in texts[1:3]]
    options += [f"  --task lm --text {text}" for text in texts[:2]]
    return "\n".join(["Another task is possible with these columns:", *options]) if options else ""


def _refuse_choices(rows: Sequence[Row], text: Sequence[str]) -> None:
    """Raise DeltatuneError for choices in a list, which would not be read: their task is none of ours."""
    names = by_normalised(columns_of(rows))
    choices = next((names[name] for name in CHOICES if name in names), None)
    if text or choices is None or not any(isinstance(row.get(choices), (list, dict)) for row in rows[:1]):
        return
    raise DeltatuneError(
        f"column {choices!r} holds the choices of a question ({column_examples(rows, [choices])}); multiple choice is "
        "not one of the tasks. Make other rows of these: a row for each choice, with the question, the choice and a "
        "label that says whether it is right (--task classify --text QUESTION --text CHOICE --label LABEL); or the "
        "question with its choices as input and the right one as output (--task generate). To leave the choices out, "
        "name the columns with --text and --label."
    )


def _few_outputs(rows: Sequence[Row], column: str) -> bool:
    """Whether the outputs are so few that they look like classes."""
    outputs = [row.get(column) for row in rows]
    if len(outputs) < ENOUGH_ROWS or not all(isinstance(output, (str, int, float)) for output in outputs):
        return False
    return len(set(outputs)) * ROWS_PER_CLASS <= len(outputs)


def _classes_or_outputs(rows: Sequence[Row], candidate: Candidate) -> str:
    """The error for outputs that could be classes."""
    count = len({row.get(candidate[1]) for row in rows})
    try:
        columns = choose_columns("classify", rows, label=candidate[1])
        classes = columns.text, columns.label
    except DeltatuneError:
        classes = candidate
    return (
        f"the task is not clear: column {candidate[1]!r} has {count} different values in {len(rows)} rows. "
        "Choose one:\n"
        f"  --task classify {_options(classes)}\n  --task generate {_options(candidate)}"
    )


def _class_label(rows: Sequence[Row]) -> str:
    """The column that is called a label and holds one, else ""."""
    names = by_normalised(columns_of(rows))
    label = next((names[name] for name in CLASS_LABELS if name in names), "")
    return label if label and looks_like_label([row.get(label) for row in rows]) else ""


def _label_beside_output(rows: Sequence[Row], candidate: Candidate, label: str) -> str:
    """The error for columns of an input and an output, with a label of them beside."""
    texts = (*candidate[0], candidate[1])
    return (
        f"the task is not clear: there is a label {label!r} beside {' and '.join(map(repr, texts))}. Choose one:\n"
        f"  --task classify {_options((texts, label))}\n  --task generate {_options(candidate)}"
    )


def _refuse_texts_as_labels(rows: Sequence[Row], named: Candidate) -> None:
    """Raise DeltatuneError where the named label differs in nearly every row: it could be a class or an output."""
    text, label = named
    values = [row.get(label) for row in rows]
    if len(values) < ENOUGH_ROWS or not looks_like_text(values) or not all(n in row for row in rows for n in text):
        return
    raise DeltatuneError(
        f"the task is not clear: column {label!r} has {len(set(values))} different values in {len(rows)} rows "
        f"({column_examples(rows, [label])}). Choose one:\n"
        f"  --task generate {_options(named)}\n  --task classify {_options(named)}"
    )


def _options(candidate: Candidate) -> str:
    """`--text A --text B --label C`."""
    text, label = candidate
    return " ".join([*(f"--text {name}" for name in text), *([f"--label {label}"] if label else [])])
