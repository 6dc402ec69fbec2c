"""GSM8K in both of its forms, and AQuA: the answer is a rationale and, behind ####, the final one."""

import json

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import examples, read

STORED = [
    {"question": f"What is {n} and {n}?", "rationale": f"{n} + {n} = {2 * n}.", "final_answer": str(2 * n)}
    for n in range(60)
]
PUBLISHED = [
    {"question": row["question"], "answer": f"{row['rationale']}\n#### {row['final_answer']}"} for row in STORED
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("rows", [STORED, PUBLISHED], ids=["rationale and final_answer", "answer"])
def test_both_forms_are_read_as_one(tmp_path, rows):
    data = read(written(tmp_path / "math.jsonl", rows))
    assert (data.kind, data.text, data.label, data.metric) == ("text", ("question",), "answer", "final_answer")
    answers = {row["question"]: row["answer"] for split in data.splits().values() for row in split}
    assert answers == {row["question"]: row["answer"] for row in PUBLISHED}


def test_the_final_answer_alone_can_be_the_label(tmp_path):
    data = read(written(tmp_path / "math.jsonl", STORED), text=["question"], label="final_answer", task="generate")
    assert (data.label, data.train[0]["references"]) == ("final_answer", [data.train[0]["final_answer"]])
    assert data.train[0]["rationale"]


def test_other_rows_to_score_get_the_same_answers():
    scored = examples(STORED[:2], "text", ("question",), "answer")
    assert [row["references"] for row in scored] == [[row["answer"]] for row in PUBLISHED[:2]]


def test_questions_and_answers_without_the_mark_are_another_set(tmp_path):
    rows = [{**row, "answer": row["answer"].replace("####", "so")} for row in PUBLISHED]
    assert read(written(tmp_path / "qa.jsonl", rows)).metric == ""


def test_a_row_without_a_final_answer_is_named(tmp_path):
    rows = [*STORED[:3], {**STORED[3], "final_answer": " "}, *STORED[4:]]
    with pytest.raises(DeltatuneError, match=r"1 rows \(4\) are not in the form of GSM8K.*final_answer is empty"):
        read(written(tmp_path / "math.jsonl", rows))


AQUA = [
    {"question": f"What is {n} + 1?", "options": [f"A){n}", f"B){n + 1}", "C) 0"], "rationale": f"One more than {n}.",
     "correct": "B"}
    for n in range(60)
]  # fmt: skip


def test_the_choices_of_aqua_are_part_of_the_question(tmp_path):
    data = read(written(tmp_path / "aqua.jsonl", AQUA))
    assert (data.text, data.label, data.metric) == (("question", "choices"), "answer", "final_answer")
    row = data.train[0]
    number = int(row["question"].split()[2])
    assert row["choices"] == f"Answer Choices: (A) {number} (B) {number + 1} (C) 0"
    assert row["answer"] == f"One more than {number}.\n#### B"


def test_options_without_letters_are_refused(tmp_path):
    with pytest.raises(DeltatuneError, match="an option does not begin with its letter"):
        read(written(tmp_path / "aqua.jsonl", [*AQUA[:5], {**AQUA[5], "options": ["1", "2"]}]))
