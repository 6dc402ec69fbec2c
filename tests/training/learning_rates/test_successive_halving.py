"""The search of a rate: halving at rungs, beyond the edges, and back from a rate that was lucky at the first repeat."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.training.learning_rates.successive_halving import FEWEST_STEPS, Arm, Search, rungs

REPEATS = (0, 1, 2)
RATES = (1.0, 3.0, 9.0)


def searched(score, rates=RATES, repeats=REPEATS, steps=None, **options):
    """A search in which `score(rate, repeat, step)` says what a run gives, None where it fails; and its runs in order.

    The step is None at the end of a run.
    """
    asked = []

    def record(run):
        asked.append((run.arm.rate, run.repeat, run.until))
        value = score(run.arm.rate, run.repeat, run.until)
        return None if value is None else {"score": value, "rate": run.arm.rate, "repeat": run.repeat}

    arms = [Arm("method", rate) for rate in rates]
    search = Search(arms, repeats, steps, lambda record: record["score"], **options)
    assert not search.run(record)
    return search, asked


def near_three(rate, repeat, step):
    return -abs(rate - 3)


def ends(asked):
    """The runs that went to their end, and their repeats."""
    return [(rate, repeat) for rate, repeat, until in asked if until is None]


def test_rungs_halve_the_arms_until_one_is_left():
    assert rungs(1, 100) == []
    assert rungs(2, 100) == [50]
    assert rungs(3, 100) == rungs(4, 100) == [25, 50]
    assert rungs(9, 160) == [10, 20, 40, 80]
    assert rungs(9, 100) == [13, 25, 50], "a rung of fewer than 8 steps says nothing"
    assert rungs(3, FEWEST_STEPS) == []


def test_a_clear_case_takes_what_was_planned():
    search, asked = searched(near_three, steps=64)
    assert search.arm.rate == 3
    assert [(rate, until) for rate, repeat, until in asked if repeat == 0] == [
        *[(rate, 16) for rate in RATES], (3, 32), (1, 32), (3, None)
    ]  # fmt: skip
    assert ends(asked) == [(3, 0), (3, 1), (3, 2)]
    assert len(asked) == search.planned
    assert [record["repeat"] for record in search.chosen] == [0, 1, 2]
    kept = {(trial.arm.rate, trial.step): trial.kept for trial in search.trials}
    assert kept == {(1, 16): True, (3, 16): True, (9, 16): False, (1, 32): False, (3, 32): True}


def test_without_rungs_every_rate_runs_to_its_end():
    search, asked = searched(near_three)
    assert ends(asked) == [(1, 0), (3, 0), (9, 0), (3, 1), (3, 2)]
    assert search.arm.rate == 3


def test_a_rate_that_is_second_at_the_first_rung_can_still_win():
    slow = {16: {1: 0.5, 3: 0.4, 9: 0.1}, 32: {1: 0.6, 3: 0.7}, None: {3: 0.9}}
    search, _ = searched(lambda rate, repeat, step: slow[step][rate], steps=64, repeats=(0,), extensions=0)
    assert search.arm.rate == 3


def test_equal_scores_are_decided_by_the_loss():
    arms = [Arm("method", rate) for rate in RATES]
    search = Search(arms, (0,), 64, lambda record: record["score"])
    losses = {1: 0.9, 3: 0.5, 9: 0.7}
    last = search.run(
        lambda run: {"score": 0.5, "history": [(1, 2.0), (2, losses.get(run.arm.rate, 3.0))]}, finals=False
    )
    assert [(run.arm.rate, run.until) for run in last] == [(3, None)]


def test_without_finals_nothing_is_left_where_all_fail():
    search = Search([Arm("method", rate) for rate in RATES], (0,), 64, lambda record: record["score"])
    assert not search.run(lambda run: None, finals=False)
    assert not search.chosen


def test_a_lucky_rate_loses_its_place():
    scores = {1: [0.7, 0.7, 0.7], 3: [0.85, 0.1, 0.1], 9: [0.75, 0.2, 0.2]}
    search, asked = searched(lambda rate, repeat, step: scores[rate][repeat])
    assert search.arm.rate == 1, "3 has (0.85 + 0.1 + 0.1)/3, 9 has (0.75 + 0.2 + 0.2)/3"
    assert search.mean(Arm("method", 9.0)) == pytest.approx(1.15 / 3)
    assert ends(asked)[:3] == [(1, 0), (3, 0), (9, 0)]
    search, asked = searched(lambda rate, repeat, step: scores[rate][repeat], steps=64)
    assert search.arm.rate == 1, "its paused run went on to the end, and to the other repeats"
    assert ends(asked)[0] == (3, 0)
    assert [record["repeat"] for record in search.chosen] == [0, 1, 2]


def test_a_rate_keeps_its_place_where_the_others_are_not_clearly_better():
    scores = {1: [0.7], 3: [0.8, 0.7, 0.72], 9: [0.77]}
    search, asked = searched(lambda rate, repeat, step: scores[rate][repeat], slack=0.1)
    assert search.arm.rate == 3
    assert len(asked) == 3 + 2
    losses = {1: [-70.0, -70.0, -70.0], 3: [-60.0, -90.0, -90.0], 9: [-80.0, -80.0, -80.0]}
    search, asked = searched(lambda rate, repeat, step: losses[rate][repeat], slack=0.05)
    assert search.arm.rate == 1, "80 is more than a twentieth worse than 70"


@pytest.mark.parametrize("steps", [None, 64])
def test_the_edge_is_left_twice_at_most(steps):
    search, asked = searched(lambda rate, repeat, step: rate, steps=steps)
    assert sorted({rate for rate, _, _ in asked}) == [1, 3, 9, 27, 81]
    assert search.arm.rate == 81
    search, asked = searched(lambda rate, repeat, step: rate, rates=(1.0, 3.0), steps=steps)
    assert {rate for rate, _, _ in asked} == {1, 3}, "two rates are no search to go on with"
    search, asked = searched(lambda rate, repeat, step: rate, steps=steps, extensions=1)
    assert search.arm.rate == 27


@pytest.mark.parametrize("steps", [None, 64])
def test_rates_that_fail_are_left(steps):
    search, asked = searched(lambda rate, repeat, step: None if rate > 3 else rate, steps=steps)
    assert search.arm.rate == 3
    assert 27 not in {rate for rate, _, _ in asked}, "with two rates left there is no going on beyond"
    search, _ = searched(
        lambda rate, repeat, step: None if (rate, repeat) == (3, 1) else -abs(rate - 3), steps=steps, slack=0.0
    )
    assert search.arm.rate == 1
    assert len(search.chosen) == 3


@pytest.mark.parametrize("steps", [None, 64])
def test_where_a_repeat_fails_everywhere_the_others_count(steps):
    search, _ = searched(lambda rate, repeat, step: None if repeat == 1 else -abs(rate - 3), steps=steps)
    assert search.arm.rate == 3
    assert search.chosen[0]["repeat"] == 0
    assert all(record["repeat"] != 1 for record in search.chosen)
    search, _ = searched(lambda rate, repeat, step: None, steps=steps)
    assert search.chosen == []


@given(
    st.dictionaries(st.tuples(st.sampled_from(RATES), st.sampled_from(REPEATS)), st.floats(-1, 1)),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([None, 16, 64, 200]),
    st.integers(1, 7),
)
def test_the_chosen_rate_has_all_repeats_and_no_other_looks_clearly_better(known, slack, steps, count):
    rates = [3.0**i for i in range(count)]
    search, asked = searched(
        lambda rate, repeat, step: known.get((rate, repeat), 0.5), rates=rates, slack=slack, steps=steps
    )
    assert len(asked) == len(set(asked)), "nothing is run twice"
    assert len(search.chosen) == 3
    best = max(map(search.mean, search.last))
    assert best - search.mean(search.arm) <= slack * abs(best)
    first = [(rate, until) for rate, repeat, until in asked if repeat == 0]
    for rate in {rate for rate, _ in first}:  # a run only goes forward
        pauses = [math.inf if until is None else until for other, until in first if other == rate]
        assert pauses == sorted(pauses)
