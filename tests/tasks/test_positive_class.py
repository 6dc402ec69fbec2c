"""The positive class of two by their names."""

import itertools

import pytest

from deltatune.tasks.metrics.positive_class import positive_class

PAIRS = [
    ("0", "1"), ("-1", "1"), ("1", "2"), ("0", "4"), ("0.0", "1.0"), ("false", "true"), ("False", "True"),
    ("No", "Yes"), ("n", "y"), ("negative", "positive"), ("neg", "pos"), ("not_equivalent", "equivalent"),
    ("not_duplicate", "duplicate"), ("NOT_DUPLICATE", "duplicate"), ("non_paraphrase", "paraphrase"),
    ("not_entailment", "entailment"), ("not entailment", "entailment"), ("unacceptable", "acceptable"),
    ("ham", "spam"), ("non-toxic", "toxic"), ("nontoxic", "toxic"), ("no_hate", "hate"), ("noHate", "hate"),
    ("not hate speech", "hate speech"), ("irrelevant", "relevant"), ("dissimilar", "similar"),
    ("incorrect", "correct"), ("non-event", "event"), ("NOT", "OFF"), ("none", "sexism"), ("other", "sports"),
    ("contradiction", "entailment"), ("not_duplicate", "is_duplicate"), ("ungrammatical", "grammatical"),
    ("benign", "malignant"), ("non ironic", "ironic"), ("normal", "anomaly"), ("safe", "unsafe"),
    ("is_not_spam", "is_spam"), ("not negative", "positive"),
]  # fmt: skip


@pytest.mark.parametrize(("negative", "positive"), PAIRS)
def test_positive_class(negative, positive):
    for labels in itertools.permutations((negative, positive)):
        assert positive_class(labels) == positive


@pytest.mark.parametrize(
    "labels",
    [("pop", "rock"), ("a", "b"), ("cat", "dog"), ("he", "she"), ("yes", "true"), ("", "x"), ("1", "1.0"),
     ("1", "2", "3"), ("in", "inn"), ("note", "e"), ("no hat", "not a cat"), ("9" * 400, "1")],
)  # fmt: skip
def test_no_rule_no_class(labels):
    assert positive_class(labels) is None
