"""Files as people and programs really write them, which would be read as something else without a word."""

import json
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import Data, read


def csv_of(path: Path, *labels: str, header: str = "text,label", count: int = 60) -> Path:
    """Rows with these labels in turn, as they stand in the file."""
    rows = [f"some text {i},{labels[i % len(labels)]}\n" for i in range(count)]
    path.write_text(header + "\n" + "".join(rows), encoding="utf-8")
    return path


def jsonl_of(path: Path, *rows: dict[str, object], count: int = 60) -> Path:
    """These rows in turn, each with a text of its own."""
    every = [{"text": f"some text {i}", **rows[i % len(rows)]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in every), encoding="utf-8")
    return path


def told(path: Path, **options: object) -> str:
    """All problems of a file."""
    data: Data = read(path, strict=False, **options)  # type: ignore[arg-type]
    return "\n".join(data.problems)


# --- lists in cells ---


@pytest.mark.parametrize("labels", [("\"['a', 'b']\"", "['c']"), ("[0 5]", "[2]"), ("\"['a', 'b']\"", "[]")])
def test_labels_in_lists_that_python_wrote(tmp_path, labels):
    assert "column 'label' holds lists that are not JSON, such as " in told(csv_of(tmp_path / "a.csv", *labels))


def test_tokens_in_lists_that_python_wrote(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("tokens,tags\n" + "\"['Ann', 'slept']\",\"['B-x', 'O']\"\n" * 60)
    assert "column 'tokens' has lists in strings that are not JSON in every row" in told(path)


def test_lists_with_a_place_for_each_class(tmp_path):
    rows = [{"label": label} for label in ([0, 0, 1], [1, 1, 0], [1, 1, 1])]
    problem = "column 'label' holds lists with 1 or 0 for each class"
    assert problem in told(jsonl_of(tmp_path / "a.jsonl", *rows))
    assert problem in told(csv_of(tmp_path / "a.csv", '"[0, 0, 1]"', '"[1, 1, 0]"'))
    numbers = jsonl_of(tmp_path / "b.jsonl", {"label": [0, 1]}, {"label": [0]}, {"label": [1]})
    assert read(numbers).labels == ("0", "1")


def test_decimal_commas_are_no_two_classes(tmp_path):
    path = csv_of(tmp_path / "a.csv", '"3,5"', '"4,0"', '"3,0"', '"4,5"')
    assert "column 'label' holds '3,0': one number or two classes? Write 3.0, or 3|0." in told(path)
    assert read(path, kind="many").kind == "many"
    assert read(csv_of(tmp_path / "b.csv", '"3,5"', '"3,5,1"', '"1,5"')).kind == "many"


def test_one_separator_for_all_splits(tmp_path):
    csv_of(tmp_path / "train.csv", '"x|c, d"', "x", '"c, d"')
    csv_of(tmp_path / "test.csv", '"c, d"')
    data = read(tmp_path)
    assert data.labels == ("c, d", "x")
    assert data.test[0]["label"] == ["c, d"]


# --- CSV files ---


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_in_the_middle(tmp_path, mark):
    path = csv_of(tmp_path / "a.csv", "x", "y")
    path.write_text(path.read_text() + mark + path.read_text())
    with pytest.raises(DeltatuneError, match="line 62 is the header again"):
        read(path)
    one = tmp_path / "one.csv"
    one.write_text("text\n" + "".join(f"some text {i}\n" for i in range(60)) + "text\n")
    assert sum(map(len, read(one, task="lm").splits().values())) == 61  # of one column it may be a text


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ('"text", "label"', "a quote behind a blank quotes nothing"),
        ("\ufeff\ufefftext,label", "has a byte-order mark in '\\ufefftext'"),
    ],
)
def test_headers_with_more_than_names(tmp_path, header, problem):
    path = csv_of(tmp_path / "a.csv", "x", "y", header=header)
    with pytest.raises(DeltatuneError) as error:
        read(path)
    assert problem in str(error.value)
