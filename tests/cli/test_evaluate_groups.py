"""`deltatune evaluate` by group, by split, and with another positive class."""

import json

import pytest

from deltatune.comparison.statistics.group_scores import group_rows
from deltatune.core.errors import DeltatuneError
from support import models
from support.command_line import QUICK, ran, reviews
from support.language_models import generation_tokenizer, make_rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(count=60, seed=0):
    rows = reviews(count, seed)
    names = {"good": "equivalent", "bad": "not_equivalent"}
    kinds = [None, ["a", 1], 10, 9, "seen"]
    return [{**row, "label": names[row["label"]], "kind": kinds[i % 5], "half": i % 2} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    models.tiny("bert", "lm").save_pretrained(folder)
    generation_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(bert, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    data = write(place / "data.jsonl", labelled())
    done = ran("train", "--model", bert, "--data", data, "--label", "label", "--metric", "f1", "--lr", "1e-2", *QUICK,
               "--text", "text", "--out", place / "run")  # fmt: skip
    assert done.code == 0, done.err
    assert "f1 (positive: equivalent)" in done.out
    return place / "run"


def evaluated(adapter, data, *options):
    done = ran("evaluate", "--adapter", adapter, "--data", data, "--json", *options)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_each_group_is_scored_as_if_it_were_the_whole_file(adapter, tmp_path):
    rows = labelled(50, seed=3)
    result = evaluated(adapter, write(tmp_path / "rows.jsonl", rows), "--by", "kind", "--by", "half")
    assert list(result["by"]["kind"]) == ["9", "10", '["a", 1]', "seen", "(none)"]
    assert {name: group["rows"] for name, group in result["by"]["half"].items()} == {"0": 25, "1": 25}
    assert result["interval"][0] <= result["scores"]["f1"] <= result["interval"][1]
    for name, value in [("seen", "seen"), ("9", 9), ("(none)", None)]:
        alone = evaluated(adapter, write(tmp_path / "part.jsonl", [row for row in rows if row["kind"] == value]))
        assert result["by"]["kind"][name]["scores"] == pytest.approx(alone["scores"])
        assert result["by"]["kind"][name]["rows"] == alone["rows"] == 10


def test_groups_are_a_table_with_intervals(adapter, tmp_path):
    data = write(tmp_path / "rows.jsonl", labelled(50, seed=3))
    done = ran("evaluate", "--adapter", adapter, "--data", data, "--by", "kind")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:2] == ["rows", "f1"]
    assert "95 %" in lines[0]
    assert lines[1].split()[:2] == ["all", "50"]
    assert sum(line.startswith("kind: ") and "±" in line for line in lines) == 5


def test_each_metric_is_a_column_once(adapter, tmp_path):
    data = write(tmp_path / "rows.jsonl", labelled(50, seed=3))
    header = ran("evaluate", "--adapter", adapter, "--data", data).out.splitlines()[0]
    names = header.replace(" (positive: equivalent)", "").split()
    assert len(names) == len(set(names))
    assert {"f1", "accuracy", "precision", "recall", "matthews"} <= set(names)


def test_a_narrow_screen_cuts_no_number(adapter, tmp_path, monkeypatch):
    data = write(tmp_path / "rows.jsonl", labelled(50, seed=3))
    monkeypatch.setenv("COLUMNS", "60")
    whole, groups = (ran("evaluate", "--adapter", adapter, "--data", data, *by).out for by in ([], ["--by", "kind"]))
    f1 = f"{evaluated(adapter, data)['scores']['f1']:.3f}"
    assert f"f1 (positive: equivalent)  {f1}" in whole
    assert groups.splitlines()[1].split()[:3] == ["all", "50", f1]
    assert "…" not in "".join(groups.splitlines()[:7])


def test_another_positive_class_and_metric(adapter, tmp_path):
    data = write(tmp_path / "rows.jsonl", labelled(50, seed=3))
    usual = evaluated(adapter, data)
    assert (usual["positive"], usual["metric"]) == ("equivalent", "f1")
    other = evaluated(adapter, data, "--positive", "not_equivalent", "--metric", "recall")
    assert (other["positive"], other["metric"]) == ("not_equivalent", "recall")
    assert other["scores"]["accuracy"] == usual["scores"]["accuracy"]
    assert other["scores"]["recall"] != usual["scores"]["recall"]
    done = ran("evaluate", "--adapter", adapter, "--data", data, "--positive", "equivalnt")
    assert done.code == 2
    assert "'equivalnt' is not a class, did you mean 'equivalent'" in done.err


def test_positive_is_for_classes(bert, tmp_path):
    data = write(tmp_path / "rows.jsonl", make_rows(20))
    done = ran(
        "train", "--model", bert, "--data", data, "--task", "generate", "--positive", "x", "--out", tmp_path / "r"
    )
    assert done.code == 2
    assert "--positive x is for one class a row; this task is generate" in done.err


def test_a_column_that_no_row_has(adapter, tmp_path):
    data = write(tmp_path / "rows.jsonl", labelled(10))
    done = ran("evaluate", "--adapter", adapter, "--data", data, "--by", "kinds")
    assert done.code == 2
    assert "--by kinds: the rows have no such column, did you mean 'kind'" in done.err
    assert "'half'" in done.err


def test_an_unknown_split_is_named(adapter, tmp_path):
    data = write(tmp_path / "rows.jsonl", labelled(10))
    done = ran("evaluate", "--adapter", adapter, "--data", data, "--split", "tset")
    assert done.code == 2
    assert "--split tset: there is no such split, did you mean 'test'" in done.err


def test_rows_without_the_column_are_a_group():
    rows = [{"a": 1}, {"b": 2}, {"a": float("nan")}, {"a": "x"}, {"a": {"k": 1}}, {"a": True}]
    groups = group_rows(rows, "a")
    assert groups == {"1": [0], "True": [5], "x": [3], '{"k": 1}': [4], "(none)": [1, 2]}
    assert group_rows([{"a": ""}, {"a": " "}, {"a": "x"}], "a") == {"x": [2], "(none)": [0, 1]}
    assert group_rows([{"a": {"k": 1}}, {"a": 3}, {"a.k": 1}], "a.k") == {"1": [2], "(none)": [0, 1]}
    for column in ("a", "a.b"):
        with pytest.raises(DeltatuneError, match="no such column"):
            group_rows([{"c": {"b": 1}}], column)


def test_groups_without_a_wrong_row(adapter, tmp_path):
    rows = [{**row, "idx": {"question": i // 2, "answer": i}} for i, row in enumerate(labelled(20, seed=3))]
    data = write(tmp_path / "rows.jsonl", rows)
    lines = ran("predict", "--adapter", adapter, data).out.splitlines()
    right = [json.loads(line)["label"] == row["label"] for line, row in zip(lines, rows, strict=True)]
    expected = sum(right[i] and right[i + 1] for i in range(0, 20, 2)) / 10
    result = evaluated(adapter, data, "--by", "idx.question")
    assert list(result["by"]["idx.question"]) == [str(i) for i in range(10)]
    assert result["whole_groups"] == {"idx.question": {"share": pytest.approx(expected), "groups": 10}}
    shown = ran("evaluate", "--adapter", adapter, "--data", data, "--by", "idx.question").out
    assert f"{expected:.3f} of the 10 groups by idx.question have no wrong row" in shown


def test_marked_entities_from_training_to_prediction(tmp_path):
    tokenizer, model = models.tiny_tokenizer(), models.tiny("bert", "lm")
    tokenizer.add_tokens(["@", "#", "*", "^"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["film", "plot", "actor"]
    rows = [
        {"text": f"the {words[i % 3]} was {words[(i + 1) % 3]} number {i}", "head": words[(i + i // 3 % 2) % 3],
         "label": "first" if i // 3 % 2 == 0 else "second"}
        for i in range(60)
    ]  # fmt: skip
    rows += [{**row, "head": row["text"].split()[1], "label": "first"} for row in rows if row["label"] == "second"]
    data = write(tmp_path / "rows.jsonl", rows)
    done = ran("train", "--model", tmp_path / "model", "--data", data, "--text", "text", "--label", "label",
               "--mark", "head", *QUICK, "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 0, done.err
    assert "with another label" not in done.out  # the same text with another entity is another row
    assert evaluated(tmp_path / "run", data)["rows"]
    answer = ran("predict", "--adapter", tmp_path / "run", write(tmp_path / "one.jsonl", rows[:1]))
    assert json.loads(answer.out)["label"] in ("first", "second")
    bad = write(tmp_path / "bad.jsonl", [{**rows[0], "head": "nobody"}])
    assert "head 'nobody' does not occur in the text" in ran("predict", "--adapter", tmp_path / "run", bad).err
    missing = write(tmp_path / "missing.jsonl", [{"text": "the film"}])
    assert "no column 'head' in row 0" in ran("predict", "--adapter", tmp_path / "run", missing).err


def test_compare_names_the_positive_class(bert, tmp_path):
    data = write(tmp_path / "data.jsonl", labelled())
    done = ran("compare", "--model", bert, "--data", data, "--text", "text", "--label", "label", "--metric", "f1",
               "--method", "LoRA(r=2)", "--seeds", "1", "--rates", "1", *QUICK, "--out", tmp_path / "cmp",
               "--positive", "not_equivalent")  # fmt: skip
    assert done.code == 0, done.err
    assert "of the positive class, not_equivalent" in done.out
    assert "<dt>Positive class</dt><dd>not_equivalent</dd>" in (tmp_path / "cmp" / "report.html").read_text()


def test_rows_without_text_or_label_are_not_scored(adapter, tmp_path):
    rows = labelled(4)
    rows[1]["text"], rows[2]["label"] = "  ", ""
    done = ran("evaluate", "--adapter", adapter, "--data", write(tmp_path / "rows.jsonl", rows))
    assert done.code == 2
    assert "column 'text' has no text in 1 row (2)" in done.err
    assert "column 'label' has no label in 1 row (3)" in done.err


def test_errors_of_rows_say_how_they_are_counted(adapter, tmp_path):
    rows = labelled(4)
    rows[1]["label"] = "neither"
    place = write(tmp_path / "rows.jsonl", rows)
    done = ran("evaluate", "--adapter", adapter, "--data", place)
    assert "row 1: 'neither' is not a label" in done.err
    assert "rows are counted from 0 here" in done.err
    done = ran("predict", "--adapter", adapter, write(tmp_path / "more.jsonl", [{"text": "good"}, {"text": 5}]))
    assert "more.jsonl row 2: text is 5, not a text" in done.err
