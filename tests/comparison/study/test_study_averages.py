"""Averages over data sets, suites, series along an axis, and totals: against values computed by hand."""

from __future__ import annotations

import math

import pytest

from deltatune.comparison.study import SuiteSets
from deltatune.comparison.study.set_averages import on_common_scale, scale_notes, set_scores, suite_averages
from deltatune.comparison.study.study_series import series
from deltatune.comparison.study.study_totals import totals
from deltatune.data.published.suites import SUITES
from support.study_comparisons import BASE, comparison, unfinished

METHODS = ("A()", "B()", "C()")


def test_means_and_ranks_over_data_sets():
    scores = set_scores(
        [
            comparison({"A()": 0.9, "B()": 0.8, "C()": 0.7}, data="x"),
            comparison({"A()": 0.5, "B()": 0.6, "C()": 0.5}, data="y"),
        ],
        METHODS,
    )
    assert scores.sets == ("x", "y")
    assert scores.average("A()") == pytest.approx(0.7)
    assert scores.ranks() == {"A()": (1 + 2.5) / 2, "B()": (2 + 1) / 2, "C()": (3 + 2.5) / 2}


def test_other_axes_are_averaged_within_a_data_set_first():
    found = [comparison({"A()": value, "B()": 0.6}, data="x", limit=n) for n, value in ((10, 0.2), (20, 0.8))]
    found += [comparison({"A()": value, "B()": 0.9}, data="y", limit=n) for n, value in ((10, 1.0), (20, 1.0))]
    scores = set_scores(found, METHODS[:2])
    assert scores.average("A()") == pytest.approx((0.5 + 1.0) / 2)
    assert scores.ranks() == {"A()": 1.5, "B()": 1.5}


def test_only_what_every_data_set_has_counts():
    """Otherwise an unfinished study would compare a mean over easy rows with one over all."""
    found = [
        comparison({"A()": 0.9, "B()": 0.1}, data="x", limit=10),
        comparison({"A()": 0.1, "B()": 0.9}, data="x", limit=20),
        comparison({"A()": 0.7, "B()": 0.3}, data="y", limit=10),
        unfinished(data="y", limit=20),
        unfinished(data="z", limit=10),
    ]
    scores = set_scores(found, METHODS[:2])
    assert scores.used == (0, 2)
    assert scores.average("A()") == pytest.approx(0.8)


def test_a_method_that_failed_somewhere_has_no_average():
    found = [comparison({"A()": 0.9, "B()": None}, data="x"), comparison({"A()": 0.8, "B()": 0.99}, data="y")]
    scores = set_scores(found, METHODS[:2])
    assert scores.average("B()") is None
    assert scores.ranks() == {"A()": 1.0}
    assert set_scores([unfinished()], METHODS).ranks() == {}


def test_lower_is_better_in_ranks_and_on_the_common_scale():
    found = [comparison({"A()": 2.0, "B()": 3.0}, data="x", metric="perplexity"), comparison({"A()": 0.5, "B()": 0.6})]
    scores = set_scores(found, METHODS[:2])
    assert scores.ranks() == {"A()": 1.5, "B()": 1.5}
    assert scores.average("A()") == pytest.approx((1 / 3 + 0.5) / 2)
    assert "1/(1 + m)" in " ".join(scale_notes({"x": "perplexity", "a": "accuracy"}))


def test_metrics_of_other_ranges():
    assert on_common_scale(5.0, "cider") == 0.5
    assert on_common_scale(-0.2, "matthews") == -0.2
    assert on_common_scale(6.0, "nist") is None
    found = [comparison({"A()": 6.0, "B()": 3.0}, data="x", metric="nist"), comparison({"A()": 0.5, "B()": 0.6})]
    scores = set_scores(found, METHODS[:2])
    assert scores.average("A()") == 0.5, "a metric without an upper bound is in the ranks alone"
    assert scores.ranks() == {"A()": 1.5, "B()": 1.5}
    assert any("nist has no upper bound" in note for note in scale_notes({"x": "nist", "a": "accuracy"}))
    assert scale_notes({"x": "accuracy", "y": "accuracy"}) == []


def test_sizes_of_one_method_count_as_one():
    both = comparison({"A()": 0.5}, data="x")
    other = dict(both["summary"]["methods"][0], method="A(size=8)", score=0.7)
    both["summary"]["methods"].append(other)
    assert set_scores([both], ["A()"]).average("A()") == 0.7


# --- suites ---

GLUE = SuiteSets(SUITES["glue"], {"mrpc": "mrpc", "MNLI": "mnli"})


def glue(f1, accuracy, matched, mismatched):
    return [
        comparison({"A()": f1}, data="mrpc", metric="f1", scored={"A()": {"accuracy": accuracy}}),
        comparison(
            {"A()": matched}, data="MNLI", more_scored={"A()": {"test_mismatched": {"accuracy": mismatched, "f1": 0}}}
        ),
        comparison({"A()": 0.123}, data="other"),
    ]


def test_the_average_of_glue_is_that_of_its_paper():
    """MRPC counts with the mean of F1 and accuracy, MNLI with the mean of matched and mismatched, each task once."""
    (found,) = suite_averages(glue(0.9, 0.8, 0.7, 0.6), ["A()"], GLUE)
    (row,) = found["methods"]
    assert row["tasks"] == {"mrpc": pytest.approx(0.85), "mnli": pytest.approx(0.65)}
    assert row["average"] == pytest.approx(0.75)
    assert found["suite"] == "GLUE"
    assert "cola" in found["missing"]
    assert "data" not in found["at"]


def test_a_suite_without_some_score_has_no_average():
    parts = glue(0.9, 0.8, 0.7, 0.6)
    (found,) = suite_averages([parts[0], unfinished(data="MNLI")], ["A()"], GLUE)
    assert found["methods"][0]["average"] is None
    assert found["methods"][0]["tasks"] == {"mrpc": pytest.approx(0.85)}
    del parts[0]["summary"]["methods"][0]["scores"]["accuracy"]
    (found,) = suite_averages(parts, ["A()"], GLUE)
    assert found["methods"][0]["tasks"]["mrpc"] is None
    assert suite_averages([unfinished(data="mrpc")], ["A()"], GLUE) == []


# --- series ---


def test_series_have_a_line_for_each_method_and_place():
    found = [
        comparison({"A()": 0.1 * i, "B()": None if i == 1 else 0.5}, data=data, limit=limit, rows=rows)
        for data in ("x", "y")
        for i, limit, rows in ((2, None, 500), (1, 10, 10))
    ]
    lines = series(found, ["A()", "B()"], ["data", "limit"])
    assert [(line["axis"], line["method"], line["at"]["data"]) for line in lines] == [
        ("limit", "A()", "x"), ("limit", "A()", "y"),
    ]  # fmt: skip
    assert lines[0]["points"] == [
        {"x": 10.0, "value": 10, "score": pytest.approx(0.1), "ci": pytest.approx([0.09, 0.11])},
        {"x": 500.0, "value": None, "score": pytest.approx(0.2), "ci": pytest.approx([0.19, 0.21])},
    ]
    assert "limit" not in lines[0]["at"]


def test_models_are_ordered_by_their_parameters():
    found = [
        comparison({"A()": 0.9}, model="large", base_params=300),
        comparison({"A()": 0.5}, model="small", base_params=100),
        unfinished(model="next"),
    ]
    (line,) = series(found, ["A()"], ["model"])
    assert [(point["x"], point["value"]) for point in line["points"]] == [(100.0, "small"), (300.0, "large")]


# --- totals ---


def test_totals_have_the_base_once():
    found = [comparison({"LoRA()": 0.5, "Full()": 0.6}, data=data) for data in ("x", "y")]
    rows = {(row["method"], row["tasks"]): row for row in totals(found, ["LoRA()", "Full()"], tasks=1000)}
    assert rows["LoRA()", 2]["params"] == 2 * (40_000 + 10)
    assert rows["LoRA()", 2]["bytes"] == 4 * BASE + 2 * (4 * 40_000 + 100)
    assert rows["LoRA()", 1000]["bytes"] == 4 * BASE + 1000 * (4 * 40_000 + 100)
    assert rows["Full()", 1000]["params"] == 1000 * (BASE + 10)
    assert rows["LoRA()", 1000]["copies"] == 1000 * 4 * BASE
    assert {row["tasks"] for row in totals(found, ["LoRA()"])} == {2}


def test_totals_of_models_are_apart_and_limits_do_not_count_twice():
    found = [
        comparison({"LoRA()": 0.5}, model=model, limit=limit, base_params=size)
        for model, size in (("small", 1000), ("large", 3000))
        for limit in (10, 20)
    ]
    rows = totals(found, ["LoRA()"])
    assert [(row["at"]["model"], row["tasks"]) for row in rows] == [("small", 1), ("large", 1)]
    assert rows[1]["copies"] == 12_000
    assert totals([comparison({"LoRA()": None})], ["LoRA()"]) == []
    assert not any(math.isnan(row["bytes"]) for row in rows)
