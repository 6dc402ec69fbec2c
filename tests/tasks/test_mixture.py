"""Mixtures: one adapter and one head for several tasks; each row is classified among its task's classes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deltatune import DeltatuneError, Host, LoRA
from deltatune.tasks import Classify, Head, Mixture, task_from_json
from deltatune.training import Settings, predict, train

SENTIMENT = Classify(labels=("bad", "good"), text=("text",), max_length=64)
TOPIC = Classify(labels=("actor", "film", "plot"), text=("question",), label="topic", max_length=64)
MIXTURE = Mixture({"sentiment": SENTIMENT, "topic": TOPIC})


def rows(count):
    words = {"good": "great good very", "bad": "awful bad not"}
    sentiment = [{"text": f"the {words[label]} it", "label": label} for label in ("good", "bad")] * count
    topic = [{"question": f"the {label} is this", "topic": label} for label in TOPIC.labels] * count
    return {"sentiment": sentiment, "topic": topic}


def test_the_loss_is_that_of_each_task_alone():
    logits = torch.randn(4, 5)
    labels = torch.tensor([1, 4, 0, 2])  # two of each task
    wanted = F.cross_entropy(logits[[0, 2], :2], labels[[0, 2]], reduction="sum")
    wanted = wanted + F.cross_entropy(logits[[1, 3], 2:], labels[[1, 3]] - 2, reduction="sum")
    torch.testing.assert_close(MIXTURE.loss(logits, labels), wanted)


def test_scores_are_those_of_each_task_alone():
    logits = np.random.default_rng(0).normal(size=(40, 5))
    labels = np.random.default_rng(1).integers(0, 5, 40)
    scores = MIXTURE.score(logits, labels)
    first, second = labels < 2, labels >= 2
    accuracies = (
        SENTIMENT.score(logits[first][:, :2], labels[first]),
        TOPIC.score(logits[second][:, 2:], labels[second] - 2),
    )
    assert scores["sentiment.accuracy"] == accuracies[0]["accuracy"]
    assert scores["topic.f1"] == accuracies[1]["f1"]
    assert scores["mean"] == pytest.approx((accuracies[0]["accuracy"] + accuracies[1]["accuracy"]) / 2)


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, (0.8, 0.2)), (2.0, (2 / 3, 1 / 3)), (1e9, (0.5, 0.5))])
def test_the_mixture_has_its_shares(temperature, shares):
    mixture = Mixture(MIXTURE.parts, temperature)
    both = {"sentiment": [{"text": "a"}] * 800, "topic": [{"question": "b"}] * 200}
    mixed = mixture.mix(both)
    counts = [sum(row["task"] == name for row in mixed) for name in both]
    assert counts == [round(1000 * share) for share in shares]


def test_one_adapter_learns_all_its_tasks(tiny_bert, tiny_tokenizer):
    host = Host(tiny_bert())
    data = rows(12)
    host.attach(
        "shared", LoRA(r=4), head=Head(MIXTURE.head_config(host.model.config)), extra={"task": MIXTURE.to_json()}
    )
    settings = Settings(epochs=12, batch_size=8, learning_rate=1e-2)
    done = train(host, "shared", MIXTURE, MIXTURE.mix(data), MIXTURE.marked(data), tiny_tokenizer, settings)
    scores = done.evaluations[-1][1]
    assert scores["sentiment.accuracy"] > 0.9
    assert scores["topic.accuracy"] > 0.9
    topic = task_from_json(host.adapters["shared"].extra["task"]).only("topic")
    logits = predict(host, "shared", topic, data["topic"], tiny_tokenizer)
    assert topic.score(logits, np.arange(len(logits)) % 3)["accuracy"] == scores["topic.accuracy"]
    assert {answer["label"] for answer in topic.decode(logits)} == set(TOPIC.labels)


def test_a_mixture_says_what_is_wrong(tiny_tokenizer):
    with pytest.raises(DeltatuneError, match="regression"):
        Mixture({"a": SENTIMENT, "b": Classify()})
    with pytest.raises(DeltatuneError, match="at least two"):
        Mixture({"a": SENTIMENT})
    with pytest.raises(DeltatuneError, match="did you mean 'topic'"):
        MIXTURE.only("topics")
    with pytest.raises(DeltatuneError, match="belongs to no task"):
        MIXTURE.encode([{"text": "good", "label": "good"}], tiny_tokenizer)
    with pytest.raises(DeltatuneError, match="only\\('sentiment'\\)"):
        MIXTURE.predictions(np.zeros((1, 5)))
