"""Prompts of a task on a real HTTP server: the answers are those that `task.score` reads."""

import numpy as np
import pytest

from deltatune import DeltatuneError
from deltatune.prompting.ask import ask, matched_class, prompts_of, references
from deltatune.prompting.chain_of_thought import ChainOfThought
from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint
from deltatune.tasks.classification import Classify
from deltatune.tasks.generation import Generate
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.reasoning import Reason
from support.endpoint_server import endpoint_of, prompt_of, running, text_of

QUESTIONS = [
    {"question": "2 and 3?", "answer": "We add.\n#### 5"},
    {"question": "4 and 3?", "answer": "We add.\n#### 7"},
]
REVIEWS = [{"text": text, "label": label} for text, label in (("good", "pos"), ("bad", "neg"), ("odd", "pos"))]
SENTIMENT = LabelWords(
    labels=("neg", "pos"), template="{text}. It was {mask}.", words=(("terrible", "bad"), ("great",))
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def solved(body, number):
    """The sum that a prompt asks for, in one or two stages."""
    prompt = prompt_of(body)
    question = prompt.rpartition("Q: ")[2]
    total = sum(int(sign) for sign in question.split("?")[0] if sign.isdigit())
    if prompt.endswith("arabic numerals) is"):
        return 200, text_of(f" {total}.")
    return 200, text_of(f" We add. The answer is {total}.\nQ: 1 and 1?\nA: 2")


@pytest.mark.parametrize("shots", [0, 1])
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_chain_of_thought_is_asked_and_scored(tmp_path, shots, form):
    task = ChainOfThought(shots=shots).reason(("question",), "answer", QUESTIONS)
    with running(solved) as server:
        endpoint = CachedEndpoint(endpoint_of(server, form=form), tmp_path / "a.jsonl")
        asked = ask(endpoint, task, QUESTIONS)
        sent = [prompt_of(request) for request in server.requests]
        assert len(sent) == (2 if shots else 4)
        assert all(request["stop"] == ["\nQ:"] for request in server.requests)
        again = ask(CachedEndpoint(endpoint_of(server, form=form), tmp_path / "a.jsonl"), task, QUESTIONS)
        assert len(server.requests) == len(sent)
    scores = task.score(asked.answers, references(task, QUESTIONS))
    assert scores == {"final_answer": 1.0, "answered": 1.0}
    assert task.decode(asked.answers)[0]["rationale"].startswith("We add.")
    assert "Q: 1 and 1" not in asked.answers[0]["text"]
    assert (again.answers, again.cost.calls, again.cost.cached) == (asked.answers, 0, len(sent))
    assert sum(prompt.endswith("Let's think step by step.") for prompt in sent) == (0 if shots else 2)


def test_the_samples_of_a_question_vote(tmp_path):
    def uncertain(body, number):
        return 200, text_of(f"The answer is {'5' if body['seed'] % 3 else '6'}.")

    task = Reason(demonstrations=("Q: a\nA: b. The answer is 1.",), samples=3, seed=0)
    with running(uncertain) as server:
        asked = ask(CachedEndpoint(endpoint_of(server, form="plain")), task, QUESTIONS)
        assert sorted(request["seed"] for request in server.requests) == [0, 0, 100003, 100003, 200006, 200006]
        assert {request["temperature"] for request in server.requests} == {0.7}
    assert task.decode(asked.answers)[0]["votes"] == [{"answer": "5", "chains": 2}, {"answer": "6", "chains": 1}]
    assert task.score(asked.answers, references(task, QUESTIONS)) == {
        "final_answer": 0.5, "answered": 1.0, "agreement": pytest.approx(2 / 3),
    }  # fmt: skip


def test_texts_without_an_answer_are_counted():
    with running(lambda body, number: (200, text_of("I cannot say"))) as server:
        asked = ask(CachedEndpoint(endpoint_of(server)), Reason(top_k=40), QUESTIONS)
    assert asked.answers[0]["answer"] == ""
    assert "2 of 2 texts hold no answer of the kind 'number'; they count as wrong" in asked.notes
    assert any("top_k=40" in note for note in asked.notes)


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_label_words_are_matched_and_scored(form):
    texts = {"good": " Great!", "bad": "'terrible', I say", "odd": " hard to tell"}

    def judged(body, number):
        prompt = prompt_of(body)
        return 200, text_of(next(text for word, text in texts.items() if prompt.startswith(f"{word}. It was")))

    with running(judged) as server:
        asked = ask(CachedEndpoint(endpoint_of(server, form=form)), SENTIMENT, REVIEWS)
        prompts = [prompt_of(request) for request in server.requests]
    assert asked.answers.shape == (3, 2)
    assert asked.answers.dtype == np.float32
    assert asked.answers[:2].argmax(-1).tolist() == [1, 0]
    assert asked.unmatched == 1
    assert "1 of 3 texts begin with none of the label words ('hard to tell')" in asked.notes[0]
    assert "1 of 3 rows have no answer, which counts as wrong" in asked.notes
    assert SENTIMENT.predictions(asked.answers).tolist() == [1, 0, -1]
    assert SENTIMENT.decode(asked.answers)[2] == {"label": None, "score": 0.0, "scores": {"neg": 0.0, "pos": 0.0}}
    assert "good. It was" in prompts if form == "plain" else any("one of: terrible/bad, great." in p for p in prompts)
    scores = SENTIMENT.score(asked.answers, references(SENTIMENT, REVIEWS))
    assert scores["accuracy"] == pytest.approx(2 / 3)


def test_rows_without_an_answer_are_wrong_for_every_class():
    with running(lambda body, number: (200, text_of("I cannot say"))) as server:
        asked = ask(CachedEndpoint(endpoint_of(server)), SENTIMENT, REVIEWS)
    for true in ([0, 0, 0], [1, 1, 1], [0, 1, 0]):
        scores = SENTIMENT.score(asked.answers, np.asarray(true))
        assert set(scores.values()) == {0.0}, scores


def test_several_prompts_of_a_row_vote():
    from dataclasses import replace

    task = replace(
        SENTIMENT, more_templates=("Review: {text} Sentiment: {mask}",), demonstrations=(("fine. It was great.",),)
    )

    def judged(body, number):
        return 200, text_of("great" if "Sentiment" in prompt_of(body) else "no idea")

    with running(judged) as server:
        asked = ask(CachedEndpoint(endpoint_of(server, form="plain")), task, REVIEWS)
        assert prompt_of(server.requests[0]).startswith("fine. It was great.\n\n")
        assert len(server.requests) == 6
    assert asked.answers.argmax(-1).tolist() == [1, 1, 1]
    assert asked.unmatched == 3


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" great", 1), ("GREAT.", 1), ("The answer is: great", 1), ("Answer: bad", 0), ("**Bad**", 0),
        ("greatly", None), ("not bad", None), ("", None), ("badminton", None), ("Not bad at all!", 2), ("__ great", 1),
    ],
)  # fmt: skip
def test_the_longest_label_word_at_the_start_decides(text, found):
    assert matched_class(text, (("terrible", "bad"), ("great",), ("not bad at all", "not"[:0]))) == found


def test_words_of_scripts_without_spaces_match():
    assert matched_class("好的,谢谢", (("坏",), ("好",))) == 1


def test_what_no_text_can_show_is_refused():
    from dataclasses import replace

    with running(solved) as server:
        endpoint = CachedEndpoint(endpoint_of(server, form="plain"))
        with pytest.raises(DeltatuneError, match="calibrated"):
            ask(endpoint, replace(SENTIMENT, calibration=((0.0, 1.0),)), REVIEWS)
        with pytest.raises(DeltatuneError, match="virtual tokens"):
            ask(endpoint, replace(SENTIMENT, template="{3} {text} {mask}"), REVIEWS)
        with pytest.raises(DeltatuneError, match=r"put \{mask\} at the end, or send the prompt as a message"):
            ask(endpoint, replace(SENTIMENT, template="{mask} is {text}"), REVIEWS)
        with pytest.raises(DeltatuneError, match="Tasks for an endpoint"):
            ask(endpoint, Classify(labels=("neg", "pos")), REVIEWS)
        with pytest.raises(DeltatuneError, match="no column 'text'"):
            ask(endpoint, SENTIMENT, [{"label": "pos"}])
        with pytest.raises(DeltatuneError, match="no beams"):
            ask(endpoint, Generate(beams=3), [{"input": "a"}])
        assert not server.requests
    chat = prompts_of(replace(SENTIMENT, template="{mask} is {text}"), REVIEWS[0], chat=True)
    assert chat[0].startswith("____ is good\n\nWhich word")


def test_generated_texts_are_asked_for():
    task = Generate(text=("question",), label="answer", prompt="Question: {question}\nAnswer:", metric="final_answer")
    seen = []
    with running(lambda body, number: (200, text_of(" so #### 5 "))) as server:
        endpoint = CachedEndpoint(endpoint_of(server, form="plain"))
        asked = ask(endpoint, task, QUESTIONS, lambda done, total: seen.append((done, total)))
        assert {prompt_of(request) for request in server.requests} == {
            "Question: 2 and 3?\nAnswer:", "Question: 4 and 3?\nAnswer:"
        }  # fmt: skip
    assert asked.answers == [{"text": "so #### 5"}] * 2
    assert task.primary_score(asked.answers, references(task, QUESTIONS)).score() == 0.5
    assert seen == [(1, 2), (2, 2)]
