"""Corpus scores: row counts as weights equal copied rows."""

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.metrics.corpus_score import AdditiveScore, mean_score, ratio_score


def counts(examples, resamples=7, seed=0):
    """How often each of the examples is in each resample, (B, N)."""
    drawn = np.random.default_rng(seed).integers(examples, size=(resamples, examples))
    return np.stack([np.bincount(row, minlength=examples) for row in drawn])


def test_mean():
    values = np.random.default_rng(1).random(40)
    metric, weights = mean_score(values), counts(40)
    assert metric.score() == pytest.approx(values.mean(), abs=1e-12)
    copied = [np.repeat(values, row).mean() for row in weights]
    np.testing.assert_allclose(metric.resampled(weights), copied, atol=1e-12)


def test_mean_of_some():
    values, among = np.arange(6.0), np.array([True, False, True, True, False, False])
    metric = mean_score(values, among)
    assert metric.score() == pytest.approx((0 + 2 + 3) / 3)
    np.testing.assert_allclose(metric.resampled(np.array([[0, 5, 0, 1, 0, 0], [0, 3, 0, 0, 3, 0]])), [3.0, 0.0])


def test_undefined_is_zero():
    assert ratio_score([1.0, 2.0], [0.0, 0.0]).score() == 0.0
    assert mean_score([]).score() == 0.0


def test_ratio_of_sums():
    metric = ratio_score([1, 0, 5], [2, 4, 6])
    assert metric.score() == pytest.approx(6 / 12)
    np.testing.assert_allclose(metric.resampled(np.array([[1, 1, 0], [0, 0, 2]])), [1 / 6, 5 / 6])


def test_weights_of_another_shape():
    with pytest.raises(DeltatuneError, match="3 examples"):
        mean_score([1, 2, 3]).resampled(np.ones((2, 4)))
    with pytest.raises(DeltatuneError, match="3 examples"):
        mean_score([1, 2, 3]).resampled(np.ones(3))


def test_flat_sums():
    with pytest.raises(DeltatuneError, match="shape"):
        AdditiveScore(np.ones(3), lambda sums: sums)
