"""Wordings of a relation: texts with a place for the subject and a blank for the object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.data import read_rows
from deltatune.tasks.blanks import SUBJECT
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.row_columns import raise_listed

PLACES = {"[X]": f"{{{SUBJECT}}}", "[Y]": "{mask}"}
"""LAMA's places of the subject and the object, and ours."""
BESIDE = "relations.jsonl"
"""The file of wordings that is looked for beside the data."""


def as_template(wording: str) -> str:
    """A wording as the text of a `Template`: "[X] is in [Y]." is "{subject} is in {mask}.".

    Raises DeltatuneError for a wording without one blank and a place for the subject.
    """
    text = wording
    for place, name in PLACES.items():
        text = text.replace(place, name)
    try:
        template = Template(text)
    except DeltatuneError as error:
        raise DeltatuneError(
            f"cannot use the wording {shortened(wording)}: it needs [X] (or {{subject}}) for the subject and one [Y] "
            f"(or {{mask}}) for the object. {error}"
        ) from None
    raise_all([
        f"cannot use the wording {shortened(wording)}: it has the field {{{name}}}, and its fields are {{subject}} and "
        "{mask}"
        for name in template.columns
        if name != SUBJECT
    ])  # fmt: skip
    return text


def softened(wording: str) -> str:
    """The wording with each run of words as virtual tokens that start from their vectors, and that training changes.

    "[X] is in [Y]." is "{subject} {soft:is in} {mask} {soft:.}": the start "manual" of OptiPrompt, Zhong et al. 2021,
    https://arxiv.org/abs/2104.05240. Raises DeltatuneError for a wording that has nothing to train.
    """
    parts = []
    for part in Template(as_template(wording)).parts:
        if part.kind == "words" and ("{" in part.text or "}" in part.text):
            raise DeltatuneError(f"the wording {shortened(wording)} has a brace in its words, which cannot be trained")
        if part.kind == "words" and part.text.strip():
            parts.append(f"{{soft:{part.text.strip()}}}")
        elif part.kind == "column":
            parts.append(f"{{{SUBJECT}}}")
        elif part.kind == "mask":
            parts.append("{mask}")
    if not any(part.startswith("{soft:") for part in parts):
        raise DeltatuneError(f"the wording {shortened(wording)} has no words to train")
    return " ".join(parts)


def read_wordings(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Wordings by relation, each once, out of a file of rows with `relation`, and `template` or `templates` or both.

    `template` comes first. Relations without a wording have an empty tuple. Raises DeltatuneError listing rows without
    a relation, and wordings that cannot be used.
    """
    wordings: dict[str, tuple[str, ...]] = {}
    problems = []
    for number, row in enumerate(read_rows(path), 1):
        relation = row.get("relation") or row.get("predicate_id")
        if not isinstance(relation, str):
            problems.append(f"{path} row {number} has no relation; its columns: {', '.join(row)}")
            continue
        listed = [*wordings.get(relation, ()), *_listed(row, f"{path} row {number}", problems)]
        wordings[relation] = tuple(dict.fromkeys(listed))
    raise_listed(problems, "a row names a relation and its wordings: relation, template, templates (a list)")
    return wordings


def _listed(row: Mapping[str, Any], where: str, problems: list[str]) -> list[str]:
    """The wordings of a row."""
    more = row.get("templates")
    if more is not None and not isinstance(more, list):
        problems.append(f"{where}: templates is {shortened(more)}, not a list")
        more = None
    texts = [text for text in (row.get("template"), *(more or ())) if text is not None and text != ""]
    kept = []
    for text in texts:
        try:
            if not isinstance(text, str):
                raise DeltatuneError(f"a wording is a text, not {shortened(text)}")
            as_template(text)
            kept.append(text)
        except DeltatuneError as error:
            problems.append(f"{where}: {error}")
    return kept
