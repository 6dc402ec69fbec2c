"""Pairs of answers in the forms in which they are published, and what is refused."""

import json

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import examples, inputs, read
from deltatune.data.checks import remarks


def turn(role, content):
    return {"role": role, "content": content}


ASK = [turn("system", "be kind"), turn("user", "hi there")]
PLAIN = {"prompt": "say hi", "chosen": "hi", "rejected": "no"}


def written(path, row, count=30):
    """A file of rows like this one, each with a prompt of its own."""
    lines = [json.dumps(row).replace("hi", f"hi{i}") for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def first(data):
    row = data.train[0]
    return [row[name] for name in (*data.text, "chosen", "rejected")]


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        (PLAIN, "say hi", "hi", "no"),
        ({"question": "say hi", "chosen_response": "a", "rejected_response": "b"}, "say hi", "a", "b"),
        ({"prompt": ASK, "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}, ASK, "a", "b"),
        ({"prompt": ASK, "chosen": "a", "rejected": "b"}, ASK, "a", "b"),
        ({"chosen": [*ASK, turn("assistant", "a")], "rejected": [*ASK, turn("assistant", "b")]}, ASK, "a", "b"),
        (
            {"prompt": "hi there", "prompt_id": "x", "messages": [*ASK, turn("assistant", "a")]}
            | {"chosen": [*ASK, turn("assistant", "a")], "rejected": [*ASK, turn("assistant", "b")]},
            ASK,
            "a",
            "b",
        ),
        ({"chosen": "the hi sat on a mat", "rejected": "the hi sat on a map"}, "the hi sat on a", " mat", " map"),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: I do", "rejected": "\n\nHuman: hi\n\nAssistant: I don't"},
            "\n\nHuman: hi\n\nAssistant:",
            " I do",
            " I don't",
        ),
    ],
)
def test_published_forms(row, prompt, chosen, rejected, tmp_path):
    data = read(written(tmp_path / "pairs.jsonl", row))
    assert (data.task, data.kind, data.label) == ("prefer", "pairs", "chosen")
    expected = json.loads(json.dumps([prompt, chosen, rejected]).replace("hi", "hi0"))
    assert [json.dumps(value) for value in first(data)] == [json.dumps(value) for value in expected]
    assert not [note for note in data.notes if "neither text nor label" in note and "rejected" in note]


def test_rows_of_one_prompt_stay_in_one_split(tmp_path):
    rows = [{"prompt": f"say {i // 4}", "chosen": f"yes {i}", "rejected": "no"} for i in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read(tmp_path / "pairs.jsonl")
    prompts = [{row["prompt"] for row in rows} for rows in data.splits().values()]
    assert all(prompts)
    assert not any(a & b for i, a in enumerate(prompts) for b in prompts[:i])


def test_read_again_with_the_columns_of_an_adapter(tmp_path):
    row = {"chosen": "the hi sat on a mat", "rejected": "the hi sat on a map"}
    data = read(written(tmp_path / "pairs.jsonl", row), text=("prompt",), label="chosen", kind="pairs")
    assert first(data) == ["the hi0 sat on a", " mat", " map"]
    assert examples([row], "pairs", ("prompt",), "chosen")[0]["rejected"] == " map"
    assert inputs([{"prompt": "hi"}], "prefer", ("prompt",)) == [{"prompt": "hi"}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rejected": "hi"}, "are equal in 30 rows"),
        ({"rejected": ""}, "'rejected' has no answer"),
        ({"rejected": 3}, "'rejected' is not a text or a chat"),
        ({"rejected": [turn("user", "why")]}, "'rejected' has no answer"),
        ({"prompt": " "}, "no text before the answers"),
        ({"prompt": 3}, "column 'prompt' is not a text or a chat"),
        ({"prompt": [turn("user", "q"), turn("assistant", "a")]}, "does not end with the user's turn"),
        (
            {"chosen": [*ASK, turn("assistant", "a")], "rejected": [turn("user", "other"), turn("assistant", "b")]},
            "differ before their last messages",
        ),
    ],
)
def test_faults_of_rows_are_named(change, words, tmp_path):
    with pytest.raises(DeltatuneError, match=words):
        read(written(tmp_path / "pairs.jsonl", {**PLAIN, **change}))


def test_a_missing_column_of_rejected_answers(tmp_path):
    path = written(tmp_path / "pairs.jsonl", {"prompt": "say hi", "chosen": "hi"})
    with pytest.raises(
        DeltatuneError, match=r"there is no column 'rejected' of answers. The columns are: prompt, chos"
    ):
        read(path, task="prefer")


def test_damaged_letters_of_both_answers_are_remarked(tmp_path):
    data = read(written(tmp_path / "pairs.jsonl", {**PLAIN, "rejected": "na\u00c3\u00afve"}))
    assert any("UTF-8 read as another encoding" in remark for remark in remarks(data))


def test_the_task_is_not_inferred_where_the_answers_have_no_pair(tmp_path):
    data = read(written(tmp_path / "rows.jsonl", {"prompt": "say hi", "response": "hi"}))
    assert data.task == "generate"
