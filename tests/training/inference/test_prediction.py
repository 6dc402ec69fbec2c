"""Prediction, rows of several adapters in one batch, a probe's stored features, half precision."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.tasks import Head, collator_for
from deltatune.training import encode_for, logits, predict, train
from deltatune.training.forward import base_outputs, text_mask
from deltatune.training.scaling.feature_cache import CACHE, set_cache_limit
from deltatune.training.task_model import TaskModel
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


# --- the probe's features ---


@pytest.fixture(autouse=True)
def empty_cache():
    CACHE.clear_()
    yield
    set_cache_limit("auto")
    CACHE.clear_()


def test_features_are_computed_once_and_change_nothing(tokenizer):
    results, calls = [], []
    for limit in ("auto", None):
        set_cache_limit(limit)
        host = host_with("Probe()", dropout=0.0)
        count = []
        host.model.register_forward_hook(lambda *_, count=count: count.append(1))
        settings = dataclasses.replace(PLAIN, epochs=4, learning_rate=1e-2)
        results.append((train(host, "a", TASK, ROWS, None, tokenizer, settings), tensors(host)))
        calls.append(len(count))
    assert calls == [2, 20]
    (cached, first), (live, second) = results
    np.testing.assert_allclose([loss for _, loss in cached.history], [loss for _, loss in live.history], rtol=1e-4)
    assert_same(first, second, rtol=1e-3, atol=1e-5)


def test_a_probe_reads_features_without_dropout():
    host = host_with("Probe()")
    tuned = TaskModel(host, "a", TASK).train()
    assert not host.model.encoder.training
    assert host.adapters["a"].head.training
    assert TaskModel(host_with(), "a", TASK).train().host.model.encoder.training
    assert tuned.eval().training is False


# --- prediction ---


def test_predictions_keep_row_order(tokenizer):
    host = host_with()
    host.model.train()
    together = predict(host, "a", TASK, ROWS, tokenizer, batch_size=8, precision="float32")
    alone = np.concatenate([predict(host, "a", TASK, [row], tokenizer, precision="float32") for row in ROWS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (70, 2)
    assert together.dtype == np.float32
    assert host.model.training
    encoded = encode_for(host, "a", TASK, [{"text": "good"}], tokenizer, labelled=False)
    assert predict(host, "a", TASK, encoded, tokenizer).shape == (1, 2)
    assert len(predict(host, "a", TASK, [], tokenizer)) == 0


def test_training_goes_on_after_prediction(tokenizer):
    host = host_with("Prompt(length=3)")
    for _ in range(2):
        predict(host, "a", TASK, ROWS[:5], tokenizer)
        train(host, "a", TASK, ROWS[:20], ROWS[:5], tokenizer, dataclasses.replace(PLAIN, max_steps=1))


def test_rows_of_different_adapters_in_one_batch(tokenizer):
    host = host_with("LoRA(r=4)")
    config = TASK.head_config(host.model.config, outputs=5, pooling="cls", dense=True)
    host.attach("b", deltatune.parse("Prompt(length=3)"), head=Head(config, seed=1))
    host.attach("c", deltatune.parse("Bottleneck(size=4)"), head=Head(TASK.head_config(host.model.config), seed=2))
    with torch.no_grad():
        for _, parameter in [*host.trainable("a"), *host.trainable("b"), *host.trainable("c")]:
            parameter.add_(0.05 * torch.randn_like(parameter))
    route = ["a", "b", "c", "b", {"a": 0.5, "c": 1.5}]
    rows = ROWS[: len(route)]
    encoded = TASK.encode(rows, tokenizer, labelled=False)
    collate = collator_for(host.model, tokenizer, encoded[0])
    host.use(route)
    with torch.no_grad():
        mixed = logits(host, collate(encoded.rows))
    for i, name in enumerate(route[:4]):
        alone = predict(host, name, TASK, [rows[i]], tokenizer, precision="float32")[0]
        np.testing.assert_allclose(mixed[i].numpy(), alone, atol=1e-5)
    host.use(route[4])
    with torch.no_grad():
        np.testing.assert_allclose(logits(host, collate([encoded[4]]))[0].numpy(), mixed[4].numpy(), atol=1e-5)
    assert [len(values) for values in mixed] == [2, 5, 2, 5, 2]
    host.use(["a", None])
    with pytest.raises(DeltatuneError, match=r"rows \[1\] run without an adapter that has a head"):
        logits(host, collate(encoded.rows[:2]))
    host.use(["a", {"a": 1.0, "c": -1.0}])
    with pytest.raises(DeltatuneError, match=r"weights of the adapters of rows \[1\] sum to 0"):
        logits(host, collate(encoded.rows[:2]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_soft_prompt_is_not_pooled(side, tokenizer):
    tokenizer.padding_side = side
    host = host_with("Prompt(length=3)", kind="gpt2")
    encoded = TASK.encode(ROWS[:3], tokenizer, labelled=False)
    batch = collator_for(host.model, tokenizer, encoded[0])(encoded.rows)
    states = base_outputs(host, batch).last_hidden_state
    mask = text_mask(host, batch)
    assert mask.shape == states.shape[:2]
    assert mask.sum(1).tolist() == batch["attention_mask"].sum(1).tolist()
    assert host.mask.sum(1).tolist() == [total + 3 for total in mask.sum(1).tolist()]


# --- precision ---


def test_half_precision_keeps_adapters_in_float32(tokenizer):
    host = host_with()
    outcome = train(host, "a", TASK, ROWS, ROWS, tokenizer, dataclasses.replace(PLAIN, precision="bfloat16"))
    assert outcome.bfloat16
    assert {value.dtype for value in tensors(host).values()} == {torch.float32}
    full = predict(host, "a", TASK, ROWS, tokenizer, precision="float32")
    np.testing.assert_allclose(predict(host, "a", TASK, ROWS, tokenizer, precision="bfloat16"), full, atol=0.1)


def test_peak_memory_is_measured_on_linux(tokenizer):
    outcome = train(host_with(), "a", TASK, ROWS, None, tokenizer, dataclasses.replace(PLAIN, max_steps=1))
    assert (outcome.peak_memory_bytes is not None) == (sys.platform == "linux")
    assert json.dumps(dataclasses.asdict(outcome))
