"""Verbalizer: the words of each class, and their tokens in the blank of a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.tasks.prompts.template_tokens import tokens_after
from deltatune.tasks.prompts.templates import Template

Words = tuple[tuple[str, ...], ...]
"""One or several words for each class, in the order of the classes."""


def words_of_names(labels: Sequence[str]) -> Words:
    """The class names as words: `not_spam` and `NotSpam` become "not spam"."""
    return tuple((words_of_name(label) or label,) for label in labels)


def words_of_name(label: str) -> str:
    """A class name in words: `not_spam` is `not spam`, `NaturalPlace` is `natural place`, `NUM` stays; "" for `___`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", label)
    words = [word.strip("-.,;:") for word in re.split(r"[\s_]+", parted)]
    words = [word for word in words if word]
    if len(words) > 1 and (label.isupper() or parted != label):
        words = [word if word.isupper() and not label.isupper() else word.lower() for word in words]
    return " ".join(words)


def words_of_classes(words: Mapping[str, str | Sequence[str]], labels: Sequence[str]) -> Words:
    """Words by class, as a user gives them, in the order of the classes.

    Raises DeltatuneError listing unknown classes and classes without a word.
    """
    problems = [
        f"words are given for {label!r}, which is not a class{nearest(label, labels)}"
        for label in words
        if label not in labels
    ]
    problems += [f"the class {label!r} has no word" for label in labels if not words.get(label)]
    raise_all(problems, f"classes: {', '.join(map(repr, labels[:20]))}" if problems else "")
    listed = [(given,) if isinstance(given := words[label], str) else tuple(given) for label in labels]
    return tuple(tuple(word.strip() if isinstance(word, str) else word for word in given) for given in listed)


def nested_tuples(value: Any) -> Any:
    """A value whose lists, as JSON and YAML have them, are tuples."""
    return tuple(map(nested_tuples, value)) if isinstance(value, (list, tuple)) else value


def words_in_order(words: Any, labels: Sequence[str]) -> Any:
    """Words as tuples by class: also of a mapping of classes to words, and of one word for each class."""
    if isinstance(words, Mapping):
        return words_of_classes({str(label): nested_tuples(given) for label, given in words.items()}, labels)
    if isinstance(words, tuple):
        given = words or words_of_names(labels)
        return tuple(
            tuple(word.strip() if isinstance(word, str) else word for word in of_class) if isinstance(of_class, tuple)
            else (of_class.strip(),) if isinstance(of_class, str) else of_class
            for of_class in given
        )  # fmt: skip
    return words


def read_words(assignments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`negative=terrible|bad` as a mapping of classes to words. Raises DeltatuneError for other text."""
    words: dict[str, tuple[str, ...]] = {}
    for assignment in assignments:
        label, sign, listed = assignment.partition("=")
        given = tuple(word.strip() for word in listed.split("|") if word.strip())
        if not (sign and label.strip() and given):
            raise DeltatuneError(
                f"{assignment!r} gives no words: write CLASS=WORD or CLASS=WORD|WORD, such as bad=terrible|awful"
            )
        if label.strip() in words:
            raise DeltatuneError(f"the words of {label.strip()!r} are given twice; give them once, as CLASS=WORD|WORD")
        words[label.strip()] = given
    return words


def check_words(words: Words, labels: Sequence[str]) -> list[str]:
    """What is wrong with the words of classes."""
    if len(words) != len(labels):
        return [f"{len(words)} classes have words, and the task has {len(labels)} classes"]
    problems = [
        f"the class {label!r} has no word" for label, of_class in zip(labels, words, strict=True) if not of_class
    ]
    owner: dict[str, str] = {}
    for label, of_class in zip(labels, words, strict=True):
        for word in of_class:
            if not word.strip():
                problems.append(f"a word of the class {label!r} is empty")
            elif word in owner:
                whose = "twice of" if owner[word] == label else f"of {owner[word]!r} and of"
                problems.append(f"the word {word!r} is {whose} the class {label!r}: give each word once")
            owner[word] = label
    return problems


def word_tokens(words: Words, template: Template, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of every word as it stands in the blank, in the order of the classes.

    Raises DeltatuneError for words that the tokenizer does not know, and for two words of the same tokens.
    """
    before = template.part_before_blank
    context = before.text if before is not None and before.kind == "words" else ""
    listed = [word for of_class in words for word in of_class]
    ids = tokens_after(context, listed, template.spaces_blank(tokenizer), tokenizer)
    special = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    problems: list[str] = []
    seen: dict[tuple[int, ...], str] = {}
    for word, tokens in zip(listed, ids, strict=True):
        if not tokens or tokenizer.unk_token_id in tokens:
            problems.append(f"the tokenizer does not know the word {word!r}; choose another word")
        elif not special.isdisjoint(tokens):
            problems.append(f"the word {word!r} has a special token of the tokenizer; choose another word")
        elif tuple(tokens) in seen:
            problems.append(f"the words {seen[tuple(tokens)]!r} and {word!r} are the same tokens; choose another word")
        seen[tuple(tokens)] = word
    raise_all(problems)
    return ids
