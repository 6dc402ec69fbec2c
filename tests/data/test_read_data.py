"""Reading files, folders, data sets of the hub and the built-in data into splits; errors of unreadable sources."""

import csv
import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltatune.core.errors import DeltatuneError
from deltatune.data import read, read_rows
from deltatune.data.columns.choose_columns import choose_columns
from deltatune.data.layouts.label_values import infer_kind, sort_classes
from deltatune.data.read_data import read_source
from deltatune.data.splits import by_hash, complete, first_by_hash

ROWS = [{"text": f"text number {i}", "label": ("bad", "good")[i % 2]} for i in range(100)]


def write(path: Path, rows) -> Path:
    """Write rows in the format that the path's ending says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def complaint(function, *args, **kwargs) -> str:
    with pytest.raises(DeltatuneError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# --- one file ---


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    assert read_rows(write(tmp_path / f"train.{ending}", ROWS)) == ROWS


TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(table=st.lists(st.tuples(TEXT, TEXT), min_size=1))
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_round_trip(tmp_path, ending, table):
    """Any text comes back as it was: quotes, separators, line breaks, white space. A row of blanks is a blank line."""
    rows = [{"text": "x" + text, "note": note} for text, note in table]
    if ending == "tsv":  # a file that reads cleanly both ways is read with quotes; see the next tests
        rows = [{key: value.replace('"', "'") for key, value in row.items()} for row in rows]
    assert read_rows(write(tmp_path / f"rows.{ending}", rows)) == rows


def test_bom_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftext,label\r\n"a, ""b""\r\nc",x\r\n\r\n d ,y\r\n   \r\n'.encode())
    assert read_rows(path) == [{"text": 'a, "b"\r\nc', "label": "x"}, {"text": " d ", "label": "y"}]
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b"}\r\n\r\n  \n{"text": "c"}'.encode())
    assert read_rows(path) == [{"text": "a\u2028b"}, {"text": "c"}]


def test_tsv_with_stray_quotes_is_read_line_by_line(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a film\t0\nno "end" here\t1\nof it"\t0\n')
    assert [row["text"] for row in read_rows(path)] == ['"a film', 'no "end" here', 'of it"']


def test_tsv_with_quoted_tabs(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"a\tb"\t0\n"c ""d"""\t1\n')
    assert [row["text"] for row in read_rows(path)] == ["a\tb", 'c "d"']


@pytest.mark.parametrize("header", ["Text;Klasse", '"Text";"Klasse"', "\ufeffText;Klasse", '\n"Te\u00dft, a";Klasse'])
def test_semicolons_of_spreadsheets(tmp_path, header):
    path = tmp_path / "a.csv"
    path.write_bytes(f'{header}\r\n"Guten Tag,\r\nes ""h\u00e4ngt""; bitte";Ger\u00e4t\r\n1,5 kg;\r\n'.encode())
    rows = read_rows(path)
    first = next(iter(rows[0]))
    assert [row[first] for row in rows] == ['Guten Tag,\r\nes "h\u00e4ngt"; bitte', "1,5 kg"]
    assert [row["Klasse"] for row in rows] == ["Ger\u00e4t", ""]
    path.write_text("text\na;b\n")
    assert [*read_rows(path)] == [{"text": "a;b"}]
    path.write_text('"text; or not"\na\n')
    assert [*read_rows(path)] == [{"text; or not": "a"}]
    path.write_text("text;label\na;x\nb;y;z\n")
    assert "line 3 has 3 fields, the header has 2" in complaint(read_rows, path)


def test_long_fields(tmp_path):
    limit = csv.field_size_limit()
    assert len(read_rows(write(tmp_path / "a.csv", [{"text": "a" * 300_000, "label": "x"}]))[0]["text"]) == 300_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "text,label\na,x\nb,y,z\n\nc\n", ["line 3 has 3 fields", "line 5 has 1 field,", "double quotes"]),
        ("a.csv", "text,label\n" + "a\n" * 9, ["line 6", "and 4 more"]),
        ("a.csv", 'text,label\na,x\n"b,y\nc,z\n', ["from line 3 on the quotes do not match"]),
        (
            "a.csv",
            "text|label\na|x\n",
            ["'text|label'", "the separator is a bar, not a comma; save it with commas"],
        ),
        ("a.csv", "text\tlabel\na\tx\n", ["the separator is a tab, not a comma; name it .tsv"]),
        ("a.tsv", "text,label\na,x\n", ["the separator is a comma, not a tab; name it .csv"]),
        ("a.tsv", "text\tlabel\na\tb\tc\n", ["line 2 has 3 fields"]),
        ("a.csv", "text,label,text\na,x,b\n", ["the column 'text' more than once"]),
        ("a.csv", "text,label\n", ["holds no rows"]),
        ("a.csv", "", ["a.csv is empty"]),
        ("a.csv", "text,label\na,x\nb\udcff,y\n", ["line 3: not UTF-8", "Save the file as UTF-8"]),
        ("a.csv", "\udcff\udcfet\x00", ["it looks like UTF-16"]),
        ("a.jsonl", '{"a": 1}\n{"a": }\n[1]\n', ["a.jsonl", "line 2 is not JSON", "line 3 is a JSON list"]),
        ("a.jsonl", "\n\n", ["holds no rows"]),
        ("a.json", '{"data": []}', ["one object with the keys 'data'"]),
        ("a.json", "[1, 2]", ["must hold a list of objects"]),
        ("a.json", '[{"a": 1}', ["cannot read", "a.json as JSON"]),
        ("a.parquet", "nonsense", ["not a readable Parquet file"]),
        ("a.doc", "nonsense", ["unknown format '.doc'", ".csv"]),
    ],
)
def test_bad_files(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    message = complaint(read_rows, tmp_path / name)
    assert all(part in message for part in parts), message
    assert len(message.splitlines()) < 12


def test_json_lines_named_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert read_rows(tmp_path / "a.json") == [{"a": 1}, {"a": 2}]


def test_missing_files_name_the_nearest(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    assert "did you mean 'train.csv'? Data files in" in complaint(read, tmp_path / "trian.csv")
    assert "there is no folder" in complaint(read, str(tmp_path / "no" / "train.csv"))
    (tmp_path / "empty").mkdir()
    assert "There are no data files" in complaint(read, tmp_path / "empty" / "train.csv")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert 'pip install "deltatune[data]"' in complaint(read_rows, tmp_path / "a.parquet")


# --- columns ---


@pytest.mark.parametrize(
    ("row", "text", "label"),
    [
        ({"id": "1", "text": "a", "label": 0}, ("text",), "label"),
        ({"Sentence": "a", "Category": "x"}, ("Sentence",), "Category"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, ("sentence1", "sentence2"), "label"),
        ({"premise": "a", "hypothesis": "b", "idx": 3, "label": 1}, ("premise", "hypothesis"), "label"),
        ({"question": "a", "passage": "b", "label": True}, ("question", "passage"), "label"),
        ({"text_a": "a", "text_b": "b", "score": 0.5}, ("text_a", "text_b"), "score"),
        ({"text": "a", "fine": "NUM:dist", "label": "NUM"}, ("text",), "label"),
    ],
)
def test_columns_by_name(row, text, label):
    columns = choose_columns("classify", [row])
    assert (columns.text, columns.label) == (text, label)
    assert len(columns.notes) == 2


def test_columns_by_content():
    rows = [{"id": str(i), "words": f"some words {i}", "n": str(i), "mood": "ab"[i % 2]} for i in range(20)]
    columns = choose_columns("classify", rows)
    assert (columns.text, columns.label) == (("words",), "mood")
    assert (
        choose_columns("classify", [{"phrase": f"w {i}", "closeness": i / 7} for i in range(20)]).label == "closeness"
    )


def test_columns_as_told():
    rows = [{"a": f"x {i}", "b": f"y {i}", "c": i % 2, "label": 0} for i in range(20)]
    columns = choose_columns("classify", rows, ["b", "a"], "c")
    assert (columns.text, columns.label, columns.notes) == (("b", "a"), "c", ())


def test_unclear_columns_show_examples_and_the_flag():
    rows = [{"head": f"h {i}", "story": "w" * 50 + str(i), "x": "ab"[i % 2], "y": "cd"[i % 2]} for i in range(9)]
    message = complaint(choose_columns, "classify", rows, header=True)
    assert "--text NAME" in message
    assert "--label NAME" in message
    assert "head (e.g. 'h 0'), story (e.g. 'wwww" in message
    assert "first line" in message


def test_errors_speak_of_arguments_in_python_and_of_options_elsewhere(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    wrong = {"text": ["txet"], "label": "lable"}
    assert "text=txet: there is no column 'txet'" in complaint(read, path, **wrong)
    assert "label=lable: there is no column 'lable'" in complaint(read, path, **wrong)
    assert "--label lable: there is no column 'lable'" in complaint(read_source, path, **wrong)
    assert "limit=0: the number" in complaint(read, path, limit=0)


def test_wrong_columns_are_collected():
    rows = [{"text": "a", "label": "x"}]
    message = complaint(choose_columns, "classify", rows, ["txet"], "lable")
    assert "--text txet: there is no column 'txet', did you mean 'text'?" in message
    assert "--label lable: there is no column 'lable', did you mean 'label'?" in message
    assert "text (e.g. 'a'), label (e.g. 'x')" in message
    assert "both text and label" in complaint(choose_columns, "classify", rows, ["text"], "text")
    assert "a column twice" in complaint(choose_columns, "classify", rows, ["text", "text"], "label")
    nine = [f"a{i}" for i in range(9)]
    assert "one text, a pair of texts, or up to eight" in complaint(
        choose_columns, "classify", [{**dict.fromkeys(nine, 1), "d": 1}], nine, "d"
    )


# --- labels ---


@pytest.mark.parametrize(
    ("values", "column", "kind"),
    [
        (["a", "b"], "label", "classes"),
        ([0, 1, 2], "label", "classes"),
        (["0", "1"], "score", "classes"),
        ([True, False], "score", "classes"),
        ([1.0, 2.0, 3.0], "label", "classes"),
        ([1.0, 2.0, 3.0], "score", "number"),
        (["1.0", "2.0"], "Similarity", "number"),
        ([1.0, 2.5], "label", "number"),
        ([1, 2.5], "label", "number"),
        (["5", "3.8"], "label", "number"),
        (["5", "3.8", "x"], "label", "classes"),
        ([float(i) for i in range(40)], "label", "number"),
    ],
)
def test_classes_or_numbers(values, column, kind):
    assert infer_kind(values, column)[0] == kind
    assert infer_kind(values, column, "number") == ("number", None)


def test_order_of_class_names():
    assert sort_classes({"10", "2", "1"}) == ("1", "2", "10")
    assert sort_classes({"b", "a", "10"}) == ("10", "a", "b")


@pytest.mark.parametrize(
    ("pair", "labels"),
    [((0, 1), ("0", "1")), ((True, False), ("False", "True")), ((1.0, 2.0), ("1", "2")), (("b", "a"), ("a", "b"))],
)
def test_class_labels_become_strings(tmp_path, pair, labels):
    data = read(write(tmp_path / "a.jsonl", [{**row, "label": pair[i % 2]} for i, row in enumerate(ROWS)]))
    assert data.labels == labels
    assert {row["label"] for row in data.train} == set(labels)


def test_regression(tmp_path):
    rows = [{"text_a": f"a {i}", "text_b": f"b {i}", "score": i / 20} for i in range(100)]
    for ending in ("csv", "jsonl", "parquet"):
        data = read(write(tmp_path / f"a.{ending}", rows))
        assert (data.kind, data.labels, data.text) == ("number", (), ("text_a", "text_b"))
        assert all(isinstance(row["score"], float) for row in data.train)
        assert any("regression" in note for note in data.notes)
    assert (
        len(read(tmp_path / "a.csv", kind="classes", test=tmp_path / "a.csv", validation=tmp_path / "a.csv").labels)
        == 100
    )


def test_forced_and_unusable_labels(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    assert "values that cannot be used: 'bad', 'good'" in complaint(read, path, kind="number")
    path = write(tmp_path / "b.jsonl", [{**row, "label": {"x": 1}} for row in ROWS])
    assert "values that cannot be used: {'x': 1}" in complaint(read, path)


# --- splits ---

PAIRS = st.lists(st.tuples(TEXT, st.sampled_from("ab")), max_size=60)


@given(pairs=PAIRS, order=st.randoms())
def test_splitting_ignores_the_order(pairs, order):
    rows = [{"text": text, "label": label} for text, label in pairs]
    shuffled = order.sample(rows, len(rows))
    for first, second in zip(
        by_hash(rows, ["text"], (0.8, 0.1, 0.1)), by_hash(shuffled, ["text"], (0.8, 0.1, 0.1)), strict=True
    ):
        assert sorted(map(str, first)) == sorted(map(str, second))
    first, second = (first_by_hash(some, ["text"], "label", 7) for some in (rows, shuffled))
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert len(first) == min(7, len(rows))


@given(pairs=PAIRS)
def test_identical_texts_stay_together_and_none_is_lost(pairs):
    rows = [{"text": text, "label": label} for text, label in pairs]
    parts, _ = complete({"train": rows}, ["text"])
    assert sorted(map(str, rows)) == sorted(str(row) for part in parts.values() for row in part)
    texts = [{row["text"] for row in part} for part in parts.values()]
    assert len(set().union(*texts)) == sum(map(len, texts))


def test_shares_are_about_right():
    rows = [{"text": str(i)} for i in range(5000)]
    sizes = [len(part) / 5000 for part in by_hash(rows, ["text"], (0.7, 0.1, 0.2))]
    assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


@given(st.integers(6, 60), st.integers(0, 1000))
def test_few_rows_are_enough_for_three_splits(count, start):
    rows = [{"text": f"row {start + i // 2}"} for i in range(2 * count)]  # each text twice
    parts = by_hash(rows, ["text"], (0.8, 0.1, 0.1))
    assert min(map(len, parts)) >= 2
    train, validation, test = ({row["text"] for row in part} for part in parts)
    assert len(train) + len(validation) + len(test) == len(train | validation | test), "equal texts stay together"


def test_the_hash_is_the_same_for_ever():
    """Another hash would move rows between splits and make old results incomparable."""
    parts = by_hash([{"text": f"row {i}"} for i in range(12)], ["text"], (0.5, 0.5))
    assert [row["text"] for row in parts[0]] == ["row 0", "row 3", "row 5"]


# --- sources ---


def test_one_file(tmp_path):
    data = read(write(tmp_path / "mine.csv", ROWS))
    assert data.name == "mine"
    assert data.labels == ("bad", "good")
    assert sorted(row["text"] for rows in data.splits().values() for row in rows) == sorted(row["text"] for row in ROWS)
    assert any("no validation and no test split" in note for note in data.notes)
    assert len(data.train) > len(data.validation) > 1


def test_other_columns_are_kept(tmp_path):
    data = read(write(tmp_path / "a.jsonl", [{**row, "n": i} for i, row in enumerate(ROWS)]))
    assert all("n" in row for row in data.train)


@pytest.mark.parametrize("validation", ["dev", "val", "valid", "validation"])
def test_a_folder_with_splits(tmp_path, validation):
    folder = tmp_path / "reviews"
    write(folder / "train.csv", ROWS[:60])
    write(folder / f"{validation}.jsonl", ROWS[60:80])
    write(folder / "test.tsv", ROWS[80:])
    data = read(folder)
    assert data.name == "reviews"
    assert [len(rows) for rows in data.splits().values()] == [60, 20, 20]
    assert "train.csv" in data.origin
    assert not any("split" in note for note in data.notes)


def test_a_folder_in_shards(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", ROWS[:40])
    write(tmp_path / "train-00001-of-00002.jsonl", ROWS[40:60])
    write(tmp_path / "test-00000-of-00001.jsonl", ROWS[60:])
    data = read(tmp_path)
    assert len(data.train) + len(data.validation) == 60
    assert any(note.startswith("no validation split: 10% of train") for note in data.notes)


def test_validation_without_test(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:60])
    write(tmp_path / "dev.jsonl", ROWS[60:])
    data = read(tmp_path)
    assert len(data.test) == 40
    assert len(data.train) + len(data.validation) == 60
    assert any("the validation split is the test split" in note for note in data.notes)


def test_files_beside_a_source(tmp_path):
    folder = tmp_path / "d"
    train = write(folder / "train.jsonl", ROWS[:60])
    other = write(tmp_path / "other.csv", ROWS[60:80])
    last = write(tmp_path / "last.csv", ROWS[80:])
    data = read(train, validation=other, test=str(last))
    assert [len(rows) for rows in data.splits().values()] == [60, 20, 20]
    assert "other.csv" in data.origin
    write(folder / "dev.jsonl", ROWS[:10])
    assert len(read(folder, validation=other, test=last).validation) == 20


def test_unreadable_files_are_collected(tmp_path):
    message = complaint(read, tmp_path / "a.csv", validation=tmp_path / "b.csv", test=tmp_path / "c.csv")
    assert all(f"no file {tmp_path / name}.csv" in message for name in "abc")


def test_test_rows_without_labels_are_left_out(tmp_path):
    write(tmp_path / "train.jsonl", ROWS[:60])
    write(tmp_path / "dev.jsonl", ROWS[60:])
    write(tmp_path / "test.jsonl", [{"text": "a"}, {"text": "b", "label": None}])
    data = read(tmp_path)
    assert "the 2 test rows have no label, so they are not used" in data.notes
    assert len(data.test) == 40
    assert "no label in 2 rows" in complaint(read, tmp_path, test=tmp_path / "test.jsonl")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["dev.csv", "test.csv"], ["has no train file", "dev.csv, test.csv"]),
        ([], ["has no train file", "It holds no data file."]),
        (["train.csv", "train.jsonl"], ["train.csv, train.jsonl: which one is train?"]),
        (["train.csv", "val.csv", "dev.csv"], ["both 'val' and 'dev' can be the validation split"]),
    ],
)
def test_bad_folders(tmp_path, names, parts):
    for name in names:
        write(tmp_path / name, ROWS)
    message = complaint(read, tmp_path)
    assert all(part in message for part in parts), message


def test_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    whole, limited = read(path), read(path, limit=20)
    assert len(limited.train) == 20
    assert [row for row in whole.train if row in limited.train] == limited.train
    assert (limited.validation, limited.test) == (whole.validation, whole.test)
    assert len(read(path, limit=10_000).train) == len(whole.train)
    assert "at least 1" in complaint(read, path, limit=0)
    assert "with limit 1 cannot be used" in complaint(read, path, limit=1)


def test_everything_wrong_is_said_once(tmp_path):
    write(tmp_path / "train.jsonl", [*ROWS[:20], {"text": "", "label": "good"}, {"text": "x", "label": None}])
    write(tmp_path / "dev.jsonl", [{"text": "y", "label": "odd"}, *ROWS[20:23]])
    write(tmp_path / "test.jsonl", [{"text": "z", "label": "good"}])
    message = complaint(read, tmp_path)
    for part in (
        "train: column 'text' has no text in 1 row (21)",
        "train: column 'label' has no label in 1 row (22)",
        "validation has labels that train does not have: 'odd' (1 row)",
        "test has 1 row",
    ):
        assert part in message
    assert len(message.splitlines()) == 5


def test_not_strict_keeps_the_rows_that_can_be_used(tmp_path):
    bad = [{"text": "", "label": "good"}, {"text": "x", "label": None}]
    write(tmp_path / "train.jsonl", [*ROWS[:20], *bad])
    write(tmp_path / "dev.jsonl", ROWS[20:40])
    write(tmp_path / "test.jsonl", ROWS[40:60])
    data = read(tmp_path, strict=False)
    assert data.train == ROWS[:20]
    assert data.problems == (
        "train: column 'text' has no text in 1 row (21). Fill in or remove them.",
        "train: column 'label' has no label in 1 row (22). Fill in or remove them.",
    )
    message = complaint(read, tmp_path)
    assert all(f"- {problem}" in message for problem in data.problems)
    assert "no file" in complaint(read, tmp_path / "no.csv", strict=False)
    write(tmp_path / "train.jsonl", ROWS[:20])
    assert read(tmp_path).problems == ()


def test_a_column_that_a_split_lacks(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "dev.jsonl", [{"sentence": "a", "label": "good"}])
    assert "validation has no column 'text', train has. The columns of validation are: sentence, label." in complaint(
        read, tmp_path
    )


def test_one_class(tmp_path):
    message = complaint(read, write(tmp_path / "a.csv", [{**row, "label": "good"} for row in ROWS]))
    assert "one class only, 'good'" in message


# --- the hub ---


@pytest.fixture
def hub(monkeypatch):
    """`datasets`, with a data set "me/films" in it that has class numbers, and no network."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )

    def split(start, end, known=True):
        rows = [{"text": f"film {i}", "label": i % 2 if known else -1} for i in range(start, end)]
        return datasets.Dataset.from_list(rows, features=features)

    def load_dataset(name, configuration):
        if (name, configuration) not in {("me/films", None), ("me/films", "small")}:
            raise ConnectionError(f"Couldn't reach {name!r}")
        return datasets.DatasetDict(train=split(0, 50), validation=split(50, 70), test=split(70, 90, known=False))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize(("source", "name"), [("me/films", "films"), ("me/films:small", "films-small")])
def test_a_hub_name(hub, source, name):
    data = read(source)
    assert data.name == name
    assert data.labels == ("negative", "positive")
    assert [len(data.test), len(data.train) + len(data.validation)] == [20, 50]
    assert "the 20 test rows have no label, so they are not used" in data.notes


def test_a_name_that_is_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "films", ROWS[:1])
    message = complaint(read, "filmz")
    assert "'filmz' is not a file or folder here, did you mean 'films'?" in message
    assert "cannot be loaded, because ConnectionError: Couldn't reach 'filmz'" in message


def test_a_hub_name_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = complaint(read, "me/films")
    assert "not a file or folder here" in message
    assert 'pip install "deltatune[data]"' in message


def test_a_path_never_asks_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("films.csv", "./films", "a/b/c", "~/films"):
        assert "no file" in complaint(read, source)
        assert "hub" not in complaint(read, source)
