"""/v1/completions with OpenAI's client: answers equal to those offline, streams, stops, choices, log-probabilities."""

import json

import openai
import pytest
import torch

from support.served import TASKS

PROMPT = "the film was very"


def completed(served, **more):
    return served.openai.completions.create(**{"model": "plain", "prompt": PROMPT, "temperature": 0, **more})


def streamed(served, **more):
    """The texts and reasons of each choice of a stream, and its chunks."""
    chunks = list(completed(served, stream=True, **more))
    texts, reasons = {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in reasons
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, chunks


# ---- equal to offline


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("base", {}),
        ("org/tiny", {}),
        ("plain", {"plain": 1.0}),
        ("plain:0.3", {"plain": 0.3}),
        ("plain:0.7 + plain-ia3:0.5", {"plain": 0.7, "plain-ia3": 0.5}),
        ("untold", {"untold": 1.0}),
        ("colon", {"colon": 1.0}),
    ],
)
def test_greedy_answers_equal_those_offline(served, offline, model, route):
    answer = completed(served, model=model, max_tokens=12)
    ids = offline.greedy(PROMPT, route, 12)
    assert answer.choices[0].text == offline.text(ids)
    assert answer.usage.completion_tokens == len(ids)
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.total_tokens == 5 + len(ids)
    assert answer.choices[0].finish_reason == ("length" if len(ids) == 12 else "stop")
    assert answer.model == model
    assert streamed(served, model=model, max_tokens=12)[0] == {0: answer.choices[0].text}


def test_adapters_as_a_field(served):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 6}
    named = served.post("/v1/completions", model="plain:0.5+plain-ia3:0.25", **body)
    field = served.post("/v1/completions", adapters={"plain": 0.5, "plain-ia3": 0.25}, **body)
    beside = served.post("/v1/completions", model="base", adapters={"plain": 0.5, "plain-ia3": 0.25}, **body)
    assert field["choices"] == named["choices"] == beside["choices"]
    assert field["model"] == "plain:0.5+plain-ia3:0.25"


def test_prompts_as_texts_and_as_token_ids(served, offline):
    ids = offline.tokenizer(PROMPT)["input_ids"][:-1]
    single = completed(served, max_tokens=6).choices[0].text
    for prompt in (ids, [ids], [PROMPT]):
        assert completed(served, prompt=prompt, max_tokens=6).choices[0].text == single
    several = completed(served, prompt=[PROMPT, "good", PROMPT], max_tokens=6)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert [several.choices[0].text, several.choices[2].text] == [single, single]
    assert several.choices[1].text == completed(served, prompt="good", max_tokens=6).choices[0].text
    assert several.usage.prompt_tokens == 5 + 2 + 5
    assert completed(served).usage.completion_tokens == 16  # OpenAI's default


@pytest.mark.parametrize("name", ["plain", "plain-ia3", "colon", "beams", "chatty"])
def test_inputs_in_the_adapters_own_form_equal_predict(served, offline, name):
    inputs = {
        "colon": [{"ask": "is it good", "more": "very"}, {"ask": "bad"}],
        "chatty": [{"messages": [{"role": "user", "content": "is the film good"}]}],
    }.get(name, ["the film", "it was not very good"])
    columns = TASKS[name][1].text
    rows = [row if isinstance(row, dict) else {columns[0]: row} for row in inputs]
    answer = served.post("/v1/completions", model=name, input=inputs)
    assert [choice["text"] for choice in answer["choices"]] == [each["text"] for each in offline.predict(name, rows)]
    one = served.post("/v1/completions", model=name, input=inputs[0])
    assert one["choices"] == answer["choices"][:1]


def test_long_inputs_are_cut_as_predict_does(served, offline):
    answer = served.post("/v1/completions", model="plain", input="good film " * 60)
    assert answer["choices"][0]["text"] == offline.predict("plain", [{"input": "good film " * 60}])[0]["text"]
    assert answer["truncated"] == 1
    assert answer["usage"]["prompt_tokens"] <= 64 - 8


# ---- sampling


def test_seeds_and_choices(served):
    drawn = {"temperature": 1.0, "max_tokens": 8, "n": 3, "seed": 7, "extra_body": {"ignore_eos": True}}
    first, again = (completed(served, **drawn) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3
    assert completed(served, **{**drawn, "n": 1}).choices[0].text == texts[0]
    assert completed(served, **{**drawn, "n": 1, "seed": 8}).choices[0].text != texts[0]
    assert first.usage.prompt_tokens == 5
    assert first.usage.completion_tokens == 24
    assert streamed(served, **drawn)[0] == dict(enumerate(texts))
    both = completed(served, prompt=[PROMPT, "good"], **{**drawn, "n": 2})
    assert [choice.text for choice in both.choices][:2] == texts[:2]


def test_without_a_seed_draws_differ(served):
    drawn = {"temperature": 1.5, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
    texts = {completed(served, **drawn).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_best_of_keeps_the_likeliest(served):
    drawn = {"temperature": 1.5, "max_tokens": 5, "seed": 3}
    every = completed(served, n=4, logprobs=0, **drawn)
    means = [sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in every.choices]
    best = completed(served, n=1, best_of=4, **drawn)
    assert best.choices[0].text == every.choices[means.index(max(means))].text
    assert best.choices[0].logprobs is None
    assert best.usage.completion_tokens == sum(len(c.logprobs.tokens) for c in every.choices)


def test_bias_and_penalties_change_the_answer(served, offline):
    token = offline.tokenizer.convert_tokens_to_ids("awful")
    forced = completed(served, max_tokens=4, logit_bias={str(token): 100})
    assert forced.choices[0].text == "awful awful awful awful"
    varied = completed(served, max_tokens=4, logit_bias={str(token): 2}, presence_penalty=2, frequency_penalty=2)
    assert varied.choices[0].text != forced.choices[0].text


# ---- stop strings


def test_stop_strings_end_the_text_and_are_never_given_out(served):
    whole = completed(served, max_tokens=16).choices[0].text
    words = whole.split()
    for stop in (words[3], whole[4:9], whole[-6:-1], [whole[7:12], words[-1]]):
        first = min(whole.find(each) for each in ([stop] if isinstance(stop, str) else stop))
        answer = completed(served, max_tokens=16, stop=stop)
        assert answer.choices[0].text == whole[:first]
        assert answer.choices[0].finish_reason == "stop"
        texts, reasons, _ = streamed(served, max_tokens=16, stop=stop, logprobs=1)
        assert (texts, reasons) == ({0: whole[:first]}, {0: "stop"})
    assert completed(served, max_tokens=16, stop="not there").choices[0].text == whole


def test_a_stop_string_in_each_choice(served):
    drawn = {"temperature": 1.0, "max_tokens": 8, "n": 3, "seed": 7}
    whole = [choice.text for choice in completed(served, **drawn).choices]
    stop = whole[1][3:6]
    texts, reasons, _ = streamed(served, stop=stop, **drawn)
    assert texts == {number: text.partition(stop)[0] for number, text in enumerate(whole)}
    assert [reasons[number] == "stop" for number in range(3)] == [stop in text for text in whole]


def test_log_probabilities_do_not_tell_what_the_stop_cut_off(served):
    whole = completed(served, max_tokens=16, logprobs=0).choices[0]
    for width in (2, 4, 7):
        stop = whole.text[6 : 6 + width]
        answer = completed(served, max_tokens=16, stop=stop, logprobs=0).choices[0]
        count = len(answer.logprobs.tokens)
        assert 0 < count < len(whole.logprobs.tokens)
        assert answer.logprobs.tokens == whole.logprobs.tokens[:count]
        assert whole.logprobs.text_offset[count] <= len(answer.text) or stop in "[UNK][PAD]"
        ends = [*whole.logprobs.text_offset[1:], len(whole.text)]
        assert ends[count - 1] <= len(answer.text)


# ---- log-probabilities


def test_log_probabilities_are_the_models_own(served, offline):
    answer = completed(served, max_tokens=5, logprobs=3, temperature=1.3, seed=1, frequency_penalty=1.0).choices[0]
    tokens = offline.tokenizer.convert_tokens_to_ids(answer.logprobs.tokens)
    ids = offline.tokenizer(PROMPT)["input_ids"][:-1]
    with offline.attached("plain") as host, host.using("plain", training=False), torch.inference_mode():
        logits = host.model(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1]
    expected = logits.log_softmax(-1)
    chosen = [float(row[token]) for row, token in zip(expected, tokens, strict=True)]
    assert answer.logprobs.token_logprobs == pytest.approx(chosen, abs=1e-4)
    for row, top in zip(expected, answer.logprobs.top_logprobs, strict=True):
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert 3 <= len(top) <= 4
    for token, start in zip(answer.logprobs.tokens, answer.logprobs.text_offset, strict=True):
        assert answer.text[start:].lstrip().startswith(token.removeprefix("##")) or token.startswith("[")


def test_streamed_log_probabilities_are_the_same(served):
    whole = completed(served, max_tokens=6, logprobs=2).choices[0].logprobs
    _, _, chunks = streamed(served, max_tokens=6, logprobs=2)
    parts = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token for part in parts for token in part.tokens] == whole.tokens
    assert [start for part in parts for start in part.text_offset] == whole.text_offset


# ---- streams


def test_a_stream_ends_with_its_usage(served):
    _, reasons, chunks = streamed(served, max_tokens=5, n=2, stream_options={"include_usage": True})
    assert reasons == {0: "length", 1: "length"}
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens, chunks[-1].usage.prompt_tokens) == ([], 10, 5)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in streamed(served, max_tokens=2)[2])


def test_the_lines_of_a_stream(served):
    with served.http.stream("POST", "/v1/completions", json={"model": "base", "prompt": "a", "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0][6:])["object"] == "text_completion"


def test_echo(served):
    plain = completed(served, max_tokens=4).choices[0].text
    assert completed(served, max_tokens=4, echo=True).choices[0].text == PROMPT + plain
    assert streamed(served, max_tokens=4, echo=True)[0] == {0: PROMPT + plain}


# ---- refusals


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"model": "plian"}, "model", "does not exist, did you mean 'plain'?"),
        ({"model": "plain:x"}, "model", "the weight of 'plain' must be a number"),
        ({"model": "plain:nan"}, "model", "must be a number"),
        ({"model": "plain:\u0663"}, "model", "must be a number"),
        ({"model": "plain+plain"}, "model", "named twice"),
        ({"model": "base+plain"}, "model", "is always there"),
        ({"model": "+"}, "model", "a name is missing"),
        ({"model": "plain", "adapters": {"plain": 1}}, "adapters", "both say which adapters act"),
        ({"model": None, "adapters": {"plain": "1"}}, "adapters.plain", "the weight of adapter 'plain'"),
        ({"model": None}, "model", "must provide a model"),
        ({"suffix": "x"}, "suffix", "fill no gap"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "1 to 500 characters"),
        ({"stop": "x" * 501}, "stop", "1 to 500 characters"),
        ({"n": 0}, "n", "from 1 to 16"),
        ({"n": 2, "best_of": 1}, "best_of", "at least n=2"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to 8192"),
        ({"max_tokens": 500}, None, "500"),
        ({"temperature": 3}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "number"),
        ({"top_p": -0.1}, "top_p", "from 0 to 1"),
        ({"logprobs": 50}, "logprobs", "from 0 to 20"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids below"),
        ({"logit_bias": {"5": 1000}}, "logit_bias", "-100 to 100"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "is for streams"),
        ({"echo": True, "logprobs": 1}, "echo", "with logprobs is not served"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"prompt": None}, "prompt", "is missing"),
        ({"prompt": []}, "prompt", "text"),
        ({"prompt": [["a"]]}, "prompt", "token ids"),
        ({"prompt": [10**6]}, "prompt", "not in the vocabulary"),
        ({"prompt": [5, -8]}, "prompt", "not [5, -8]"),
        ({"response_format": {"type": "json_object"}}, "response_format", "forces an answer to be JSON"),
        ({"tools": [{"type": "function"}]}, "tools", "call no tools"),
        ({"prompt": "x " * 300}, None, "301 tokens"),
        ({"input": "a"}, "input", "exclude each other"),
        ({"prompt": None, "input": {"inptu": "a"}}, "input", "did you mean 'input'?"),
        ({"prompt": None, "input": "a", "model": "base"}, "input", "send prompt"),
        ({"prompt": None, "input": "a", "model": "untold"}, "input", "send prompt"),
        ({"prompt": None, "input": "a", "model": "plain+colon"}, "input", "different forms"),
        (
            {"prompt": None, "input": "a", "model": "beams", "temperature": 1},
            "temperature",
            "decodes as its task says, with beams",
        ),
        ({"prompt": ["a"] * 100, "n": 16}, "n", "1,600 answers"),
    ],
)
def test_what_is_refused_in_words(served, more, param, words):
    body = {"model": "plain", "prompt": PROMPT, **more}
    answer = served.http.post("/v1/completions", json={k: v for k, v in body.items() if v is not None})
    assert answer.status_code == (404 if "does not exist" in words else 400), answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


def test_the_clients_exceptions(served):
    with pytest.raises(openai.NotFoundError) as caught:
        completed(served, model="nothing-like-it")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        completed(served, prompt="good " * 500)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        completed(served, prompt="good " * 500, stream=True)
