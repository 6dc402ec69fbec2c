"""Repeats: rows in two splits and in one, exactly and but for their form; labels of one form; what is not UTF-8."""

import dataclasses
import json
import time

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import Data, problems, read, remarks
from deltatune.data.text_forms import near_form

FORM = "case, blanks or Unicode form"


def rows(*pairs):
    return [{"text": text, "label": label} for text, label in pairs]


def make(**changes):
    """Data without a fault: 120 different rows in every split, two classes of equal size."""
    splits = {
        split: rows(*[(f"{split} text {i}", ("no", "yes")[i % 2]) for i in range(120)])
        for split in ("train", "validation", "test")
    }
    data = Data("name", "origin", ("text",), "label", "classes", ("no", "yes"), **splits)
    return dataclasses.replace(data, **changes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Good film", " good  FILM\n"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff27\uff4f\uff4f\uff44", "good"),
        ("of\ufb01ce", "office"),
        ("stra\u00dfe", "STRASSE"),
        ("zero\u200bwidth", "zerowidth"),
        ("no\u00a0break", "no break"),
        ("left\u200e \u202eto\u2069", "left to"),
    ],
)
def test_forms(one, other):
    assert near_form(one) == near_form(other)


def test_forms_of_different_texts_differ():
    assert len({near_form(text) for text in ("a b", "ab", "a, b", "\u00e4 b", "a b!")}) == 5


def test_rows_that_are_nearly_in_another_split():
    more = rows(("Train  TEXT 3", "yes"), ("train text 4", "no"))
    found = remarks(make(test=[*make().test, *more]))
    assert found == [
        "1 of 122 test rows (122) also occur in train: scores on them measure memory.",
        f"1 of 122 test rows (121) also occur, but for {FORM}, in train: scores on them measure memory.",
    ]
    nearly = [{**row, "text": row["text"].upper()} for row in make().train]
    (remark,) = remarks(make(more_tests={"test_mismatched": nearly}))
    assert remark.startswith("120 of 120 test_mismatched rows (1, 2, 3, 4, 5, and 115 more) also occur, but for")


def test_rows_that_nearly_repeat_an_earlier_one():
    more = rows(("TRAIN text 3", "yes"), ("train text 5", "yes"), ("TRAIN text 3", "yes"))
    assert remarks(make(train=[*make().train, *more])) == [
        "train: 2 rows (122, 123) repeat an earlier row.",
        f"train: 1 row (121) repeats the text of an earlier row, but for {FORM}.",
    ]


@pytest.mark.parametrize("odd", ["Yes", "yes ", "\uff39\uff25\uff33", "ye\u200bs"])
def test_labels_of_one_form(odd):
    data = make()
    train = [{**row, "label": odd} if i in (1, 3) else row for i, row in enumerate(data.train)]
    found = remarks(make(train=train, labels=tuple(sorted({"no", "yes", odd}))))
    assert any(
        f"the labels 'yes' (178 rows), {odd!r} (2 rows) differ only in {FORM}: they are learned as 2 classes. "
        "If they are one, write 'yes' for all." in remark
        for remark in found
    )


def test_tags_and_several_labels_of_one_form():
    def sentence(i, tag):
        return {"tokens": [f"w{i}", "x"], "tags": ["O", tag]}

    part = [sentence(i, ("B-per", "B-PER")[i == 7]) for i in range(120)]
    data = Data("name", "origin", ("tokens",), "tags", "tags", ("O", "B-PER", "B-per"), part, part, part)
    assert any("the tags 'B-per' (357 words), 'B-PER' (3 words) differ only" in remark for remark in remarks(data))
    many = [{"text": f"text {i}", "label": ["a", ("b", "B")[i % 2]]} for i in range(120)]
    data = Data("name", "origin", ("text",), "label", "many", ("B", "a", "b"), many, many, many)
    assert any("the labels 'B' (180 rows), 'b' (180 rows) differ only" in remark for remark in remarks(data))


def test_labels_that_are_one_number():
    train = [{"text": f"train {i}", "label": ("0", "1", "1.0")[i % 3]} for i in range(120)]
    other = [[{"text": f"{part} {i}", "label": "01"[i % 2]} for i in range(120)] for part in ("dev", "test")]
    data = make(train=train, validation=other[0], test=other[1], labels=("0", "1", "1.0"))
    (remark,) = [remark for remark in remarks(data) if "number" in remark]
    assert "the labels '1' (160 rows), '1.0' (40 rows) are one number: they are learned as 2 classes." in remark


def test_long_identifiers_are_several_numbers():
    names = (str(2**60), str(2**60 + 1), "1e99999", "9" * 5000)
    train = [{"text": f"train {i}", "label": names[i % 4]} for i in range(120)]
    data = make(train=train, validation=train[:60], test=train[60:], labels=names)
    assert not [remark for remark in remarks(data) if "one number" in remark]


def test_an_unseen_label_names_the_one_that_it_may_mean():
    data = make(validation=[*make().validation, *rows(("new", "Yes"))])
    (problem,) = problems(data)
    assert f"Labels of train: 'no', 'yes'. 'yes' and 'Yes' differ only in {FORM}." in problem


def test_one_form_is_found_in_bounded_time(tmp_path):
    lines = [json.dumps({"text": f"Text number {i} " + "words " * 20, "label": "ab"[i % 2]}) for i in range(20_000)]
    lines += [line.replace("Text", "TEXT") for line in lines]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    started = time.process_time()
    data = read(tmp_path / "a.jsonl")
    found = remarks(data)
    assert time.process_time() - started < 6
    assert sum(f"but for {FORM}" in remark for remark in found) == 6  # each split in itself and each pair of splits


# --- what is not UTF-8, and what cannot be seen ---


@pytest.mark.parametrize("where", ["text", "label"])
def test_half_of_a_surrogate_pair(where):
    bad = {"text": "new", "label": "yes"} | {where: "yes\ud800"}
    found = problems(make(train=[*make().train, bad]))
    assert any(f"train: column {where!r} has half of a surrogate pair" in problem for problem in found)
    assert any("1 row (121)" in problem for problem in found)


def test_texts_without_a_visible_character(tmp_path):
    more = rows(("\u200b\ufeff", "yes"), ("\u2060 ", "no"), ("\x00", "no"))
    assert problems(make(train=[*make().train, *more])) == [
        "train: column 'text' has no text in 3 rows (121, 122, 123). Fill in or remove them."
    ]
    data = make(train=[*make().train, *rows(("two\nlines\tand more \u00e9", "yes"))])
    assert (problems(data), remarks(data)) == ([], [])
    data = make(train=[*make().train, *rows(("joined \ufefffile", "yes"), ("\x07bell", "no"))])
    assert remarks(data) == [
        "train: there are control characters in 1 row (122).",
        "train: there are byte-order marks (U+FEFF) in 1 row (121).",
    ]


def test_columns_that_tell_nothing():
    data = make()
    same = {split: [{**row, "hint": "same"} for row in part] for split, part in data.splits().items()}
    found = remarks(dataclasses.replace(data, text=("text", "hint"), **same))
    assert found == ["train: column 'hint' has the same text in every row: it tells nothing."]


def test_very_long_texts():
    found = remarks(make(train=[*make().train, *rows(("long " * 5000, "yes"))]))
    assert found == ["train: the longest row has 25,000 characters, the median 13: it is row 121."]


def test_small_classes(tmp_path):
    lines = [f"text {i},{label}\n" for i, label in enumerate(["a"] * 60 + ["b"] * 20 + ["c"] * 2 + ["d"] * 2)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join(f"{split} {line}" for line in lines))
    found = remarks(read(tmp_path))
    assert any(remark.endswith("Classes of fewer than 5 train rows: 'c' (2), 'd' (2).") for remark in found)


def test_the_error_of_read_lists_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "\\ud800"}\n')
    with pytest.raises(DeltatuneError, match="half of a surrogate pair"):
        read(tmp_path / "a.jsonl")
