"""Mixtures: rows, answers and scores of several tasks as one task, each as its part has them."""

import numpy as np
import pytest

from deltatune import DeltatuneError
from deltatune.data.mixture_data import PART, named_sources
from deltatune.tasks import Classify, LanguageModel, Mixture, MultiLabel, Tag, task_from_json
from deltatune.tasks.pretraining import objective_from

SENTIMENT = Classify(labels=("bad", "good"), text=("text",), max_length=64)
TOPIC = Classify(labels=("actor", "film", "plot"), text=("question",), label="topic", max_length=32)
NAMES = Tag(tags=("O", "B-X"), text=("tokens",), label="tags", max_length=32)
MIXTURE = Mixture({"sentiment": SENTIMENT, "topic": TOPIC, "names": NAMES})
ROWS = {
    "sentiment": [{"text": "the film is good", "label": "good"}, {"text": "the plot is bad", "label": "bad"}],
    "topic": [{"question": "is the film good", "topic": "film"}],
    "names": [{"tokens": ["the", "film"], "tags": ["O", "B-X"]}],
}


def test_rows_are_encoded_as_their_part_does(tiny_tokenizer):
    marked = MIXTURE.marked(ROWS)
    shuffled = [marked[i] for i in (3, 0, 2, 1)]
    encoded = MIXTURE.encode(shuffled, tiny_tokenizer)
    assert encoded.examples == 4
    assert encoded.part_rows == {"sentiment": [1, 3], "topic": [2], "names": [0]}
    assert list(encoded.parts["sentiment"]) == list(SENTIMENT.encode(ROWS["sentiment"], tiny_tokenizer))
    assert list(encoded.parts["names"]) == list(NAMES.encode(ROWS["names"], tiny_tokenizer))
    assert encoded.references == [("names", ["O", "B-X"]), ("sentiment", 1), ("topic", 1), ("sentiment", 0)]
    assert [len(encoded.rows[i]["input_ids"]) for i in encoded.pieces()["topic"]] == [6]


def test_scores_are_those_of_each_part_alone():
    draw = np.random.default_rng(0)
    logits = {"sentiment": draw.normal(size=(30, 2)), "topic": draw.normal(size=(20, 3))}
    labels = {"sentiment": draw.integers(0, 2, 30), "topic": draw.integers(0, 3, 20)}
    order = draw.permutation(50)
    names = ["sentiment"] * 30 + ["topic"] * 20

    def pairs(values):
        flat = [*values["sentiment"].tolist(), *values["topic"].tolist()]
        return [[names[i], flat[i]] for i in order]  # lists: as they are read from JSON

    scores = MIXTURE.score(pairs(logits), pairs(labels))
    alone = {name: MIXTURE.parts[name].score(logits[name], labels[name]) for name in logits}
    assert next(iter(scores)) == "mean"
    assert scores["mean"] == pytest.approx((alone["sentiment"]["accuracy"] + alone["topic"]["accuracy"]) / 2)
    assert {name: scores[f"topic.{name}"] for name in alone["topic"]} == pytest.approx(alone["topic"])
    assert MIXTURE.mean_of(alone) == pytest.approx({"mean": scores["mean"], **scores})
    resampled = MIXTURE.resampled(pairs(logits), pairs(labels), np.ones((2, 50)))
    assert resampled == pytest.approx([scores["mean"]] * 2)
    decoded = MIXTURE.decode(pairs(logits))
    assert [answer["part"] for answer in decoded] == [names[i] for i in order]
    topics = TOPIC.decode(logits["topic"])
    assert [answer for answer in decoded if answer["part"] == "topic"] == [
        {"part": "topic", **topics[i - 30]} for i in order if i >= 30
    ]


def test_a_loss_counts_as_the_better_the_lower_it_is():
    mixture = Mixture({"texts": LanguageModel(), "topic": TOPIC})
    answers = [("texts", {"nll": np.log(3.0), "tokens": 1, "chars": 4, "bytes": 4}), ("topic", [0.0, 1.0, 0.0])]
    scores = mixture.score(answers, [("texts", None), ("topic", 1)])
    assert scores["texts.perplexity"] == pytest.approx(3.0)
    assert scores["mean"] == pytest.approx((1 / (1 + 3.0) + 1.0) / 2)


@pytest.mark.parametrize(
    ("temperature", "shares"), [(1.0, (0.8, 0.2)), (2.0, (2 / 3, 1 / 3)), (1e9, (0.5, 0.5)), (1e-5, (1.0, 0.0))]
)
def test_parts_have_their_shares(temperature, shares):
    mixture = Mixture({"a": SENTIMENT, "b": TOPIC}, temperature)
    assert tuple(mixture.shares({"a": 800, "b": 200}).values()) == pytest.approx(shares)


def test_a_mixture_is_stored_and_read():
    mixture = Mixture({"a": SENTIMENT, "names": NAMES, "many": MultiLabel(labels=("x", "y"))}, 2.0)
    assert task_from_json(mixture.to_json()) == mixture
    broken = mixture.to_json()
    broken["parts"]["a"]["task"] = "clasify"
    with pytest.raises(DeltatuneError, match="did you mean 'classify'"):
        task_from_json(broken)


def test_a_mixture_says_what_is_wrong(tiny_tokenizer):
    with pytest.raises(DeltatuneError, match="at least two"):
        Mixture({"a": SENTIMENT})
    with pytest.raises(DeltatuneError, match="part 'b' is a "):
        Mixture({"a": SENTIMENT, "b": objective_from({"kind": "mlm"})})
    with pytest.raises(DeltatuneError, match="did you mean 'topic'"):
        MIXTURE.part("topics")
    with pytest.raises(DeltatuneError, match="belongs to no part"):
        MIXTURE.encode([{"text": "good", "label": "good"}], tiny_tokenizer)
    bad = [{PART: "topic", "question": "a", "topic": "x"}, {PART: "sentiment", "text": "a", "label": "y"}]
    with pytest.raises(DeltatuneError, match=r"(?s)part sentiment: .*'y'.*part topic: .*'x'"):
        MIXTURE.encode(bad, tiny_tokenizer)


def test_sources_of_parts_have_names(tmp_path):
    assert named_sources(["reviews.csv"]) is None
    assert named_sources(["a=1.csv", "b=x=2.csv"]) == {"a": "1.csv", "b": "x=2.csv"}
    (tmp_path / "a=b.csv").write_text("")
    assert named_sources([str(tmp_path / "a=b.csv")]) is None
    for sources, message in (
        (["1.csv", "b=2.csv"], "each needs a name, such as --data topic=1.csv"),
        (["a=1.csv", "a=2.csv"], "names the part a twice"),
        (["a=1.csv"], "at least two parts"),
        (["a=", "b=2.csv"], "needs a name"),
    ):
        with pytest.raises(DeltatuneError, match=message):
            named_sources(sources)
