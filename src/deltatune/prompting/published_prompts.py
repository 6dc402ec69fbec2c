"""Published prompts for a data set: found by its class names, with its own columns and classes put in.

    find_prompts(["NEG", "POS"], texts=1)        the prompts of LM-BFF, PET and Zhao et al. 2021 for sentiment
    find_prompts(["0", "1"], 2, name="rte")      numbers say nothing: the data set's name has to

From PET (Schick & Schütze 2021, https://arxiv.org/abs/2001.07676 and https://arxiv.org/abs/2009.07118), LM-BFF (Gao et
al. 2021, https://arxiv.org/abs/2012.15723) and contextual calibration (Zhao et al. 2021,
https://arxiv.org/abs/2102.09690).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data.published.benchmarks import names_in
from deltatune.prompting.published.class_aliases import is_opaque, names_class, plain_name
from deltatune.prompting.published.in_context_formats import IN_CONTEXT_FORMATS
from deltatune.prompting.published.lm_bff_prompts import LM_BFF_PROMPTS
from deltatune.prompting.published.pet_patterns import PET_PATTERNS
from deltatune.prompting.published.published_prompt import PublishedPrompt
from deltatune.tasks.prompts.template_parts import RESERVED, names_column

PUBLISHED_PROMPTS: tuple[PublishedPrompt, ...] = (*LM_BFF_PROMPTS, *PET_PATTERNS, *IN_CONTEXT_FORMATS)
"""Every published prompt, those of one template and one word a class first."""

_COLUMN = re.compile(r"\{(text|[a-z])(?=[!:}])")
_BLANK_BEFORE_END = re.compile(r"\{mask\}[^\w{}]*\Z")


def find_prompts(
    labels: Sequence[str], texts: int, name: str = "", left_to_right: bool = False
) -> list[PublishedPrompt]:
    """The published prompts for a data set, most specific first; `words` have its class names, in the given order.

    Prompts come first that were published for a data set of this name, then those whose class names are equal, then
    those that have other names for the classes. Numbers, yes and no may be any classes: they need the name.

    labels: class names of the data set.
    texts: number of its texts, such as 2 for premise and hypothesis.
    name: what the data set is called, such as `glue-sst2` or the stem of its file.
    left_to_right: only templates that end with the blank; a final full stop behind it is left out.
    """
    named = names_in(name)
    matches: list[tuple[tuple[bool, bool], PublishedPrompt]] = []
    for prompt in PUBLISHED_PROMPTS:
        classes = _classes(labels, prompt) if len(prompt.texts) == texts else None
        templates = tuple(filter(None, map(ending_with_blank, prompt.templates))) if left_to_right else prompt.templates
        known = bool(named.intersection(prompt.datasets))
        if classes is None or not templates or not (known or not all(map(is_opaque, labels))):
            continue
        exact = all(plain_name(label) == plain_name(published) for label, published in classes.items())
        words = {label: prompt.words[published] for label, published in classes.items()}
        matches.append(((not known, not exact), replace(prompt, templates=templates, words=words)))
    return [prompt for _, prompt in sorted(matches, key=lambda match: match[0])]


def _classes(labels: Sequence[str], prompt: PublishedPrompt) -> dict[str, str] | None:
    """The published class of each label; None where the classes are others."""
    published = list(prompt.words)
    if len(labels) != len(published) or len(set(labels)) != len(labels):
        return None
    classes = {label: [known for known in published if names_class(label, known)] for label in labels}
    if all(len(matching) == 1 for matching in classes.values()):
        single = {label: matching[0] for label, matching in classes.items()}
        return single if len(set(single.values())) == len(labels) else None
    for first in (0, 1):
        numbers = {str(i): known for i, known in enumerate(published, first)}
        if prompt.numbered and {label.strip() for label in labels} == set(numbers):
            return {label: numbers[label.strip()] for label in labels}
    return None


def with_columns(template: str, columns: Sequence[str], texts: Sequence[str] = ()) -> str:
    """A published template with a data set's columns in place of `{text}`, or of `{a}`, `{b}` and `{c}`.

    texts: what the texts are in the published data sets (`PublishedPrompt.texts`); where all columns have these names
    they are taken by name, whatever their order, and else by their order.
    Raises DeltatuneError for fewer columns than the template has, and for a column that no template can name.
    """
    by_name = {plain_name(column): column for column in columns}
    wanted = [plain_name(text) for text in texts]
    ordered = [by_name[text] for text in wanted] if texts and set(wanted) == set(by_name) else list(columns)
    letters: Mapping[str, int] = {"text": 0, **{chr(ord("a") + i): i for i in range(26)}}
    needed = 1 + max((letters[match[1]] for match in _COLUMN.finditer(template)), default=-1)
    problems = [
        f"the column {column!r} cannot stand in a template: name it in the data without braces, colons and exclamation "
        f"marks, and not {', '.join(RESERVED)} or a number"
        for column in ordered[:needed]
        if not names_column(column)
    ]
    if needed > len(ordered):
        problems.append(f"the template {template!r} needs {needed} text columns; these data have {len(ordered)}")
    raise_all(problems)
    return _COLUMN.sub(lambda match: "{" + ordered[letters[match[1]]], template)


def ending_with_blank(template: str) -> str:
    """A template up to its blank where only punctuation comes after it; "" for others, and where nothing is before it.

    Left-to-right models predict what comes next: the blank of `"{text} It was {mask}."` can end, that of
    `"{mask}: {text}"` cannot.
    """
    ending = _BLANK_BEFORE_END.search(template)
    kept = template[: ending.start()] + "{mask}" if ending else ""
    opened = kept.count("(") > kept.count(")") or kept.count("[") > kept.count("]")
    return "" if opened or kept == "{mask}" or "{sep}" in kept else kept


def published_prompt(name: str) -> PublishedPrompt:
    """The published prompt of this name. Raises DeltatuneError naming what exists."""
    for prompt in PUBLISHED_PROMPTS:
        if prompt.name == name:
            return prompt
    names = [prompt.name for prompt in PUBLISHED_PROMPTS]
    raise DeltatuneError(f"no published prompt is called {name!r}{nearest(name, names)}; there are: {', '.join(names)}")
