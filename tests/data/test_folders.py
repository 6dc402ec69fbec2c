"""Folders as people have them: parts of splits, shards, repositories, classes; nothing in them is left out unnamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.data.sources.split_names import match_splits
from support.fuzz import mutations, outcome

ROWS = [{"text": f"text number {i}", "label": ("bad", "good")[i % 2]} for i in range(120)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def complaint(folder: Path, **options: Any) -> str:
    with pytest.raises(DeltatuneError) as caught:
        read(folder, **options)
    return str(caught.value)


def sizes(folder: Path, **options: Any) -> dict[str, int]:
    return {split: len(rows) for split, rows in read(folder, **options).splits().items()}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "dev", "test"], {"train": "train", "validation": "dev", "test": "test"}),
        (["TRAIN", "Val"], {"train": "TRAIN", "validation": "Val"}),
        (["train", "train_extra", "unsupervised"], {"train": "train"}),
        (
            ["trainset", "devset", "testset_w_refs"],
            {"train": "trainset", "validation": "devset", "test": "testset_w_refs"},
        ),
        (["train_a", "test_a", "test_b"], {"train": "train_a", "test": "test_a", "test_b": "test_b"}),
        (["trains", "tester", "device"], {}),
    ],
)
def test_names_of_splits(names: list[str], splits: dict[str, str]) -> None:
    match = match_splits(names)
    assert match.splits == splits
    assert match.unused == [name for name in names if name not in splits.values()]
    assert not match.problems


def test_every_file_that_is_not_used_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    for name in (
        "train_extra.jsonl",
        "README.csv",
        "notes.xlsx",
        "unlabelled.txt",
        "README.md",
        "LICENSE",
        ".hidden.csv",
    ):
        (tmp_path / name).write_text("a,b\n1,2\n")
    (tmp_path / "old").mkdir()
    (note,) = [note for note in read(tmp_path).notes if "not used" in note]
    assert note == (
        "not used, as no split has their name: README.csv, notes.xlsx, old/, train_extra.jsonl, unlabelled.txt"
    )


def test_a_further_split_without_the_columns_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS[:80])
    write(tmp_path / "test.csv", [{"text": row["text"]} for row in ROWS[80:]])
    write(tmp_path / "test_labels.csv", [{"id": i, "label": "good"} for i in range(5)])
    data = read(tmp_path)
    assert "test_labels is not used: it has no column 'text'" in data.notes
    assert "the 40 test rows have no label, so they are not used" in data.notes


def test_the_labelled_one_of_two_test_files_is_the_test_split(tmp_path: Path) -> None:
    """As in the release of E2E: testset.csv has no references, testset_w_refs.csv has them."""
    rows = [{"mr": f"name[X{i}]", "ref": f"X{i} is a place."} for i in range(120)]
    write(tmp_path / "trainset.csv", rows[:80])
    write(tmp_path / "devset.csv", rows[80:100])
    write(tmp_path / "testset.csv", [{"mr": row["mr"]} for row in rows[100:]])
    write(tmp_path / "testset_w_refs.csv", rows[100:])
    data = read(tmp_path)
    assert sizes(tmp_path) == {"train": 80, "validation": 20, "test": 20}
    assert data.test[0]["references"] == ["X100 is a place."]
    assert "the 20 testset rows have no label, so they are not used" in data.notes


def test_texts_whose_names_begin_like_splits_are_a_corpus(tmp_path: Path) -> None:
    for name in ("train_journey", "test_drive", "dev_notes", "novel"):
        (tmp_path / f"{name}.txt").write_text(f"A text on {name}.\n" * 200)
    data = read(tmp_path)
    assert data.task == "lm"
    assert {row["name"] for row in data.train} == {"train_journey.txt", "test_drive.txt", "dev_notes.txt", "novel.txt"}


def test_names_that_end_in_splits_beside_one_that_begins_so(tmp_path: Path) -> None:
    for name, rows in (("films_train", ROWS[:80]), ("films_test", ROWS[80:]), ("dev_notes", ROWS[:3])):
        write(tmp_path / f"{name}.jsonl", rows)
    assert len(read(tmp_path).test) == 40
    assert "not used, as no split has their name: dev_notes.jsonl" in read(tmp_path).notes


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["train_timetable", "buses"], "which one is train: train_timetable, buses?"),
        (["train_r1", "train_r2", "dev_r1"], "which one is train: train_r1, train_r2? Keep one"),
        (["train", "dev_a", "val_a"], "both 'dev_a' and 'val_a' can be validation_a"),
        (["train-00000-of-00003", "train-00002-of-00003"], "the shards of train are not complete"),
        (["train-00000-of-00002", "train-00001-of-00003"], "the shards of train are not complete"),
        (["train-00000-of-00002", "train"], "which one is train?"),
    ],
)
def test_what_is_not_clear_is_an_error(tmp_path: Path, names: list[str], part: str) -> None:
    for name in names:
        write(tmp_path / f"{name}.jsonl", ROWS)
    assert part in complaint(tmp_path)


def test_a_repository_of_the_hub_with_its_files_in_data(tmp_path: Path) -> None:
    write(tmp_path / "films" / "data" / "train-00000-of-00001.jsonl", ROWS[:100])
    write(tmp_path / "films" / "data" / "test-00000-of-00001.jsonl", ROWS[100:])
    write(tmp_path / "films" / "data" / "extra.jsonl", ROWS[:2])
    (tmp_path / "films" / "README.md").write_text("# Films\n")
    data = read(tmp_path / "films")
    assert (data.name, len(data.test)) == ("films", 20)
    assert any("extra.jsonl" in note for note in data.notes)


def test_folders_named_after_splits_hold_their_shards(tmp_path: Path) -> None:
    write(tmp_path / "train" / "0000.jsonl", ROWS[:50])
    write(tmp_path / "train" / "0001.jsonl", ROWS[50:100])
    write(tmp_path / "test" / "0000.jsonl", ROWS[100:])
    found = sizes(tmp_path)
    assert (found["train"] + found["validation"], found["test"]) == (100, 20)


def test_several_data_sets_in_one_folder_are_listed(tmp_path: Path) -> None:
    for name in ("cola", "mrpc"):
        write(tmp_path / name / "train-00000-of-00001.jsonl", ROWS)
    message = complaint(tmp_path)
    assert f"Its folders cola, mrpc hold data: name one of them: source={tmp_path / 'cola'}" in message


def test_one_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [{"text": row["text"], "label": i % 2} for i, row in enumerate(ROWS)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    data = read(tmp_path / "saved")
    assert data.labels == ("no", "yes")
    assert sum(map(len, data.splits().values())) == len(ROWS)


def test_classes_and_what_is_beside_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i in range(8):
            path = tmp_path / split / ("neg", "pos")[i % 2] / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{split} review {i}")
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0.txt").write_text("a review")
    (tmp_path / "imdb.vocab").write_text("the")
    (note,) = [note for note in read(tmp_path).notes if "not used" in note]
    assert "imdb.vocab" in note
    assert "train/unsup/" in note


def test_a_named_test_file_replaces_every_test_split(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:60]), ("dev", ROWS[60:80]), ("test", ROWS[80:100]), ("test_b", ROWS[100:])):
        write(tmp_path / "d" / f"{name}.jsonl", rows)
    assert sizes(tmp_path / "d") == {"train": 60, "validation": 20, "test": 20, "test_b": 20}
    other = write(tmp_path / "other.jsonl", ROWS[:10])
    assert sizes(tmp_path / "d", test=other) == {"train": 60, "validation": 20, "test": 10}
    notes = read(tmp_path / "d", test=other).notes
    assert "not used, as another file was named for it: test_b" in notes


def test_the_folders_of_webnlg(tmp_path: Path) -> None:
    def entry(i: int) -> str:
        lex = "".join(f'<lex comment="{c}" lid="Id1">Place {i} is {c}.</lex>' for c in ("good", "toFix"))
        triple = f"<modifiedtripleset><mtriple>Place_{i} | size | {i}</mtriple></modifiedtripleset>"
        return f'<entry category="City" eid="Id{i}" size="1">{triple}{lex}</entry>'

    for place, numbers in (("train/1triples", range(40)), ("train/2triples", range(40, 60)), ("test", range(60, 70))):
        path = tmp_path / place / "City.xml"
        path.parent.mkdir(parents=True)
        path.write_text(f"<benchmark><entries>{''.join(map(entry, numbers))}</entries></benchmark>")
    data = read(tmp_path)
    assert len(data.train) + len(data.validation) == 60
    assert data.test[0]["triples"] == "Place_60 | size | 60"
    assert data.test[0]["references"] == ["Place 60 is good."]
    assert (data.test[0]["category"], data.test[0]["seen"]) == ("City", "seen")
    assert not any("not used, as no split" in note for note in data.notes)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("<benchmark><entries>", "is not XML"),
        ("<html><body/></html>", "is no XML of WebNLG"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><benchmark/>', "declares a document type or entities"),
    ],
)
def test_other_xml(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    assert part in complaint(tmp_path / "a.xml")


CARD = (
    "---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    "          '0': bad\n          '1': good\n---\n# Films\n"
)
INFO = json.dumps({"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}})
XML = "<benchmark><entries>{}</entries></benchmark>".format(
    "".join(
        f'<entry category="City" eid="Id{i}" size="1"><modifiedtripleset><mtriple>P{i} | size | {i}</mtriple>'
        f'</modifiedtripleset><lex comment="good" lid="1">P {i}.</lex></entry>'
        for i in range(20)
    )
)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "content"),
    [("README.md", CARD), ("dataset_info.json", INFO), ("train.xml", XML)],
    ids=["card", "info", "xml"],
)
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str, content: str, count: int) -> None:
    if name != "train.xml":
        write(tmp_path / "train.jsonl", [{**row, "label": i % 2} for i, row in enumerate(ROWS[:30])])
    for mutation, mutated in mutations(content.encode(), seed=0, count=count):
        (tmp_path / name).write_bytes(mutated)
        result = outcome(lambda: read(tmp_path), mutation)
        assert isinstance(result, DeltatuneError) or result.train
