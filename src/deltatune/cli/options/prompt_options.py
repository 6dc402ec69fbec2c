"""Options of prompts: template, label words, classes in words, unlabelled rows, and the server of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli.options.shared_options import TASK_NAMES, option
from deltatune.cli.ui.help_screen import constant, fields_of
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
        help='The text with a blank, such as "{text} It was {mask}."; columns in braces, {mask} for the blank. '
        "For texts as answers it ends where they begin.",
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

SERVER_FIELDS = fields_of("prompting/endpoints/openai_server.py", "OpenAICompatible")
REQUEST_FIELDS = constant("prompting/endpoints/openai_server.py", "REQUEST_FIELDS") or ()


def _server(name: str, metavar: str, more: str = "") -> Any:
    """The option of a field of OpenAICompatible."""
    return option(f"--{name}", panel=SERVER, metavar=metavar, help=f"{SERVER_FIELDS[name].help}.{more}")


PromptMethodText = Annotated[
    str | None,
    option(
        "--method",
        panel=PROMPTS,
        metavar="METHOD",
        help='A prompting method in place of --adapter, such as "ICL(shots=4)"; `deltatune methods` lists all. '
        "Default with --template, --words or --describe: ZeroShot().",
    ),
]
PromptSeed = Annotated[
    int, option("--seed", panel=PROMPTS, metavar="NUMBER", help="Random seed of a prompt that is drawn.")
]
SavePrompt = Annotated[
    Path | None,
    option("--save", panel=PROMPTS, metavar="FOLDER", help="Store the prompt as an adapter, for --adapter."),
]
Url = Annotated[str | None, _server("url", "URL", " In place of --model, for prompts.")]
Name = Annotated[str | None, option("--name", panel=SERVER, metavar="NAME", help="Name of the model on the server.")]
Key = Annotated[str | None, _server("key", "VARIABLE")]
ServerForm = Annotated[str, _server("form", "KIND")]
Timeout = Annotated[float, _server("timeout", "SECONDS")]
Retries = Annotated[int, _server("retries", "NUMBER")]
Concurrency = Annotated[int, _server("concurrency", "NUMBER")]
Omit = Annotated[
    list[str] | None,
    option(
        "--omit",
        panel=SERVER,
        metavar="FIELD",
        help=f"Leave out a request field that the server rejects: {', '.join(REQUEST_FIELDS)}. Repeatable.",
    ),
]
Cache = Annotated[
    Path | None,
    option(
        "--cache",
        panel=SERVER,
        metavar="FILE",
        help="Where the server's answers are kept, so that none is asked for twice. Default: runs/answers-NAME.jsonl.",
    ),
]


def prompt_options(
    data: Data | None, template: str | None = None, words: Sequence[str] | None = None, describe: str | None = None
) -> PromptOptions:
    """What the options say of the prompts of these data, checked as far as that needs no model.

    Raises DeltatuneError for data with neither one class a row nor texts as answers, words of unknown or missing
    classes, words and a description at once, a template without a blank, and one with a column that the data lack.
    """
    names = given(template, words, describe)
    if data is not None and data.kind != "classes":
        kinds = {"many": "several labels a row", "mixture": "a mixture of several"}
        what = kinds.get(data.kind) or TASK_NAMES.get(data.task, data.task)
        of_texts = ("--template",) if data.kind == "text" else ()
        raise_all([f"{name} is for one class a row; this task is {what}" for name in names if name not in of_texts])
    from deltatune.prompting.choose_prompts import PromptOptions, given_words
    from deltatune.prompting.text_prompts import template_problems
    from deltatune.tasks.label_words.label_words import LabelWords

    options = PromptOptions(
        template or "", split_assignments(words), (describe or "").strip(), "" if data is None else data.name
    )
    if data is not None and data.kind == "classes":
        chosen = given_words(data.labels, options) or tuple((label,) for label in data.labels)
        if options.template:
            LabelWords(labels=data.labels, text=data.text, template=options.template, words=chosen)  # it checks
    elif data is not None and options.template:
        raise_all(template_problems(options.template, data.text))
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
    """The names of the options of prompts that are set. Raises DeltatuneError for empty ones."""
    options: dict[str, Any] = {"--template": template, "--words": words, "--describe": describe}
    empty = [name for name, value in options.items() if isinstance(value, str) and not value.strip()]
    raise_all([f"{name} is empty; give it a text, or leave it out" for name in empty])
    return [name for name, value in options.items() if value]


def split_assignments(words: Sequence[str] | None) -> tuple[str, ...]:
    """The values of --words as one text a class; `bad=terrible, good=great` is two, as in the field of a method."""
    listed: list[str] = []
    for text in words or ():
        parts = re.split(r",(?=[^,=]*=)", text)
        listed += parts if all("=" in part for part in parts) else [text]
    return tuple(listed)
