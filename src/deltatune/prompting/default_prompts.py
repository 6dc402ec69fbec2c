"""Default prompts for data that nobody has published: templates by the number of texts, words from the class names.

    default_templates(["title", "body"])                           templates with these columns
    class_words(["not_spam", "spam"])                              {"not_spam": ("not spam",), "spam": ("spam",)}
    class_words(["0", "1"], "0=spam, 1=a normal message|ham")      the user's description of the classes

The templates follow those of PET (Schick & Schütze 2021, https://arxiv.org/abs/2001.07676) and of LM-BFF (Gao et al.
2021, https://arxiv.org/abs/2012.15723); those of left-to-right models end with the blank, as in Zhao et al. 2021,
https://arxiv.org/abs/2102.09690.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.prompting.published.class_aliases import is_opaque, plain_name
from deltatune.prompting.published_prompts import with_columns
from deltatune.tasks.label_words.verbalizer import words_of_name

SINGLE = (
    "{text} This is {mask}.",
    "{text} It was {mask}.",
    "[ Category: {mask} ] {text}",
    "{mask}: {text}",
    "{text} All in all, it is about {mask}.",
)
"""Templates of one text, for models that fill a blank anywhere."""
SINGLE_LEFT_TO_RIGHT = (
    "{text}\nCategory: {mask}",
    "Text: {text}\nLabel: {mask}",
    "{text} This is {mask}",
    "Input: {text}\nQuestion: Which category does the input belong to?\nAnswer: {mask}",
    "{text}\nAll in all, it was {mask}",
)
"""Templates of one text that end with the blank."""
PAIR = (
    "{a}? {mask}, {b}",
    "{a} {mask}, {b}",
    '"{a}" and "{b}": {mask}.',
    "{b}? {mask}, {a}",
    "[ Category: {mask} ] {a} {b}",
)
"""Templates of two texts, for models that fill a blank anywhere."""
PAIR_LEFT_TO_RIGHT = (
    "{a}\n{b}\nCategory: {mask}",
    "First: {a}\nSecond: {b}\nAnswer: {mask}",
    "{a}\nQuestion: {b}\nAnswer: {mask}",
    "{a} {b} This is {mask}",
)
"""Templates of two texts that end with the blank."""


def default_templates(columns: Sequence[str], left_to_right: bool = False) -> tuple[str, ...]:
    """Templates for rows with these text columns, the plainest first; `left_to_right`: those that end with the blank.

    Raises DeltatuneError for no column, more than 26, and columns that no template can name.
    """
    if not 1 <= len(columns) <= 26:
        raise DeltatuneError(f"default templates need 1 to 26 text columns; these data have {len(columns)}")
    forms: tuple[str, ...]
    if len(columns) == 1:
        forms = SINGLE_LEFT_TO_RIGHT if left_to_right else SINGLE
    elif len(columns) == 2:
        forms = PAIR_LEFT_TO_RIGHT if left_to_right else PAIR
    else:
        letters = [chr(ord("a") + i) for i in range(len(columns))]
        side_by_side, lines = (sign.join(f"{{{letter}}}" for letter in letters) for sign in (" ", "\n"))
        named = "\n".join(f"Text {i}: {{{letter}}}" for i, letter in enumerate(letters, 1))
        ending = (f"{lines}\nCategory: {{mask}}", f"{named}\nAnswer: {{mask}}", f"{side_by_side} This is {{mask}}")
        forms = ending if left_to_right else (f"{side_by_side} This is {{mask}}.", f"[ Category: {{mask}} ] {lines}")
    return tuple(with_columns(form, columns) for form in forms)


# ---- label words


def class_words(labels: Sequence[str], described: str = "") -> dict[str, tuple[str, ...]]:
    """Label words of each class: the words of its name, or those of the user's description.

    `described` is `"0=spam, 1=a normal message|ham"`: a class, `=`, and its words, with `|` between several for one
    class. Raises DeltatuneError for a class that is unknown, given twice or left out, a class without words, and two
    classes with the same words.
    """
    named: dict[str, tuple[str, ...]] = {label: (words_of_name(label),) for label in labels}
    words = _described(described, labels) if described.strip() else named
    problems = [f"the class {label!r} has no word in its name" for label, (first, *_) in words.items() if not first]
    for label, other in _equal_words(words):
        shared = ", ".join(repr(word) for word in words[label] if word in words[other])
        problems.append(f"the classes {label!r} and {other!r} have the same words ({shared})")
    fix = "" if described.strip() else f"describe the classes in words: {example_description(labels)}"
    raise_all([*problems, fix] if problems and fix else problems)
    return words


def needs_description(labels: Sequence[str]) -> bool:
    """Whether the class names say nothing in words, such as 0 and 1."""
    return any(map(is_opaque, labels)) and not {plain_name(label) for label in labels} <= {"yes", "no", "true", "false"}


def example_description(labels: Sequence[str]) -> str:
    """What a description of these classes looks like, for messages."""
    shown = ", ".join(f"{shortened(label, quoted=False)}=..." for label in labels[:3])
    return f'--describe "{shown}{", ..." if len(labels) > 3 else ""}"'


# ---- description in words

_ENTRY = re.compile(r"[,;\n]\s*([^,;=\n|]+?)\s*=")
"""The name of a class behind a comma, and the equals sign."""


def _described(described: str, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The words of each class in the user's description, in the order of the labels."""
    longest_first = sorted(labels, key=len, reverse=True)
    entry = re.compile(rf"(?:^|[,;\n])\s*({'|'.join(map(re.escape, longest_first))})\s*=")
    places = list(entry.finditer(described))
    problems: list[str] = []
    words: dict[str, tuple[str, ...]] = {}
    before = described[: places[0].start()] if places else described
    ends = [place.start() for place in places[1:]] + [len(described)]
    segments = [(place[1], described[place.end() : end]) for place, end in zip(places, ends, strict=False)]
    unknown = [name for text in (f",{before}", *(text for _, text in segments)) for name in _ENTRY.findall(text)]
    problems += [f"{name!r} is no class{nearest(name, labels)}" for name in unknown]
    if before.strip(" ,;\n") and "=" not in before:
        problems.append(f"{shortened(before.strip())} has no class; write class=words")
    for label, text in segments:
        if label in words:
            problems.append(f"the class {label!r} is described twice")
        words[label] = tuple(dict.fromkeys(filter(None, (word.strip(" ,;\n\t") for word in text.split("|")))))
        if not words[label]:
            problems.append(f"the class {label!r} has an empty description")
    problems += [f"the class {label!r} is left out" for label in labels if label not in words]
    form = f"the form is {example_description(labels)}; classes: {', '.join(map(repr, labels))}"
    raise_all(
        [*problems, form] if problems else [],
        f"cannot read the description {shortened(described)}:" if problems else "",
    )
    return {label: words[label] for label in labels}


def _equal_words(words: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Pairs of classes that share a word."""
    owner: dict[str, str] = {}
    pairs = []
    for label, label_words in words.items():
        for word in label_words:
            if word and owner.setdefault(word, label) != label:
                pairs.append((owner[word], label))
    return list(dict.fromkeys(pairs))
