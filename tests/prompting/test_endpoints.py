"""Endpoints: an OpenAI-compatible server on a real socket, and models on this machine."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_self_instruct import SEEDS, echo

from deltatune import Host, LoRA, Prompt
from deltatune.core.errors import DeltatuneError
from deltatune.prompting import (
    LocalModel,
    OpenAICompatible,
    SamplingParams,
    SelfInstruct,
    Truncated,
    generate_instructions,
)
from support.command_line import ran
from support.endpoint_server import Server, endpoint_of, prompt_of, running, text_of


def written(body: dict[str, Any], number: int) -> tuple[int, Any]:
    """The answer of `echo` to the prompt."""
    return 200, text_of(echo([prompt_of(body)])[0])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running(written) as found:
        yield found


# ---- a server


def test_a_request_has_the_format_that_servers_read(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server.answer = lambda body, number: (200, text_of("hello"))
    params = SamplingParams(max_tokens=7, temperature=0.5, top_p=0.9, stop=("\n\n", "END"), seed=3)
    assert endpoint_of(server, key="MY_KEY").generate(["hi"], params) == ["hello"]
    fields = {"model": "m", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    message = [{"role": "user", "content": "hi"}]
    chat = {"path": "/v1/chat/completions", "key": "Bearer secret", "messages": message, "stop": ["END"], **fields}
    assert server.requests == [chat]
    assert endpoint_of(server, form="plain").generate(["hi"], params) == ["hello"]
    plain = {"path": "/v1/completions", "key": None, "prompt": "hi", "stop": ["\n\n", "END"], **fields}
    assert server.requests[1] == plain
    endpoint_of(server, request_fields=("max_tokens",)).generate(["hi"], params)
    assert set(server.requests[2]) == {"path", "key", "model", "messages", "max_tokens"}


def test_answers_keep_the_order_and_run_at_once(server):
    def slow(body, number):
        prompt = body["messages"][0]["content"]
        time.sleep(0.3 if prompt == "0" else 0.1)
        return 200, text_of(prompt)

    server.answer = slow
    prompts = [str(number) for number in range(6)]
    assert endpoint_of(server, concurrency=3)(prompts) == prompts
    assert 1 < server.most <= 3


def test_truncated_texts_are_marked(server):
    answers = {1: text_of("half", "length"), 2: text_of(None, "length"), 3: text_of(None, "content_filter")}
    server.answer = lambda body, number: (200, answers[number])
    found = [endpoint_of(server)(["x"])[0] for _ in range(3)]
    assert found == ["half", "", ""]
    assert [isinstance(text, Truncated) for text in found] == [True, True, False]


def test_a_refusal_is_a_text(server):
    """One row that a model will not answer does not end a run."""
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot say"}
    server.answer = lambda body, number: (200, {"choices": [{"message": refusal, "finish_reason": "stop"}]})
    assert endpoint_of(server)(["x"]) == ["I cannot say"]


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_busy_server_is_retried(server, status):
    server.answer = lambda body, number: (status, "busy") if number < 3 else (200, text_of("at last"))
    assert endpoint_of(server)(["x"]) == ["at last"]
    assert len(server.requests) == 3


def test_the_server_says_how_long_to_wait(server):
    server.answer = lambda body, n: (429, "busy", {"Retry-After": "0.4"}) if n == 1 else (200, text_of("ok"))
    start = time.monotonic()
    assert endpoint_of(server, backoff=30.0)(["x"]) == ["ok"]
    assert 0.4 <= time.monotonic() - start < 20


def test_a_server_that_stays_busy_is_an_error(server):
    server.answer = lambda body, number: (429, {"error": {"message": "rate limit reached"}})
    with pytest.raises(DeltatuneError, match=r"answered 429: rate limit reached; tried 3 times"):
        endpoint_of(server, retries=2)(["x"])
    assert len(server.requests) == 3


def test_a_slow_server_is_an_error(server):
    def slow(body, number):
        time.sleep(0.5)
        return 200, text_of("late")

    server.answer = slow
    with pytest.raises(DeltatuneError, match=r"too slow \(timed out\); tried 2 times"):
        endpoint_of(server, timeout=0.1, retries=1)(["x"])


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (401, {"error": {"message": "bad key secret"}}, r"refused the key in MY_KEY \(401\): bad key \*\*\*"),
        (403, "no", r"refused the key in MY_KEY \(403\): no"),
        (404, {"error": {"message": "model not found"}}, "answered 404: model not found; there is no model 'm', or"),
        (
            400,
            {"error": {"message": "unknown field seed"}},
            r"refused the request \(400\): unknown field seed.*request_fields",
        ),
        (302, "", "redirects to http://elsewhere"),
        (200, "<html>hello</html>", "not in OpenAI's format: '<html>hello"),
        (200, {"choices": []}, "not in OpenAI's format"),
        (200, [1], "not in OpenAI's format"),
        (200, text_of(None), "not in OpenAI's format"),
    ],
)
def test_refusals_and_odd_answers_are_clear_errors(server, monkeypatch, status, content, message):
    monkeypatch.setenv("MY_KEY", "secret")
    server.answer = lambda body, number: (status, content, {"Location": "http://elsewhere"})
    with pytest.raises(DeltatuneError, match=message):
        endpoint_of(server, key="MY_KEY")(["x"])
    assert len(server.requests) == 1


def test_no_server_no_key_and_no_address_are_errors(server, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(DeltatuneError, match="environment variable MY_KEY is not set"):
        endpoint_of(server, key="MY_KEY")(["x"])
    url = server.url
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DeltatuneError, match=rf"no answer from {url}: Connection refused\. Is the server running"):
        OpenAICompatible(url, "m")(["x"])
    for bad in ("file:///etc/passwd", "localhost:8000", "ftp://a/b"):
        with pytest.raises(DeltatuneError, match="is not an address"):
            OpenAICompatible(bad, "m")
    with pytest.raises(DeltatuneError, match=r"url contains a password(.|\n)*request_fields=\['n'\]"):
        OpenAICompatible("http://me:secret@host/v1", "m", request_fields=("n",))


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_a_server_generates_what_a_function_generates(server, form):
    settings = SelfInstruct(total=8, prompts=3)
    assert generate_instructions(SEEDS, endpoint_of(server, form=form), settings) == generate_instructions(
        SEEDS, echo, settings
    )


def test_the_command_generates_and_resumes(server, tmp_path):
    seeds, out = tmp_path / "seeds.jsonl", tmp_path / "instructions.jsonl"
    seeds.write_text("\n".join(map(json.dumps, SEEDS)))
    command = "self-instruct", seeds, "--url", server.url, "--name", "m", "--out", out, "--prompts", "3"
    done = ran(*command, "--total", "8")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == generate_instructions(SEEDS, echo, SelfInstruct(total=8, prompts=3))
    lines = (tmp_path / "instructions.rejected.jsonl").read_text().splitlines()
    refused = [json.loads(line)["reason"] for line in lines]
    for reason in set(refused):
        assert re.search(rf"rejected: {reason} +{refused.count(reason)}\n", done.out), reason
    assert re.search(r"instructions kept +8\n", done.out)
    more = ran(*command, "--total", "10")
    assert more.code == 0, more.err
    assert "with 8 instructions" in more.err
    assert out.read_text().splitlines()[: len(rows)] == [json.dumps(row) for row in rows]
    other = ran(*command, "--seed", "7")
    assert other.code == 2
    assert "seed was 0, now it is 7" in other.err
    server.answer = lambda body, number: (401, "no")
    refusal = ran(*command, "--total", "50")
    assert refusal.code == 2
    assert "refused a request without a key" in refusal.err


def test_the_snippets_of_the_page_run(server, monkeypatch, tmp_path, tiny_gpt2, tiny_tokenizer):
    page = (Path(__file__).parents[2] / "docs/instructions.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "secret")
    Path("seeds.jsonl").write_text("\n".join(map(json.dumps, SEEDS)))
    host = Host(tiny_gpt2("lm"))
    host.attach("style", LoRA(r=2))
    host.save("style", "adapters/style")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda name: tiny_gpt2("lm"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: tiny_tokenizer)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet.replace("http://localhost:8000/v1", server.url), "instructions.md", "exec"), names)
    assert len({row["instruction"] for row in names["rows"]}) == 100
    assert server.requests[0]["key"] == "Bearer secret"
    assert isinstance(names["local"](["it was"])[0], str)


# ---- a local model


@pytest.fixture
def local_model(tiny_gpt2, tiny_tokenizer) -> LocalModel:
    return LocalModel(tiny_gpt2("lm"), tiny_tokenizer, batch_size=2)


PROMPTS = ["the film", "a very good plot and", "it was", "this actor is not bad"]


def test_a_batch_generates_what_each_prompt_does_alone(local_model):
    params = SamplingParams(max_tokens=12)
    texts = local_model.generate(PROMPTS, params)
    assert texts == [local_model.generate([prompt], params)[0] for prompt in PROMPTS]
    assert len(set(texts)) > 1
    ids = local_model.tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"][:, :-1]  # without [SEP]
    out = local_model.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
    assert texts[1] == local_model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_samples_depend_on_the_seed_alone(local_model):
    def sampled(seed: int) -> list[str]:
        return local_model.generate(PROMPTS, SamplingParams(10, temperature=1.0, seed=seed))

    state = torch.random.get_rng_state()
    one = sampled(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert sampled(1) == one != sampled(2)


def test_a_text_ends_at_a_stop_string(local_model):
    whole = [str(text) for text in local_model.generate(PROMPTS, SamplingParams(24))]
    word = next(word for word in whole[0].split()[3:] if word.isalpha())
    at = whole[0].index(word, 1)
    texts = local_model.generate(PROMPTS, SamplingParams(24, stop=(word,)))
    assert texts[0] == whole[0][:at]
    assert not isinstance(texts[0], Truncated)
    for text, free in zip(texts, whole, strict=True):
        assert text == free.split(word)[0] or free.startswith(word)
    assert all(isinstance(text, Truncated) for text in local_model.generate(PROMPTS, SamplingParams(3)))


@pytest.mark.parametrize("method", [LoRA(r=2), Prompt(length=4)], ids=["LoRA", "Prompt"])
def test_a_host_generates_with_its_adapter(tiny_gpt2, tiny_tokenizer, method):
    host = Host(tiny_gpt2("lm"))
    host.attach("style", method)
    with torch.no_grad():
        for _, tensor in host.trainable("style"):
            tensor.add_(torch.randn(tensor.shape))
    host.use(None)
    local_model = LocalModel(host, tiny_tokenizer)
    bare = local_model.generate(PROMPTS, SamplingParams(12))
    assert bare == LocalModel(host.model, tiny_tokenizer).generate(PROMPTS, SamplingParams(12))
    host.use("style")
    styled = local_model.generate(PROMPTS, SamplingParams(12))
    assert styled != bare
    assert styled == [local_model.generate([prompt], SamplingParams(12))[0] for prompt in PROMPTS]
    assert local_model.name.endswith("+ style")


def test_a_chat_template_wraps_the_prompt(local_model):
    with pytest.raises(DeltatuneError, match="no chat template"):
        LocalModel(local_model.model, local_model.tokenizer, "chat")
    local_model.tokenizer.chat_template = "{% for m in messages %}it is {{ m['content'] }} and {% endfor %}"
    chat = LocalModel(local_model.model, local_model.tokenizer, "chat")
    assert chat.generate(["good"], SamplingParams(8)) != local_model.generate(["good"], SamplingParams(8))
    bare = local_model.tokenizer("it is good and", add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = local_model.model.generate(bare, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
    assert chat.generate(["good"], SamplingParams(8)) == [
        local_model.tokenizer.decode(out[0, 4:], skip_special_tokens=True)
    ]


def test_models_that_cannot_continue_a_text_are_refused(tiny_bert, tiny_t5, tiny_gpt2, tiny_tokenizer, local_model):
    for model in (tiny_bert("lm"), tiny_t5("lm"), tiny_gpt2()):
        with pytest.raises(DeltatuneError, match="cannot continue a text"):
            LocalModel(model, tiny_tokenizer)
    with pytest.raises(DeltatuneError, match=r"prompt has 121 tokens .* takes 128"):
        local_model.generate(["good " * 120], SamplingParams(64))
    assert isinstance(local_model.generate(["good " * 60], SamplingParams(500))[0], str)


def test_a_tiny_model_really_generates(tiny_gpt2, tiny_tokenizer, tmp_path):
    """It generates noise: what matters is that noise is parsed, counted, and the same when it runs again."""
    short = [{"instruction": f"{word} film?", "output": "it is good"} for word in ("the", "this", "very", "great")]
    model = tiny_gpt2("lm")
    model.config.n_positions = model.config.max_position_embeddings = 4096
    model.transformer.wpe = torch.nn.Embedding(4096, 32)
    steps = []
    for name, mode in (("steps", "steps"), ("whole", "whole")):
        settings = SelfInstruct(
            3,
            mode,
            seed_tasks=2,
            generated_tasks=1,
            prompts=3,
            rounds=3,
            example_tasks=1,
            max_tokens=48,
            example_tokens=32,
            temperature=1.0,
            top_p=1.0,
            min_words=1,
        )
        rows = generate_instructions(
            short, LocalModel(model, tiny_tokenizer), settings, tmp_path / f"{name}.jsonl", steps.append
        )
        again = generate_instructions(short, LocalModel(model, tiny_tokenizer), settings)
        assert rows == again
        assert sum(steps[-1].rejected.values()) + steps[-1].kept > 0
        lines = (tmp_path / f"{name}.rejected.jsonl").read_text().splitlines()
        assert len(lines) == sum(steps[-1].rejected.values())
