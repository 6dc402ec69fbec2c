"""Options of prompts: template, label words, classes in words, unlabelled rows, and the server of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options import TASK_NAMES, option
from deltatune.core.errors import DeltatuneError, raise_all

if TYPE_CHECKING:
    from deltatune.data import Data
    from deltatune.prompting.choose_prompts import PromptOptions

PROMPTS, SERVER = "Prompts", "Model on a server"
"""Groups of options on the help screen."""

Template = Annotated[
    str | None,
    option(
        "--template",
        panel=PROMPTS,
        metavar="TEXT",
        help='The text with a blank, such as "{text} It was {mask}."; columns in braces, {mask} for the blank.',
    ),
]
Words = Annotated[
    list[str] | None,
    option(
        "--words",
        panel=PROMPTS,
        metavar="CLASS=WORD|WORD",
        help="Label words of a class, which stand for it in the blank; give it once for each class.",
    ),
]
Describe = Annotated[
    str | None,
    option(
        "--describe",
        panel=PROMPTS,
        metavar="TEXT",
        help='The classes in words: "0=spam, 1=a normal message".',
    ),
]
Unlabelled = Annotated[
    Path | None,
    option(
        "--unlabelled",
        panel=PROMPTS,
        metavar="FILE",
        help="Further texts, whose labels are not known, for methods that learn from them. With --shots the rows that "
        "are left are used too, without their labels.",
    ),
]


def prompt_options(
    data: Data | None, template: str | None = None, words: Sequence[str] | None = None, describe: str | None = None
) -> PromptOptions:
    """What the options say of the prompts of these data, checked as far as that needs no model.

    Raises DeltatuneError for data without one class a row, words of unknown or missing classes, words and a description
    at once, a template without a blank, and one with a column that the data lack.
    """
    if data is not None and data.kind != "classes":
        what = "several labels a row" if data.kind == "many" else TASK_NAMES.get(data.task, data.task)
        raise_all([f"{name} is for one class a row; this task is {what}" for name in given(template, words, describe)])
    from deltatune.prompting.choose_prompts import PromptOptions, given_words
    from deltatune.tasks.label_words.label_words import LabelWords

    listed = tuple(part for each in words or () for part in _assignments(each))
    options = PromptOptions(template or "", listed, (describe or "").strip(), "" if data is None else data.name)
    if data is not None and data.kind == "classes":
        chosen = given_words(data.labels, options) or tuple((label,) for label in data.labels)
        if options.template:
            LabelWords(labels=data.labels, text=data.text, template=options.template, words=chosen)  # it checks
    return options


def read_unlabelled(file: Path | None, data: Data) -> list[dict[str, Any]]:
    """The rows of `--unlabelled FILE`: texts, one per line, or rows with the data's text columns."""
    if file is None:
        return []
    from deltatune.cli.input_rows import rows_from

    rows = [{name: row[name] for name in data.text} for row in rows_from(str(file), list(data.text))]
    if not rows:
        raise DeltatuneError(f"--unlabelled {file} has no rows")
    return rows


def given(template: str | None, words: Sequence[str] | None, describe: str | None) -> list[str]:
    """The names of the options of prompts that are set."""
    options: dict[str, Any] = {"--template": template, "--words": words, "--describe": describe}
    return [name for name, value in options.items() if value]


def _assignments(text: str) -> list[str]:
    """`bad=terrible, good=great` as one text a class, the form of a method's `words`."""
    parts = re.split(r",(?=[^,=]*=)", text)
    return [part.strip() for part in parts] if all("=" in part for part in parts) else [text]
