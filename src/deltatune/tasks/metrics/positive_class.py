"""The positive class of two: which one F1, precision and recall count, by the names of the classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

POSITIVE = frozenset({
    "true", "t", "yes", "y", "positive", "pos", "+", "equivalent", "equal", "same", "similar", "match", "duplicate",
    "paraphrase", "entailment", "entails", "entailed", "acceptable", "grammatical", "correct", "relevant", "supported",
    "spam", "toxic", "hate", "hateful", "offensive", "abusive", "harassment", "sarcastic", "sarcasm", "ironic",
    "irony", "fraud", "fraudulent", "phishing", "malicious", "malignant", "attack", "defect", "anomaly", "anomalous",
    "suicidal", "depressed", "subjective", "recommended", "ja", "oui", "si", "good",
})  # fmt: skip
"""Names of classes that the field takes as the positive one."""
NEGATIVE = frozenset({
    "false", "f", "no", "n", "not", "negative", "neg", "-", "none", "other", "ham", "normal", "neutral", "benign",
    "clean", "safe", "healthy", "legitimate", "legit", "contradiction", "different", "distinct", "objective", "nein",
    "non", "nee", "bad",
})  # fmt: skip
"""Names of classes that the field takes as the negative one."""
NEGATING_WORDS = ("not", "no", "non", "never")
NEGATING_PREFIXES = (*NEGATING_WORDS, "un", "in", "im", "ir", "il", "dis")
SHORTEST_NEGATED = 3
"""Letters that a name must have for a prefix to negate it."""


def positive_class(labels: Sequence[str]) -> str | None:
    """The positive one of two class names where a rule tells, else None.

    Of two numbers the larger; the one with a positive name (`POSITIVE`); the other one of a negative name (`NEGATIVE`);
    the one whose negation is the other; the other one of a name that begins with "not", "no" or "non". Case, and marks
    between the words, have no meaning.
    """
    if len(labels) != 2:
        return None
    if all(re.fullmatch(r"[+-]?\d{1,15}(\.\d{1,15})?", label.strip()) for label in labels):
        numbers = [float(label) for label in labels]
        return None if numbers[0] == numbers[1] else labels[int(numbers[1] > numbers[0])]
    first, second = (plain(label) for label in labels)
    votes = [
        (first in POSITIVE, second in POSITIVE),
        (second in NEGATIVE, first in NEGATIVE),
        (_negates(second, first), _negates(first, second)),
        (_is_negated(second), _is_negated(first)),
    ]
    return next(
        (labels[0] if for_first else labels[1] for for_first, for_second in votes if for_first != for_second), None
    )


def plain(label: str) -> str:
    """A name in lower case, with single blanks between its words and without a leading "is"."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", label).casefold()).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] == "is" else words) or label.strip()


def _negates(name: str, other: str) -> bool:
    """Whether a name is the negation of the other one: not equivalent, nontoxic, unacceptable."""
    compact, negated = name.replace(" ", ""), other.replace(" ", "")
    return len(negated) >= SHORTEST_NEGATED and compact in {prefix + negated for prefix in NEGATING_PREFIXES}


def _is_negated(name: str) -> bool:
    return name.split(" ")[0] in NEGATING_WORDS
