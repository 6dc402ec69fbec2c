"""The metric final_answer: what a chain of thought ends in, by the documented order, compared by kind."""

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Generate
from deltatune.tasks.metrics.generation.final_answer import (
    answer_key,
    find_answer,
    kind_of,
    reference_answer,
    reference_rationale,
)
from deltatune.tasks.metrics.generation.generation_metrics import text_scores


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48/2 = 24, and 48 + 24 = 72.\n#### 72", "72"),
        ("#### 72\nQuestion: what else?\n#### 5", "72"),
        ("#### Step 1: 5 cows\nSo the answer is 7.", "7"),
        ("hence \\boxed{12} cows, not 13", "12"),
        ("The answer is 5. No, the answer is 6 of 8.", "6"),
        ("The answer is 6. Tell me if the answer is unclear", "6"),
        ("Therefore, the answer (arabic numerals) is 1,234.50 dollars.", "2469/2"),
        ("**Answer:** $1,234", "1234"),
        ("The answer is -$5.", "-5"),
        ("I had 10 and bought 20 apples", "20"),
        ("he paid 7-3=4", "4"),
        ("7 - 3", "3"),
        ("about .5 of them", "1/2"),
        ("The answer is 3/4 cup", "3/4"),
        ("a share of 50%.", "50"),
        ("1,00,000 rupees", "100000"),
        ("2e3", "2000"),
        ("The answer is unknown: a + b", ""),
        ("We had 7. The answer is unknown", ""),
        ("", ""),
        ("nothing at all", ""),
    ],
)
def test_numbers_are_found_in_the_documented_order(text, value):
    assert answer_key(find_answer(text, "number"), "number") == value


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("The answer is (B).", "choice", "B"),
        ("the answer is b", "choice", "B"),
        ("A good idea is what I want, so C", "choice", "C"),
        ("I think that (d) or (e)", "choice", "E"),
        ("Don't; CAB is no choice", "choice", ""),
        ("No way, the answer is yes.", "yes_no", "yes"),
        ("It is True.", "yes_no", "True"),
        ("Nobody knows", "yes_no", ""),
        ("The answer is Paris. It lies in France.", "text", "Paris"),
        ("It is far.\n\nSt. Louis.\n", "text", "St. Louis"),
        ("  ", "text", ""),
    ],
)
def test_choices_and_texts_are_found(text, kind, answer):
    assert find_answer(text, kind) == answer


def test_behind_a_trigger_the_first_match_counts():
    assert find_answer(" 8 dollars, since 3 + 5 = 8 of 20.", "number", behind_trigger=True) == "8"
    assert find_answer("I had 3 and 5, so 8", "number") == "8"
    assert find_answer(" B, not (C)", "choice", behind_trigger=True) == "B"


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("72", "number"), ("$1,000.50", "number"), ("50%", "number"), ("3/4", "number"), ("-3.", "number"),
        ("72 clips", "number"), ("10 km/h", "number"), ("1 May", "text"), ("5 pm", "text"), ("7 Eleven", "text"),
        ("B", "choice"), ("(c)", "choice"), ("yes", "yes_no"), ("False.", "yes_no"), ("Paris", "text"),
    ],
)  # fmt: skip
def test_the_kind_of_a_reference(reference, kind):
    assert kind_of(reference) == kind


def test_references_hold_a_rationale_and_an_answer():
    published = "Half of 48 is <<48/2=24>>24.\n#### 24"
    assert (reference_rationale(published), reference_answer(published)) == ("Half of 48 is 24.", "24")
    told = "Half of 48 is 24. So the answer is 24."
    assert (reference_rationale(told), reference_answer(told)) == ("Half of 48 is 24.", "24.")
    assert (reference_rationale("24"), reference_answer("24")) == ("", "24")


def test_the_metric_compares_by_value_and_resamples():
    predictions = ["so #### 1,000", "The answer is 0.75", "it is 3", "(B)", "the Eiffel tower!", "no idea"]
    references = [["x\n#### 1000.0"], ["3/4"], ["4", "3"], ["C"], ["Eiffel Tower"], ["12"]]
    score = text_scores(predictions, references, ["final_answer"])["final_answer"]
    assert score.score() == pytest.approx(4 / 6)
    weights = np.array([[1, 1, 1, 1, 1, 1], [6, 0, 0, 0, 0, 0], [0, 0, 0, 3, 0, 3]])
    assert score.resampled(weights).tolist() == pytest.approx([4 / 6, 1.0, 0.0])


def test_references_without_an_answer_are_refused():
    with pytest.raises(DeltatuneError, match=r"row 1: the reference 'so\\n####' has no final answer"):
        text_scores(["5", "5"], [["5"], ["so\n####"]], ["final_answer"])
    long = "word " * 30
    with pytest.raises(DeltatuneError, match="30 words; its final answer has to follow '####'"):
        text_scores(["5"] * 20, [[long]] * 20, ["final_answer"])
    with pytest.raises(DeltatuneError, match="and 10 more"):
        text_scores(["5"] * 20, [[long]] * 20, ["final_answer"])


def test_generation_reports_it_on_request_alone():
    task = Generate(metric="final_answer")
    assert next(iter(task.score([{"text": "#### 5"}], [["#### 5"]]))) == "final_answer"
    chain = {"text": "It is 7.\n#### 8", "answer": "7"}  # its answer was voted for, whatever the text has
    assert task.score([chain, {**chain, "answer": ""}], [["7"], ["8"]])["final_answer"] == 0.5
    assert "final_answer" not in Generate().score([{"text": "5"}], [["5"]])


def test_odd_texts_take_no_time_and_no_error():
    for piece in ("1,", "- ", "1/ ", "answer to ", "####", "<<", "9", "(", "1e9", "答案是"):
        for kind in ("number", "choice", "yes_no", "text"):
            answer_key(find_answer(piece * 5000, kind), kind)
