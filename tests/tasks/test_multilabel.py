"""Multi-label classification: scores equal scikit-learn's, the loss, labels as lists and strings."""

import json
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, hamming_loss

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.tasks import MultiLabel, task_from_json
from deltatune.tasks.auto_task import task_for
from deltatune.training import Settings, predict, train
from support import models
from support.command_line import write_csv

LABELS = ("sad", "glad", "mad", "never")
TASK = MultiLabel(labels=LABELS, max_length=64)


def drawn(rows=40, seed=0):
    draw = np.random.default_rng(seed)
    truth = (draw.random((rows, 4)) < (0.5, 0.3, 0.2, 0.0)).astype(float)
    logits = (truth - 0.5) * 2 + draw.normal(0, 1.2, truth.shape)
    logits[:, 3] = -1
    truth[:5] = 0  # rows without any label
    return logits, truth


def test_scores_are_sklearns():
    logits, truth = drawn()
    decoded = (logits > 0).astype(int)
    scores = TASK.score(logits, truth)
    assert scores == {
        "f1_micro": pytest.approx(f1_score(truth, decoded, average="micro")),
        "f1_macro": pytest.approx(f1_score(truth, decoded, average="macro", zero_division=0)),
        "accuracy": pytest.approx(accuracy_score(truth, decoded)),
        "hamming": pytest.approx(1 - hamming_loss(truth, decoded)),
    }
    assert len({round(value, 6) for value in scores.values()}) == 4


@pytest.mark.parametrize("metric", ["f1_micro", "f1_macro", "accuracy", "hamming"])
def test_resamples_are_scores_of_copied_rows(metric):
    task = MultiLabel(labels=LABELS, metric=metric)
    logits, truth = drawn()
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), 5)
    for weight, score in zip(weights, task.resampled(logits, truth, weights), strict=True):
        rows = np.repeat(np.arange(40), weight)
        assert score == pytest.approx(task.score(logits[rows], truth[rows])[metric])
    assert task.measure(task.predictions(logits), truth) == pytest.approx(task.score(logits, truth)[metric])


def test_nothing_there_and_nothing_found_is_0():
    scores = TASK.score(np.full((3, 4), -1.0), np.zeros((3, 4)))
    assert scores == {"f1_micro": 0.0, "f1_macro": 0.0, "accuracy": 1.0, "hamming": 1.0}


def test_the_loss_is_the_mean_over_labels():
    logits, truth = (torch.tensor(side, dtype=torch.float32) for side in drawn(6))
    theirs = torch.nn.BCEWithLogitsLoss()(logits, truth)  # as BertForSequenceClassification's multi-label loss
    torch.testing.assert_close(TASK.loss(logits, truth) / TASK.items(truth), theirs)


def test_answers_name_the_labels_above_one_half():
    (answer,) = TASK.decode(np.array([[2.0, -1.0, 0.1, 0.0]]))
    assert answer["labels"] == ["sad", "mad"]
    assert answer["scores"]["sad"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert list(answer["scores"]) == list(LABELS)
    with pytest.raises(DeltatuneError, match="not finite"):
        TASK.decode(np.array([[np.nan] * 4]))


def test_a_diverged_model_answers_without_a_warning():
    (answer,) = TASK.decode(np.array([[-1e4, 1e4, -1e30, 0.0]]))
    assert answer["labels"] == ["glad"]
    assert list(answer["scores"].values()) == [0.0, 1.0, 0.0, 0.5]


def test_labels_are_lists_or_their_json():
    rows = [{"text": "good", "label": value} for value in (["mad", "sad"], '["mad", "sad"]', [], "[]")]
    encoded = TASK.encode(rows, models.tiny_tokenizer())
    assert [row["label"] for row in encoded] == [[1, 0, 1, 0]] * 2 + [[0, 0, 0, 0]] * 2
    assert encoded.references.shape == (4, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sad", "row 0: label is 'sad', not a list of labels"),
        (None, "not a list of labels"),
        (["sda"], "row 0: 'sda' is not a label, did you mean 'sad'"),
        ([["sad"]], r"row 0: \['sad'\] is not a label"),
        ('["sad"', "row 0: label is .*, not a list of labels"),
    ],
)
def test_bad_labels_are_named(value, message):
    with pytest.raises(DeltatuneError, match=message):
        TASK.encode([{"text": "good", "label": value}], models.tiny_tokenizer())


def test_it_becomes_plain_data_and_comes_back():
    assert task_from_json(TASK.to_json()) == TASK
    assert type(task_from_json(TASK.to_json())) is MultiLabel
    with pytest.raises(DeltatuneError, match="not a metric of"):
        MultiLabel(labels=LABELS, metric="mcc")


def emotions(count=120):
    words = {"sad": "bad", "glad": "great", "mad": "awful"}
    rows, draw = [], random.Random(0)
    for i in range(count):
        mine = [label for k, label in enumerate(words) if i >> k & 1]
        text = [words[label] for label in mine] + [draw.choice(models.WORDS[4:]) for _ in range(4)]
        rows.append({"text": " ".join(draw.sample(text, len(text))), "label": mine})
    return rows


@pytest.mark.parametrize(
    "kind", ["bert", "llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "t5"))]
)
def test_every_family_learns_sets_of_labels(kind):
    task = MultiLabel(labels=LABELS[:3], max_length=64)
    host = deltatune.Host(models.tiny(kind, dropout=False))
    host.attach("a", deltatune.parse("Full()"), head=task.make_head(host.model.config))
    settings = Settings(epochs=15, batch_size=16, learning_rate=3e-3, precision="float32")
    outcome = train(host, "a", task, emotions(), emotions(40), models.tiny_tokenizer(), settings)
    assert outcome.evaluations[-1][1]["f1_micro"] > 0.85, outcome.evaluations
    logits = predict(host, "a", task, emotions(16), models.tiny_tokenizer(), precision="float32")
    assert logits.shape == (16, 3)


@pytest.mark.parametrize("write", [lambda own: "|".join(own), json.dumps])
def test_files_with_sets_of_labels_become_this_task(write, tmp_path):
    rows = [{"text": row["text"], "label": write(row["label"])} for row in emotions(80) if len(row["label"])]
    data = read(write_csv(tmp_path / "data.csv", rows))
    assert data.kind == "many"
    chosen = task_for(data, models.tiny("bert").config, models.tiny_tokenizer())
    assert type(chosen.task) is MultiLabel
    assert set(chosen.task.labels) == set(LABELS[:3])
    assert len(chosen.task.encode(data.train, models.tiny_tokenizer())) == len(data.train)
