"""Choice of templates and label words: the user's, else published ones for the data, else those of the class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.prompting.default_prompts import class_words, default_templates, example_description, needs_description
from deltatune.prompting.published_prompts import find_prompts, with_columns
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords, as_label_words
from deltatune.tasks.label_words.verbalizer import Words, read_words, words_of_classes


@dataclass(frozen=True)
class PromptOptions:
    """What a user says of the prompts of a run; empty fields are chosen."""

    template: str = ""
    """The template of every prompting method that names none."""
    words: tuple[str, ...] = ()
    """Label words as CLASS=WORD or CLASS=WORD|WORD."""
    describe: str = ""
    """The classes in words: "0=spam, 1=a normal message"."""
    data: str = ""
    """Name of the data set, for published prompts."""


NO_OPTIONS = PromptOptions()
"""Everything is chosen."""


@dataclass(frozen=True)
class ChosenPrompt:
    """A template with words for each class."""

    template: str
    words: Words
    origin: str
    """Where it comes from, for people."""


def choose_prompts(task: Classify, config: Any, options: PromptOptions = NO_OPTIONS) -> list[ChosenPrompt]:
    """Prompts for a classification on a model with this config, the best guess first; templates differ.

    The user's template comes alone; else published prompts for these classes, most specific first, then templates for
    any data. Raises DeltatuneError for words of unknown or missing classes, and for classes such as 0 and 1 whose names
    say nothing and that no published data set has.
    """
    if not task.labels or task.label_kind != "classes":
        raise DeltatuneError(f"prompts with label words are for one class a row; this task is {task.describe()}")
    left_to_right = family(config) == "decoder"
    labels = task.labels
    published = find_prompts(labels, len(task.text), options.data, left_to_right)
    given = given_words(labels, options)
    if given is None and not published and needs_description(labels):
        raise DeltatuneError(
            f"the classes {', '.join(labels[:6])} say nothing in words: describe them, as in "
            f"{example_description(labels)}, or give their words (--words CLASS=WORD)"
        )
    default = given or tuple(class_words(labels)[label] for label in labels)
    if options.template:
        first = published[0].words if published and given is None else None
        words = default if first is None else words_of_classes(first, labels)
        return [ChosenPrompt(options.template, words, "given")]
    chosen = [
        ChosenPrompt(
            with_columns(template, task.text, each.texts), given or words_of_classes(each.words, labels), each.name
        )
        for each in published
        for template in each.templates
    ]
    words = default if given or not published else words_of_classes(published[0].words, labels)
    chosen += [ChosenPrompt(template, words, "default") for template in default_templates(task.text, left_to_right)]
    unique = {each.template: each for each in reversed(chosen)}
    return [each for each in chosen if unique[each.template] is each]


def label_words_task(
    task: Classify, config: Any, options: PromptOptions, template: str = "", words: str = "", **fields: Any
) -> LabelWords:
    """The task through the model's own head: with this template and these words, or with those of the best guess.

    `words` is `"bad=terrible|awful, good=great"`.
    """
    given = PromptOptions(
        template or options.template, split_words(words) or options.words, options.describe, options.data
    )
    best = choose_prompts(task, config, given)[0]
    return as_label_words(task, template=best.template, words=best.words, **fields)


def split_words(words: str) -> tuple[str, ...]:
    """`"bad=terrible|awful, good=great"` as one text a class, with the blanks between them."""
    return tuple(part for part in words.split(",") if part.strip())


def given_words(labels: Sequence[str], options: PromptOptions) -> Words | None:
    """The words of the classes that the user gives or describes; None where neither is given."""
    if options.words and options.describe:
        raise DeltatuneError("give the classes' words or a description of the classes, not both (--words, --describe)")
    if options.words and any(sign in label for label in labels for sign in ",="):
        described = class_words(labels, ",".join(options.words))  # it knows where a name with such a sign ends
        return tuple(described[label] for label in labels)
    if options.words:
        return words_of_classes(read_words(options.words), labels)
    if options.describe:
        described = class_words(labels, options.describe)
        return tuple(described[label] for label in labels)
    return None
