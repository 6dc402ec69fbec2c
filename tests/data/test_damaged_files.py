"""Damaged and hostile files: each is an error that names the file, the place and the fix; none is misread."""

import csv
import json
import os
import time

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data import read, read_rows
from deltatune.data.formats.csv_tsv import csv_lines, tsv_lines
from deltatune.data.formats.json_jsonl import jsonl_lines

GOOD = '{"text": "a", "label": "x"}\n'


def complaint(function, *args) -> str:
    with pytest.raises(DeltatuneError) as caught:
        function(*args)
    return str(caught.value)


def outcome(function, name="stdin"):
    """The rows, or the error with another name of the file."""
    try:
        return function()
    except DeltatuneError as error:
        return str(error).replace(name, "stdin")


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json"])
@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ('{"text": "a", "label": "x", "label": "y"}', ["the key 'label' is repeated", "column 29"]),
        ('{"text": "a", "more": {"k": 1, "k": 1}}', ["the key 'k' is repeated"]),
        ('{"text": "a", "label": NaN}', ["NaN is not JSON"]),
        ('{"text": "a", "label": -Infinity}', ["-Infinity is not JSON"]),
        ('{"text": "a", "label": 1e400}', ["1e400", "beyond the range of float64"]),
        (f'{{"text": "a", "label": {"9" * 5000}}}', ["5,000 characters"]),
        (f'{{"text": {"[" * 50_000}', ["nested more than 100 deep"]),
        (f'{{"text": {"[" * 101}{"]" * 101}}}', ["nested more than 100 deep"]),
        (r'{"text": "a\ud800", "label": "x"}', ["half of a surrogate pair"]),
    ],
)
def test_values_that_json_does_not_have(tmp_path, ending, row, parts):
    path = tmp_path / f"a.{ending}"
    path.write_text(GOOD + row + "\n" + GOOD)
    message = complaint(read_rows, path)
    assert message.startswith(f"{path} is malformed:\n  line 2")
    assert all(part in message for part in parts), message
    streamed = complaint(list, jsonl_lines(iter([GOOD, row, GOOD]), "stdin"))
    assert streamed == message.replace(str(path), "stdin")


def test_values_in_a_list_of_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"},\n{"text": "b",\n"text": "c"}]')
    assert "a.json: the key 'text' is repeated (line 3, column 1)" in complaint(read_rows, path)
    path.write_text("[" * 50_000)
    assert "nested more than 100 deep" in complaint(read_rows, path)
    path.write_text('[{"text": "a", "n": ' + "9" * 5000 + "}]")
    assert "5,000 characters" in complaint(read_rows, path)


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"text": "\ud83d\ude00", "label": "x\\ud800"}')
    assert read_rows(path) == [{"text": "\U0001f600", "label": r"x\ud800"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "txt", "conll", "conllu"])
def test_other_encodings(tmp_path, encoding, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(("text,label\n" + "some text,x\n" * 9).encode(encoding))
    assert f"it looks like {encoding[:6].upper()}" in complaint(read_rows, path)


def test_one_line_in_another_encoding(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ncafé,x\n".encode() + "café,y\n".encode("latin-1"))
    assert "line 3: not UTF-8 (it looks like some other encoding)" in complaint(read_rows, path)


def test_line_ends_of_old_macs(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\ra,x\rb,y\r")
    assert [row["text"] for row in read_rows(path)] == ["a", "b"]
    path = tmp_path / "a.txt"
    path.write_bytes(b"One.\r\rTwo.\r\nThree.")
    assert read_rows(path) == [{"text": "One.\n\nTwo.\nThree."}]
    for name, content in (
        ("a.conll", "Ann B-per\rslept O\r\rBo B-per\r"),
        ("a.conllu", "\t".join("1ax_____xx") + "\r" + "\t".join("2bx_____xx")),
        ("a.jsonl", GOOD.replace("\n", "\r") * 2),
    ):
        (tmp_path / name).write_bytes(content.encode())
        message = complaint(read_rows, tmp_path / name)
        assert "line 1 " in message
        assert "old Macs" in message


def test_tokens_without_a_tag(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("Ann\tB-per\nslept\t\n")
    assert "line 2 has no tag" in complaint(read_rows, path)


def test_nameless_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",text,label,\n0,a,x,\n")
    assert "the header, has the column '' more than once" in complaint(read_rows, path)
    path.write_text(",text,label\n0,a,x\n")  # pandas numbers rows in a column without a name
    assert read_rows(path) == [{"": "0", "text": "a", "label": "x"}]
    path.write_text("text,label,\na,x,\nb,y,z\n")
    assert "line 3 has a value in column 3, which has no name" in complaint(read_rows, path)


def test_columns_of_one_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,Text ,label\n" + "".join(f"film {i},book {i},{i % 2}\n" for i in range(60)))
    message = complaint(read, path)
    assert "the columns 'text' and 'Text ' differ only in case or blanks: name one with text=NAME." in message
    assert read(path, text=["Text "]).text == ("Text ",)


# --- streams are read as files are ---


def test_long_fields_of_streams():
    limit = csv.field_size_limit()
    long = "a" * 300_000
    assert next(csv_lines(["text,label\n", f"{long},x\n"], "stdin")) == {"text": long, "label": "x"}
    assert next(tsv_lines(["text\tlabel\n", f"{long}\tx\n"], "stdin")) == {"text": long, "label": "x"}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("tsv", 'text\tlabel\n"a film\t0\nno "end" here\t1\nof it"\t0\n'),
        ("tsv", 'text\tlabel\n"a\tb"\t0\n"c ""d"""\t1\n'),
        ("tsv", '"text"\t"label"\n"a\t0\nb"\t"1"\n'),
        ("csv", 'text,label\n"one,\ntwo",3\n\n ,\n'),
        ("csv", "text,label\na,x\nb\n"),
        ("csv", 'text,label\n"a"b,x\n'),
        ("csv", "text,text\na,x\n"),
        ("tsv", "text\tlabel\na\n"),
    ],
)
def test_streams_and_files_give_the_same(tmp_path, ending, content):
    path = tmp_path / f"a.{ending}"
    path.write_text(content)
    reader = {"csv": csv_lines, "tsv": tsv_lines}[ending]
    lines = content.splitlines(keepends=True)
    assert outcome(lambda: list(reader(iter(lines), "stdin"))) == outcome(lambda: read_rows(path), str(path))


def test_a_quoted_header_says_that_texts_are_quoted(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('"text"\t"label"\n"a\t0\nb"\t"1"\n')
    assert read_rows(path) == [{"text": "a\t0\nb", "label": "1"}]


# --- SQuAD, Parquet, folders ---


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"is_impossible": "false"}, "is_impossible is neither true nor false"),
        ({"is_impossible": True}, "it is marked as impossible and has answers"),
    ],
)
def test_contradictory_answers(tmp_path, extra, part):
    question = {"question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}], **extra}
    article = {"paragraphs": [{"context": "Ann.", "qas": [question]}]}
    (tmp_path / "a.json").write_text(json.dumps({"data": [article]}))
    assert f"article 1, question 'Who?': {part}" in complaint(read_rows, tmp_path / "a.json")


def test_parquet_columns_more_than_once(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table([["a"], ["x"], ["b"]], names=["text", "label", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert "has columns more than once: 'text'" in complaint(read_rows, tmp_path / "a.parquet")


def class_folders(folder, names=("neg", "pos")):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.txt").write_text(f"text {i}")
    return folder


def test_nothing_beside_the_texts_of_classes_is_left_out(tmp_path):
    from deltatune.data.formats.class_folders import read_class_folders

    folder = class_folders(tmp_path / "a")
    (folder / "pos" / "4.TXT").write_text("pos 4")
    (folder / "pos" / ".DS_Store").write_text("x")
    assert len(read_class_folders(folder)) == 7
    (folder / "pos" / "5.md").write_text("pos 5")
    (folder / "neutral").mkdir()
    message = complaint(read_class_folders, folder)
    assert "neutral has no .txt file: is it a class?" in message
    assert "pos has 5.md beside its texts" in message


def test_a_train_file_beside_folders_of_texts_is_the_data(tmp_path):
    folder = class_folders(tmp_path / "a", ("docs", "notes"))
    (folder / "train.csv").write_text("text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(60)))
    data = read(folder)
    assert data.labels == ("0", "1")
    assert any("docs" in note and "notes" in note for note in data.notes)


def test_folder_names_that_are_not_text(tmp_path):
    from deltatune.data.formats.class_folders import read_class_folders

    folder = class_folders(tmp_path / "a", ("neg", os.fsdecode(b"p\xf6s")))
    message = complaint(read_class_folders, folder)
    assert "the name is not UTF-8; rename it" in message
    message.encode()


# --- what is no file ---


def test_pipes_links_and_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "folder.csv").mkdir()
    started = time.monotonic()
    for name, part in {
        "pipe": "it is a pipe (FIFO), not a regular file",
        "gone": f"it is a link to {tmp_path / 'nothing.csv'}, which does not exist",
        "loop": "loop.csv",
        "folder": "is a folder; a file is needed here",
    }.items():
        assert part in complaint(read_rows, tmp_path / f"{name}.csv")
    assert "not a regular file" in complaint(read_rows, "/dev/zero")
    assert "no file" in complaint(read_rows, "a\0b.csv")
    assert time.monotonic() - started < 5


def test_long_lines_take_bounded_time(tmp_path):
    started = time.monotonic()
    text = "word " * 4_000_000
    (tmp_path / "a.csv").write_text(f'text,label\n"{text}",x\n')
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text, "label": "x"}))
    assert [len(read_rows(tmp_path / name)[0]["text"]) for name in ("a.csv", "a.jsonl")] == [20_000_000] * 2
    assert time.monotonic() - started < 20
