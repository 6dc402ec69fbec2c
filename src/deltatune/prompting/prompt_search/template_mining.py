"""Templates mined from a text corpus: the words between a key word of the training texts and a label word.

Jiang et al. 2020, section 3.1 (middle words), https://arxiv.org/abs/1911.12543: a sentence in which both occur says by
what stands between them how people connect the two. There the words are a subject and an object of a relation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_regular, expanded, not_utf8
from deltatune.tasks.classification import joined_words
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Row

LEAST_LETTERS = 4
"""Letters of a key word: shorter ones are mostly function words."""
MOST_MIDDLE = 8
"""Words between a key word and a label word."""
MOST_KEYS = 2000
"""Key words, those of most training texts first."""
MOST_LINES = 2_000_000
"""Lines of a corpus that are read."""
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def key_words(task: LabelWords, rows: Sequence[Row]) -> set[str]:
    """Words of the training texts, in lower case, those of most texts first; label words are none."""
    labels = {word.lower() for of_class in task.words for word in of_class}
    counts: Counter[str] = Counter()
    for row in rows:
        text = " ".join(str(joined_words(row[name])) for name in task.text)
        counts.update({
            word for word in map(str.lower, _WORD.findall(text)) if len(word) >= LEAST_LETTERS and word.isalpha()
        })  # fmt: skip
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (
        {word for word in ranked if word not in labels}
        if len(ranked) <= MOST_KEYS
        else set(ranked[:MOST_KEYS]) - labels
    )


def mined_templates(
    task: LabelWords, rows: Sequence[Row], corpus: str | Path, most: int = 50, left_to_right: bool = False
) -> list[tuple[str, int]]:
    """Templates from a corpus with the number of their sentences, the most frequent first.

    The words between become "{text} between {mask}." where the key word comes first, and "{mask} between {text}" where
    the label word does. Those that sentences of several classes have come first, because one template has to serve all.
    Raises DeltatuneError for a file that is no text, and where no sentence has both.
    """
    classes = {
        word.lower(): number for number, of_class in enumerate(task.words) for word in of_class if " " not in word
    }
    if not classes:
        raise DeltatuneError("mined templates need label words of one word; give others (--words)")
    keys = key_words(task, rows)
    counts: Counter[str] = Counter()
    seen: dict[str, set[int]] = {}
    for sentence in sentences_of(corpus):
        for template, number in _found(_WORD.findall(sentence), keys, classes, task.text, left_to_right):
            counts[template] += 1
            seen.setdefault(template, set()).add(number)
    if not counts:
        raise DeltatuneError(
            f"no sentence of {corpus} has a word of the training texts, then a label word "
            f"({', '.join(list(classes)[:8])}) with at most {MOST_MIDDLE} words between them; give a "
            "larger corpus, or other words"
        )
    ranked = sorted(counts, key=lambda each: (-len(seen[each]), -counts[each], each))
    return [(template, counts[template]) for template in ranked[:most]]


def sentences_of(corpus: str | Path) -> Iterator[str]:
    """The sentences of a text file in UTF-8, line by line. Raises DeltatuneError for a file that cannot be read."""
    path = expanded(corpus)
    check_regular(path, "corpus")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == MOST_LINES:
                    return
                yield from _SENTENCE_END.split(line.strip())
    except UnicodeDecodeError as error:
        raise DeltatuneError(f"cannot read the corpus {path}: {not_utf8(error)}") from None
    except OSError as error:
        raise DeltatuneError(f"cannot read the corpus {path}: {error.strerror or error}") from None


def _found(
    words: Sequence[str], keys: set[str], classes: Mapping[str, int], columns: Sequence[str], left_to_right: bool
) -> Iterator[tuple[str, int]]:
    """Templates of one sentence, each with the class of its label word."""
    lower = [word.lower() for word in words]
    for place, word in enumerate(lower):
        if word not in classes:
            continue
        before = range(max(0, place - MOST_MIDDLE - 1), place - 1)
        after = range(place + 2, min(len(words), place + MOST_MIDDLE + 2))
        nearest = next((i for i in reversed(before) if lower[i] in keys), None)
        if nearest is not None and (template := _template(words[nearest + 1 : place], columns, True, left_to_right)):
            yield template, classes[word]
        nearest = next((i for i in after if lower[i] in keys), None)
        if nearest is not None and not left_to_right:
            template = _template(words[place + 1 : nearest], columns, False, False)
            if template:
                yield template, classes[word]


def _template(middle: Sequence[str], columns: Sequence[str], text_first: bool, left_to_right: bool) -> str:
    """The template of the words between; "" where there is no word, or a brace."""
    text = joined(middle)
    if not any(map(str.isalpha, text)) or "{" in text or "}" in text:
        return ""
    fields = " ".join(f"{{{name}}}" for name in columns)
    space = "" if text[0] in ",.;:!?" else " "
    if text_first:
        return f"{fields}{space}{text} {{mask}}{'' if left_to_right else '.'}"
    return f"{{mask}}{space}{text} {fields}"


def joined(words: Sequence[str]) -> str:
    """Words and punctuation as text."""
    return re.sub(r"\s+([,.;:!?)])", r"\1", " ".join(words))
