"""`deltatune data check`: what it prints, and how it exits."""

import json

import pytest

from support.command_line import ran, review_folder


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_help():
    for argv in (["data"], ["data", "--help"]):
        done = ran(*argv)
        assert done.code == 0
        assert "\n  check  Read data as train would" in done.out
    done = ran("data", "check", "--help")
    assert done.out.startswith("Usage: deltatune data check")
    assert all(option in done.out for option in ("--task", "--text", "--label", "--json"))
    assert "  data " in ran("--help").out


def test_good_data(tmp_path):
    done = ran("data", "check", review_folder(tmp_path / "reviews"))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "task     classify" in lines
    assert "columns  text → label" in lines
    assert any(line.split()[:3] == ["train", "64", "text"] for line in lines)
    assert any(line.split() == ["bad", "32", "(50", "%)", "10", "(50", "%)", "10", "(50", "%)"] for line in lines)
    assert any("validation has 20 rows: each row counts 5.0 percentage points" in line for line in lines)
    assert lines[-1].startswith("It can be trained on: 0 problems and ")


def test_a_narrow_screen_cuts_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = ran("data", "check", review_folder(tmp_path / "reviews")).out.splitlines()
    (header,) = [line for line in lines if line.startswith("split ")]
    assert header.split() == ["split", "rows", "column", "words", "longest", "characters", "longest"]
    assert any(line.split()[:3] == ["train", "64", "text"] for line in lines)


def test_all_problems_at_once(tmp_path):
    rows = [{"tokens": ["a", f"w{i}"], "tags": ["O", "B-x"]} for i in range(60)]
    bad = [{"tokens": ["a"], "tags": []}, {"tokens": [], "tags": []}, {"tokens": 3, "tags": ["O"]}]
    write(tmp_path / "train.jsonl", [*rows, *bad])
    write(tmp_path / "dev.jsonl", [*rows[:1], *bad])
    write(tmp_path / "test.jsonl", rows)
    done = ran("data", "check", tmp_path)
    assert done.code == 1
    assert done.err == ""
    problems = [line for line in done.out.splitlines() if line.startswith("problem")]
    assert len(problems) == 7  # three faults in each of two splits, and a split of one row
    assert any("train: 'tokens' and 'tags' differ in length in 1 row (61)" in line for line in problems)
    assert any("validation: column 'tokens' has no words in 1 row (3)" in line for line in problems)
    assert done.out.splitlines()[-1].startswith("It cannot be trained on as it is: 7 problems and ")


ROWS = {
    "classify": {"text": "t {i}", "label": "x"},
    "regression": {"text": "t {i}", "score": 0.5},
    "tag": {"tokens": ["a", "w{i}"], "tags": ["O", "B-x"]},
    "span": {"question": "q {i}", "context": "c {i}", "answers": ["c"]},
    "generate": {"input": "i {i}", "output": "o {i}"},
    "lm": {"text": "d {i}"},
}


def numbered(value, i):
    """The row with {i} filled in, and labels that differ."""
    if isinstance(value, list):
        return [numbered(item, i) for item in value]
    if isinstance(value, float):
        return value + i
    return f"x{i % 2}" if value == "x" else value.replace("{i}", str(i))


@pytest.mark.parametrize("task", ROWS)
def test_every_task_in_json_and_on_the_screen(tmp_path, task):
    rows = [{name: numbered(value, i) for name, value in ROWS[task].items()} for i in range(80)]
    path = write(tmp_path / "a.jsonl", rows)
    done = ran("data", "check", path, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["task"], found["problems"]) == (task, [])
    assert sum(split["rows"] for split in found["splits"].values()) == 80
    assert found["splits"]["train"]["lengths"][found["text"][0]]["words"]["median"] == 2
    shown = ran("data", "check", path)
    assert shown.code == 0, shown.err
    assert f"task     {task}\n" in shown.out


def test_options_are_passed_on(tmp_path):
    rows = [{"body": f"long text {i}", "tldr": f"text {i}"} for i in range(80)]
    path = write(tmp_path / "a.jsonl", rows)
    other = write(tmp_path / "b.jsonl", rows[:5])
    argv = ("data", "check", path, "--task", "generate", "--text", "body", "--label", "tldr", "--json")
    found = json.loads(ran(*argv, "--test", other, "--validation", other, "--limit", "30").out)
    assert (found["text"], found["label"]) == (["body"], "tldr")
    assert [split["rows"] for split in found["splits"].values()] == [30, 5, 5]
    assert found["splits"]["train"]["references"] == 1.0


def test_the_source_as_an_option(tmp_path):
    folder = review_folder(tmp_path / "reviews")
    expected = ran("data", "check", folder, "--json").out
    for argv in (("--data", folder), ("-d", folder), (folder, "--data", folder)):
        done = ran("data", "check", *argv, "--json")
        assert (done.code, done.out) == (0, expected), done.err
    done = ran("data", "check", folder, "--data", tmp_path)
    assert (done.code, f"{folder} or --data {tmp_path}? Name one of them" in done.err) == (2, True)
    done = ran("data", "check")
    assert (done.code, "no data are named: deltatune data check FILE" in done.err) == (2, True)


def test_what_cannot_be_read_is_a_mistake_of_use(tmp_path):
    done = ran("data", "check", tmp_path / "no.csv")
    assert (done.code, done.out) == (2, "")
    assert "no file" in done.err
    done = ran("data", "check", write(tmp_path / "a.jsonl", [{"a": 1, "b": 2}] * 9), "--task", "tag")
    assert done.code == 2
    assert "which column holds the tokens is not clear" in done.err


def test_labels_that_cannot_be_used(tmp_path):
    rows = [{"text": f"t {i}", "label": {"a": 1}} for i in range(30)]
    done = ran("data", "check", write(tmp_path / "a.jsonl", rows))
    assert done.code == 1
    assert "values that cannot be used: {'a': 1}" in done.out
