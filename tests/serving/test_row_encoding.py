"""Rows are encoded before the engine's worker has them, and their tokens are counted before it reads them."""

import threading

import numpy as np
import pytest

import deltatune
from deltatune.serving.served_base import served_base
from deltatune.serving.server.guard.api_keys import ApiKey, KeyFile, add_key
from deltatune.serving.server.guard.guards import Guarding
from deltatune.serving.server.guard.request_log import RequestLog
from deltatune.serving.serving_errors import RequestTooLong
from deltatune.serving.texts.row_encoding import COMPARED, RowEncoder, most_tokens, token_count
from deltatune.tasks import Classify, ExtractiveQA, Tag
from deltatune.tasks.generation import Generate
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.nearest_demonstrations import NearestDemonstrations
from support.guarded_server import Lines, client
from support.served import TASKS, Served, chat_tokenizer, tiny_llama

FILM = "the film is good"
ASKED = [
    ("sst2", "/v1/classify", {"input": [FILM] * 3}),
    ("stars", "/v1/classify", {"input": FILM}),
    ("topics", "/v1/classify", {"input": FILM}),
    ("words", "/v1/classify", {"input": [FILM, "bad"] * 20}),
    ("ner", "/v1/tag", {"input": FILM}),
    ("squad", "/v1/answer", {"question": "what is good", "context": f"{FILM} . " * 30}),
    ("mixed", "/v1/classify", {"input": FILM, "part": "sentiment"}),
    ("mixed", "/v1/tag", {"input": FILM, "part": "names"}),
    ("beams", "/v1/completions", {"input": FILM}),
]
NEAREST = NearestDemonstrations(
    labels=("bad", "good"),
    template="{text} it is {mask}",
    max_length=64,
    pool=(("film it is good", "good", "film"), ("plot it is bad", "bad", "plot"), ("a it is bad", "bad", "a")),
    shots=2,
)


@pytest.mark.parametrize(("name", "path", "body"), ASKED, ids=[f"{name}{path}" for name, path, _ in ASKED])
def test_the_worker_encodes_no_rows(served, monkeypatch, name, path, body):
    places = []
    for kind in (Classify, Tag, ExtractiveQA, LabelWords, Generate):

        def encode(task, rows, *args, inner=kind.encode, **kwargs):
            places.append((threading.current_thread().name, len(rows)))
            return inner(task, rows, *args, **kwargs)

        monkeypatch.setattr(kind, "encode", encode)
    served.post(path, model=name, **body)
    engine = [rows for thread, rows in places if thread == "deltatune-engine"]
    assert sum(rows for thread, rows in places if thread.startswith("rows")) >= 1
    assert engine, "the worker checks what the adapter leaves of the model's positions"
    assert not any(engine)


def test_short_rows_wait_for_no_long_ones(served, monkeypatch):
    begun, go, encode, answers = threading.Event(), threading.Event(), served.service.long_rows.encode, []

    def slow(*args):
        begun.set()
        assert go.wait(20)
        return encode(*args)

    monkeypatch.setattr(served.service.long_rows, "encode", slow)
    ask = threading.Thread(
        target=lambda: answers.append(served.post("/v1/classify", model="sst2", input="film " * 20_000))
    )
    ask.start()
    try:
        assert begun.wait(10)
        assert served.post("/v1/classify", model="sst2", input=FILM)["truncated"] == 0
        assert served.post("/v1/completions", model="plain", prompt=FILM, max_tokens=2)["choices"]
        assert not answers
    finally:
        go.set()
        ask.join(20)
    assert answers[0]["truncated"] == 1


def test_answers_in_parts_are_in_order(served, offline):
    texts = [f"{FILM} {'film ' * number}" for number in range(0, 80, 2)]
    answers = served.post("/v1/classify", model="words", input=texts)
    expected = offline.predict("words", [{"text": text} for text in texts])
    for answer, own in zip(answers["data"], expected, strict=True):
        assert answer["label"] == own["label"]
        assert np.allclose(list(answer["scores"].values()), list(own["scores"].values()), rtol=1e-4, atol=1e-5)
    whole = TASKS["words"][1].encode([{"text": text} for text in texts], chat_tokenizer(), labelled=False)
    assert answers["usage"]["prompt_tokens"] == sum(len(row["input_ids"]) for row in whole)
    assert answers["truncated"] == whole.truncated > 0


def test_tokens_of_all_windows_are_counted_before_they_are_read(adapters, tmp_path):
    path = tmp_path / "keys.json"
    secret = add_key(path, ApiKey("anna", tokens_per_minute=200))
    server = Served(adapters, Guarding(keys=KeyFile(path), log=RequestLog(Lines())))
    asked = {"model": "squad", "question": "what is good"}
    with server.running(), client(server.address, secret) as http:
        much = http.post("/v1/answer", json=asked | {"context": f"{FILM} . " * 2000})
        assert (much.status_code, much.json()["error"]["type"]) == (429, "tokens")
        assert much.headers["x-ratelimit-remaining-tokens"] == "200"
        assert server.engine.statistics().requests == 0
        many = http.post("/v1/classify", json={"model": "words", "input": [FILM] * 100})
        assert many.status_code == 429
        assert server.engine.statistics().requests == 0
        little = http.post("/v1/answer", json=asked | {"context": f"{FILM} . " * 8})
        assert little.status_code == 200
        used = little.json()["usage"]["total_tokens"]
        assert 40 < used < 200
        assert little.headers["x-ratelimit-remaining-tokens"] == str(200 - used)
        more = http.post("/v1/answer", json=asked | {"context": f"{FILM} . " * 2000})
        assert more.headers["x-ratelimit-remaining-tokens"] == str(200 - used)


def test_rows_that_only_the_model_can_encode_are_bounded():
    encoder = RowEncoder(chat_tokenizer(), served_base(deltatune.Host(tiny_llama()), "tiny"))
    rows = encoder.shaped(NEAREST, [{"text": "film " * 2000}])
    assert encoder.encode(NEAREST, rows) == []
    assert most_tokens(NEAREST, 3) == 3 * 64
    with pytest.raises(RequestTooLong, match=f"row 1 has 40,000 characters.*at most {COMPARED:,}"):
        encoder.shaped(NEAREST, [{"text": "film"}, {"text": "x" * 40_000}])
    task = TASKS["sst2"][1]  # cut to its length, whatever it has
    parts = encoder.encode(task, encoder.shaped(task, [{"text": "film " * 40_000}, {"text": FILM}, {"text": FILM}]), 2)
    assert [len(part) for part in parts] == [2, 1]
    assert parts[0].truncated == 1
    assert token_count(parts) == 48 + 2 * len(parts[1][0]["input_ids"])
