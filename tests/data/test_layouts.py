"""Rows of tagging, extractive QA, generation, language modelling and multilabel classification; the inferred task."""

import json
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import Data, examples, inputs, read, read_rows
from deltatune.data.columns.column_rules import RULES
from deltatune.data.dataset import TASK_OF, TASKS
from deltatune.data.layouts import LAYOUTS


def write(path: Path, rows) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def complaint(function, *args, **kwargs) -> str:
    with pytest.raises(DeltatuneError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def tagging_rows(count=60):
    return [{"tokens": ["Ann", "met", f"friend{i}"], "tags": ["B-person", "O", "O"]} for i in range(count)]


def qa_rows(count=60):
    return [
        {"question": f"Who met {i}?", "context": f"Ann met {i}.", "answers": [{"text": "Ann", "start": 0}]}
        for i in range(count)
    ]


def generation_rows(count=60):
    return [{"input": f"name[{i}]", "output": f"There is {i}."} for i in range(count)]


def documents(count=60):
    return [{"title": "t", "text": f"Document number {i}."} for i in range(count)]


ALL = {"tag": tagging_rows, "span": qa_rows, "generate": generation_rows, "lm": documents}


@pytest.mark.parametrize(
    ("task", "text", "label", "kind"),
    [
        ("tag", ("tokens",), "tags", "tags"),
        ("span", ("question", "context"), "answers", "span"),
        ("generate", ("input",), "output", "text"),
        ("lm", ("text",), "", "raw"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_each_task(tmp_path, task, text, label, kind, told):
    data = read(write(tmp_path / "a.jsonl", ALL[task]()), task=task if told else None)
    assert isinstance(data, Data)
    assert (data.task, data.kind, data.text, data.label) == (task, kind, text, label)
    assert sum(map(len, data.splits().values())) == 60
    assert any(f"the task is {task}, inferred from the names" in note for note in data.notes) != told


def test_every_task_has_a_layout_and_rules_for_its_columns():
    assert set(LAYOUTS) == set(TASKS) == set(TASK_OF.values())
    assert set(RULES) == set(TASKS) - {"image"}  # pictures with captions have a reader of their own


def test_tags(tmp_path):
    data = read(write(tmp_path / "a.jsonl", [*tagging_rows(), {"tokens": "Bo saw Eve", "tags": "B-person O B-person"}]))
    assert data.labels == ("O", "B-person")
    found = [row for rows in data.splits().values() for row in rows]
    assert {"tokens": ["Bo", "saw", "Eve"], "tags": ["B-person", "O", "B-person"]} in found


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "'tokens' and 'tags' differ in length in 1 row (61): 2 tokens and 1 tags",
        ),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "column 'tokens' is not a list of strings in 1 row (61): {'a': 1}"),
        ({"tokens": ["a"], "tags": None}, "column 'tags' is not a list of strings in 1 row (61): None"),
        ({"tokens": [], "tags": []}, "column 'tokens' has no words in 1 row (61)"),
    ],
)
def test_bad_tags(tmp_path, row, part):
    assert f"train: {part}" in complaint(read, write(tmp_path / "a.jsonl", [*tagging_rows(), row]))


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([{"text": "Bo", "start": 3}], [{"text": "Bo", "start": 3}]),
        ([{"text": "Bo", "answer_start": 3}], [{"text": "Bo", "start": 3}]),
        (
            {"text": ["Bo", "so Bo"], "answer_start": [3, 0]},
            [{"text": "Bo", "start": 3}, {"text": "so Bo", "start": 0}],
        ),
        (["left"], [{"text": "left", "start": 6}]),
        ("left", [{"text": "left", "start": 6}]),
        ([{"text": "Bo", "start": -1}], [{"text": "Bo", "start": 3}]),
        ([], []),
        ({"text": [], "answer_start": []}, []),
    ],
)
def test_forms_of_answers(tmp_path, answers, found):
    row = {"question": "Who?", "context": "so Bo left.", "answers": answers}
    data = read(write(tmp_path / "a.jsonl", [*qa_rows(), row]))
    (mine,) = [row for rows in data.splits().values() for row in rows if row["question"] == "Who?"]
    assert mine["answers"] == found


def test_an_answer_that_occurs_twice_is_noted(tmp_path):
    data = read(write(tmp_path / "a.jsonl", [*qa_rows(), {"question": "Q", "context": "Bo, Bo", "answers": ["Bo"]}]))
    assert any("in 1 rows an answer without a start occurs more than once" in note for note in data.notes)


@pytest.mark.parametrize(
    ("answers", "part"),
    [
        ([{"text": "bo", "start": 3}], "an answer is not in its context in 1 row (61): 'bo'"),
        ([{"text": "Bo", "start": 4}], "'Bo' should start at 4, where the context has 'o '; it is found at 3"),
        ([{"text": " ", "start": 2}], "an answer has no text"),
        (None, "column 'answers' holds no answers in 1 row (61): None"),
        ([3], "column 'answers' holds no answers in 1 row (61): [3]"),
    ],
)
def test_bad_answers(tmp_path, answers, part):
    row = {"question": "Who?", "context": "so Bo left.", "answers": answers}
    assert part in complaint(read, write(tmp_path / "a.jsonl", [*qa_rows(), row]))


def test_questions_on_one_context_stay_together(tmp_path):
    rows = [{**row, "question": f"{row['question']} {i}"} for row in qa_rows() for i in range(4)]
    data = read(write(tmp_path / "a.jsonl", rows))
    contexts = [{row["context"] for row in split} for split in data.splits().values()]
    assert sum(map(len, contexts)) == 60


def test_references_are_always_there(tmp_path):
    rows = [
        {**row, "references": [row["output"], "Else."]} if i % 2 else row for i, row in enumerate(generation_rows())
    ]
    data = read(write(tmp_path / "a.jsonl", rows))
    for row in (row for split in data.splits().values() for row in split):
        assert row["references"][0] == row["output"]
        assert len(row["references"]) in (1, 2)


def test_several_outputs_in_one_column(tmp_path):
    rows = [{"input": f"x {i}", "references": [f"y {i}", f"z {i}"]} for i in range(60)]
    data = read(write(tmp_path / "a.jsonl", rows))
    assert all(len(row["references"]) == 2 for row in data.test)
    assert all(row[data.label] == row["references"][0] for row in data.train)
    assert read(tmp_path / "a.jsonl", text=data.text, label=data.label, task="generate").test == data.test
    assert data.task == "generate"


def test_repeated_inputs_are_one_row_where_they_are_scored(tmp_path):
    folder = tmp_path / "d"
    twice = [{"input": f"x {i}", "output": f"{word} {i}"} for i in range(10) for word in ("A", "B")]
    for split in ("train", "dev", "test"):
        write(folder / f"{split}.jsonl", twice)
    data = read(folder)
    assert [len(rows) for rows in data.splits().values()] == [20, 10, 10]
    assert data.test[0] == {"input": "x 0", "output": "A 0", "references": ["A 0", "B 0"]}
    assert any(note.startswith("test: 20 rows repeat 10 inputs") for note in data.notes)


def test_one_input_never_lands_on_two_sides(tmp_path):
    rows = [{"input": f"x {i}", "output": f"{word} {i}"} for i in range(50) for word in ("A", "B")]
    data = read(write(tmp_path / "a.jsonl", rows))
    sides = [{row["input"] for row in split} for split in data.splits().values()]
    assert sum(map(len, sides)) == 50


def test_limit_counts_training_rows(tmp_path):
    for task, rows in ALL.items():
        path = write(tmp_path / f"{task}.jsonl", rows())
        whole, limited = read(path), read(path, limit=10)
        assert len(limited.train) == 10
        assert limited.test == whole.test
        assert limited.train == read(path, limit=10).train


def test_rows_for_prediction_get_the_same_shape():
    assert inputs([{"tokens": "a b"}], "tag", ["tokens"]) == [{"tokens": ["a", "b"]}]
    assert inputs([{"input": {"name": "Ann"}}], "generate", ["input"]) == [{"input": "name: Ann"}]
    chat = [{"conversations": [{"from": "human", "value": "Hi"}]}]
    assert inputs(chat, "generate", ["messages"]) == [{"messages": [{"role": "user", "content": "Hi"}]}]
    assert inputs([{"question": "q", "context": "c"}], "span", ["question", "context"])[0]["context"] == "c"
    assert "no column 'tokens'" in complaint(inputs, [{"text": "a"}], "tag", ["tokens"])
    assert "column 'text' has no text in 1 row (2)" in complaint(inputs, [{"text": "a"}, {"text": ""}], "lm", ["text"])


def test_rows_to_score_with_get_the_same_shape():
    assert examples([{"tokens": "a b", "tags": "O O"}], "tags", ["tokens"], "tags")[0]["tags"] == ["O", "O"]
    assert examples([{"text": "a", "label": "x|y"}], "many", ["text"], "label")[0]["label"] == ["x", "y"]
    assert examples([{"text": "a", "label": 3}], "classes", ["text"], "label")[0]["label"] == "3"
    assert examples([{"text": "a"}], "raw", ["text"], "") == [{"text": "a"}]
    found = examples([{"input": "a", "references": ["b", "c"]}], "text", ["input"], "output")
    assert found == [{"input": "a", "output": "b", "references": ["b", "c"]}]
    chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert examples([{"conversations": chat}], "text", ["messages"], "messages")[0]["references"] == ["Hello"]
    assert "no column 'tags'" in complaint(examples, [{"tokens": "a"}], "tags", ["tokens"], "tags")
    assert "differ in length" in complaint(examples, [{"tokens": "a", "tags": "O O"}], "tags", ["tokens"], "tags")


@pytest.mark.parametrize(
    ("row", "options", "part"),
    [
        ({"body": "b", "tldr": "t"}, {"task": "generate"}, "which column holds the input is not clear"),
        ({"a": ["x"], "tags": ["O"]}, {"task": "tag"}, "which column holds the tokens is not clear"),
        ({"question": "q", "label": "0"}, {"task": "span"}, "text=QUESTION text=CONTEXT"),
        ({"text": "q", "label": "0"}, {"task": "lm", "label": "label"}, "leave out label=label"),
        ({"text": "q", "label": "0"}, {"task": "tags"}, "there is no such task, did you mean 'tag'?"),
        ({"text": "q", "label": "0"}, {"task": "tag", "kind": "classes"}, "kind='classes' is for the task classify"),
        ({"text": "q", "label": "0"}, {"kind": "class"}, "there is no such kind, did you mean 'classes'?"),
        ({"text": "q", "label": "0"}, {"task": "lm", "text": ["txet"]}, "did you mean 'text'?"),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path, row, options, part):
    assert part in complaint(read, write(tmp_path / "a.jsonl", [row] * 30), **options)


def test_yes_or_no_is_no_text(tmp_path):
    rows = [{"question": f"q {i}", "passage": f"p {i}", "answer": bool(i % 2)} for i in range(60)]
    data = read(write(tmp_path / "a.jsonl", rows))
    assert (data.task, data.text, data.labels) == ("classify", ("question", "passage"), ("False", "True"))
    message = complaint(read, write(tmp_path / "b.jsonl", [{**row, "answer": str(row["answer"])} for row in rows]))
    assert "task=classify text=question text=passage label=answer" in message


def test_several_columns_of_tags_are_asked_about(tmp_path):
    rows = [{**row, "ner_tags": row["tags"], "pos_tags": ["NNP", "VBD", "NN"]} for row in tagging_rows()]
    path = write(tmp_path / "a.jsonl", rows)
    assert read(path).label == "tags"
    path = write(tmp_path / "b.jsonl", [{k: v for k, v in row.items() if k != "tags"} for row in rows])
    message = complaint(read, path)
    assert "task=tag text=tokens label=ner_tags" in message
    assert "task=tag text=tokens label=pos_tags" in message
    assert "name it with label=NAME" in complaint(read, path, task="tag")
    assert read(path, label="pos_tags").labels == ("NN", "NNP", "VBD")


def test_several_outputs_are_asked_about(tmp_path):
    rows = [{"article": f"a {i}", "highlights": f"b {i}", "summary": f"c {i}"} for i in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    message = complaint(read, path)
    assert "task=generate text=article label=highlights" in message
    assert "task=generate text=article label=summary" in message
    assert read(path, label="summary").label == "summary"


def test_named_columns_of_lists_are_tokens_and_tags(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"w": row["tokens"], "t": row["tags"]} for row in tagging_rows()])
    data = read(path, text=["w"], label="t")
    assert (data.task, data.text, data.label) == ("tag", ("w",), "t")


def test_numbers_are_written_as_text(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": f"1 + {i}?", "answer": 1 + i} for i in range(60)])
    data = read(path, task="generate")
    assert all(row["answer"] == row["references"][0] == str(int(row["answer"])) for row in data.train)


def test_other_tasks_are_offered(tmp_path):
    rows = [{"question": f"q {i}", "rationale": f"because {i}", "final": str(i)} for i in range(40)]
    message = complaint(read, write(tmp_path / "a.jsonl", rows))
    assert "task=generate text=question label=rationale" in message
    assert "task=lm text=question" in message
    message = complaint(read, tmp_path / "a.jsonl", text=["question"], label="rationale")
    assert "column 'rationale' has 40 different values in 40 rows" in message
    assert read(tmp_path / "a.jsonl", text=["question"], label="rationale", task="generate").kind == "text"


def test_outputs_that_could_be_classes_are_asked_about(tmp_path):
    rows = [{"input": f"review {i}", "output": ("good", "bad")[i % 2]} for i in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    message = complaint(read, path)
    assert "task=classify text=input label=output" in message
    assert "task=generate text=input label=output" in message
    assert read(path, task="classify", text=["input"], label="output").kind == "classes"
    assert read(path, task="generate").kind == "text"


@pytest.mark.parametrize(
    "make",
    [
        lambda names: names,
        lambda names: json.dumps(names),
        lambda names: "|".join(names),
        lambda names: "; ".join(names),
        lambda names: ", ".join(names),
    ],
)
def test_several_classes_a_row(tmp_path, make):
    sets = [["red"], ["red", "green"], ["blue", "green"], ["blue"]]
    rows = [{"text": f"text {i}", "label": make(sets[i % 4])} for i in range(80)]
    data = read(write(tmp_path / "a.jsonl", rows))
    assert (data.kind, data.task, data.labels) == ("many", "classify", ("blue", "green", "red"))
    assert {tuple(row["label"]) for row in data.train} == {tuple(names) for names in sets}


def test_a_comma_in_a_class_name_is_no_separator(tmp_path):
    rows = [{"text": f"text {i}", "label": ("arts, music", "sport")[i % 2]} for i in range(80)]
    path = write(tmp_path / "a.jsonl", rows)
    assert read(path).labels == ("arts, music", "sport")
    assert read(path, kind="many").labels == ("arts", "music", "sport")


def test_a_column_for_each_class(tmp_path):
    lines = [f"text {i} of many,{i % 2},{i % 3 == 0},{float(i % 7 == 0)}" for i in range(100)]
    path = tmp_path / "rows.csv"
    path.write_text("comment,toxic,rude,threat\n" + "\n".join(lines) + "\n")
    data = read(path, label="toxic, rude,threat")
    assert (data.task, data.kind, data.labels) == ("classify", "many", ("rude", "threat", "toxic"))
    rows = [row for part in data.splits().values() for row in part]
    row = next(row for row in rows if row["comment"].startswith("text 21 "))
    assert row["toxic, rude,threat"] == ["toxic", "rude", "threat"]
    assert set(row) == {"comment", "toxic, rude,threat"}
    assert "did you mean 'threat'" in complaint(read, path, label="toxic,thread")
    told = complaint(read, path)
    assert "A column for each class, several a row: label=toxic,rude,threat" in told
    path.write_text("comment,toxic,rude\na text,1,2\nanother,,0\n")
    told = complaint(read, path, label="toxic,rude")
    assert "train: row 1: rude is '2', row 2: toxic is ''" in told
    assert "holds 1 or 0" in told


def test_regression_and_classes_by_task(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": i % 3} for i in range(60)])
    assert read(path).kind == "classes"
    assert read(path, task="regression").kind == "number"
    path = write(tmp_path / "b.jsonl", [{"text": f"t {i}", "label": (i % 3) + 0.5} for i in range(60)])
    assert read(path).task == "regression"
    assert read(path, task="classify").labels == ("0.5", "1.5", "2.5")


def test_whole_numbers_that_lie_as_amounts_do_are_numbers(tmp_path):
    def kind(values):
        lines = [f"a house in street number {i},{value}" for i, value in enumerate(values)]
        (tmp_path / "rows.csv").write_text("description,price\n" + "\n".join(lines) + "\n")
        return read(tmp_path / "rows.csv")

    prices = [100_000 + 137 * (i * i % 997) for i in range(100)]
    data = kind(prices)
    assert (data.kind, data.text, data.label) == ("number", ("description",), "price")
    assert any("different numbers from" in note and "this is regression" in note for note in data.notes)
    assert kind([f"{price}.5" for price in prices]).kind == "number"
    assert kind([7 * (i % 20) for i in range(100)]).kind == "classes", "as few as classes are"
    assert kind([1000 * (i % 30) for i in range(300)]).kind == "classes", "many rows each"
    with pytest.raises(DeltatuneError, match="label is not clear"):
        kind(range(1000, 1100))  # they count the rows


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (("instruction", "context", "response", "category"), ("instruction", "context")),
        (("question", "context", "answer"), ("question", "context")),
        (("question", "answer"), ("question",)),
    ],
)
def test_what_an_answer_is_drawn_from_is_read_too(tmp_path, columns, text):
    rows = [{name: f"{name} number {i} of many" for name in columns} for i in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    data = read(path)
    assert (data.task, data.text) == ("generate", text)


def test_whose_a_row_is_is_no_label(tmp_path):
    lines = [f"what was said {i},{7919 * i % 100_003},{i % 2}" for i in range(100)]
    (tmp_path / "rows.csv").write_text("text,user_id,kind\n" + "\n".join(lines) + "\n")
    assert read(tmp_path / "rows.csv").label == "kind"


def test_a_blank_cell_among_sets_of_labels_is_the_empty_set(tmp_path):
    cells = ["a|b", "", "b", "a", "", "b|a", "a|b", "b"] * 5
    lines = [f'text {i} of many,"{cell}"' for i, cell in enumerate(cells)]
    (tmp_path / "rows.csv").write_text("text,tags\n" + "\n".join(lines) + "\n")
    data = read(tmp_path / "rows.csv", label="tags")
    assert data.kind == "many"
    found = [row["tags"] for rows in data.splits().values() for row in rows]
    assert len(found) == len(cells)
    assert sum(not tags for tags in found) == 10
    rows = examples(read_rows(tmp_path / "rows.csv"), "many", ["text"], "tags")
    assert sum(not row["tags"] for row in rows) == 10
