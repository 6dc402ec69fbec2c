"""The search of a rate: beyond its edges, and back from a rate that was lucky at the first seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.comparison.lr_search import Search

SEEDS = (0, 1, 2)


def searched(scores, rates=(1.0, 3.0, 9.0), seeds=SEEDS, slack=0.0):
    """A search in which `scores(rate, seed)` says what a run gives, None where it fails; and its runs in order."""
    asked = []

    def run(rate, seed):
        asked.append((rate, seed))
        score = scores(rate, seed)
        return None if score is None else {"rate": rate, "seed": seed, "score": score}

    return Search(rates, seeds, run, lambda record: record["score"], slack), asked


def test_a_clear_case_takes_what_was_planned():
    search, asked = searched(lambda rate, seed: -abs(rate - 3))
    assert search.rate == 3
    assert asked == [(1, 0), (3, 0), (9, 0), (3, 1), (3, 2)]
    assert [record["seed"] for record in search.chosen] == [0, 1, 2]


def test_a_lucky_rate_loses_its_place():
    scores = {1: [0.7, 0.7, 0.7], 3: [0.85, 0.1], 9: [0.75, 0.2]}
    search, asked = searched(lambda rate, seed: scores[rate][seed])
    assert search.rate == 1, "3 has (0.85 + 0.1)/2, 9 has (0.75 + 0.2)/2"
    assert asked == [(1, 0), (3, 0), (9, 0), (3, 1), (9, 1), (1, 1), (1, 2)]
    assert search.mean(3) == pytest.approx(0.475)


def test_a_rate_keeps_its_place_where_the_others_are_not_clearly_better():
    scores = {1: [0.7], 3: [0.8, 0.7, 0.72], 9: [0.77]}
    search, asked = searched(lambda rate, seed: scores[rate][seed], slack=0.1)
    assert search.rate == 3
    assert len(asked) == 3 + 2
    losses = {1: [-70.0, -70.0, -70.0], 3: [-60.0, -90.0], 9: [-80.0]}
    search, asked = searched(lambda rate, seed: losses[rate][seed], slack=0.05)
    assert search.rate == 1, "75 is more than a twentieth worse than 70"


def test_the_edge_is_left_twice_at_most():
    search, asked = searched(lambda rate, seed: rate)
    assert [rate for rate, seed in asked if seed == 0] == [1, 3, 9, 27, 81]
    assert search.rate == 81
    search, _ = searched(lambda rate, seed: rate, rates=(1.0, 3.0))
    assert sorted(search.runs) == [1, 3], "two rates are no search to go on with"


def test_rates_that_fail_are_left():
    search, asked = searched(lambda rate, seed: None if rate > 3 else rate)
    assert search.rate == 3
    assert asked[:4] == [(1, 0), (3, 0), (9, 0), (3, 1)], "with two rates left there is no going on beyond"
    search, _ = searched(lambda rate, seed: None if (rate, seed) == (3, 1) else -abs(rate - 3))
    assert search.rate == 1
    assert len(search.chosen) == 3


def test_where_a_seed_fails_everywhere_the_others_count():
    search, asked = searched(lambda rate, seed: None if seed == 1 else -abs(rate - 3))
    assert search.rate == 3
    assert [record["seed"] for record in search.chosen] == [0]
    assert len(asked) == 3 + 3
    search, _ = searched(lambda rate, seed: None)
    assert search.chosen == []


@given(
    st.dictionaries(st.tuples(st.sampled_from([1.0, 3.0, 9.0]), st.sampled_from(SEEDS)), st.floats(-1, 1)),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_the_chosen_rate_has_all_seeds_and_no_other_looks_clearly_better(known, slack):
    search, asked = searched(lambda rate, seed: known.get((rate, seed), 0.5), slack=slack)
    assert len(asked) == len(set(asked))
    assert len(search.chosen) == 3
    best = max(map(search.mean, search.runs))
    assert best - search.mean(search.rate) <= slack * abs(best)
