"""Verdicts on pairs of methods: what they promise over whole studies, and what they say in single cases."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltatune.comparison.statistics.score_statistics import intervals
from deltatune.comparison.statistics.variance_components import components, unit_scores
from deltatune.comparison.statistics.verdicts import (
    PairVerdict,
    decide,
    judge,
    rows_needed,
    seeds_needed,
    undecided_methods,
)
from deltatune.tasks.metrics.classification_and_regression import weighted_score

PATH = Path(__file__).parents[3] / "docs/error_rates.py"


@pytest.fixture(scope="module")
def error_rates():
    """The script that measures the error rates in the documentation."""
    spec = importlib.util.spec_from_file_location("error_rates", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["error_rates"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def most(studies, share=0.05):
    """As many of the studies as a true share brings in fewer than 1 of 1,000 repetitions of the test, about."""
    return studies * share + 3.1 * math.sqrt(studies * share * (1 - share))


def runs(rng, accuracy, seeds, rows, metric="accuracy"):
    """Scorers of runs that are right on random rows."""
    return [
        weighted_score(metric, (rng.random(rows) < accuracy).astype(int), np.ones(rows, int), 2).resampled
        for _ in range(seeds)
    ]


def right_on(*rows_right, rows=100):
    """Scorers of runs that are right on the first rows, so many in each run."""
    return [
        weighted_score("accuracy", (np.arange(rows) < count).astype(int), np.ones(rows, int), 2).resampled
        for count in rows_right
    ]


# ---- what is promised over whole studies


def test_few_of_the_studies_without_a_difference_find_one(error_rates):
    scenario = error_rates.Scenario("3 alike", (0.8,) * 3, (0.02,) * 3, 300)
    rates = error_rates.simulate(scenario, 80, draws=600)
    assert rates.wrong * 80 <= most(80)
    assert rates.uncorrected * 80 > most(80)  # what the test would find if nothing were done about looks and pairs
    assert rates.seeds > 5.5


def test_differences_are_found_and_few_of_the_verdicts_are_wrong(error_rates):
    scenario = error_rates.Scenario("4", (0.7, 0.7, 0.8, 0.9), (0.01,) * 4, 500)
    rates = error_rates.simulate(scenario, 25, draws=600)
    assert rates.right > 0.95
    assert rates.wrong * 25 <= most(25)
    assert rates.seeds < 6  # methods that are told apart from all others get no more seeds


def test_equal_methods_are_called_equal_and_methods_a_margin_apart_are_not(error_rates):
    alike = error_rates.Scenario("2 alike", (0.8, 0.8), (0.005, 0.005), 1500, margin=0.05)
    assert error_rates.simulate(alike, 20, draws=600).equal > 0.9
    apart = error_rates.Scenario("2 apart", (0.8, 0.8501), (0.005, 0.005), 1500, margin=0.05)
    assert error_rates.simulate(apart, 40, draws=600).wrong_equal * 40 <= most(40)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["4 alike", "4 alike, seeds ±0.04", "4 alike, one run in ten diverges"])
def test_the_promise_over_many_studies(error_rates, name):
    scenario = next(each for each in error_rates.scenarios() if each.name == name)
    rates = error_rates.simulate(scenario, 1000)
    assert rates.wrong * 1000 <= most(1000)


# ---- single cases


def test_a_decided_pair_keeps_its_verdict_whatever_comes_later():
    rng = np.random.default_rng(0)
    first = decide("accuracy", {"a": runs(rng, 0.95, 3, 400), "b": runs(rng, 0.6, 3, 400)}, 400)
    assert [(v.first, v.second, v.verdict, v.look) for v in first] == [("a", "b", "better", 1)]
    turned = {"b": runs(rng, 0.95, 4, 400), "a": runs(rng, 0.6, 4, 400)}
    (later,) = decide("accuracy", turned, 400, look=2, earlier=first)
    assert (later.first, later.second, later.verdict, later.look) == ("b", "a", "worse", 1)
    assert (later.difference, later.low, later.high) == (-first[0].difference, -first[0].high, -first[0].low)
    (kept,) = decide("accuracy", dict(reversed(turned.items())), 400, look=2, earlier=first)
    assert kept == first[0]


def test_a_lower_error_is_better():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    near, far = ([truth + rng.normal(0, spread, 400) for _ in range(3)] for spread in (0.1, 1.0))
    scorers = {
        name: [weighted_score("mse", each, truth).resampled for each in runs]
        for name, runs in (("near", near), ("far", far))
    }
    (verdict,) = decide("mse", scorers, 400)
    assert verdict.verdict == "better"
    assert verdict.high < 0


def test_pairing_sees_what_separate_intervals_hide():
    """`b` is `a` with 14 of 500 answers spoiled: the intervals overlap widely, yet the difference is certain."""
    a = (np.random.default_rng(0).random(500) < 0.8).astype(int)
    b = a.copy()
    b[np.flatnonzero(a)[:14]] = 0
    truth = np.ones(500, int)
    found = intervals("accuracy", {"a": [a], "b": [b]}, truth)
    assert found["b"].high > found["a"].low
    scorers = {name: [weighted_score("accuracy", each, truth, 2).resampled] for name, each in (("a", a), ("b", b))}
    assert [v.verdict for v in decide("accuracy", scorers, 500)] == ["better"]


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson", "spearman", "mse"])
@pytest.mark.parametrize("rows", [1, 2, 3, 50])
@pytest.mark.parametrize("seeds", [1, 3])
def test_constant_predictions_and_few_rows_give_numbers(metric, rows, seeds):
    truth = np.arange(rows) % 2
    scorers = {
        name: [weighted_score(metric, each, truth, 2).resampled] * seeds
        for name, each in (("constant", np.zeros(rows, int)), ("right", truth))
    }
    (verdict,) = decide(metric, scorers, rows, resamples=50)
    assert math.isfinite(verdict.difference)
    assert math.isfinite(verdict.low)
    assert verdict.low <= verdict.difference <= verdict.high
    assert rows > 3 or verdict.verdict == "undecided"


def test_a_metric_of_the_whole_corpus():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 500)
    scorers = {
        name: [
            weighted_score(
                "f1_macro", np.where(rng.random(500) < p, truth, rng.integers(0, 3, 500)), truth, 3
            ).resampled
            for _ in range(3)
        ]
        for name, p in (("good", 0.9), ("also good", 0.9), ("bad", 0.4))
    }
    kinds = {(v.first, v.second): v.verdict for v in decide("f1_macro", scorers, 500)}
    assert kinds == {("good", "also good"): "undecided", ("good", "bad"): "better", ("also good", "bad"): "better"}


def test_identical_answers_are_equal_only_if_there_are_rows_enough_to_say_so():
    """No row differs among n: the share of rows that do may still be about 3 / n."""
    same = right_on(80, 80)
    (verdict,) = decide("accuracy", {"a": same, "b": same}, 100, margin=0.01)
    assert (verdict.verdict, verdict.difference) == ("undecided", 0.0)
    assert 0.03 < verdict.high < 0.07
    many = right_on(2400, 2400, rows=3000)
    (verdict,) = decide("accuracy", {"a": many, "b": many}, 3000, margin=0.01)
    assert verdict.verdict == "equal"
    (verdict,) = decide("accuracy", {"a": many, "b": many}, 3000)
    assert verdict.verdict == "undecided"


@pytest.mark.parametrize(("wrong", "kind"), [(0, "undecided"), (5, "undecided"), (14, "worse")])
def test_near_the_top_a_few_rows_are_no_difference(wrong, kind):
    """One method answers all 100 rows; by McNemar's exact test 5 errors have p = 0.06, and 14 have p = 0.0001."""
    (verdict,) = decide("accuracy", {"a": right_on(100 - wrong), "b": right_on(100)}, 100, fixed=("a", "b"))
    assert verdict.verdict == kind


def test_one_run_of_each_says_nothing_of_seeds_and_one_of_a_method_borrows_from_the_others():
    rng = np.random.default_rng(0)
    single = {"a": runs(rng, 0.8, 1, 300), "b": runs(rng, 0.8, 1, 300)}
    (verdict,) = decide("accuracy", single, 300)
    assert (verdict.covers_seeds, verdict.seed_error) == (False, 0.0)
    more = {"a": right_on(20, 50, 80), "b": right_on(20, 50, 80), "c": right_on(70)}
    verdicts = {(v.first, v.second): v for v in decide("accuracy", more, 100)}
    assert all(v.covers_seeds for v in verdicts.values())
    assert verdicts["a", "c"].seed_error > verdicts["a", "b"].seed_error  # one run is less than three
    fixed = {(v.first, v.second): v for v in decide("accuracy", more, 100, fixed=("c",))}
    assert fixed["a", "c"].seed_error < verdicts["a", "b"].seed_error


def test_seeds_that_vary_widely_widen_the_interval_of_their_method_most():
    rng = np.random.default_rng(1)
    scorers = {
        name: [run for p in accuracies for run in runs(rng, p, 1, 1000)]
        for name, accuracies in [
            ("calm", (0.80, 0.80, 0.80, 0.80)),
            ("also calm", (0.80, 0.81, 0.80, 0.79)),
            ("wild", (0.60, 0.95, 0.70, 0.95)),
        ]
    }
    widths = {(v.first, v.second): v.half_width for v in decide("accuracy", scorers, 1000)}
    assert widths["calm", "wild"] > 4 * widths["calm", "also calm"]


def test_runs_on_the_same_draws_are_compared_draw_by_draw():
    """Draws of training rows move both methods by 0.1; one is better by 0.06 on every draw."""
    rng = np.random.default_rng(0)
    draws = (0.5, 0.6, 0.7, 0.55, 0.65, 0.75)
    easy = rng.random(3000)

    def runs_at(offset):
        noise = rng.normal(0, 0.02, (len(draws), 3000))
        answers = [(easy + each < p + offset).astype(int) for p, each in zip(draws, noise, strict=True)]
        return [weighted_score("accuracy", each, np.ones(3000, int), 2).resampled for each in answers]

    scorers = {"a": runs_at(0.06), "b": runs_at(0.0)}
    numbers = {"a": range(6), "b": range(6)}
    (paired,) = decide("accuracy", scorers, 3000, clusters=numbers)
    (apart,) = decide("accuracy", scorers, 3000)
    assert apart.verdict == "undecided"
    assert paired.half_width < 0.7 * apart.half_width
    assert paired.runs == (6, 6)


def test_runs_of_one_draw_count_once():
    rng = np.random.default_rng(0)
    scorers = {name: [run for p in (0.7, 0.8, 0.9) for run in runs(rng, p, 4, 500)] for name in "ab"}
    clusters = {name: [0] * 4 + [1] * 4 + [2] * 4 for name in "ab"}
    (verdict,) = decide("accuracy", scorers, 500, clusters=clusters)
    assert verdict.runs == (3, 3)


def test_more_methods_and_more_looks_make_intervals_wider():
    rng = np.random.default_rng(0)
    scorers = {name: runs(rng, 0.8, 4, 500) for name in "abcdefg"}
    two = {name: scorers[name] for name in "ab"}
    (alone,) = decide("accuracy", two, 500)
    among = decide("accuracy", scorers, 500)[0]
    assert (among.first, among.second) == ("a", "b")
    assert among.half_width > alone.half_width
    (unknown,) = decide("accuracy", two, 500, look=5)  # four looks that nobody handed over
    assert unknown.half_width > alone.half_width


def test_looks_at_the_same_rows_and_almost_the_same_seeds_cost_little():
    """The rows' error is the same at every look: a second look is nearly free, unlike with a correction per look."""
    rng = np.random.default_rng(0)
    scorers = {name: runs(rng, 0.8, 8, 500) for name in "ab"}
    first = decide("accuracy", {name: each[:7] for name, each in scorers.items()}, 500)
    (known,) = decide("accuracy", scorers, 500, look=2, earlier=first)
    (unknown,) = decide("accuracy", scorers, 500, look=2)
    assert known.verdict == "undecided"
    assert known.level > 1.2 * unknown.level


def test_verdicts_are_the_same_again_and_survive_json():
    rng = np.random.default_rng(0)
    scorers = {name: runs(rng, p, 2, 200) for name, p in (("a", 0.9), ("b", 0.7), ("c", 0.7))}
    verdicts = decide("accuracy", scorers, 200, seed=3)
    assert verdicts == decide("accuracy", scorers, 200, seed=3)
    text = json.dumps([v.to_json() for v in verdicts], allow_nan=False)
    assert [PairVerdict.from_json(each) for each in json.loads(text)] == verdicts
    assert {"first", "second", "difference", "ci", "verdict"} <= set(json.loads(text)[0])


def test_a_method_with_a_score_that_is_not_finite_gets_no_verdicts():
    rng = np.random.default_rng(0)
    broken = [lambda weights: np.full(len(weights), np.inf)]
    scorers = {"a": runs(rng, 0.9, 2, 100), "broken": broken, "none": [], "b": runs(rng, 0.9, 2, 100)}
    assert [(v.first, v.second) for v in decide("accuracy", scorers, 100)] == [("a", "b")]
    assert decide("accuracy", {"a": scorers["a"], "broken": broken}, 100) == []


def test_wrong_arguments_are_named():
    scorers = {"a": right_on(1, 2), "b": right_on(3, 4)}
    with pytest.raises(ValueError, match="looks are numbered from 1, not 0"):
        decide("accuracy", scorers, 100, look=0)
    with pytest.raises(ValueError, match=r"alpha .* not 1\.5"):
        decide("accuracy", scorers, 100, alpha=1.5)
    with pytest.raises(ValueError, match=r"margin is 0 or more, not -0\.1"):
        decide("accuracy", scorers, 100, margin=-0.1)


def test_undecided_methods():
    kinds = {("a", "b"): "better", ("a", "c"): "undecided", ("a", "d"): "equal", ("b", "c"): "worse"}
    verdicts = [PairVerdict(*pair, 0.0, -1.0, 1.0, kind, 1) for pair, kind in kinds.items()]
    assert undecided_methods(verdicts) == {"a", "c"}


# ---- forecasts

PAIR = PairVerdict("a", "b", 0.02, -0.03, 0.07, "undecided", 1, (2, 2), 0.004, 0.02, 0.01)


def test_seeds_are_needed_where_seeds_are_the_error():
    needed = seeds_needed(PAIR)
    assert needed is not None
    assert 5 < needed < 60
    assert seeds_needed(replace(PAIR, difference=0.03)) < needed
    assert seeds_needed(replace(PAIR, row_error=0.02)) is None  # however many seeds, the rows do not tell
    assert seeds_needed(replace(PAIR, verdict="better")) == 0
    assert seeds_needed(replace(PAIR, difference=0.0, low=-0.05, high=0.05)) is None
    assert seeds_needed(replace(PAIR, difference=0.0), margin=0.02) is not None


def test_rows_are_needed_where_rows_are_the_error():
    of_rows = replace(PAIR, row_error=0.02, seed_error=0.004)
    needed = rows_needed(of_rows, 500)
    assert needed is not None
    half = of_rows.half_width / math.hypot(0.02, 0.004)
    enough = half * math.hypot(0.02 * math.sqrt(500 / (500 + needed)), 0.004)
    assert enough == pytest.approx(0.02, rel=0.01)
    assert rows_needed(PAIR, 500) is None  # the seeds limit it
    assert rows_needed(replace(PAIR, verdict="equal"), 500) == 0


def test_as_many_seeds_as_forecast_decide():
    rng = np.random.default_rng(5)
    accuracies = {"a": rng.normal(0.80, 0.02, 40), "b": rng.normal(0.74, 0.02, 40)}
    scorers = {name: [runs(rng, p, 1, 4000)[0] for p in each] for name, each in accuracies.items()}

    def verdict(count):
        scores = unit_scores("accuracy", {name: each[:count] for name, each in scorers.items()}, 4000, 300)
        return judge(components(scores), 1, (), None)[0]

    few = verdict(3)
    assert few.verdict == "undecided"
    needed = seeds_needed(few)
    assert needed is not None
    assert verdict(3 + 3 * needed).verdict == "better"
