"""Labels, tags, answers and vectors over HTTP are those of `deltatune predict`."""

import base64

import numpy as np
import pytest
import torch

from deltatune.tasks.tokenization import tokenise
from deltatune.training.forward import base_outputs, hidden_states
from support.served import TASKS

TEXTS = ["the film is good", "bad", "this plot was very awful and the actor was not great", "it is great!"]
PAIRS = [("the film is good", "it is great"), ("bad plot", "the actor was very good and the film was not")]


def rows_of(name):
    if name == "pairs":
        return [{"premise": a, "hypothesis": b} for a, b in PAIRS]
    if name == "squad":
        return [{"question": "what is good", "context": "the film is good . " * 8 + "the plot is bad"}]
    return [{TASKS[name][1].text[0]: text} for text in TEXTS]


def same(served, offline):
    """Whether answers are equal, numbers within rounding of float32."""
    if isinstance(offline, dict):
        assert served.keys() == offline.keys()
        return all(same(served[key], offline[key]) for key in offline)
    return served == pytest.approx(offline, rel=1e-4, abs=1e-5) if isinstance(offline, float) else served == offline


@pytest.mark.parametrize("name", ["sst2", "sst2-ia3", "pairs", "stars", "topics", "words"])
def test_classification_equals_predict(served, offline, name):
    rows = rows_of(name)
    answers = served.post("/v1/classify", model=name, input=rows)["data"]
    for number, (answer, expected) in enumerate(zip(answers, offline.predict(name, rows), strict=True)):
        expected = {"score": expected["value"]} if "value" in expected else expected
        assert same(answer, {"index": number, **expected})


def test_forms_of_input(served):
    one = served.post("/v1/classify", model="sst2", input=TEXTS[0])
    several = served.post("/v1/classify", model="sst2", input=TEXTS)
    assert several["data"][0]["label"] == one["data"][0]["label"]
    assert one["usage"]["prompt_tokens"] == 6
    assert several["usage"] == {"prompt_tokens": 28, "total_tokens": 28}
    assert several["truncated"] == 0
    pair = {"premise": PAIRS[0][0], "hypothesis": PAIRS[0][1]}
    forms = [pair, [pair], list(PAIRS[0]), [list(PAIRS[0])]]
    answers = [served.post("/v1/classify", model="pairs", input=form)["data"] for form in forms]
    assert all(answer == answers[0] and len(answer) == 1 for answer in answers)


def test_long_texts_are_cut_and_counted(served, offline):
    rows = [{"text": "film " * 200}, {"text": "good"}]
    answer = served.post("/v1/classify", model="sst2", input=rows)
    assert answer["truncated"] == 1
    assert same(answer["data"][0]["scores"], offline.predict("sst2", rows)[0]["scores"])


def test_weights_of_one_and_of_two(served, offline):
    half = served.post("/v1/classify", model="sst2:0.5", input=TEXTS)["data"]
    for answer, expected in zip(half, offline.predict("sst2", rows_of("sst2"), weight=0.5), strict=True):
        assert same(answer["scores"], expected["scores"])
    named = served.post("/v1/classify", adapters={"sst2": 0.5}, input=TEXTS)
    assert named["data"] == half
    assert named["model"] == "sst2:0.5"
    both = served.post("/v1/classify", model="sst2:0.7+sst2-ia3:0.3", input=TEXTS[0])["data"][0]
    with offline.attached("sst2", "sst2-ia3") as host, host.using({"sst2": 0.7, "sst2-ia3": 0.3}, training=False):
        from deltatune.training.forward import logits

        row = tokenise([(TEXTS[0],)], offline.tokenizer)[0]
        with torch.inference_mode():
            values = logits(host, {name: torch.tensor([ids]) for name, ids in row.items() if name != "token_type_ids"})
    expected = torch.softmax(values[0], -1)
    assert [both["scores"]["bad"], both["scores"]["good"]] == pytest.approx(expected.tolist(), rel=1e-4)


def test_tags_and_entities(served, offline):
    rows = [{"tokens": text.split()} for text in TEXTS]
    answers = served.post("/v1/tag", model="ner", input=TEXTS)["data"]
    assert [answer["tags"] for answer in answers] == [each["tags"] for each in offline.predict("ner", rows)]
    assert [answer["tokens"] for answer in answers] == [row["tokens"] for row in rows]
    for answer, text in zip(answers, TEXTS, strict=True):
        assert [text[span["start"] : span["end"]] for span in answer["spans"]] == [s["text"] for s in answer["spans"]]
    words = served.post("/v1/tag", model="ner", tokens=rows[0]["tokens"])["data"]
    several = served.post("/v1/tag", model="ner", tokens=[row["tokens"] for row in rows])["data"]
    assert (words[0]["tags"], [each["tags"] for each in several]) == (answers[0]["tags"], [a["tags"] for a in answers])


def test_answers_of_questions_over_several_windows(served, offline):
    (row,) = rows_of("squad")
    (expected,) = offline.predict("squad", [row])
    one = served.post("/v1/answer", model="squad", **row)["data"][0]
    several = served.post("/v1/answer", model="squad", input=[row, [row["question"], row["context"]]])["data"]
    for answer in (one, *several):
        assert same({k: v for k, v in answer.items() if k != "index"}, expected)
    assert row["context"][one["start"] : one["end"]] == one["answer"]


def test_parts_of_a_mixture(served, offline):
    expected = offline.predict("mixed", [{"text": TEXTS[0]}], part="sentiment")[0]
    answer = served.post("/v1/classify", model="mixed", part="sentiment", input=TEXTS[0])["data"][0]
    assert same(answer, {"index": 0, **expected})
    tags = served.post("/v1/tag", model="mixed", part="names", input=TEXTS[0])["data"][0]["tags"]
    assert tags == offline.predict("mixed", [{"tokens": TEXTS[0].split()}], part="names")[0]["tags"]
    assert "name one with part: names, sentiment" in served.refused("/v1/tag", model="mixed", input="a")["message"]
    assert "nothere" in served.refused("/v1/tag", model="mixed", part="nothere", input="a")["message"]
    assert "leave part out" in served.refused("/v1/tag", model="ner", part="a", input="a")["message"]


def test_embeddings_are_means_of_the_last_hidden_states(served, offline):
    answer = served.openai.embeddings.create(model="sst2:0.5", input=TEXTS)
    floats = served.post("/v1/embeddings", model="sst2:0.5", input=TEXTS, encoding_format="float")
    with offline.attached("sst2") as host, host.using({"sst2": 0.5}, training=False), torch.inference_mode():
        for each, plain, text in zip(answer.data, floats["data"], TEXTS, strict=True):
            ids = torch.tensor([offline.tokenizer(text)["input_ids"]])
            states, _ = hidden_states(base_outputs(host, {"input_ids": ids}))
            expected = torch.nn.functional.normalize(states.float().mean(1), dim=-1)[0].tolist()
            assert each.embedding == pytest.approx(expected, abs=1e-5)
            assert plain["embedding"] == pytest.approx(expected, abs=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 28
    coded = served.post("/v1/embeddings", model="base", input=[5, 9, 7], encoding_format="base64")["data"][0]
    assert len(np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")) == 32
    served.post("/v1/embeddings", model="base", input="good", dimensions=32)
    error = served.refused("/v1/embeddings", model="base", input="good", dimensions=8)
    assert (error["param"], "must be 32" in error["message"]) == ("dimensions", True)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"model": "sst2", "prompt": "a"}, "sst2 is a classifier; POST /v1/classify"),
        ("/v1/completions", {"model": "stars", "prompt": "a"}, "stars is a regression; POST /v1/classify"),
        ("/v1/chat/completions", {"model": "ner", "messages": [{"role": "user", "content": "a"}]}, "POST /v1/tag"),
        ("/v1/classify", {"model": "squad", "input": "a"}, "squad is a question answerer; POST /v1/answer"),
        ("/v1/answer", {"model": "plain", "question": "a", "context": "b"}, "POST /v1/completions"),
        ("/v1/tag", {"model": "untold", "input": "a"}, "does not say what it was trained for"),
        ("/v1/tag", {"model": "base", "input": "a"}, "the base has no task of its own"),
        ("/v1/classify", {"model": "sst2+pairs", "input": "a"}, "different tasks (labels, text)"),
        ("/v1/classify", {"model": "words+sst2", "input": "a"}, "different tasks"),
        ("/v1/classify", {"model": "pairs", "input": "a"}, "2 texts a row"),
        ("/v1/classify", {"model": "sst2", "input": [["a", "b"]]}, "reads a text a row"),
        ("/v1/classify", {"model": "sst2", "input": {"words": "a"}}, "'text'"),
        ("/v1/classify", {"model": "sst2", "input": {"txt": "a"}}, "no column 'txt', did you mean 'text'?"),
        ("/v1/completions", {"model": "colon", "input": {"ask": "a", "mor": "b"}}, "'mor', did you mean 'more'?"),
        ("/v1/classify", {"model": "sst2", "input": {"text": 5}}, "text is 5, not a text"),
        ("/v1/classify", {"model": "sst2", "input": []}, "list of 1 to 512"),
        ("/v1/classify", {"model": "sst2"}, "input is missing"),
        ("/v1/tag", {"model": "ner", "input": "  "}, "no words"),
        ("/v1/tag", {"model": "ner", "tokens": [1]}, "list of words"),
        ("/v1/answer", {"model": "squad", "question": "a"}, "context is missing"),
        ("/v1/embeddings", {"model": "base", "input": ""}, "none of them empty"),
        ("/v1/embeddings", {"model": "base", "input": [3, 10**6]}, "not in the vocabulary"),
        ("/v1/embeddings", {"model": "base", "input": "a", "encoding_format": "int8"}, "'float' or 'base64'"),
    ],
)
def test_what_is_refused_in_words(served, path, body, words):
    error = served.refused(path, **body)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
