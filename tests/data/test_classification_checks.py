"""Problems and remarks of classification and regression, on data made for one fault each."""

import dataclasses

import pytest

from deltatune.data import Data, problems, read, remarks
from deltatune.data.layouts.layout import missing_values


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


def test_nothing_to_say_of_good_data():
    assert problems(make()) == []
    assert remarks(make()) == []


def test_gaps_name_the_rows():
    found = missing_values(
        rows(("a", "x"), ("", "y"), (None, "z"), (" ", None), ("b", float("nan")), (3, "")), "train", ["text"], "label"
    )
    assert found == [
        "train: column 'text' is no text in 1 row (6): 3. Write strings.",
        "train: column 'text' has no text in 3 rows (2, 3, 4). Fill in or remove them.",
        "train: column 'label' has no label in 3 rows (4, 5, 6). Fill in or remove them.",
    ]


def test_gaps_are_counted_when_there_are_many():
    assert (
        "12 rows (1, 2, 3, 4, 5, and 7 more)" in missing_values(rows(*[("", "x")] * 12), "test", ["text"], "label")[0]
    )
    assert missing_values([{"label": 0}], "test", ["text"], "label") == [
        "test: column 'text' has no text in 1 row (1). Fill in or remove them."
    ]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_too_few_rows(split):
    (problem,) = problems(make(**{split: rows(("a", "no"))}))[:1]
    assert problem.startswith(f"{split} has 1 row; at least 2 are needed.")


def test_one_class_only():
    same = rows(("a", "no"), ("b", "no"), ("c", "no"))
    assert problems(make(train=same, validation=same, test=same)) == [
        "train: column 'label' has one class only, 'no': nothing can be learned. Is it the right column?"
    ]
    numbers = rows(("a", 1.0), ("b", 1.0))
    data = make(train=numbers, validation=numbers, test=numbers, kind="number", labels=())
    assert "one value only, 1.0" in problems(data)[0]


def test_labels_unseen_in_train():
    (problem,) = problems(make(test=rows(("a", "no"), ("b", "maybe"), ("c", "maybe"), ("d", "Yes"))))
    assert problem.startswith("test has labels that train does not have: 'maybe' (2 rows), 'Yes' (1 row).")
    assert "Labels of train: 'no', 'yes'." in problem


def test_numbers_may_be_unseen():
    data = make(
        train=rows(("a", 1.0), ("b", 2.0)),
        validation=rows(("c", 3.0), ("d", 4.0)),
        test=rows(("e", 5.0), ("f", 6.0)),
        kind="number",
        labels=(),
    )
    assert problems(data) == []


def test_all_problems_at_once():
    data = make(train=rows(("a", "no"), ("", "no")), validation=rows(("b", "other")), test=[])
    assert len(problems(data)) == 5  # empty text, two short splits, one class, an unseen label


def test_repeated_texts():
    data = make()
    data = dataclasses.replace(data, test=data.test[3:] + data.train[:2] + data.validation[:1])
    assert remarks(data) == [
        "2 of 120 test rows (118, 119) also occur in train: scores on them measure memory.",
        "1 of 120 test rows (120) also occur in validation: scores on them measure memory.",
    ]


def test_a_pair_repeats_only_as_a_pair():
    row = {"a": "x", "b": "y", "label": "no"}
    data = make(text=("a", "b"), train=[row] * 60 + [{**row, "label": "yes", "b": "w"}] * 60)
    data = dataclasses.replace(data, validation=[{**row, "b": "z"}] * 120, test=[{**row, "a": "z"}] * 120)
    assert not any("also occur" in remark for remark in remarks(data))


def test_rows_that_repeat_an_earlier_one():
    data = make()
    again = dataclasses.replace(data, train=[*data.train, *data.train[:7]], test=[*data.test, data.test[4]])
    assert remarks(again) == [
        "train: 7 rows (121, 122, 123, 124, 125, and 2 more) repeat an earlier row.",
        "test: 1 row (121) repeats an earlier row.",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a\x00b", "control characters in 1 row (2)"),
        ("caf\ufffd", "replacement characters (U+FFFD)"),
        ("café".encode().decode("latin-1"), "UTF-8 read as another encoding in 1 row (2)"),
        ("it’s".encode().decode("cp1252"), "UTF-8 read as another encoding in 1 row (2)"),
    ],
)
def test_characters_that_no_one_wrote(text, part):
    data = make()
    (remark,) = remarks(dataclasses.replace(data, test=[data.test[0], {**data.test[1], "text": text}, *data.test[2:]]))
    assert remark.startswith("test: there are ")
    assert part in remark


def test_ordinary_letters_are_no_fault():
    data = make()
    good = "NÃO é fácil, où est «Âme»? 早餐 🙂 naïve – “yes”\tÅngström\n"
    assert remarks(dataclasses.replace(data, test=[{**data.test[0], "text": good}, *data.test[1:]])) == []


def test_contradicting_labels():
    data = make()
    other = {**data.train[0], "label": "yes"}
    assert remarks(dataclasses.replace(data, train=[*data.train, other])) == [
        "1 of 121 train rows repeat an earlier text with another label."
    ]


def test_short_splits():
    data = make()
    (remark,) = remarks(dataclasses.replace(data, validation=data.validation[:40]))
    assert remark == "validation has 40 rows: each row counts 2.5 percentage points; small differences may be chance."


def test_imbalance_gives_the_rate_of_the_trivial_answer():
    data = make()
    train = [row for i, row in enumerate(data.train) if row["label"] == "no" or i % 4 == 1]
    (remark,) = remarks(dataclasses.replace(data, train=train))
    assert remark.startswith("classes differ in size: 'no' has 60 train rows, 'yes' has 30.")
    assert "'no' is right on 50.0% of test" in remark


def test_label_in_the_text():
    data = make(labels=("sport", "music"))
    leaky = [{"text": f"the {row['label']} news {i}", "label": row["label"]} for i, row in enumerate(data.train)]
    renamed = [{**row, "label": {"no": "sport", "yes": "music"}[row["label"]]} for row in leaky]
    leaking = [{**row, "text": f"{row['label'].upper()}: {row['text']}"} for row in renamed]
    assert remarks(dataclasses.replace(data, train=renamed)) == []
    assert remarks(dataclasses.replace(data, train=leaking)) == [
        "the label itself occurs in the text of 100% of the train rows: does it leak?"
    ]


# --- numbers ---


def scores(tmp_path, *odd, ending="csv"):
    """A file of 60 texts with a number each, the odd values at row 11."""
    values = [f"{i / 7:.3f}" for i in range(60)]
    values[10:10] = odd
    lines = [f"text number {i},{value}\n" for i, value in enumerate(values)]
    path = tmp_path / "scores.csv"
    path.write_text("text,score\n" + "".join(lines))
    return path


@pytest.mark.parametrize("task", [None, "regression"])
@pytest.mark.parametrize("value", ["nan", "NaN", "-inf", "Infinity", "1e400", "n/a", "three"])
def test_words_among_numbers(tmp_path, value, task):
    data = read(scores(tmp_path, value), task=task, strict=False)
    assert (data.kind, data.problems) == (
        "number",
        (f"train: column 'score' has no finite number in 1 row (11): {value!r}. Fill in or remove them.",),
    )


@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_words_among_numbered_classes(tmp_path, value):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(60)) + f"last,{value}\n")
    data = read(path, strict=False)
    assert (data.kind, data.labels) == ("classes", ("0", "1"))
    assert data.problems == (
        f"train: column 'label' has no finite number in 1 row (61): {value!r}. Fill in or remove them.",
    )


def test_a_class_may_be_called_nan(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{('nan', 'roti')[i % 2]}\n" for i in range(60)))
    assert read(path).labels == ("nan", "roti")


@pytest.mark.parametrize("value", ["1e308", "-2e38"])
def test_numbers_that_are_too_large(tmp_path, value):
    (problem,) = read(scores(tmp_path, value), strict=False).problems
    assert f"has numbers beyond 1e+38, too large to train on, in 1 row (11): {value!r}" in problem
    train = [{"text": f"text {i}", "label": float(i)} for i in range(120)]
    data = make(kind="number", labels=(), train=[*train, {"text": "x", "label": float(value)}])
    data = dataclasses.replace(data, validation=train, test=train)
    assert "beyond 1e+38 in 1 row (121)" in problems(data)[0]


def test_numbers_that_are_one_in_float32():
    def numbers(offset, step):
        part = [{"text": f"text {i}", "label": offset + i * step} for i in range(120)]
        return make(kind="number", labels=(), train=part, validation=part, test=part)

    assert problems(numbers(0.0, 1e-30)) == []
    (problem,) = problems(numbers(1e9, 0.001))
    assert "are one number in float32, in which training computes: nothing can be learned" in problem
    assert problems(numbers(1e9, 1.0)) == []
    assert any("120 different numbers, 3 in float32" in remark for remark in remarks(numbers(1e9, 1.0)))
