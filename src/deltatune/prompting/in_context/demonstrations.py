"""Demonstrations: training rows as filled templates, which are drawn, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.tasks.classification import joined_words
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from deltatune.tasks.label_words.nearest_demonstrations import REDRAW, NearestDemonstrations
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Encoded, Row, Task, TokenRow
from deltatune.training.inference.text_vectors import text_vectors
from deltatune.training.session import Session

Labels = Literal["gold", "random", "none", "only"]
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_OTHER_FIELD = re.compile(r"mask|sep|\d+|soft:.*", re.DOTALL)
_BLANK = re.compile(r"(?<!\{)\{\s*mask\s*\}")


def usable_rows(task: LabelWords, rows: Sequence[Row]) -> list[Row]:
    """The rows that can be shown: those with a known class and a text in every column of the template.

    Raises DeltatuneError where there are none.
    """
    columns = tuple(dict.fromkeys(name for template in task.templates for name in template.columns))
    labels = set(task.labels)
    usable = [
        row
        for row in rows
        if str(row.get(task.label)) in labels and all(str(row.get(name, "")).strip() for name in columns)
    ]
    if not usable:
        raise DeltatuneError(
            f"none of the {len(rows)} training rows can be shown as a demonstration: each needs a text in "
            f"{', '.join(columns)} and a class in {task.label!r} (classes: {', '.join(map(repr, task.labels[:20]))})"
        )
    return usable


def filled(template: Template, values: Mapping[str, Any], word: str, separator: str, labels: Labels = "gold") -> str:
    """A row as a demonstration.

    `labels`: with its word (`gold`, `random`), without (`none`: the text of the template up to its last column), or
    the word `only`. What separates demonstrations becomes a space in the texts. Raises DeltatuneError for a template
    with virtual tokens, and where the word is not in the result.
    """
    if labels == "only":
        return word
    blanks = {name: _without(separator, str(joined_words(values[name]))) for name in template.columns}
    if labels == "none":
        text, *_ = split_at_text(template.text)
        return Template(f"{text}{{mask}}").fill(blanks, "").strip()
    shown = template.fill(blanks, word).strip()
    if word not in shown:
        raise DeltatuneError(f"the demonstration {shortened(shown)} has lost its answer {word!r}")
    return shown


def _without(separator: str, text: str) -> str:
    return text.replace(separator, " ") if separator.strip(" ") else text


def split_at_text(template: str) -> tuple[str, str]:
    """A template up to its last column, its blank left out, and what comes behind that column."""
    names = [(match.end(), (match[1] or "").strip()) for match in _FIELD.finditer(template)]
    end = max(stop for stop, name in names if name and not _OTHER_FIELD.fullmatch(name))
    return _BLANK.sub("", template[:end]), template[end:]


def with_label_first(template: str) -> str:
    """A template whose blank stands before its texts, for p(x | y): what follows the last column comes first.

    A template in which a column follows the blank stays as it is. Min et al. 2022, https://arxiv.org/abs/2108.04106
    """
    text, behind = split_at_text(template)
    return f"{behind.strip()}\n{text.strip()}" if _BLANK.search(behind) else template


# ---- drawing


def draw_demonstrations(
    task: Task, rows: Sequence[Row], shots: int, balanced: bool, seed: int, number: int = 0
) -> list[int]:
    """The numbers of `shots` rows for set `number`, in the order in which they were drawn.

    balanced: as many of each class, but for one; of which classes there is one more is drawn too.
    Raises DeltatuneError for too few rows, in all or of a class.
    """
    generator = generator_for(seed, f"demonstrations.{number}")
    order = torch.randperm(len(rows), generator=generator).tolist()
    if len(rows) < shots:
        raise DeltatuneError(
            f"{shots} demonstrations in all are asked for, and {len(rows)} training rows can be shown; lower shots"
        )
    if not balanced:
        return order[:shots]
    by_class: dict[str, list[int]] = {label: [] for label in task.labels}
    for i in order:
        by_class[str(rows[i][task.label])].append(i)
    each, more = divmod(shots, len(task.labels))
    first = torch.randperm(len(task.labels), generator=generator).tolist()
    # classes with enough rows take the one more, where some have too few for it
    able = sorted(first, key=lambda c: len(by_class[task.labels[c]]) <= each)
    wanted = {task.labels[c]: each + (place < more) for place, c in enumerate(able)}
    raise_all([
        f"the class {label!r} has {len(by_class[label])} training rows that can be shown, and {number} are needed for "
        f"{shots} demonstrations in balance: lower shots, or choose select='random'"
        for label, number in wanted.items()
        if len(by_class[label]) < number
    ])  # fmt: skip
    kept = {i for label, number in wanted.items() for i in by_class[label][:number]}
    return [i for i in order if i in kept]


class Look(NamedTuple):
    """What demonstrations look like."""

    labels: Labels = "gold"
    seed: int = 0
    """Random seed of random labels."""
    tokenizer: PreTrainedTokenizerBase | None = None
    length: int = 0
    """Longest demonstration in tokens of the tokenizer; 0 cuts none."""


PLAIN = Look()
"""Whole texts with their own labels."""


def shown_texts(
    task: LabelWords, rows: Sequence[Row], template: Template, look: Look = PLAIN, number: int = 0
) -> list[str]:
    """The rows as demonstrations of set `number`, each with its class's first word, or with that of a class drawn."""
    classes = [task.labels.index(str(row[task.label])) for row in rows]
    if look.labels == "random":
        generator = generator_for(look.seed, f"demonstrations.labels.{number}")
        classes = torch.randint(len(task.labels), (len(rows),), generator=generator).tolist()
    words = [task.words[c][0] for c in classes]
    if look.length and look.tokenizer is not None:
        rows = [shorter_row(row, template, task, look.tokenizer, look.length) for row in rows]
    return [filled(template, row, word, task.separator, look.labels) for row, word in zip(rows, words, strict=True)]


def pool_of(
    task: LabelWords, rows: Sequence[Row], template: Template, look: Look = PLAIN
) -> tuple[tuple[str, str, str], ...]:
    """The rows as `NearestDemonstrations.pool` has them."""
    compared = ["\n".join(str(joined_words(row[name])).strip() for name in task.text) for row in rows]
    shown = shown_texts(task, rows, template, look)
    return tuple((text, str(row[task.label]), own) for text, row, own in zip(shown, rows, compared, strict=True))


# ---- demonstrations in training


def with_training_demonstrations(
    task: LabelWords, rows: Sequence[Row], session: Session, sets: int = 16, seed: int = 0, encoder: str = ""
) -> NearestDemonstrations:
    """The task with one demonstration of each class behind every row, drawn from the class's most similar half.

    Answers are averaged over `sets` draws. To train, encode the rows with `training_rows`: each epoch then has other
    demonstrations, and never the row itself. Gao et al. 2021, section 6, https://arxiv.org/abs/2012.15723

    rows: the training rows, which are the pool. session: that of the model; demonstrations add to `max_length` as far
    as its positions go. encoder: folder of the model that compares texts; "" for the model itself.
    Raises DeltatuneError where no row can be shown.
    """
    usable = usable_rows(task, rows)
    names = ("labels", "text", "label", "max_length", "metric", "too_long", "positive", "template", "words", "scoring")
    if task.more_templates:
        raise DeltatuneError("demonstrations of each row's own are in one template; leave more_templates out")
    pool = pool_of(task, usable, task.templates[0])
    made = NearestDemonstrations(
        **{name: getattr(task, name) for name in names},
        separator=task.separator,
        pool=pool,
        select="similar",
        sets=sets,
        order="by-class",
        encoder=encoder,
        seed=seed,
    )
    longest = longest_demonstrations([shown for shown, *_ in pool], len(task.labels), made, session)
    roomy: NearestDemonstrations = with_room(made, session, longest)
    return roomy


def training_rows(session: Session, rows: Sequence[Row]) -> Encoded:
    """Encoded training rows of a session whose task is one `with_training_demonstrations`: one draw a row and epoch."""
    task = session.task
    if not isinstance(task, NearestDemonstrations):
        raise DeltatuneError(
            f"training_rows is for a task with demonstrations of each row's own, not {task.describe()}"
        )
    single = replace(task, sets=1, content_free=())
    own = replace(session, task=single)
    host, tokenizer = session.host, session.tokenizer
    ranked = single.choices(rows, lambda texts, keep: text_vectors(host, tokenizer, texts, task.encoder, keep))
    encoded = own.encode(rows)
    for token_row, row, numbers in zip(encoded.rows, rows, ranked, strict=True):
        token_row[REDRAW] = partial(_drawn_row, own, row, numbers)
    return encoded


def _drawn_row(session: Session, row: Row, ranked: Sequence[int], generator: torch.Generator) -> TokenRow:
    task: Any = session.task
    drawn: TokenRow = session.encode([{**row, DEMONSTRATIONS: task.shown(ranked, generator)}])[0]
    return drawn


# ---- room


def longest_demonstrations(texts: Sequence[str], shots: int, task: LabelWords, session: Session) -> int:
    """Tokens of the `shots` longest of these texts, with what separates them."""
    ids = session.tokenizer([f"{text}{task.separator}" for text in texts], add_special_tokens=False, verbose=False)
    return sum(sorted((len(each) + 2 for each in ids["input_ids"]), reverse=True)[:shots])


def with_room(task: Any, session: Session, tokens: int) -> Any:
    """The task with room for this many tokens of demonstrations beside its text, as far as the model has positions."""
    attached = session.name in session.host.adapters and not task.has_virtual_tokens
    free = session.free_positions() if attached else session.positions
    wanted = task.max_length + tokens
    return replace(task, max_length=wanted if free is None else min(wanted, free))


def shorter_row(row: Row, template: Template, task: LabelWords, tokenizer: PreTrainedTokenizerBase, length: int) -> Row:
    """The row, its longest texts cut so that its demonstration has at most `length` tokens with any word.

    Raises DeltatuneError where the template alone is longer.
    """
    word = max((word for of_class in task.words for word in of_class), key=len)
    texts = {name: str(joined_words(row[name])).strip() for name in template.columns}
    while (over := tokens_of(filled(template, texts, word, task.separator), tokenizer) - length) > 0:
        longest = max(texts, key=lambda name: tokens_of(texts[name], tokenizer))
        text, tokens = texts[longest], tokens_of(texts[longest], tokenizer)
        if len(text) <= 1:
            raise DeltatuneError(
                f"a demonstration has {length + over} tokens without its texts, more than length={length}; raise "
                "length, or shorten the template"
            )
        kept = text[: min(len(text) - 1, max(1, len(text) * (tokens - over) // tokens))]
        texts[longest] = kept.rsplit(" ", 1)[0].rstrip() or kept
    return {**row, **texts}


def tokens_of(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of a text."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
