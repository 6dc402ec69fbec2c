"""Friedman's test and Nemenyi's critical difference, against Demšar's example and SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deltatune.comparison.statistics.rank_tests import critical_difference, friedman, rank_methods, studentised_range

DEMSAR = {
    "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957],
    "C4.5+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978],
    "C4.5+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.0, 0.965, 0.614, 0.9751, 0.946],
    "C4.5+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.0, 0.962, 0.669, 0.975, 0.970],
}
"""Table 6 of Demšar 2006; of two values that are printed as 0.975 the ranks say which is larger."""


def test_the_example_of_demsar():
    ranks = rank_methods(DEMSAR)
    found = dict(zip(ranks.methods, ranks.average, strict=True))
    published = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found == pytest.approx(published, abs=5e-4)
    assert ranks.methods[0] == "C4.5+m+cf"
    without_ties = 12 * 14 / (4 * 5) * (sum(rank**2 for rank in ranks.average) - 4 * 25 / 4)
    assert without_ties == pytest.approx(9.28, abs=5e-3)  # the paper does not correct for ties
    assert ranks.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, alpha=0.1) == pytest.approx(1.12, abs=5e-3)
    assert ranks.cliques == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)
    assert ranks.to_json()["sets"] == 14


def test_critical_values_are_the_published_ones_and_scipys():
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]  # Demšar 2006, table 5 (a)
    assert [studentised_range(k) / math.sqrt(2) for k in range(2, 11)] == pytest.approx(table, abs=1.5e-3)
    for count in (3, 20):
        assert studentised_range(count, 0.1) == pytest.approx(stats.studentized_range.ppf(0.9, count, 1e6), abs=1e-3)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), sets=st.integers(2, 12), methods=st.integers(3, 6), lower=st.booleans())
def test_ranks_and_statistic_are_scipys(seed, sets, methods, lower):
    table = np.random.default_rng(seed).integers(0, 5, (sets, methods)).astype(float)  # many ties
    expected = stats.rankdata(table if lower else -table, axis=1)
    ranks = rank_methods({str(i): list(table[:, i]) for i in range(methods)}, lower=lower)
    assert dict(zip(ranks.methods, ranks.average, strict=True)) == pytest.approx(
        {str(i): mean for i, mean in enumerate(expected.mean(0))}
    )
    assert list(ranks.average) == sorted(ranks.average)
    if len(set(map(tuple, table.T))) > 1 and not (table == table[:, :1]).all():
        assert ranks.statistic == pytest.approx(stats.friedmanchisquare(*table.T).statistic)


def test_p_values_for_many_sets_are_those_of_the_limit_and_exact_for_few():
    scores = np.random.default_rng(0).normal([0, 0, 0.1, 0.45], size=(60, 4))
    ranks = rank_methods({str(i): list(scores[:, i]) for i in range(4)})
    assert ranks.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue, abs=0.005)
    # two sets that agree on three methods: 1 of 6 orders of the second agrees with the first
    assert friedman(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))[1] == pytest.approx(1 / 6, abs=0.01)


def test_p_values_of_alike_methods_are_uniform():
    rng = np.random.default_rng(1)
    values = [friedman(stats.rankdata(rng.random((6, 4)), axis=1), seed=i)[1] for i in range(120)]
    assert np.mean(np.array(values) <= 0.05) <= 0.1
    assert 0.4 < np.mean(values) < 0.65


def test_groups_of_methods_that_do_not_differ():
    rng = np.random.default_rng(0)
    scores = {f"m{i}": list(0.1 * i + rng.normal(0, 0.08, 25)) for i in range(6)}
    ranks = rank_methods(scores)
    assert ranks.p < 0.001
    means = dict(zip(ranks.methods, ranks.average, strict=True))
    assert len(ranks.cliques) >= 2
    for clique in ranks.cliques:
        assert means[clique[-1]] - means[clique[0]] <= ranks.critical_difference
        assert not any(set(clique) < set(other) for other in ranks.cliques)
    together = {frozenset((a, b)) for clique in ranks.cliques for a in clique for b in clique if a != b}
    near = {
        frozenset((a, b))
        for a in means
        for b in means
        if a != b and abs(means[a] - means[b]) <= ranks.critical_difference
    }
    assert together == near


def test_sets_of_metrics_with_different_directions_and_missing_scores():
    scores = {"a": [0.9, 1.0, None, 0.8], "b": [0.8, 2.0, 0.5, 0.7]}
    ranks = rank_methods(scores, lower=[False, True, False, False])
    assert (ranks.methods, ranks.average, ranks.sets) == (("a", "b"), (1.0, 2.0), 3)


def test_too_little_to_test():
    assert rank_methods({"a": [0.5], "b": [0.6]}).p is None
    assert rank_methods({"a": [0.5], "b": [0.6]}).average == (1.0, 2.0)
    assert rank_methods({"a": [0.5, 0.6]}).critical_difference is None
    assert rank_methods({}).sets == 0
    assert rank_methods({"a": [None], "b": [0.6]}).average == ()
    tied = rank_methods({"a": [1.0, 1.0], "b": [1.0, 1.0]})
    assert (tied.p, tied.statistic, tied.cliques) == (1.0, 0.0, (("a", "b"),))
    with pytest.raises(ValueError, match=r"one score .* for each data set.*'a': 1, 'b': 2"):
        rank_methods({"a": [0.5], "b": [0.5, 0.6]})
