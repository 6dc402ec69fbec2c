"""Chain of thought as a task form: its prompts, room, answers, votes and scores, without a model."""

import json

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.tasks import task_from_json
from deltatune.tasks.auto_task import shorter
from deltatune.tasks.prompts.prompt_encoding import PromptEncoder
from deltatune.tasks.reasoning import ANSWER_TRIGGERS, Reason
from support.chats import chat_tokenizer
from support.language_models import generation_tokenizer

ROWS = [
    {"question": "2 and 3?", "answer": "2 + 3 = <<2+3=5>>5.\nSo it is 5.\n#### 5"},
    {"question": "4 and 3?", "rationale": "We add 4 to 3.", "answer": "7"},
    {"question": "1 and 1?", "answer": "One and one are two. The answer is 2."},
]


def chains(*answers: str) -> list[dict[str, str]]:
    return [{"text": f"t{i}", "rationale": f"r{i}", "answer": answer} for i, answer in enumerate(answers)]


def votes(*pairs):
    return [{"answer": answer, "chains": count} for answer, count in zip(pairs[::2], pairs[1::2], strict=True)]


def test_the_prompts_are_those_of_the_papers():
    task = Reason()
    first = task.chain_prompt(ROWS[0])
    assert first == "Q: 2 and 3?\nA: Let's think step by step."
    second = task.answer_prompt(first, "2 + 3 = 5.")
    assert second == f"{first} 2 + 3 = 5.\nTherefore, the answer (arabic numerals) is"
    shown = tuple(task.demonstration(row) for row in ROWS[:2])
    assert shown[0] == "Q: 2 and 3?\nA: 2 + 3 = 5. So it is 5. The answer is 5."
    assert shown[1] == "Q: 4 and 3?\nA: We add 4 to 3. The answer is 7."
    few = Reason(demonstrations=shown)
    assert few.chain_prompt(ROWS[2]) == f"{shown[0]}\n\n{shown[1]}\n\nQ: 1 and 1?\nA:"
    assert few.demonstration(ROWS[2]) == "Q: 1 and 1?\nA: One and one are two. The answer is 2."
    assert (task.two_stages, few.two_stages, Reason(trigger="").two_stages) == (True, False, False)
    assert Reason(trigger="", answer="yes_no").chain_prompt(ROWS[0]).endswith("A: " + ANSWER_TRIGGERS["yes_no"])
    custom = Reason(text=("question", "options"), prompt="Question: {question}\nOptions: {options}\nAnswer: ")
    assert custom.question({"question": "?", "options": "(A) 1"}) == "Question: ?\nOptions: (A) 1\nAnswer:"
    assert custom.cut("so (A)\nQuestion: another") == "so (A)"


def test_demonstrations_need_a_rationale():
    with pytest.raises(DeltatuneError, match="has no rationale before its final answer"):
        Reason().demonstration({"question": "2 and 3?", "answer": "5"})


def test_answers_are_read_from_one_or_two_stages():
    two, few = Reason(), Reason(demonstrations=("Q: a\nA: b The answer is 1.",))
    assert two.finished("3 and 4 make 7.", "7 of 9.")["answer"] == "7"
    assert few.finished("3 and 4. The answer is 7.") == {
        "text": "3 and 4. The answer is 7.", "rationale": "3 and 4.", "answer": "7",
    }  # fmt: skip
    assert few.finished("3 and then 4")["answer"] == "4"  # no "The answer is": the last match
    assert Reason(trigger="").finished("3, not 4")["answer"] == "3"


def test_the_majority_decides_by_value_and_ties_go_to_the_first():
    task = Reason(samples=5)
    voted = task.vote(chains("7", "1,000", "1000.0", "", "7"))
    assert (voted["answer"], voted["text"], voted["votes"]) == ("7", "t0", votes("7", 2, "1,000", 2))
    assert task.vote(chains("1", "7", "7.00"))["text"] == "t1"
    assert task.vote(chains("", ""))["answer"] == ""
    assert task.vote(chains("", ""))["votes"] == []


def test_scores_and_decoded_answers():
    task = Reason(samples=3)
    answers = [task.vote(chains("5", "5.0", "")), task.vote(chains("", "", "")), task.vote(chains("3", "2", "2"))]
    scores = task.score(answers, [["5"], ["1"], ["3", "2"]])
    assert scores == pytest.approx({"final_answer": 2 / 3, "answered": 2 / 3, "agreement": 4 / 9})
    assert next(iter(scores)) == "final_answer"
    decoded = task.decode(answers)[0]
    assert decoded == {"text": "t0", "answer": "5", "rationale": "r0", "votes": votes("5", 2)}
    single = Reason()
    assert set(single.score([single.vote(chains("5"))], [["5"]])) == {"final_answer", "answered"}


def test_a_stored_task_is_read_back_equal():
    task = Reason(demonstrations=("a", "b"), answer="choice", samples=3, text=("question", "options"))
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


def test_the_first_demonstrations_go_where_there_is_no_room():
    tokenizer = generation_tokenizer()
    shown = tuple(f"Q: film {i}\nA: {'very ' * 10}good. The answer is {i}." for i in range(4))
    task = Reason(demonstrations=shown, max_length=128, new_tokens=20, answer_tokens=4)
    encoded = task.encode(ROWS[:1], tokenizer, labelled=True)
    assert encoded.truncated == 1
    assert encoded.facts[0]["text"].startswith("Q: film 1")
    assert encoded.facts[0]["text"].endswith("Q: 2 and 3?\nA:")
    assert len(encoded.facts[0]["prompt"]) <= 108
    assert encoded.references == [["5"]]
    assert encoded.facts[0]["prompt"] == encoded.rows[0]["input_ids"]


@pytest.mark.parametrize("demonstrations", [(), ("Q: a\nA: b. The answer is 1.",)])
def test_a_question_is_never_cut(demonstrations):
    task = Reason(max_length=128, new_tokens=20, answer_tokens=4, demonstrations=demonstrations)
    with pytest.raises(DeltatuneError, match=r"row 1: the question has 2\d\d tokens.*a question is never cut"):
        task.encode([ROWS[0], {"question": "film " * 200, "answer": "5"}], generation_tokenizer())


def test_room_is_kept_for_both_stages():
    tokenizer = generation_tokenizer()
    task = Reason(max_length=250, new_tokens=30, answer_tokens=10)
    prompt = task.encode([{"question": "film " * 75, "answer": "5"}], tokenizer).facts[0]
    encoder = PromptEncoder(task, tokenizer, True)
    long_chain = task.answer_prompt_ids(prompt["text"], "very " * 190, encoder)
    assert len(long_chain) <= 240
    trigger = encoder.ids(ANSWER_TRIGGERS["number"])
    assert long_chain[-len(trigger) :] == trigger


def test_references_must_be_of_the_kind():
    with pytest.raises(DeltatuneError, match=r"row 1: answer is 'Paris', which holds no answer of the kind 'number'"):
        Reason().references([ROWS[0], {"answer": "Paris"}])
    assert Reason(answer="text").references([{"answer": "Paris"}]) == [["Paris"]]
    assert Reason(answer="choice").references([{"references": ["(B)"]}]) == [["(B)"]]
    with pytest.raises(DeltatuneError, match="no column 'answer'"):
        Reason().references([{"question": "?"}])


def test_wrong_fields_are_named_together():
    with pytest.raises(DeltatuneError) as error:
        Reason(samples=0, beams=3, metric="rouge", prompt="no column", new_tokens=500, max_length=100)
    for words in ("samples must be at least 1", "beams=3", "'rouge' is not a metric", "names no column", "no room"):
        assert words in str(error.value)
    assert "alpaca" not in str(error.value)
    with pytest.raises(DeltatuneError, match="no conversation"):
        Reason(text=("messages",))
    with pytest.raises(DeltatuneError, match="answer must be one of 'number', 'choice', 'yes_no', 'text'"):
        Reason(answer="letter")


def test_a_short_model_gets_a_shorter_task():
    task = shorter(Reason(), 64)
    assert (task.max_length, task.new_tokens, task.answer_tokens) == (64, 32, 16)


def test_in_chat_form_the_prompt_is_a_message_of_the_user():
    tokenizer = chat_tokenizer()
    encoded = Reason(prompt="chat", max_length=400, new_tokens=50).encode(ROWS[:1], tokenizer, labelled=False)
    plain = Reason(max_length=400, new_tokens=50).encode(ROWS[:1], tokenizer, labelled=False)
    text = tokenizer.decode(encoded.facts[0]["prompt"])
    assert len(encoded.facts[0]["prompt"]) > len(plain.facts[0]["prompt"])
    assert "user" in text.replace(" ", "")
