"""Scores of answers equal those of SQuAD's evaluation script 2.0, which was run on these rows."""

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.metrics.qa_scores import overlap, span_scores, words

ROWS = [
    ("Denver Broncos", ["Denver Broncos", "The Denver Broncos", "denver broncos!"]),
    ("the Denver Broncos", ["Carolina Panthers"]),
    (
        "Santa Clara, California",
        [
            "Santa Clara",
            "Levi's Stadium in Santa Clara",
            "Levi's Stadium in the San Francisco Bay Area at Santa Clara, California.",
        ],
    ),
    ("", []),
    ("1851", []),
    ("", ["a theory"]),
    ("an", []),
    ("The", ["the", "an."]),
    ("gold", ["the"]),
    ("in the late 1990s in the north", ["late 1990s", "In the 1990s"]),
    ("U.S.", ["us", "United States"]),
    ("Gdańsk—Élan", ["gdańsk—élan", "Elan"]),
    ("  two   words\n here", ["two words"]),
    ("word word word", ["word", "word word other"]),
]
# What the script printed (in percent): exact, f1, HasAns_exact, HasAns_f1, NoAns_exact.
ALL_ROWS = (42.857142857142854, 63.129251700680264, 36.36363636363637, 62.16450216450217, 66.66666666666667)


def scores(rows):
    return {name: metric.score() for name, metric in span_scores(*zip(*rows, strict=True)).items()}


def test_the_official_figures():
    names = ("em", "f1", "has_answer_em", "has_answer_f1", "no_answer_em")
    assert scores(ROWS) == pytest.approx({n: v / 100 for n, v in zip(names, ALL_ROWS, strict=True)}, abs=1e-12)


def test_with_answers_alone():
    rows = [row for row in ROWS if row[1]]
    assert scores(rows) == pytest.approx({"em": ALL_ROWS[2] / 100, "f1": ALL_ROWS[3] / 100}, abs=1e-12)


def test_without_answers_alone():
    rows = [row for row in ROWS if not row[1]]
    assert scores(rows) == pytest.approx(dict.fromkeys(("em", "f1", "no_answer_em"), 2 / 3), abs=1e-12)


def test_an_empty_reference_says_there_is_no_answer():
    rows = [("", []), ("x", []), ("y", ["y"])]
    assert scores([("", [""]), ("x", [""]), ("y", ["y"])]) == scores(rows)


def test_words():
    assert words("The  quick (brown) fox's AN-tics, a\ttheme\n") == ["quick", "brown", "foxs", "antics", "theme"]
    assert overlap(["x", "x", "y"], ["x", "z"]) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_resamples_equal_copies():
    random = np.random.default_rng(0)
    weights = np.stack(
        [np.bincount(random.integers(len(ROWS), size=len(ROWS)), minlength=len(ROWS)) for _ in range(30)]
    )
    metrics = span_scores(*zip(*ROWS, strict=True))
    for i, row in enumerate(weights):
        copied = scores([one for one, times in zip(ROWS, row, strict=True) for _ in range(times)])
        for name, metric in metrics.items():
            if name in copied:  # a resample with answers throughout has no score of those without
                assert metric.resampled(weights)[i] == pytest.approx(copied[name], abs=1e-12), name


def test_one_row():
    assert scores([("", [])]) == {"em": 1.0, "f1": 1.0, "no_answer_em": 1.0}
    assert scores([("a cat", ["Cat."])]) == {"em": 1.0, "f1": 1.0}


def test_lengths():
    with pytest.raises(DeltatuneError, match="2 predictions but 1 example"):
        span_scores(["a", "b"], [["a"]])
