"""ChainOfThought: demonstrations are drawn from rows with a rationale, stored, and opened again without tensors."""

import pytest

from deltatune import DeltatuneError, parse
from deltatune.prompting.chain_of_thought import ChainOfThought
from deltatune.prompting.prompt_method import PromptRows, with_stored_task
from deltatune.tasks.classification import Classify
from deltatune.tasks.generation import Generate
from deltatune.tasks.reasoning import Reason
from deltatune.training import Settings
from deltatune.training.open_session import open_adapter, open_host
from deltatune.training.session import Session
from support import models
from support.language_models import generation_tokenizer

ROWS = [
    {"question": f"{n} and {n}?", "answer": f"{n} + {n} is {2 * n}.\n#### {2 * n}", "references": [f"#### {2 * n}"]}
    for n in range(10)
]
FIELDS = {"new_tokens": 8, "answer_tokens": 4}


def session_of(kind, folder):
    models.tiny(kind, "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    host, tokenizer = open_host(str(folder), "text")
    return Session(str(folder), host, tokenizer, Generate(text=("question",), label="answer"), precision="float32")


@pytest.fixture(params=["llama", "t5"])
def session(request, tmp_path):
    return session_of(request.param, tmp_path / "model")


def labelled(rows):
    return [{name: value for name, value in row.items() if name != "references"} for row in rows]


def test_the_text_form_reads_back():
    method = parse("ChainOfThought(shots=4, samples=3, answer='choice')")
    assert method == ChainOfThought(shots=4, samples=3, answer="choice")
    assert parse(repr(method)) == method
    assert (method.draws, method.trains, ChainOfThought().draws) == (True, False, False)
    assert method.label == "Chain of thought, self-consistency"


def test_it_is_stored_without_tensors_and_opened_again(session, tmp_path):
    method = ChainOfThought(shots=2, samples=2, **FIELDS)
    rows = PromptRows(labelled(ROWS[:6]), labelled(ROWS[6:8]))
    method.check_session(session, rows)
    assert session.name not in session.host.adapters
    fitted = method.fit(session, rows, Settings(seed=1))
    task = fitted.session.task
    assert isinstance(task, Reason)
    assert len(task.demonstrations) == 2
    assert fitted.prompts[0].endswith("Q: {question}\nA:")
    assert task.demonstrations[0] in fitted.prompts[0]
    encoded = fitted.session.encode(labelled(ROWS[8:]))
    answers = fitted.session.predict(encoded)
    assert set(fitted.session.score(encoded)) == {"final_answer", "answered", "agreement"}
    with_stored_task(fitted.session)
    session.host.save(session.name, tmp_path / "chain")
    again = open_adapter(tmp_path / "chain")
    assert (again.task, again.adapter.count, again.adapter.method) == (task, 0, method)
    assert again.predict(labelled(ROWS[8:])) == answers
    assert again.task.decode(answers)[0].keys() == {"text", "answer", "rationale", "votes"}


def test_demonstrations_depend_on_the_seed_alone():
    method = ChainOfThought(shots=3, **FIELDS)
    shown = [method.reason(("question",), "answer", labelled(ROWS), seed).demonstrations for seed in (0, 0, 1)]
    assert shown[0] == shown[1] != shown[2]
    assert all(text.startswith("Q: ") and "The answer is" in text for text in shown[0])


def test_rows_without_steps_are_passed_over():
    rows = [{"question": "a?", "answer": "5"}] * 20 + labelled(ROWS[:2])
    task = ChainOfThought(shots=2).reason(("question",), "answer", rows)
    assert sorted(task.demonstrations) == sorted(task.demonstration(row) for row in rows[-2:])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a?", "answer": "5"}] * 4, "none of the 4 training rows .*columns: 'question', 'answer'"),
        (labelled(ROWS[:1]), "1 of the 1 training rows have steps and an answer of the kind 'number', and 2 are"),
        ([], "there are no training rows"),
        ([{"question": "a?", "answer": "so it is.\n#### Paris"}] * 4, "none of the 4"),
    ],
)  # fmt: skip
def test_too_few_rationales_are_an_error(rows, message):
    with pytest.raises(DeltatuneError, match=message):
        ChainOfThought(shots=2).reason(("question",), "answer", rows)


def test_the_column_of_steps_can_be_named():
    rows = [{"question": "a?", "why": "because", "answer": "(B)"}]
    task = ChainOfThought(shots=1, rationale="why", answer="choice").reason(("question",), "answer", rows)
    assert task.demonstrations == ("Q: a?\nA: because The answer is (B).",)


def test_other_tasks_and_references_are_refused_before_anything_runs(tmp_path):
    method = ChainOfThought(**FIELDS)
    with pytest.raises(DeltatuneError, match="is for questions with an answer as a text"):
        method.check_task(Classify(labels=("a", "b")))
    with pytest.raises(DeltatuneError, match="is for questions with an answer as a text"):
        method.check_task(Generate(text=("messages",), prompt="chat"))
    session = session_of("llama", tmp_path / "model")
    with pytest.raises(DeltatuneError, match="'Paris', which holds no answer of the kind 'number'"):
        method.check_session(session, PromptRows(labelled(ROWS), [{"question": "a", "answer": "Paris"}]))
    assert session.name not in session.host.adapters
    with pytest.raises(DeltatuneError, match="a question is never cut"):
        method.check_session(session, PromptRows([{"question": "film " * 200, "answer": "5"}]))
    assert session.name not in session.host.adapters


def test_a_short_model_is_noted(tmp_path):
    session = session_of("llama", tmp_path / "model")
    fitted = ChainOfThought(answer_tokens=4).fit(session, PromptRows(labelled(ROWS)), Settings())
    assert fitted.notes == ("chains have at most 64 tokens, not 256: the model has 128 positions",)
