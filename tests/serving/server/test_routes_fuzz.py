"""Bodies and names that no client should send: always 4xx with OpenAI's error body, or an answer; never a traceback."""

import json
import random
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fuzz import mutations

GOOD = {
    "/v1/completions": {
        "model": "plain:0.5+plain-ia3", "prompt": ["the film is", "good"], "max_tokens": 2, "temperature": 0.5,
        "top_p": 0.9, "n": 2, "stop": ["a", "b"], "seed": 3, "logprobs": 2, "logit_bias": {"7": 1.5},
        "presence_penalty": 0.5, "frequency_penalty": -0.5,
    },
    "/v1/chat/completions": {
        "model": "chatty", "messages": [{"role": "system", "content": "it"}, {"role": "user", "content": "good"}],
        "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 2, "response_format": {"type": "text"},
    },
    "/v1/embeddings": {"model": "base", "input": ["good film", "bad"], "encoding_format": "base64"},
    "/v1/classify": {"model": "pairs", "input": [{"premise": "good", "hypothesis": "bad"}, ["the film", "it"]]},
    "/v1/tag": {"model": "ner", "tokens": [["good", "film"], ["bad"]]},
    "/v1/answer": {"model": "squad", "question": "what is good", "context": "the film is good"},
    "/v1/adapters/plain/load": {},
}  # fmt: skip
NASTY = [
    None, True, 0, -1, 1.5, 10**30, -(10**30), 1e308, "", " ", "x" * 5000, "\x00", "\u202e", "../../etc/passwd", "base",
    "plain", [], [[]], [None], {}, {"": None}, {"a": {"b": []}}, ["x"] * 600, [1, "x"], [[1], "x"], [0] * 300,
    {"role": "user"}, [{"role": "user", "content": None}], [{"type": "text"}],
]  # fmt: skip
NAMES = [
    "../plain", "..", ".", "plain/../sst2", "/etc/passwd", "\\\\host\\x", "C:\\x", "plain\x00", "plain%00", "%2e%2e",
    "~", "pla\u0131n", "ｐｌａｉｎ", "nul", "x" * 3000, "'; DROP TABLE adapters; --", "%",
    "{name}", "*", "plain:1:1", "plain+plain+plain", "-", "--help", "🙂", "<script>alert(1)</script>",
]  # fmt: skip


def check(answer, where, least=200):
    """The answer is one, or says in OpenAI's form what is wrong."""
    assert least <= answer.status_code < 500, f"{where}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code == 200:
        return
    content = answer.json()
    assert list(content) == ["error"], where
    assert set(content["error"]) == {"message", "type", "param", "code"}, where
    assert content["error"]["message"], where
    for secret in ("Traceback", 'File "', "/site-packages/", "/objects/", "sqlite"):
        assert secret not in answer.text, f"{where}: {answer.text[:300]}"


def send(served, path, body, where):
    check(served.http.post(path, content=body, headers={"Content-Type": "application/json"}), where)


def mutate(served, count, seed):
    for path, body in GOOD.items():
        check(served.http.post(path, json=body), path)
        for name, content in mutations(json.dumps(body).encode(), seed, count):
            send(served, path, content, f"{path} {name}")


def test_mutated_bodies(served):
    mutate(served, 8, seed=0)


@pytest.mark.slow
def test_many_mutated_bodies(served):
    mutate(served, 1500, seed=1)


def test_fields_of_wrong_types(served):
    rng = random.Random(0)
    for path, body in GOOD.items():
        names = [*body, "adapters", "part", "input", "stream", "stream_options", "tools", "best_of", "dimensions"]
        for name in names:
            for value in rng.sample(NASTY, 1):
                changed = json.dumps({**body, name: value}).encode()
                send(served, path, changed, f"{path} {name}={value!r:.80}")


@pytest.mark.slow
def test_every_wrong_type_in_every_field(served):
    for path, body in GOOD.items():
        for name in [*body, "adapters", "part", "input", "stream", "stream_options", "tools", "best_of", "dimensions"]:
            for value in NASTY:
                send(served, path, json.dumps({**body, name: value}).encode(), f"{path} {name}={value!r:.80}")


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nul", b"[]", b'"x"', b"5", b"\xff\xfe", b'{"model": NaN}', b'{"model": 1e999}',
        b'{"model": "a", "model": "b"}', b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}", b'{"model": "\\ud800"}', b'{"model": "base", "prompt": "\\udfff"}',
        b'{"model": "base", "prompt": "\\u0000"}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests(served, body):
    for path in GOOD:
        if not path.endswith("load") or body.strip():
            answer = served.http.post(path, content=body)
            check(answer, f"{path} {body[:40]!r}", 200 if b"u0000" in body else 400)


def test_names_that_are_no_names(served):
    for name in NAMES:
        for path in (f"/v1/models/{quote(name, safe='')}", f"/v1/models/{quote(name)}"):
            resolved = {".", ".."} & {*name.split("/")}  # by the client
            check(served.http.get(path), path, 200 if resolved else 400)
        for verb in ("load", "unload", "reload"):
            check(served.http.post(f"/v1/adapters/{quote(name, safe='')}/{verb}"), name, 400)
        check(served.http.post("/v1/completions", json={"model": name, "prompt": "a"}), name, 400)
        check(served.http.post("/v1/classify", json={"adapters": {name: 1}, "input": "a"}), name, 400)
    for path in ("/v1", "/v1/", "/v1/modelsx", "/v1/adapters/", "/v1/completions/", "/page/../app.py"):
        check(served.http.get(path), path, 300)


@pytest.mark.slow
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(st.sampled_from(["model", "prompt", "input", "messages", "adapters", "n", "stop"]), each)
        ),
        max_leaves=8,
    )
)
def test_any_json(served, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/classify"):
        send(served, path, json.dumps(body).encode(), f"{path} {body!r:.100}")


def test_a_limit_that_is_no_number_is_refused(served):
    for limit in ("-1", "x", "", "9" * 50, "\u0663"):
        answer = served.http.get("/v1/adapters", params={"limit": limit})
        assert answer.status_code == 400
        assert "limit must be a whole number" in answer.json()["error"]["message"]
    assert len(served.http.get("/v1/adapters?limit=2").json()["data"]) == 2


def test_queries_that_are_no_queries(served):
    for query in ("limit=-1", "limit=x", "limit=" + "9" * 50, "search=%25", "search='\"", "task=%00", "limit=٣", "a=b"):
        check(served.http.get(f"/v1/adapters?{query}"), query)


def test_after_all_that_it_answers(served):
    assert served.engine.statistics().running == 0
    assert isinstance(served.http.get("/health"), httpx.Response)
    assert served.post("/v1/completions", **GOOD["/v1/completions"])["choices"]
    errors = [event for event in served.events() if event["event"] == "error"]
    assert not [event for event in errors if "secret words" not in event["traceback"]]  # of test_routes_failures
