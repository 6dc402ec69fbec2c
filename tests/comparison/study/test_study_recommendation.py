"""The recommendation of a study: the best method over all, how sure that is, and where another one wins."""

from __future__ import annotations

from deltatune.comparison.study.set_averages import set_scores
from deltatune.comparison.study.study_recommendation import duels, recommend_for_study
from support.study_comparisons import comparison, unfinished


def said(found, methods=("LoRA()", "Full()"), ranks=None):
    return recommend_for_study(found, methods, set_scores(found, methods), ranks)


def test_the_best_mean_rank_is_recommended():
    scores = [{"LoRA()": 0.8, "Full()": 0.7}, {"LoRA()": 0.9, "Full()": 0.6}, {"LoRA()": 0.5, "Full()": 0.6}]
    found = [comparison(each, data=name) for each, name in zip(scores, "xyz", strict=True)]
    recommended = said(found)
    assert recommended["method"] == "LoRA()"
    assert "over 3 data sets its mean rank is 1.3 of 2 and its mean score 0.733" in recommended["sentence"]
    assert "No single comparison tells it apart" in recommended["sentence"]


def test_equal_ranks_and_scores_leave_the_cheaper_method():
    found = [comparison({"Full()": 0.5, "LoRA()": 0.5}, data=name) for name in "xy"]
    assert said(found, ("Full()", "LoRA()"))["method"] == "LoRA()"


def test_decided_pairs_are_counted_in_the_words_of_the_user():
    found = [
        comparison({"LoRA()": 0.8, "Full()": 0.7, "BitFit()": 0.6}, data=name, better=[("LoRA()", "BitFit()")])
        for name in "xyz"
    ]
    found[2]["summary"]["pairs"][0]["verdict"] = "worse"
    assert duels(found).better == {("LoRA()", "BitFit()"): 2, ("BitFit()", "LoRA()"): 1}
    sentence = said(found, ("LoRA()", "Full()", "BitFit()"))["sentence"]
    assert (
        "Within single comparisons it is better than BitFit() in 2 of 3; and worse than BitFit() in 1 of 3." in sentence
    )


def test_of_equal_methods_none_is_called_best_along_an_axis():
    found = [
        comparison({"LoRA()": 0.5, "Full()": 0.5}, limit=200, rows=200),
        comparison({"LoRA()": 0.6, "Full()": 0.9}, limit=2000, rows=2000),
    ]
    assert "With 200 rows" not in said(found)["sentence"]
    assert "is best" not in said(found)["sentence"]


def test_a_single_comparison_is_not_counted():
    scores = {"LoRA()": 0.8, "Full()": 0.7}
    decided = said([comparison(scores, data="x", better=[("LoRA()", "Full()")])])["sentence"]
    assert decided.startswith("Use LoRA(): its score is the best, 0.800. It is better than Full().")
    open_ = said([comparison(scores, data="x")])["sentence"]
    assert open_.startswith("Use LoRA(): its score is the best, 0.800. It is not told apart from any other method.")


def test_what_the_ranks_say():
    found = [comparison({"LoRA()": 0.8, "Full()": 0.7}, data=name) for name in "xyz"]
    ranks = {"p": 0.3, "critical_difference": 0.5, "sets": 3}
    assert "tell no methods apart over 3 sets (Friedman p = 0.3)" in said(found, ranks=ranks)["sentence"]
    assert "better than Full() (Nemenyi)" in said(found, ranks=ranks | {"p": 0.01})["sentence"]
    wide = ranks | {"p": 0.01, "critical_difference": 1.5}
    assert "not told apart from any other (Nemenyi)" in said(found, ranks=wide)["sentence"]


def test_a_cheaper_method_is_named_where_something_is_decided_and_it_is_not_behind():
    better = [("Full()", "BitFit()")]
    found = [comparison({"Full()": 0.9, "LoRA()": 0.89, "BitFit()": 0.5}, data=name, better=better) for name in "xy"]
    sentence = said(found, ("Full()", "LoRA()", "BitFit()"))["sentence"]
    assert "LoRA() trains 4.0 % of its parameters and is not told apart from it in any of the 2 comparisons" in sentence
    assert "trains" not in said([comparison({"Full()": 0.9, "LoRA()": 0.1}, data=name) for name in "xy"])["sentence"]


def test_where_the_winner_changes_along_an_axis():
    few, many = {"LoRA()": 0.8, "Full()": 0.5}, {"LoRA()": 0.8, "Full()": 0.9}
    found = [
        comparison(few, limit=200, rows=200, better=[("LoRA()", "Full()")]),
        comparison(many, limit=2000, rows=2000, better=[("Full()", "LoRA()")]),
        comparison(many, limit=None, rows=5000, better=[("Full()", "LoRA()")]),
    ]
    assert "With 200 rows LoRA() is best, from 2,000 rows on Full()." in said(found)["sentence"]
    del found[1]["summary"]["pairs"][:]
    assert "do not tell these methods apart at every value" in said(found)["sentence"]
    assert "With" not in said([comparison(few, limit=n) for n in (1, 2)])["sentence"]


def test_where_the_winner_changes_with_the_model_and_the_data():
    low, high = {"LoRA()": 0.5, "Full()": 0.6}, {"LoRA()": 0.9, "Full()": 0.8}
    found = [
        comparison(high, model="org/large", base_params=300, better=[("LoRA()", "Full()")]),
        comparison(low, model="org/small", base_params=100, better=[("Full()", "LoRA()")]),
    ]
    assert "On small Full() is best, on large LoRA()." in said(found)["sentence"]
    found = [
        comparison(low, data="x", better=[("Full()", "LoRA()")]),
        comparison(high, data="y", better=[("LoRA()", "Full()")]),
    ]
    assert "The best differs by data set: Full() on x; LoRA() on y." in said(found)["sentence"]
    assert "differs" not in said([comparison(low, data="x"), comparison(high, data="y")])["sentence"]


def test_a_warning_where_nothing_beats_the_baseline():
    found = [comparison({"LoRA()": 0.8, "Full()": 0.7}, data=name) for name in "xy"]
    for each, baseline in zip(found, (0.5, 0.795), strict=True):
        each["summary"]["majority"] = {"score": baseline}
    warning = "Warning: in 1 of 2 comparisons (y) no method is significantly better than the baseline"
    assert warning in said(found)["sentence"]
    found[1]["summary"]["majority"] = {"score": 0.5}
    assert "Warning" not in said(found)["sentence"]
    for each in found:
        each["summary"] |= {"metric": "perplexity", "majority": {"score": 0.6}}
    assert "Warning: in 2 of 2" in said(found)["sentence"], "lower is better"


def test_unfinished_and_empty_studies():
    assert said([unfinished()]) == {"method": None, "sentence": "No recommendation: no comparison is finished yet."}
    failed = comparison({"LoRA()": None, "Full()": None})
    assert said([failed])["sentence"] == "No recommendation: no method has a score in all of them."
    some = said([comparison({"LoRA()": 0.5, "Full()": 0.4}, data="x"), unfinished(data="y")])
    assert some["method"] == "LoRA()"
    assert "1 of 2 comparisons have no result yet" in some["sentence"]
    assert "only method" in said([comparison({"LoRA()": 0.5})], ("LoRA()",))["sentence"]
