"""The statistics against scikit-learn and SciPy on copied rows, and against simulations whose truth is known."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from deltatune.comparison.results.recommend import recommend
from deltatune.comparison.statistics.score_statistics import PscpConstants, intervals, pareto, pscp, resample
from deltatune.tasks import Classify
from deltatune.tasks.metrics.classification_and_regression import CLASS_METRICS, REGRESSION_METRICS, weighted_score
from deltatune.tasks.metrics.metric_facts import bounds, listed_facts, lower_is_better

LOWER = {metric for metric in listed_facts() if lower_is_better(metric)}


def peer(metric, predictions, references, classes):
    """The same score by scikit-learn or SciPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if metric == "accuracy":
            value = sk.accuracy_score(references, predictions)
        elif metric == "f1" and classes <= 2:
            value = sk.f1_score(references, predictions, pos_label=1, zero_division=0)
        elif metric == "f1_micro":
            value = sk.f1_score(references, predictions, average="micro", zero_division=0)
        elif metric == "mse":
            value = sk.mean_squared_error(references, predictions)
        elif metric in ("f1", "f1_macro"):
            value = sk.f1_score(references, predictions, average="macro", zero_division=0)
        elif metric in ("precision", "recall"):
            of = {"pos_label": 1} if classes <= 2 else {"average": "macro"}
            score = {"precision": sk.precision_score, "recall": sk.recall_score}[metric]
            value = score(references, predictions, zero_division=0, **of)
        elif metric == "matthews":
            value = sk.matthews_corrcoef(references, predictions)
        else:
            constant = len(set(references)) == 1 or len(set(predictions)) == 1
            test = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
            value = 0.0 if constant or len(references) < 2 else test(predictions, references).statistic
    return 0.0 if math.isnan(value) else float(value)


def sample(metric, classes, n, rng):
    if metric in CLASS_METRICS:
        references = rng.integers(0, classes, n)
        return np.where(rng.random(n) < 0.6, references, rng.integers(0, classes, n)), references
    references = rng.normal(size=n).round(1)  # rounded, so that there are ties
    return (references + rng.normal(size=n)).round(1), references


@pytest.mark.one_in(3)
@pytest.mark.parametrize("metric", [*CLASS_METRICS, *REGRESSION_METRICS])
@pytest.mark.parametrize("classes", [2, 3, 7])
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_a_weighted_score_is_the_score_of_copied_rows(metric, classes, n, seed):
    rng = np.random.default_rng(seed)
    predictions, references = sample(metric, classes, n, rng)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=6)
    ours = weighted_score(metric, predictions, references, classes).resampled(weights)
    for row, value in zip(weights, ours, strict=True):
        copied = np.repeat(np.arange(n), row)
        assert value == pytest.approx(peer(metric, predictions[copied], references[copied], classes), abs=1e-9)


@pytest.mark.parametrize("metric", [*CLASS_METRICS, *REGRESSION_METRICS])
@pytest.mark.parametrize("labels", [2, 4])
def test_agrees_with_the_metric_of_the_tasks(metric, labels):
    task = Classify(labels=tuple("abcd"[:labels]) if metric in CLASS_METRICS else (), metric=metric)
    predictions, references = sample(metric, labels, 60, np.random.default_rng(0))
    ours = weighted_score(metric, predictions, references, labels).resampled(np.ones((2, 60)))[1]
    assert ours == pytest.approx(task.measure(predictions, references), abs=1e-9)


def test_every_metric_of_the_tasks_has_a_weighted_form():
    assert {*CLASS_METRICS, *REGRESSION_METRICS} == {*Classify(labels=("a", "b")).metrics, *Classify().metrics}


def test_direction_and_range_of_metrics():
    assert {
        "mse",
        "loss",
        "perplexity",
        "bits_per_char",
        "bits_per_byte",
        "ter",
        "pair_loss",
        "preference_loss",
    } == LOWER
    assert bounds("accuracy") == bounds("rougeL") == bounds("a name of no metric") == (0.0, 1.0)
    assert bounds("matthews") == bounds("pearson") == bounds("spearman") == (-1.0, 1.0)
    assert bounds("cider") == (0.0, 10.0)
    assert all(bounds(metric) == (0.0, math.inf) for metric in ("nist", *LOWER))


def test_facts_about_metrics_are_read_without_torch():
    modules = "deltatune.comparison.statistics.score_statistics, deltatune.comparison.report.page"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_labels_that_no_row_shows_still_decide_what_f1_means():
    """Three labels of which the test rows show two: the task means macro F1."""
    references, predictions = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    binary = intervals("f1", {"a": [predictions]}, references, resamples=10)["a"].mean
    macro = intervals("f1", {"a": [predictions]}, references, resamples=10, labels=3)["a"].mean
    assert binary == pytest.approx(sk.f1_score(references, predictions))
    assert macro == pytest.approx(sk.f1_score(references, predictions, average="macro"))


def test_lower_is_better_for_an_error():
    assert pareto([(1.0, 0.9), (2.0, 0.5), (3.0, 0.7)], lower=True) == [0, 1]
    rows = row("A()", 0.1, 9, True, ci=(0.08, 0.12)), row("B()", 0.9, 1, False)
    found = recommend({"metric": "mse", "methods": rows})
    assert found["method"] == "A()"


@pytest.mark.parametrize("metric", [*CLASS_METRICS, *REGRESSION_METRICS])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
@pytest.mark.parametrize("seeds", [1, 3])
def test_constant_predictions_and_few_examples_give_numbers(metric, n, seeds):
    references = np.arange(n) % 3
    predictions = {"constant": [np.zeros(n, dtype=int)] * seeds, "right": [references] * seeds}
    for found in intervals(metric, predictions, references, resamples=50).values():
        assert all(math.isfinite(value) for value in (found.mean, found.low, found.high))
        assert found.low <= found.high


def test_large_offsets_do_not_spoil_a_correlation():
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    y = x + rng.normal(size=80)
    near = weighted_score("pearson", x, y).score()
    assert weighted_score("pearson", x + 1e8, y - 1e8).score() == pytest.approx(near, abs=1e-6)
    assert weighted_score("pearson", np.full(80, 0.1), y).score() == 0.0


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"no weighted score for metric 'bleu'.*accuracy"):
        intervals("bleu", {"a": [np.zeros(3)]}, np.zeros(3))
    with pytest.raises(ValueError, match="one length"):
        intervals("accuracy", {"a": [np.zeros(2)]}, np.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        intervals("accuracy", {"a": []}, np.zeros(3))
    with pytest.raises(ValueError, match="at least one"):
        intervals("accuracy", {"a": [np.zeros(0)]}, np.zeros(0))


def noisy(references, rate, rng):
    return np.where(rng.random(len(references)) < rate, references, 1 - references)


def test_the_same_seed_gives_the_same_interval_whatever_the_memory(monkeypatch):
    rng = np.random.default_rng(3)
    references = rng.integers(0, 2, 300)
    predictions = {"a": [noisy(references, 0.8, rng) for _ in range(3)]}
    first = intervals("accuracy", predictions, references, resamples=200, seed=5)
    assert first == intervals("accuracy", predictions, references, resamples=200, seed=5)
    assert first != intervals("accuracy", predictions, references, resamples=200, seed=6)
    monkeypatch.setattr("deltatune.comparison.statistics.variance_components.CELLS", 6000)
    assert first == intervals("accuracy", predictions, references, resamples=200, seed=5)


def test_methods_may_have_different_numbers_of_seeds():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 2, 200)
    predictions = {"a": [noisy(references, 0.8, rng) for _ in range(3)], "b": [noisy(references, 0.8, rng)]}
    drawn = resample("accuracy", predictions, references, resamples=100)
    assert {method: len(scores) for method, scores in drawn.resampled.items()} == {"a": 100, "b": 100}


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.1), (5, 0.1)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds, spread):
    """An answer is right where luck of the example, of the seed and of both together stays below a threshold."""
    rng = np.random.default_rng(7)
    n, trials, covered = 150, 300, 0
    truth = stats.norm.cdf(0.7 / math.sqrt(1 + spread**2))
    for trial in range(trials):
        example, seed = rng.normal(0, math.sqrt(0.8), n), rng.normal(0, spread, (seeds, 1))
        right = example + seed + rng.normal(0, math.sqrt(0.2), (seeds, n)) < 0.7
        found = intervals("accuracy", {"a": list(right.astype(int))}, np.ones(n), resamples=300, seed=trial)["a"]
        covered += found.low <= truth <= found.high
    assert 0.9 <= covered / trials <= 0.99, covered / trials


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_few_seeds_cover_the_truth(seeds):
    """Seeds move the scores of four methods by about 0.03: resampled seeds would cover 0.88 and 0.93."""
    rng = np.random.default_rng(11)
    n, trials, covered = 500, 60, 0
    for trial in range(trials):
        accuracies = rng.normal(0.8, 0.03, (4, seeds, 1))
        right = (rng.random((4, seeds, n)) < accuracies).astype(int)
        found = intervals("accuracy", {str(i): list(right[i]) for i in range(4)}, np.ones(n), resamples=200, seed=trial)
        covered += sum(each.low <= 0.8 <= each.high for each in found.values())
    assert 0.925 <= covered / (4 * trials) <= 0.995, covered / (4 * trials)


def test_the_interval_grows_with_the_spread_of_seeds():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 2, 2000)
    alike = {"a": [noisy(references, 0.8, rng) for _ in range(3)]}
    apart = {"a": [noisy(references, rate, rng) for rate in (0.75, 0.8, 0.85)]}
    width = [
        found.high - found.low for one in (alike, apart) for found in intervals("accuracy", one, references).values()
    ]
    assert width[1] > 2 * width[0]


def test_the_pareto_front():
    points = [(100.0, 0.7), (10.0, 0.6), (100.0, 0.71), (1000.0, 0.71), (5000.0, 0.8), (50.0, 0.55), (1.0, None)]
    assert pareto(points) == [1, 2, 4]
    assert pareto([(1.0, math.nan), (2.0, 0.5), (2.0, 0.5)]) == [1]
    assert pareto([]) == []


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30))
def test_no_point_of_the_front_is_beaten_and_every_other_is(values):
    points = [(float(cost), float(score)) for cost, score in values]
    front = set(pareto(points))

    def beaten(i):
        cost, score = points[i]
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    assert not any(beaten(i) for i in front)
    assert all(beaten(i) or points.index(points[i]) in front for i in range(len(points)) if i not in front)


def test_pscp_is_the_published_formula():
    """LoRA on Llama-3-8B in PEFT-Bench: 14,680,064 parameters, no extra FLOPs, 27.75 GB, average score 80.1."""
    expected = 80.1 / (1 + 14_680_064 / 5e8) / (1 + 27.75 / 94)
    assert pscp(80.1, 14_680_064, 0.0, 27.75e9) == pytest.approx(expected)
    assert pscp(1.0, 5e8, 0, 0) == pytest.approx(0.5)
    assert pscp(1.0, 0, 1e13, 9.4e10) == pytest.approx(0.25)
    assert pscp(1.0, 5e8, 0, 0, PscpConstants(beta_params=2.0)) == pytest.approx(0.25)
    assert pscp(0.7, 0, -1.0, 0) == 0.7


def row(method, score, params, tied, reference=False, seconds=10.0, ci=(0.6, 0.8)):
    return {
        "method": method,
        "reference": reference,
        "params": params,
        "score": score,
        "ci95": list(ci) if score is not None else None,
        "tied_with_best": tied,
        "train_seconds": seconds,
    }


def summary(*methods, **more):
    return {"metric": "accuracy", "methods": list(methods), **more}


def test_the_cheapest_of_the_tied_is_recommended():
    found = recommend(
        summary(
            row("LoRA(r=8)", 0.712, 330, True, ci=(0.69, 0.731)),
            row("Prefix()", 0.70, 600, True),
            row("Full()", 0.72, 100_000, True, reference=True),
            row("Prompt()", 0.5, 3, False),
        )
    )
    assert found["method"] == "LoRA(r=8)"
    assert found["sentence"] == (
        "Use LoRA(r=8): 0.712 accuracy (95 % CI 0.690-0.731), statistically tied with the best (Full(), 0.720) "
        "with 0.33 % of its trained parameters."
    )


def test_equal_parameters_go_to_the_better_and_equal_scores_to_the_faster():
    found = recommend(summary(row("Slow()", 0.71, 10, True, seconds=9), row("Fast()", 0.7, 10, True, seconds=3)))
    assert found["method"] == "Slow()"
    found = recommend(summary(row("Slow()", 0.7, 10, True, seconds=9), row("Fast()", 0.7, 10, True, seconds=3)))
    assert found["method"] == "Fast()"


def test_of_prompts_that_train_nothing_none_is_said_to_train_more():
    prompts = row("ZeroShot()", 0.8, 0, True, seconds=0.1), row("ICL(shots=8)", 0.79, 0, True)
    found = recommend(summary(*prompts))
    assert found["sentence"].endswith(
        "the best score; 1 other is statistically tied with it but trains no fewer parameters."
    )


def test_a_head_counts_where_all_else_that_is_trained_is_equal():
    probe = row("Probe()", 0.8, 0, True, seconds=0.1) | {"head_params": 770}
    prompt = row("ICL(shots=8)", 0.79, 0, True) | {"head_params": 0}
    found = recommend(summary(probe, prompt))
    assert found["method"] == "ICL(shots=8)"
    assert "although it trains nothing" in found["sentence"]
    lora = row("LoRA(r=8)", 0.8, 330, True, seconds=0.1) | {"head_params": 770}
    cloze = row("Cloze(LoRA(r=8))", 0.79, 330, True) | {"head_params": 0}
    assert (
        "(LoRA(r=8), 0.800) with as many trained parameters and no head" in recommend(summary(lora, cloze))["sentence"]
    )


def test_a_reference_that_nothing_reaches_is_named_with_the_best_that_fits():
    found = recommend(summary(row("LoRA(r=8)", 0.65, 330, False), row("Full()", 0.79, 100_000, True, reference=True)))
    assert found["method"] == "Full()"
    assert "no method fitted to the budget reaches it" in found["sentence"]
    assert "LoRA(r=8) comes closest with 0.650 and 0.33 % of its trained parameters" in found["sentence"]


def test_a_clear_winner_and_a_head_alone_and_one_method():
    assert (
        "significantly better than"
        in recommend(summary(row("A()", 0.9, 9, True), row("B()", 0.5, 1, False)))["sentence"]
    )
    head = row("Probe()", 0.7, 0, True, reference=True) | {"head_params": 770}
    probe = recommend(summary(head, row("B()", 0.71, 5, True)))
    assert probe["method"] == "Probe()"
    assert "trains only the head" in probe["sentence"]
    assert recommend(summary(row("A()", 0.9, 9, True)))["sentence"] == (
        "Use A(): 0.900 accuracy (95 % CI 0.600-0.800); it is the only method with a score, so there is no comparison."
    )


def test_nothing_better_than_the_majority_is_said():
    found = recommend(summary(row("A()", 0.62, 9, True, ci=(0.55, 0.7)), majority={"score": 0.6}))
    warning = "the best method is not significantly better than always answering the most frequent label (0.600)"
    assert warning in found["sentence"]


def test_all_failed():
    found = recommend(summary(row("A()", None, 9, False), row("B()", math.nan, 9, False)))
    assert found["method"] is None
    assert "No recommendation: none of the 2 methods finished" in found["sentence"]
    assert recommend(summary())["method"] is None
