"""/v1/chat/completions with OpenAI's client: templates, streams, log-probabilities, refusals."""

import pytest

from deltatune.tasks.prompts.prompt_format import chat_prompt

ASK = [{"role": "user", "content": "is the film good ?"}]
TALK = [
    {"role": "system", "content": "this is the plot"},
    {"role": "user", "content": "is it good"},
    {"role": "assistant", "content": "it is great"},
    {"role": "user", "content": "and the actor"},
]


def chat(served, messages=ASK, **more):
    body = {"model": "chatty", "temperature": 0, "max_completion_tokens": 8, **more}
    return served.openai.chat.completions.create(messages=messages, **body)


def template_ids(offline, messages):
    text = chat_prompt(messages, offline.tokenizer)
    return offline.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("model", "route"), [("base", {}), ("chatty", {"chatty": 1.0}), ("untold:0.5", {"untold": 0.5})]
)
@pytest.mark.parametrize("messages", [ASK, TALK])
def test_a_conversation_in_the_models_template(served, offline, model, route, messages):
    answer = chat(served, messages, model=model)
    prompt = template_ids(offline, messages)
    expected = offline.greedy_ids(prompt, route, 8)
    assert answer.choices[0].message.content == offline.text(expected)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected)
    assert answer.object == "chat.completion"


def test_an_adapter_trained_on_conversations_answers_as_predict(served, offline):
    expected = offline.predict("chatty", [{"messages": TALK}])[0]["text"]
    assert chat(served, TALK).choices[0].message.content.strip() == expected


@pytest.mark.parametrize("name", ["plain", "plain-ia3"])
def test_an_adapter_with_its_own_form_gets_one_message_in_that_form(served, offline, name):
    answer = chat(served, model=name).choices[0].message.content
    assert answer.strip() == offline.predict(name, [{"input": ASK[0]["content"]}])[0]["text"]
    error = served.refused("/v1/chat/completions", model=name, messages=TALK)
    assert "hold one message of a user" in error["message"]
    assert "columns ask, more" in served.refused("/v1/chat/completions", model="colon", messages=ASK)["message"]


def test_parts_of_text_are_one_content(served):
    parts = [{"type": "text", "text": "is the film"}, {"type": "text", "text": " good ?"}]
    assert chat(served, [{"role": "user", "content": parts}]).choices == chat(served).choices


@pytest.mark.parametrize("more", [{}, {"n": 3, "temperature": 1.0, "seed": 5}])
def test_a_stream_is_the_whole_answer_in_parts(served, more):
    whole = chat(served, logprobs=True, top_logprobs=2, **more)
    chunks = list(chat(served, stream=True, logprobs=True, top_logprobs=2, **more))
    for number, choice in enumerate(whole.choices):
        parts = [each for chunk in chunks for each in chunk.choices if each.index == number]
        assert parts[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
        assert [token.token for token in tokens] == [token.token for token in choice.logprobs.content]
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_log_probabilities(served):
    content = chat(served, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in content)
    assert all(token.logprob == token.top_logprobs[0].logprob for token in content)  # greedy
    assert all(bytes(token.bytes).decode() == token.token for token in content)
    assert all(not token.top_logprobs for token in chat(served, logprobs=True).choices[0].logprobs.content)
    assert chat(served).choices[0].logprobs is None


def test_stop_seed_and_the_usual_fields(served):
    whole = chat(served).choices[0].message.content
    stop = whole[2:5]
    cut = chat(served, stop=[stop], user="someone", metadata={"a": "b"}, store=False, response_format={"type": "text"})
    assert cut.choices[0].message.content == whole.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    drawn = [chat(served, temperature=1.0, seed=seed).choices[0].message.content for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_without_a_length_fills_the_room(served, offline):
    body = {"model": "base", "temperature": 0, "messages": TALK}
    usage = served.openai.chat.completions.create(**body).usage
    assert usage.total_tokens == 128
    long = [{"role": "user", "content": "good " * 200}]
    assert served.refused("/v1/chat/completions", model="base", messages=long)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"messages": []}, "messages", "not empty"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "must be 'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "parts of type text",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls", "texts"),
        ({"tools": [{"type": "function"}]}, "tools", "call no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "ask for it in words"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"audio": {"voice": "x"}}, "audio", "not served"),
        ({"max_tokens": "5"}, "max_tokens", "whole number"),
        ({"prompt": "a"}, "prompt", "unknown field"),
        ({"model": "sst2"}, "model", "POST /v1/classify"),
        ({"model": "plain+chatty"}, "messages", "different forms"),
    ],
)
def test_what_is_refused_in_words(served, more, param, words):
    error = served.refused("/v1/chat/completions", **{"model": "chatty", "messages": ASK, **more})
    assert words in error["message"]
    assert error["param"] == param
