"""The task of preferences: tokens of pairs, losses, scores, and what is refused."""

import math

import numpy as np
import pytest
import torch

from deltatune.cli.ui.screen import truncation_notes
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Prefer, task_from_json
from deltatune.tasks.preferences.pair_collator import REFERENCE, REJECTED_IDS, REJECTED_LABELS, PairCollator
from deltatune.tasks.preferences.pair_loss import pair_losses
from deltatune.tasks.task import IGNORED
from support import models

ROWS = [
    {"prompt": "the film was very good", "chosen": "good and great", "rejected": "bad"},
    {"prompt": "the film", "chosen": "great", "rejected": "awful and not good"},
]
CHAT = (
    "{% for m in messages %}[UNK] {{ m.role }} {{ m.content }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[UNK] assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    return tokenizer


def test_both_answers_follow_the_same_tokens_and_only_answers_have_labels(tokenizer):
    encoded = Prefer(max_length=64, new_tokens=16).encode(ROWS, tokenizer)
    for row, fact in zip(encoded.rows, encoded.facts, strict=True):
        size = len(fact["prompt"])
        for ids, labels in ((row["input_ids"], row["labels"]), (row[REJECTED_IDS], row[REJECTED_LABELS])):
            assert ids[:size] == fact["prompt"]
            assert labels == [IGNORED] * size + ids[size:]
            assert ids[-1] == tokenizer.eos_token_id
    assert encoded.truncated == 0
    assert encoded.references == ["good and great", "great"]


def test_a_cut_of_either_answer_counts_once(tokenizer):
    rows = [{**ROWS[0], "rejected": "bad " * 40}, ROWS[0], {**ROWS[0], "prompt": "good " * 60}]
    task = Prefer(max_length=32, new_tokens=8)
    encoded = task.encode(rows, tokenizer)
    assert encoded.truncated == 2
    assert all(len(row["input_ids"]) <= 32 and len(row[REJECTED_IDS]) <= 32 for row in encoded)
    assert all(set(row[name]) != {IGNORED} for row in encoded for name in ("labels", REJECTED_LABELS))


def test_pairs_whose_answers_differ_only_behind_the_cut_are_counted(tokenizer):
    late = {"prompt": "the film", "chosen": "good " * 40 + "great", "rejected": "good " * 40 + "bad"}
    encoded = Prefer(max_length=16, new_tokens=8).encode([*ROWS, late], tokenizer)
    assert encoded.notes == ("1 of 3 pairs have equal answers once cut: nothing is learned from them",)
    assert truncation_notes(Prefer(max_length=16, new_tokens=8), {"train": encoded})[1] == f"train: {encoded.notes[0]}"
    assert Prefer(max_length=128, new_tokens=64).encode([*ROWS, late], tokenizer).notes == ()


def test_conversations_are_written_by_the_chat_template(tokenizer):
    tokenizer.chat_template = CHAT
    row = {"prompt": [{"role": "user", "content": "the film"}], "chosen": "good", "rejected": "bad"}
    try:
        encoded = Prefer(prompt="chat", max_length=64, new_tokens=16).encode([row], tokenizer)
        as_text = Prefer(prompt="chat", max_length=64, new_tokens=16).encode([{**row, "prompt": "the film"}], tokenizer)
        unlabelled = Prefer(prompt="chat", max_length=64, new_tokens=16).encode([row], tokenizer, labelled=False)
        with pytest.raises(DeltatuneError, match=r"row 0: its prompt is a conversation.*prompt='chat'"):
            Prefer().encode([row], tokenizer)
    finally:
        tokenizer.chat_template = None
    assert encoded.rows == as_text.rows
    assert unlabelled.facts == encoded.facts
    assert tokenizer.decode([token for token in encoded[0]["labels"] if token != IGNORED]).startswith("good")


def test_pairs_become_rows_of_one_batch(tokenizer):
    rows = [{**row, REFERENCE: [-1.0, -2.0]} for row in Prefer(max_length=64, new_tokens=16).encode(ROWS, tokenizer)]
    batch = PairCollator({"input_ids": 0, "attention_mask": 0})(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == [len(row[name]) for name in ("input_ids", REJECTED_IDS) for row in rows]
    assert batch[REFERENCE].tolist() == [[-1.0, -2.0]] * 2
    assert Prefer().items(batch["labels"]) == 2


def test_losses_by_hand():
    policy, reference = torch.tensor([[-3.0, -5.0]]), torch.tensor([[-4.0, -4.5]])
    tokens = torch.tensor([[2, 4]])
    h = (-3 + 4) - (-5 + 4.5)
    sigmoid = 1 / (1 + math.exp(-0.2 * h))

    def loss(*arguments):
        return pair_losses(policy, reference, tokens, *arguments).item()

    assert loss("sigmoid", 0.2) == pytest.approx(-math.log(sigmoid))
    smoothed = -0.9 * math.log(sigmoid) - 0.1 * math.log(1 - sigmoid)
    assert loss("sigmoid", 0.2, 0.1) == pytest.approx(smoothed, rel=1e-5)
    assert loss("hinge", 0.2) == pytest.approx(1 - 0.2 * h)
    assert loss("hinge", 2.0) == 0
    assert loss("ipo", 0.2) == pytest.approx(((1 / 2 + 0.5 / 4) - 1 / 0.4) ** 2, rel=1e-5)


def test_scores_and_their_bootstrap():
    answers = [
        {"chosen": 1.0, "rejected": 0.0, "loss": 0.25},
        {"chosen": 0.0, "rejected": 2.0, "loss": 1.0},
        {"chosen": 0.5, "rejected": 0.5, "loss": 0.75},
    ]
    scores = Prefer().score(answers, None)
    assert scores == {"accuracy": 0.5, "reward_margin": pytest.approx(-1 / 3), "preference_loss": pytest.approx(2 / 3)}
    assert Prefer().resampled(answers, None, np.array([[3, 0, 0], [0, 1, 2]])).tolist() == [1.0, pytest.approx(1 / 3)]
    assert [row["preferred"] for row in Prefer().decode(answers)] == ["chosen", "rejected", "neither"]
    assert Prefer().decode([{"text": "hi"}]) == [{"text": "hi"}]
    with pytest.raises(DeltatuneError, match="generated texts have no preference scores"):
        Prefer().score([{"text": "hi"}], None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"beta": math.inf}, "beta must be a finite number"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing is for loss_type='sigmoid'"),
        ({"loss_type": "sigmoyd"}, "sigmoid"),
        ({"metric": "rougeL"}, "accuracy, reward_margin, preference_loss"),
        ({"sentinel": "<extra_id_0>"}, "sentinel"),
        ({"reference": ""}, "reference"),
    ],
)
def test_fields_that_cannot_be(fields, words):
    with pytest.raises(DeltatuneError, match=words):
        Prefer(**fields)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "row 0: chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "row 0: chosen or rejected is empty"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "row 0: prompt is 3"),
    ],
)
def test_rows_that_cannot_be(row, words, tokenizer):
    with pytest.raises(DeltatuneError, match=words):
        Prefer().encode([row], tokenizer)


def test_a_stored_task_is_read_back():
    task = Prefer(beta=0.3, loss_type="ipo", reference="start")
    assert task_from_json(task.to_json()) == task
