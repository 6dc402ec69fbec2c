"""The recommendation in the user's world: how sure it is, what it costs, and what more seeds or rows would change."""

import re

import pytest

from deltatune.comparison.results.recommend import recommend
from deltatune.comparison.statistics.pair_forecast import Forecast, forecast

OPEN = {"look": 1, "runs": [2, 2], "level": 0.05, "row_error": 0.004, "seed_error": 0.01}


def entry(method, score, params, tied=True, **more):
    return {"method": method, "score": score, "params": params, "ci95": [score - 0.02, score + 0.02],
            "tied_with_best": tied, "reference": False, "train_seconds": 21.4, **more}  # fmt: skip


def pair(first, second, difference, verdict, half=0.025, **more):
    ci = [difference - half, difference + half]
    return {"first": first, "second": second, "difference": difference, "ci": ci, "verdict": verdict, **OPEN, **more}


def summary(methods, pairs=(), margin=None, **more):
    return {"metric": "accuracy", "methods": methods, "pairs": list(pairs), "data": {"rows": {"test": 500}},
            "decision": {"margin": margin}, **more}  # fmt: skip


LORA, FULL = entry("LoRA()", 0.71, 330), entry("Full()", 0.72, 100_000)


def test_equal_within_the_margin_is_told_from_not_told_apart():
    equal = recommend(summary([LORA, FULL], [pair("LoRA()", "Full()", -0.01, "equal")], margin=0.02))
    assert equal["method"] == "LoRA()"
    assert ", equal within 0.02 to the best (Full(), 0.720) with 0.33 % of" in equal["sentence"]
    open_ = recommend(summary([LORA, FULL], [pair("Full()", "LoRA()", 0.01, "undecided")], margin=0.02))
    assert ", not told apart from the best (Full(), 0.720)" in open_["sentence"]
    assert "statistically tied" in recommend(summary([LORA, FULL]))["sentence"], "summaries without verdicts"


def test_a_winner_says_how_many_are_not_told_apart():
    found = recommend(summary([LORA | {"score": 0.8}, FULL], [pair("LoRA()", "Full()", 0.08, "undecided")]))
    assert "the best score; 1 other is not told apart from it but trains more parameters" in found["sentence"]


def test_the_smallest_of_equal_scores_is_the_best_itself():
    same = LORA | {"score": FULL["score"], "ci95": FULL["ci95"]}
    found = recommend(summary([FULL, same], [pair("Full()", "LoRA()", 0.0, "undecided")]))
    assert found["method"] == "LoRA()"
    assert ", the best score; 1 other is not told apart from it but trains more parameters" in found["sentence"]


def test_of_equal_sizes_the_better_score_wins_also_where_a_training_took_no_time():
    for seconds in (0.0, 0.0003):
        good = entry("ICL(shots=2)", 0.708, 0, train_seconds=0.9)
        poor = entry("ZeroShot()", 0.69, 0, train_seconds=seconds)
        found = recommend(summary([entry("Cloze(LoRA())", 0.71, 300), poor, good]))
        assert found["method"] == "ICL(shots=2)"


def test_a_method_that_is_no_better_than_the_baseline_is_passed_over():
    best, good, poor = entry("LoRA()", 0.75, 330), entry("ICL(shots=2)", 0.71, 0), entry("ZeroShot()", 0.51, 0)
    majority = {"score": 0.5, "words": "Always answering b"}
    found = recommend(summary([poor, best, good], majority=majority))
    assert found["method"] == "ICL(shots=2)"
    assert (
        "ZeroShot() trains no more, but is not significantly better than always answering b (0.500)."
        in found["sentence"]
    )
    alone = recommend(summary([poor], majority=majority))
    assert alone["method"] == "ZeroShot()"
    assert "Warning: the best method is not" in alone["sentence"]
    errors = [entry("LoRA()", 0.3, 330), entry("ICL(shots=2)", 0.31, 0), entry("ZeroShot()", 0.49, 0)]
    lower = recommend({**summary(errors, majority=majority), "metric": "perplexity"})
    assert lower["method"] == "ICL(shots=2)", "the baseline of a metric whose lower values are better"


def test_the_costs_are_those_that_were_measured():
    row = entry("LoRA()", 0.71, 330, adapter_bytes=462_446, latency_ratio=1.175, latency_ratio_merged=1.005)
    assert recommend(summary([row, FULL]))["sentence"].endswith(
        " One training took 21 s, its file has 462 kB (46.2 MB for 100 tasks), and inference takes 1.18 times as long "
        "as with the bare model, 1.00 merged."
    )
    unmerged = recommend(summary([row | {"latency_ratio_merged": None}, FULL]))["sentence"]
    assert unmerged.endswith("1.18 times as long as with the bare model.")
    alike = recommend(summary([row | {"latency_ratio_merged": 1.16}, FULL]))["sentence"]
    assert alike == unmerged, "timings that differ by noise are not told apart"
    unmeasured = recommend(summary([row | {"latency_ratio": None, "latency_ratio_merged": None}, FULL]))["sentence"]
    assert unmeasured.endswith("One training took 21 s, and its file has 462 kB (46.2 MB for 100 tasks).")
    assert "training" not in recommend(summary([LORA, FULL]))["sentence"].replace("trained", "")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([pair("LoRA()", "Full()", 0.0123, "undecided")], r"would likely decide between it and Full\(\)\."),
        ([pair("Full()", "LoRA()", -0.0123, "undecided")], r"would likely decide between it and Full\(\)\."),
        (
            [pair("LoRA()", "Full()", 0.012, "undecided", row_error=0.011, seed_error=0.0001)],
            r"More seeds would not decide between it and Full\(\); about [\d,]+ more test rows would\.",
        ),
        ([pair("LoRA()", "Full()", 0.0001, "undecided")], "Neither a few more seeds nor .* tell it from"),
    ],
)
def test_what_would_decide_it_is_forecast(pairs, expected):
    sentence = recommend(summary([LORA, FULL], pairs))["sentence"]
    assert re.search(expected, sentence), sentence


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [pair("LoRA()", "Full()", -0.01, "better")],
        [pair("Full()", "IA3()", 0.0123, "undecided")],
        [{"first": "LoRA()", "second": "Full()", "difference": 0.01, "ci": [-0.1, 0.1], "verdict": "undecided"}],
        [pair("LoRA()", "Full()", 0.01, "undecided", level=None)],
    ],
)
def test_nothing_is_forecast_that_the_numbers_do_not_carry(pairs):
    sentence = recommend(summary([LORA, FULL], pairs))["sentence"]
    assert "would" not in sentence


def test_it_is_at_most_four_sentences():
    row = entry("LoRA()", 0.71, 330, adapter_bytes=462_446, latency_ratio=1.1, latency_ratio_merged=1.0)
    majority = {"score": 0.72, "words": "Always answering b"}
    found = recommend(summary([row, FULL], [pair("LoRA()", "Full()", 0.0123, "undecided")], majority=majority))
    sentences = found["sentence"].removesuffix(".").split(". ")
    assert len(sentences) == 4
    assert sentences[1].startswith("Warning: the best method is not significantly better")


def test_a_forecast_agrees_with_its_numbers():
    """With so many more seeds the interval of the same difference would no longer contain 0."""
    open_pair = pair("A()", "B()", 0.0123, "undecided")
    seeds = forecast(open_pair).seeds
    error = (0.004**2 + 0.01**2 * 2 / (2 + seeds)) ** 0.5
    assert 0.0123 / error > 1.96, "told apart at the normal quantile, which the width tends to"
    assert forecast({**open_pair, "verdict": "equal"}) is None
    assert forecast(pair("A()", "B()", 0.0001, "undecided"), None, 500) == Forecast(None, None)
    assert forecast(pair("A()", "B()", 0.0001, "undecided"), 0.05, 500).seeds, "they would be equal within the margin"
