"""Columns and folders of images and sounds: what they are inferred to be, what is wrong with them, what is not read."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import read, read_rows, remarks
from deltatune.data.checks import file_problems
from deltatune.data.dataset import describe
from deltatune.data.media.media_files import MediaFile
from support.media import draw_bars, play_tones

pytest.importorskip("PIL.Image")


def write_csv(path: Path, files: list[str], column: str = "image") -> Path:
    lines = [f"{name},{Path(name).parent.name}" for name in files]
    path.write_text("\n".join([f"{column},label", *lines]) + "\n")
    return path


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    data = read(draw_bars(tmp_path / "bars", 12))
    assert (data.inputs, data.text, data.label, data.labels) == ("image", ("image",), "label", ("lying", "upright"))
    row = data.train[0]
    assert row["image"].given == f"{row['label']}/{row['name']}"
    assert Path(row["image"]).is_file()
    assert not [remark for remark in remarks(data) if "leak" in remark]  # the class is in the file's name
    assert describe(data)["inputs"] == "image"


def test_folders_of_splits_and_of_sounds(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    for seed, split in enumerate(("train", "test")):
        play_tones(tmp_path / split, 4, seed)
    data = read(tmp_path)
    assert (data.inputs, data.text, len(data.test)) == ("audio", ("audio",), 8)


def test_names_in_a_csv_are_relative_to_it_wherever_the_data_lie(tmp_path: Path) -> None:
    splits = []
    for place in ("here", "elsewhere"):
        folder = draw_bars(tmp_path / place, 12)
        files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
        data = read(write_csv(folder / "data.csv", files))
        assert data.inputs == "image"
        splits.append([row["image"].given for row in data.test])
    assert splits[0] == splits[1]


def test_the_same_image_in_two_splits_is_a_remark_whatever_it_is_called(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        draw_bars(tmp_path / split, 3, seed=len(split))
    copy = (tmp_path / "train" / "lying" / "000.png").read_bytes()
    (tmp_path / "test" / "lying" / "other.png").write_bytes(copy)
    assert any("also occur in train" in remark for remark in remarks(read(tmp_path)))


def test_missing_and_broken_files_have_their_row_numbers(tmp_path: Path) -> None:
    folder = draw_bars(tmp_path, 10)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))
    (folder / files[4]).write_text("no image")
    (folder / files[7]).write_bytes(b"")
    with pytest.raises(DeltatuneError) as error:
        read(write_csv(folder / "data.csv", ["lying/none.png", *files]))
    assert "names files that do not exist in 1 row (1): 'lying/none.png'" in str(error.value)
    assert "files that cannot be used in 2 rows (6, 9)" in str(error.value)
    assert all(name in str(error.value) for name in (files[4], files[7]))
    with pytest.raises(DeltatuneError, match="none of them exists: paths are relative"):
        read(write_csv(folder / "data.csv", [f"nowhere/{name}" for name in files]))


def test_a_file_that_breaks_behind_its_header_is_found_by_the_check(tmp_path: Path) -> None:
    folder = draw_bars(tmp_path, 10)
    broken = folder / "lying" / "003.png"
    broken.write_bytes(broken.read_bytes()[:-600])
    problems = file_problems(read(folder))
    assert len(problems) == 1
    assert re.search(r"1 of 20 files cannot be used; mend or remove them: .*003\.png: it is broken", problems[0])


def test_other_tasks_and_second_inputs_are_refused(tmp_path: Path) -> None:
    folder = draw_bars(tmp_path, 5)
    file = folder / "rows.jsonl"
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.png")]
    rows = [{"image": name, "words": f"a bar {i}", "label": Path(name).parent.name} for i, name in enumerate(names)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DeltatuneError, match="task=generate: column 'image' holds image files"):
        read(file, task="generate", text=["image"], label="label")
    with pytest.raises(DeltatuneError, match="a row has one image or one sound"):
        read(file, text=["image", "words"], label="label")


def test_other_things_beside_the_images_of_a_class_are_named(tmp_path: Path) -> None:
    folder = draw_bars(tmp_path, 3)
    (folder / "lying" / "Thumbs.db").write_text("")
    assert read(folder, strict=False).inputs == "image"
    (folder / "lying" / "notes.txt").write_text("x")
    with pytest.raises(DeltatuneError, match=r"has notes\.txt beside its image files"):
        read(folder)


def test_one_class_alone_and_images_without_classes_say_what_is_missing(tmp_path: Path) -> None:
    folder = draw_bars(tmp_path / "bars", 2)
    (folder / "lying").rename(tmp_path / "lying")
    with pytest.raises(DeltatuneError, match=r"only folder of images or sounds is upright: .* at least two"):
        read(folder)
    with pytest.raises(DeltatuneError, match=r"holds pictures: .*task image.*a folder for each class"):
        read(tmp_path / "lying")


def test_tasks_of_texts_are_not_proposed_for_files(tmp_path: Path) -> None:
    folder = draw_bars(tmp_path, 2)
    (folder / "bars.csv").write_text("image\n" + "".join(f"lying/00{i}.png\n" for i in range(2)))
    with pytest.raises(DeltatuneError) as caught:
        read(folder / "bars.csv")
    assert "task=lm" not in str(caught.value)


def test_names_beside_texts_and_names_that_do_not_exist_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,file,label\ngood,a.png,x\nbad,b.png,y\n")
    assert type(read_rows(path)[0]["file"]) is str


def test_a_media_file_is_a_string_that_keeps_its_name(tmp_path: Path) -> None:
    file = MediaFile(tmp_path / "a.png", "a.png")
    copy = pickle.loads(pickle.dumps(file))
    assert (copy, copy.given, json.dumps(copy)) == (file, "a.png", json.dumps(str(tmp_path / "a.png")))
