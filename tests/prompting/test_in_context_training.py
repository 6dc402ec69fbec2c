"""Demonstrations in training: one similar row of each class, drawn anew in every epoch; vectors of texts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltatune import DeltatuneError, parse
from deltatune.core.delta import generator_for
from deltatune.prompting.in_context.demonstrations import training_rows, with_training_demonstrations
from deltatune.prompting.prompt_method import attach_prompt
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from deltatune.tasks.label_words.nearest_demonstrations import REDRAW, NearestDemonstrations
from deltatune.training import Settings
from deltatune.training.inference.text_vectors import text_vectors
from deltatune.training.open_session import open_host
from deltatune.training.session import Session
from support import models

ROWS = [
    {"text": f"{word} {thing}", "label": label}
    for label, words in (("neg", ("bad", "awful")), ("pos", ("good", "great")))
    for word in words
    for thing in ("film", "plot", "actor", "it")
]
TASK = LabelWords(labels=("neg", "pos"), template="{text} was {mask}", words=(("bad",), ("good",)), max_length=16)


@pytest.fixture(params=["bert", "llama"])
def session(request, tmp_path):
    models.tiny(request.param, "lm").save_pretrained(tmp_path / "model")
    models.tiny_tokenizer().save_pretrained(tmp_path / "model")
    host, tokenizer = open_host(str(tmp_path / "model"), "words")
    return Session(str(tmp_path / "model"), host, tokenizer, TASK, precision="float32")


def with_task(session, **options):
    task = with_training_demonstrations(TASK, ROWS, session, **options)
    return replace(session, task=task)


def test_one_row_of_each_class_is_drawn_from_its_more_similar_half_and_never_the_row_itself(session):
    own = attach_prompt(with_task(session), ZeroShot(), with_task(session).task)
    encoded = training_rows(own, ROWS)
    assert len(encoded) == len(ROWS)
    vectors = text_vectors(own.host, own.tokenizer, [row["text"] for row in ROWS])
    ranked = own.task.choices(ROWS, lambda texts, keep: text_vectors(own.host, own.tokenizer, texts))
    for i, numbers in enumerate(ranked):
        assert i not in numbers
        similarity = vectors @ vectors[i]
        for label in TASK.labels:
            others = [j for j, row in enumerate(ROWS) if row["label"] == label and j != i]
            kept = [j for j in numbers if ROWS[j]["label"] == label]
            assert len(kept) == -(-len(others) // 2)
            assert min(similarity[j] for j in kept) >= max(similarity[j] for j in set(others) - set(kept)) - 1e-5


def test_epochs_draw_others_and_one_piece_each(session):
    own = attach_prompt(with_task(session), ZeroShot(), with_task(session).task)
    row = training_rows(own, ROWS)[0]
    drawn = [own.task.draw(row, generator_for(0, f"draw.{epoch}.0")) for epoch in range(8)]
    prompts = {tuple(each["prompt"]) for each in drawn}
    assert len(prompts) > 2
    assert all(each["label"] == row["label"] for each in drawn)
    assert own.task.draw(row, generator_for(0, "draw.0.0"))["prompt"] == drawn[0]["prompt"]
    without = {name: value for name, value in row.items() if name != REDRAW}
    assert own.task.draw(without, generator_for(0, "x")) is without


def test_answers_are_averaged_over_sets(session):
    own = attach_prompt(with_task(session, sets=4), ZeroShot(), with_task(session, sets=4).task)
    test = [{"text": "this film", "label": "pos"}, {"text": "the plot is not", "label": "neg"}]
    encoded = own.encode(test)
    assert len(encoded) == 4 * len(test)
    mean = np.exp(own.predict(encoded))
    pieces = replace(own, task=replace(own.task, sets=1))
    rows = [dict(row) for row in own.task.with_demonstrations(test, _vectors(own))]
    for row, wanted in zip(rows, mean, strict=True):
        singles = [{**row, DEMONSTRATIONS: shown} for shown in row[DEMONSTRATIONS]]
        logits = torch.from_numpy(pieces.predict(pieces.encode(singles)))
        np.testing.assert_allclose(wanted, logits.softmax(-1).mean(0).numpy(), atol=1e-5)


def _vectors(session):
    return lambda texts, keep: text_vectors(session.host, session.tokenizer, texts, "", keep)


def test_a_masked_model_learns_through_demonstrations(tmp_path):
    models.tiny("bert", "lm").save_pretrained(tmp_path / "model")
    models.tiny_tokenizer().save_pretrained(tmp_path / "model")
    host, tokenizer = open_host(str(tmp_path / "model"), "words")
    own = with_task(Session(str(tmp_path / "model"), host, tokenizer, TASK), sets=2)
    own.attach(parse("LoRA(r=4)"), 0, head=False)
    settings = Settings(epochs=10, batch_size=8, learning_rate=1e-2, warmup=0.0)
    outcome = own.train(training_rows(own, ROWS), ROWS, settings)
    losses = [loss for _, loss in outcome.history]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert "accuracy" in outcome.evaluations[-1][1]


# ---- vectors


def test_vectors_of_texts_are_means_of_states_whatever_the_batch(session):
    texts = ["good film", "the actor was very good and great", "it"]
    together = text_vectors(session.host, session.tokenizer, texts)
    alone = np.concatenate([text_vectors(session.host, session.tokenizer, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-2 if together.std() > 1 else 1e-2)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_vectors_do_not_depend_on_the_adapter_and_are_kept(session):
    texts = ["good film", "bad plot"]
    before = text_vectors(session.host, session.tokenizer, texts, keep=True)
    session.attach(parse("LoRA(r=2)"), 0, head=False)
    with torch.no_grad():
        for _, parameter in session.host.trainable(session.name):
            parameter.add_(0.5)
    np.testing.assert_allclose(text_vectors(session.host, session.tokenizer, texts), before, atol=1e-6)
    assert text_vectors(session.host, session.tokenizer, texts, keep=True) is before


def test_another_model_compares_texts(session, tmp_path):
    models.tiny("distilbert").save_pretrained(tmp_path / "encoder")
    models.tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    own = text_vectors(session.host, session.tokenizer, ["good film"])
    other = text_vectors(session.host, session.tokenizer, ["good film"], str(tmp_path / "encoder"))
    assert np.abs(own - other).max() > 1e-3
    with pytest.raises(DeltatuneError, match="cannot load the encoder"):
        text_vectors(session.host, session.tokenizer, ["good film"], str(tmp_path / "nothing"))


# ---- what cannot be


def test_a_pool_is_checked():
    pool = (("x a", "a", "x"), ("y b", "b", "y"))
    fields = {"labels": ("a", "b"), "template": "{text} {mask}"}
    for wrong, message in (
        ({}, "pool is empty"),
        ({"pool": pool, "shots": 2}, "more rows than shots"),
        ({"pool": (("x", "c", "x"),), "select": "similar"}, "'c'"),
        ({"pool": pool, "shots": 1, "calibration": ((0.0, 0.0),)}, "each row has its own"),
        ({"pool": pool, "shots": 1, "more_templates": ("{mask} {text}",)}, "one template"),
    ):
        with pytest.raises(DeltatuneError, match=message):
            NearestDemonstrations(**fields, **wrong)
    task = NearestDemonstrations(**fields, pool=pool, shots=1)
    with pytest.raises(DeltatuneError, match=r"Session\.encode"):
        task.encode([{"text": "x"}], models.tiny_tokenizer(), labelled=False)


def test_rows_of_another_task_are_refused(session):
    own = attach_prompt(session, ZeroShot(), TASK)
    with pytest.raises(DeltatuneError, match="demonstrations of each row's own"):
        training_rows(own, ROWS)
    plain = replace(session, task=Classify(labels=("neg", "pos")))
    with pytest.raises(DeltatuneError, match="none of the 1 training rows"):
        with_training_demonstrations(TASK, [{"text": "x", "label": "?"}], plain)
