"""Metrics equal scikit-learn's and scipy's, also where a class is missing or nothing varies."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.tasks import generation as generate
from deltatune.tasks import language_modeling as language
from deltatune.tasks.metrics.classification_and_regression import (
    CLASS_METRICS,
    POSITIVE_METRICS,
    REGRESSION_METRICS,
    weighted_score,
)
from deltatune.tasks.metrics.metric_facts import listed_facts, lower_is_better
from deltatune.tasks.metrics.preference_scores import PREFERENCE_METRICS
from deltatune.tasks.pretraining import nsp

LOWER = {metric for metric in listed_facts() if lower_is_better(metric)}

sklearn = pytest.importorskip("sklearn.metrics")
scipy = pytest.importorskip("scipy.stats")


def _average(references, predictions):
    return "binary" if max(references.max(), predictions.max()) < 2 else "macro"


PEERS = {
    "accuracy": sklearn.accuracy_score,
    "f1": lambda y, p: sklearn.f1_score(y, p, pos_label=1, zero_division=0),
    "precision": lambda y, p: sklearn.precision_score(y, p, average=_average(y, p), zero_division=0),
    "recall": lambda y, p: sklearn.recall_score(y, p, average=_average(y, p), zero_division=0),
    "f1_macro": lambda y, p: sklearn.f1_score(y, p, average="macro", zero_division=0),
    "f1_micro": lambda y, p: sklearn.f1_score(y, p, average="micro", zero_division=0),
    "matthews": sklearn.matthews_corrcoef,
    "pearson": lambda y, p: scipy.pearsonr(p, y).statistic,
    "spearman": lambda y, p: scipy.spearmanr(p, y).statistic,
    "mse": sklearn.mean_squared_error,
}


def peer(name, predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sklearn warns of single-class input
        return PEERS[name](references, predictions)


def score(name, predictions, references):
    return weighted_score(name, predictions, references).score()


def test_every_metric_has_a_peer():
    assert set(PEERS) == {*CLASS_METRICS, *REGRESSION_METRICS}
    assert LOWER & set(PEERS) == {"mse"}
    metrics = {*PEERS, *language.METRICS, *generate.METRICS, *nsp.NextSentence().metrics, *PREFERENCE_METRICS}
    assert metrics >= LOWER


@pytest.mark.parametrize("name", CLASS_METRICS)
@given(data=st.data())
def test_class_metrics(name, data):
    classes = 2 if name == "f1" else data.draw(st.integers(2, 5))
    rows = data.draw(st.integers(1, 30))
    draw = st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows).map(np.array)
    predictions, references = data.draw(draw), data.draw(draw)
    assert score(name, predictions, references) == pytest.approx(peer(name, predictions, references), abs=1e-12)


@pytest.mark.parametrize("name", POSITIVE_METRICS)
@pytest.mark.parametrize("positive", [0, 1, 2])
def test_metrics_of_a_positive_class(name, positive):
    rng = np.random.default_rng(positive)
    predictions, references = rng.integers(0, 3, (2, 50))
    peer_of = {"f1": sklearn.f1_score, "precision": sklearn.precision_score, "recall": sklearn.recall_score}[name]
    expected = peer_of(references == positive, predictions == positive)
    assert weighted_score(name, predictions, references, 3, positive).score() == pytest.approx(expected, abs=1e-12)
    doubled = weighted_score(name, np.tile(predictions, 2), np.tile(references, 2), 3, positive)
    assert doubled.resampled(np.ones((2, 100))) == pytest.approx([expected, expected], abs=1e-12)


@pytest.mark.parametrize("name", REGRESSION_METRICS)
@pytest.mark.parametrize("ties", [False, True])
def test_regression_metrics(name, ties):
    rng = np.random.default_rng(0)
    for rows in (3, 10, 200):
        references = rng.normal(size=rows)
        predictions = references + rng.normal(size=rows)
        if ties:
            references, predictions = references.round(), predictions.round(1)
        assert score(name, predictions, references) == pytest.approx(peer(name, predictions, references), abs=1e-12)


@pytest.mark.parametrize("name", [*CLASS_METRICS, *REGRESSION_METRICS])
def test_undefined_scores_are_no_nan(name):
    constant, varied = np.zeros(4), np.array([0, 1, 0, 1])
    for predictions, references in [(constant, varied), (varied, constant), (constant, constant)]:
        assert np.isfinite(score(name, predictions, references))


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_constant_predictions_correlate_with_nothing(name):
    assert score(name, np.full(9, 0.1), np.arange(9) % 2) == 0.0


def test_extreme_scores():
    labels = np.array([0, 1, 2, 1, 0])
    for name in ("accuracy", "f1_macro", "f1_micro", "matthews"):
        assert score(name, labels, labels) == pytest.approx(1.0)
    assert score("pearson", -labels, labels) == pytest.approx(-1.0)
    assert score("mse", labels + 2.0, labels) == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlation_does_not_depend_on_the_unit(name):
    rng = np.random.default_rng(0)
    references = rng.normal(size=50)
    predictions = references + rng.normal(size=50)
    weights = rng.multinomial(50, np.full(50, 1 / 50), size=4)
    expected = weighted_score(name, predictions, references).resampled(weights)
    for unit in (1e-15, 1e12):
        scaled = weighted_score(name, predictions * unit, references * unit)
        np.testing.assert_allclose(scaled.resampled(weights), expected, atol=1e-9)
        assert scaled.score() == pytest.approx(score(name, predictions, references), abs=1e-9)


@pytest.mark.parametrize("name", [*CLASS_METRICS, *REGRESSION_METRICS])
def test_no_rows_score_nothing(name):
    assert score(name, np.zeros(0), np.zeros(0)) == 0.0


@pytest.mark.parametrize("name", CLASS_METRICS)
@pytest.mark.parametrize("classes", [2, 5])
def test_one_resample_equals_several(name, classes):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(classes, size=(2, 30))
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=3)
    metric = weighted_score(name, predictions, references, classes)
    rows = [metric.resampled(row[None])[0] for row in weights]
    np.testing.assert_allclose(rows, metric.resampled(weights), atol=1e-12)


def test_a_prediction_of_no_class_is_wrong_for_every_class():
    """-1 is a class more, over which no mean is taken."""
    predictions, references = np.array([0, -1, 1, -1, 2, 2]), np.array([0, 0, 1, 2, 2, 1])
    other = np.where(predictions < 0, 3, predictions)
    names = [0, 1, 2]
    expected = {
        "accuracy": sklearn.accuracy_score(references, other),
        "f1_macro": sklearn.f1_score(references, other, labels=names, average="macro", zero_division=0),
        "precision": sklearn.precision_score(references, other, labels=names, average="macro", zero_division=0),
        "recall": sklearn.recall_score(references, other, labels=names, average="macro", zero_division=0),
        "matthews": sklearn.matthews_corrcoef(references, other),
    }
    for name, value in expected.items():
        score = weighted_score(name, predictions, references, 3)
        assert score.score() == pytest.approx(value), name
        assert score.resampled(np.ones((2, 6))) == pytest.approx(value), name
    two = weighted_score("f1", np.array([-1, 1, -1, 0]), np.array([0, 1, 1, 0]), 2, positive=0)
    assert two.score() == pytest.approx(2 / 3)
