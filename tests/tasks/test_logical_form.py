"""Logical-form accuracy of generated queries."""

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate
from deltatune.tasks.metrics.generation import text_scores
from support.language_models import generation_tokenizer

GOLD = "SELECT COUNT Player FROM table WHERE No. = 23 AND Position = guard"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (GOLD, True),
        ("select count player from table where position = Guard and no. = 23", True),
        ("  SELECT COUNT Player  FROM table\nWHERE Position = guard AND No. = 23 ", True),
        ("SELECT Player FROM table WHERE No. = 23 AND Position = guard", False),
        ("SELECT COUNT Player FROM table WHERE No. = 23", False),
        ("SELECT COUNT Player FROM table WHERE No. > 23 AND Position = guard", False),
        ("SELECT COUNT Player FROM table WHERE No. = 24 AND Position = guard", False),
        ("SELECT COUNT Position FROM table WHERE No. = 23 AND Position = guard", False),
        (GOLD + " AND", False),
        ("", False),
        ("SELECT", False),
        ("SELECT FROM table WHERE", False),
        ("I do not know", False),
        ("SELECT " * 2000, False),
        (" AND " * 5000, False),
    ],
)
def test_logical_form(text, right):
    score = text_scores([text], [[GOLD]], ["logical_form"])["logical_form"]
    assert score.score() == float(right)


def test_names_of_columns_may_hold_and():
    gold = "SELECT Date and time FROM table WHERE Name and rank = Bill and co AND No. > 3"
    swapped = "SELECT date and time FROM table WHERE No. > 3 AND Name and rank = Bill and co"
    other = "SELECT Date and time FROM table WHERE Name and rank = Bill AND No. > 3"
    score = text_scores([gold, swapped, other], [[gold]] * 3, ["logical_form"])["logical_form"]
    assert score.sums[:, 0].tolist() == [1.0, 1.0, 0.0]


def test_many_bad_references_are_counted():
    with pytest.raises(DeltatuneError, match="and 15 more"):
        text_scores([GOLD] * 25, [["x"]] * 25, ["logical_form"])


def test_references_must_be_queries():
    with pytest.raises(DeltatuneError, match="row 1: the reference 'a man' is not a query of WikiSQL"):
        text_scores([GOLD, "x"], [[GOLD], ["a man"]], ["logical_form"])


def test_it_is_reported_where_it_is_the_primary_metric():
    answers, references = [{"text": GOLD.lower()}, {"text": "none"}], [[GOLD], [GOLD]]
    task = Generate(metric="logical_form")
    scores = task.score(answers, references)
    assert next(iter(scores)) == "logical_form"
    assert scores["logical_form"] == 0.5
    assert task.resampled(answers, references, np.array([[2.0, 0.0]])) == pytest.approx([1.0])
    assert "logical_form" not in Generate().score([{"text": "a"}], [["a"]])


def test_rows_that_are_no_queries_are_told_before_training():
    rows = [{"input": "who", "output": GOLD}, {"input": "who", "output": "a man"}]
    with pytest.raises(DeltatuneError, match="row 1: the reference 'a man' is not a query"):
        Generate(metric="logical_form").encode(rows, generation_tokenizer())
    Generate(metric="logical_form").encode(rows[:1], generation_tokenizer())
    Generate(metric="logical_form").encode(rows, generation_tokenizer(), labelled=False)
