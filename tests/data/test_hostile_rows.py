"""Files as people and programs really write them, which would be read as something else without a word."""

import json
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import Data, read, remarks


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


def test_outputs_in_lists_that_python_wrote_are_remarked(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("input,output\n" + "".join(f"some text {i},\"['x{i}', 'y']\"\n" for i in range(60)))
    assert "train: every output is a list in a string, " in "\n".join(remarks(read(path)))


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


# --- what stands in the place of a value ---


def test_words_for_missing_values_are_remarked(tmp_path):
    said = "\n".join(remarks(read(csv_of(tmp_path / "a.csv", "x", "y", "nan"))))
    assert "the class 'nan' (20 rows) is what programs write for a missing value" in said
    path = tmp_path / "b.csv"
    path.write_text("text,label\n" + "".join(f"{'NaN' if i < 1 else f'text {i}'},{'xy'[i % 2]}\n" for i in range(60)))
    assert "a text is what programs write for a missing value, in 1 row (" in "\n".join(remarks(read(path)))


def test_a_split_of_one_class_is_remarked(tmp_path):
    csv_of(tmp_path / "train.csv", "0", "1")
    csv_of(tmp_path / "test.csv", "0")
    assert "test: all rows have the label '0', train has 2 classes" in "\n".join(remarks(read(tmp_path)))


def test_a_label_under_another_name_is_named(tmp_path):
    csv_of(tmp_path / "train.csv", "x", "y")
    csv_of(tmp_path / "test.csv", "x", "y", header="text,target")
    note = "the 60 test rows have no column 'label', so they are not used; they have 'target' instead"
    assert note in read(tmp_path).notes


def test_numbers_are_no_missing_texts(tmp_path):
    rows = [{"text": 17, "label": "x"}, {"text": "", "label": "y"}]
    problems = told(jsonl_of(tmp_path / "a.jsonl", *rows))
    assert "column 'text' is no text in 30 rows (1, 3, 5, 7, 9, and 25 more): 17. Write strings." in problems
    assert "column 'text' has no text in 30 rows (2, 4, 6, 8, 10, and 25 more). Fill in" in problems


def test_empty_answers_of_chats_are_not_learned(tmp_path):
    def chat(i: int) -> dict[str, object]:
        answer = "" if i % 3 == 0 else f"bye {i}"
        return {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": answer}]}

    assert "train: the last assistant turn has no text in 20 rows" in told(
        jsonl_of(tmp_path / "a.jsonl", *map(chat, range(60)))
    )


# --- files beside the data ---


def test_documentation_is_no_document(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"some text {i} " * 20)
    (tmp_path / "README.txt").write_text("about these files")
    data = read(tmp_path)
    assert all("about these files" not in row["text"] for rows in data.splits().values() for row in rows)
    assert any("not used" in note and "README.txt" in note for note in data.notes)


def test_blank_lines_with_tabs_are_blank(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("".join(f"Ann{i} B-x\nslept O\n \t\n" for i in range(60)))
    assert sum(map(len, read(path).splits().values())) == 60
