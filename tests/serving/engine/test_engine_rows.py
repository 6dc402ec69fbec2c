"""Rows to classify, to tag and to embed, beside rows that generate: the answers are those of `predict`."""

import numpy as np
import pytest
import torch

import deltatune
from deltatune import DeltatuneError
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import GenerateRequest, RowsRequest, Sampling
from deltatune.serving.serving_errors import CannotServe, RequestTooLong
from deltatune.tasks import Classify, Generate, Tag
from deltatune.testing.tiny_models import tiny
from deltatune.training import encode_for, predict
from support.language_models import generation_tokenizer, randomize_
from support.models import WORDS, tiny_tokenizer
from support.serving_engine import offline, running, serving_host, settled

TEXTS = [{"text": " ".join(WORDS[i % 9 : i % 9 + 1 + i % 7])} for i in range(18)]
TOKENS = [{"tokens": WORDS[i : i + 1 + i % 5]} for i in range(8)]
CLASSES = Classify(text=("text",), labels=("a", "b", "c"), max_length=60)
TAGS = Tag(tags=("O", "B-X", "I-X"), max_length=60)
TASKS = {"classes": CLASSES, "lora": CLASSES, "prefix": CLASSES, "prompt": CLASSES, "tags": TAGS}
METHODS = {
    "lora": "LoRA(r=4)",
    "prefix": "Prefix(length=3)",
    "prompt": "Prompt(length=4)",
    "tags": "Bottleneck(size=4)",
}


def rows_host(kind):
    host = deltatune.Host(tiny(kind, dropout=False))
    for number, (name, method) in enumerate(METHODS.items()):
        head = TASKS[name].make_head(host.model.config, seed=number)
        host.attach(name, deltatune.parse(method), seed=number, head=head)
        randomize_(host, name)
    host.use(None)
    return host


def offline_rows(host, name, rows, weight=1.0):
    """What `predict` gives for each row alone."""
    answers = [
        predict(host, name, TASKS[name], [row], tiny_tokenizer(), precision="float32", weight=weight) for row in rows
    ]
    return [answer[0] for answer in answers]


@pytest.mark.parametrize("kind", ["bert", "llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_rows_of_many_adapters_equal_predict(kind):
    host = rows_host(kind)
    wanted = {name: offline_rows(host, name, TOKENS if name == "tags" else TEXTS) for name in METHODS}
    half = offline_rows(host, "lora", TEXTS[:4], weight=0.3)
    with running(host) as engine:
        engine.call(lambda _: None).result(30)
        before = engine.statistics().passes
        tickets = {
            name: engine.submit(RowsRequest(TOKENS if name == "tags" else TEXTS, {name: 1.0}, task=TASKS[name]))
            for name in METHODS
        }
        slid = engine.submit(RowsRequest(TEXTS[:4], {"lora": 0.3}, task=CLASSES))
        got = {name: ticket.result(60).rows for name, ticket in tickets.items()}
        passes = settled(engine).passes - before
        for name, rows in got.items():
            answers = TASKS[name].collect(rows.values, rows.encoded)
            for row, expected in zip(answers, wanted[name], strict=True):
                if name == "tags":
                    assert list(row) == list(expected)
                else:
                    np.testing.assert_allclose(row, expected, atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(np.stack(slid.result(60).rows.values), np.stack(half), atol=2e-5, rtol=1e-4)
    assert passes < len(TEXTS), "rows of different adapters shared no passes"


def test_encoded_rows_are_taken_as_they_are():
    host = rows_host("bert")
    encoded = encode_for(host, "lora", CLASSES, TEXTS, tiny_tokenizer(), labelled=False)
    with running(host, EngineLimits(pass_tokens=16, cache_bytes=1 << 26)) as engine:
        rows = engine.submit(RowsRequest(encoded, {"lora": 1.0})).result(60).rows
    assert rows.encoded is None
    np.testing.assert_allclose(np.stack(rows.values), np.stack(offline_rows(host, "lora", TEXTS)), atol=2e-5, rtol=1e-4)


def test_two_heads_answer_with_their_weighted_mean():
    host = rows_host("bert")
    encoded = encode_for(host, "lora", CLASSES, TEXTS, tiny_tokenizer(), labelled=False)
    weights = {"lora": 0.75, "prefix": 0.25}
    batch = {"input_ids": torch.tensor([encoded[0]["input_ids"]])}
    with host.using(weights), torch.inference_mode():
        expected = deltatune.training.logits(host, batch)[0]
    with running(host) as engine:
        got = engine.submit(RowsRequest(encoded, weights)).result(60).rows.values[0]
        np.testing.assert_allclose(got, expected.numpy(), atol=2e-5, rtol=1e-4)
        with pytest.raises(DeltatuneError, match="sum to 0"):
            engine.submit(RowsRequest(encoded, {"lora": 0.5, "prefix": -0.5})).result(60)
        with pytest.raises(CannotServe, match="answer in different ways"):
            engine.submit(RowsRequest(encoded, {"lora": 1.0, "tags": 1.0})).result(60)


def test_long_rows_turn_no_positions_of_short_ones():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
    host = serving_host("phi3", {}, rope_parameters={**rope, "factor": 4.0}, **config)
    rows = [{"input_ids": list(range(5, 5 + length)), "attention_mask": [1] * length} for length in (6, 60, 28, 33)]
    with running(host, EngineLimits(pass_tokens=512, cache_bytes=1 << 26)) as engine:
        vectors = [engine.submit(RowsRequest([row], kind="embedding")).result(60).rows.values[0] for row in rows]
        together = engine.submit(RowsRequest(rows, kind="embedding")).result(60).rows.values
    np.testing.assert_allclose(together, vectors, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_embeddings_are_means_of_the_last_states(kind):
    host = rows_host(kind)
    rows = [dict(row) for row in encode_for(host, "lora", CLASSES, TEXTS, tiny_tokenizer(), labelled=False)]
    with running(host) as engine:
        bare = engine.submit(RowsRequest(rows, kind="embedding")).result(60).rows.values
        prompted = engine.submit(RowsRequest(rows, {"prompt": 1.0}, kind="embedding")).result(60).rows.values
    for route, vectors in ((None, bare), ("prompt", prompted)):
        for row, vector in zip(rows, vectors, strict=True):
            ids = torch.tensor([row["input_ids"]])
            with host.using(route), torch.inference_mode():
                encoder = host.model.get_encoder() if kind == "t5" else host.model
                if kind == "t5" and route:  # the prompt is put in front by the model's own call
                    continue
                states = encoder(input_ids=ids).last_hidden_state[0, -ids.shape[1] :]
            expected = torch.nn.functional.normalize(states.mean(0), dim=-1)
            np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5, rtol=1e-4)
    assert not np.allclose(bare[0], prompted[0], atol=1e-3)


def test_a_task_that_generates_is_answered_by_predict():
    host = serving_host("llama", {"lora": "LoRA(r=4)"})
    task = Generate(text=("text",), label="text", new_tokens=4, max_length=60)
    expected = predict(host, "lora", task, TEXTS, generation_tokenizer(), precision="float32")
    other = GenerateRequest((7, 8, 9), {"lora": 1.0}, Sampling(max_tokens=20))
    with running(host, tokenizer=generation_tokenizer()) as engine:
        beside = engine.submit(other)
        rows = engine.submit(RowsRequest(TEXTS, {"lora": 1.0}, "task", task=task)).result(60).rows
        got = beside.result(60).ids
    assert [row["text"] for row in rows.values] == [row["text"] for row in expected]
    assert got == offline(host, other)


def test_rows_that_cannot_be_answered_are_told_why():
    host = rows_host("bert")
    with running(host, EngineLimits(request_rows=5, cache_bytes=1 << 26)) as engine:
        with pytest.raises(CannotServe, match="cannot generate text"):
            engine.submit(GenerateRequest((7, 8)))
        with pytest.raises(RequestTooLong, match="at most 5"):
            engine.submit(RowsRequest(TEXTS, {"lora": 1.0}, task=CLASSES))
        with pytest.raises(DeltatuneError, match="need an adapter"):
            engine.submit(RowsRequest(TEXTS[:2], task=CLASSES))
        with pytest.raises(DeltatuneError, match="need the task"):
            engine.submit(RowsRequest(TEXTS[:2], {"lora": 1.0}))
        with pytest.raises(RequestTooLong, match="128"):
            engine.submit(RowsRequest([{"input_ids": [7] * 200}], {"lora": 1.0})).result(60)
        wrong = engine.submit(RowsRequest([{"no text": "x"}], {"lora": 1.0}, task=CLASSES))
        with pytest.raises(DeltatuneError):
            wrong.result(60)
        assert len(engine.submit(RowsRequest(TEXTS[:2], {"lora": 1.0}, task=CLASSES)).result(60).rows.values) == 2


def test_rows_and_text_of_one_language_model_take_turns():
    host = serving_host("llama", {"lora": "LoRA(r=4)"})
    host.attach("classes", deltatune.parse("Prefix(length=3)"), head=CLASSES.make_head(host.model.config, seed=0))
    randomize_(host, "classes")
    host.use(None)
    expected = offline_rows(host, "classes", TEXTS)
    texts = [GenerateRequest((7, 8, 9 + i), {"lora": 1.0}, Sampling(max_tokens=30)) for i in range(3)]
    with running(host, EngineLimits(pass_tokens=16, cache_bytes=1 << 26)) as engine:
        tickets = [engine.submit(each) for each in texts]
        rows = engine.submit(RowsRequest(TEXTS, {"classes": 1.0}, task=CLASSES))
        answers = [ticket.result(60) for ticket in tickets]
        classes = rows.result(60)
    np.testing.assert_allclose(np.stack(classes.rows.values), np.stack(expected), atol=2e-5, rtol=1e-4)
    assert [answer.ids for answer in answers] == [offline(host, each) for each in texts]
    shares = [answer.done.timings.first < classes.done.timings.first for answer in answers]
    assert all(shares), "rows of many passes held up the texts"
