"""Parts of a template: its text form read into words, columns, virtual tokens, a separator and the blank."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.input_validation.field_validation import shortened

_PLACE = re.compile(r"\{([^{}]*)\}")
_FIELD = re.compile(r"(?P<name>[^{}!:]*[^{}!:\s])(?P<whole>!?)(?::(?P<form>\w+))?")
FORMS = ("stem", "lower")
"""Forms of a column: `stem` without final punctuation, `lower` with a small first letter (Gao et al. 2021)."""


RESERVED = ("mask", "sep", "soft", "ids")
"""Names of fields that are no columns."""


class TemplatePart(NamedTuple):
    """One part of a template."""

    kind: Literal["virtual", "column", "mask", "separator", "words", "ids"]
    text: str
    """The column's name, the words, or the initial text of virtual tokens."""
    virtual: int = 0
    """Number of virtual tokens; 0 for those of a text, whose number the tokenizer knows."""
    whole: bool = False
    """Whether a column is never cut."""
    form: str = ""
    """Form of a column: one of FORMS."""
    ids: tuple[int, ...] = ()
    """Tokens that are given by their ids, as a search over tokens finds them: their text may be other tokens."""


def names_column(name: str) -> bool:
    """Whether a template can name a column so: not with braces, `!` or `:`, nor as what means something else there."""
    match = _FIELD.fullmatch(name)
    return match is not None and match["name"] == name.strip() == name and not (name.isdigit() or name in RESERVED)


def template_parts(template: str) -> tuple[TemplatePart, ...]:
    """The parts of a template in order; words keep their white space. Raises DeltatuneError for what is no field."""
    text = template.replace("{{", "\ue000").replace("}}", "\ue001")
    parts: list[TemplatePart] = []
    end = 0
    for place in _PLACE.finditer(text):
        parts += _words(text[end : place.start()])
        parts.append(_part(place.group(1), template))
        end = place.end()
    return (*parts, *_words(text[end:]))


def _words(text: str) -> list[TemplatePart]:
    for brace in "{}":
        if brace in text:
            where = f"in {shortened(text)}; write {brace * 2} for a brace"
            raise DeltatuneError(f"the template has a single {brace} {where}")
    text = text.replace("\ue000", "{").replace("\ue001", "}")
    return [TemplatePart("words", text)] if text else []


def _part(content: str, template: str) -> TemplatePart:
    if content.startswith("soft:") and content[5:].strip():
        return TemplatePart("virtual", content[5:].strip())
    if content.startswith("ids:"):
        return TemplatePart("ids", content[4:].strip(), ids=_token_ids(content[4:].split(), template))
    match = _FIELD.fullmatch(content.strip())
    if match is None:
        raise DeltatuneError(
            f"cannot read {{{shortened(content, quoted=False)}}} in the template {shortened(template)}: a field is a "
            "column {text}, {text!} or {text:stem}, the blank {mask}, virtual tokens {3} or {soft:words}, {sep}, or "
            "token ids {ids:12 7}"
        )
    name, whole, form = match["name"], bool(match["whole"]), match["form"] or ""
    if name.isdigit():
        if len(name) > 6:
            raise DeltatuneError(f"a template of {{{shortened(name, quoted=False)}}} virtual tokens is too long")
        return TemplatePart("virtual", "", int(name))
    if form and form not in FORMS:
        raise DeltatuneError(
            f"{{{content}}} in the template {shortened(template)}: there is no form {form!r}{nearest(form, FORMS)}; "
            f"forms: {', '.join(FORMS)}"
        )
    if name in ("mask", "sep"):
        return TemplatePart("mask" if name == "mask" else "separator", "")
    return TemplatePart("column", name, whole=whole, form=form)


def _token_ids(numbers: list[str], template: str) -> tuple[int, ...]:
    if not numbers or not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
        raise DeltatuneError(
            f"the template {shortened(template)} has {{ids:...}} without token ids; write numbers, such as {{ids:12 7}}"
        )
    return tuple(map(int, numbers))


def text_of(part: TemplatePart, row: Mapping[str, Any], template: str) -> str:
    """The text of words, or of a row's column in its form. Raises DeltatuneError for a column that the row lacks."""
    if part.kind == "words":
        return part.text
    if part.text not in row:
        raise DeltatuneError(
            f"the template {template!r} names {part.text!r}, which is not a column of the row"
            f"{nearest(part.text, row)}; columns: {', '.join(map(repr, row))}"
        )
    text = str(row[part.text]).strip()
    if part.form == "stem":
        return text.rstrip(".!?,;: ")
    return text[:1].lower() + text[1:] if part.form == "lower" else text
