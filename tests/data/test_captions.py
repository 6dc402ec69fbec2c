"""Pictures with captions: every layout that is read, and an error for each way in which a folder can be wrong."""

from __future__ import annotations

import json

import pytest

from deltatune import DeltatuneError
from deltatune.data import read
from support.pictures import write_pictures


def test_metadata_as_lines_as_a_table_and_text_files_beside_pictures_are_one(tmp_path):
    lines = write_pictures(tmp_path / "lines", 3)
    table = write_pictures(tmp_path / "table", 3, captions=False)
    rows = [json.loads(line) for line in (lines / "metadata.jsonl").read_text().splitlines()]
    (table / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows)
    )
    beside = write_pictures(tmp_path / "beside", 3, captions=False)
    for row in rows:
        (beside / row["file_name"]).with_suffix(".txt").write_text(f"{row['text']}\n")
    want = [("a red wall", "00.png"), ("a green wall", "01.png"), ("a blue wall", "02.png")]
    digests = set()
    for folder in (lines, table, beside):
        data = read(folder, task="image")
        assert [(row["text"], row["file_name"]) for row in data.train] == want
        assert (data.kind, data.task, data.text, data.label) == ("image", "image", ("text",), "image")
        digests.add(tuple(row["digest"] for row in data.train))
    assert len(digests) == 1


def test_a_tenth_is_held_out_by_file_and_few_pictures_score_themselves(tmp_path):
    few = read(write_pictures(tmp_path / "few", 4), task="image")
    assert few.validation == few.train
    assert "none is held out" in few.notes[-1]
    many = read(write_pictures(tmp_path / "many", 24), task="image")
    held = {row["file_name"] for row in many.validation}
    assert len(many.train) + len(held) == 24
    assert 1 <= len(held) <= 8
    assert not held & {row["file_name"] for row in many.train}
    again = read(tmp_path / "many", task="image", limit=5)
    assert len(again.train) == 5
    assert {row["file_name"] for row in again.validation} == held


def test_folders_of_splits_and_other_columns(tmp_path):
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        folder = write_pictures(tmp_path / split, count)
        renamed = (folder / "metadata.jsonl").read_text().replace('"text"', '"words"')
        (folder / "metadata.jsonl").write_text(renamed)
    with pytest.raises(DeltatuneError, match=r"no column of captions .*text names it"):
        read(tmp_path, task="image")
    data = read(tmp_path, task="image", text=["words"])
    assert [len(rows) for rows in data.splits().values()] == [3, 2, 1]
    assert data.test[0]["words"] == "a red wall"


def damaged(folder, case):
    metadata = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    if case == "no captions":
        metadata.unlink()
    elif case == "one caption":
        metadata.unlink()
        (folder / "00.png").with_suffix(".txt").write_text("a wall")
    elif case == "empty text file":
        metadata.unlink()
        for path in folder.glob("*.png"):
            path.with_suffix(".txt").write_text(" \n")
    elif case == "absent":
        (folder / "01.png").unlink()
    elif case == "blank":
        rows[1]["text"] = "  "
    elif case == "outside":
        write_pictures(folder.parent / "other", 1)
        rows[0]["file_name"] = "../other/00.png"
    elif case == "twice":
        rows.append(rows[0])
    elif case == "no names":
        rows = [{"text": row["text"]} for row in rows]
    elif case == "no picture":
        (folder / "notes.md").write_text("x")
        rows[0]["file_name"] = "notes.md"
    if metadata.exists():
        metadata.write_text("\n".join(map(json.dumps, rows)) + "\n")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no captions", "3 of 3 pictures have no caption: 00.png"),
        ("one caption", "2 of 3 pictures have no caption: 01.png"),
        ("empty text file", "00.txt.* holds no text"),
        ("absent", "files that are not there: 01.png"),
        ("blank", "1 pictures have no caption in 'text': 01.png"),
        ("outside", "outside of its folder: ../other/00.png"),
        ("twice", "names a picture twice: 00.png"),
        ("no names", "no column 'file_name'"),
        ("no picture", "no pictures: notes.md"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, case, words):
    damaged(write_pictures(tmp_path / "pictures", 3), case)
    with pytest.raises(DeltatuneError, match=words):
        read(tmp_path / "pictures", task="image")


def test_pictures_in_folders_below_are_named(tmp_path):
    write_pictures(tmp_path / "pictures" / "cats", 1)
    with pytest.raises(DeltatuneError, match="its folders do: cats"):
        read(tmp_path / "pictures", task="image")


def test_what_is_no_folder_of_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text("text\nx\n")
    for name, words in (
        ("empty", "holds no pictures"),
        ("file.csv", "is a file: task image takes a folder"),
        ("emtpy", "does not exist, did you mean 'empty'"),
    ):
        with pytest.raises(DeltatuneError, match=words):
            read(tmp_path / name, task="image")


def test_a_picture_that_a_long_list_names_twice_is_found(tmp_path):
    folder = write_pictures(tmp_path / "long", 1)
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "a wall"}\n' * 10_000)
    with pytest.raises(DeltatuneError, match=r"names a picture twice: 00\.png\. Keep one line"):
        read(folder, task="image")
