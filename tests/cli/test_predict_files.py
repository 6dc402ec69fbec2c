"""Files that predict reads and writes: every format both ways, and what is no file to read or write."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltatune.data import read_rows
from support.command_line import QUICK, Ran, ran, review_folder, reviews, write_csv


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The folder of a finished run."""
    data = review_folder(tmp_path_factory.mktemp("data") / "reviews")
    out = tmp_path_factory.mktemp("runs") / "reviews"
    done = ran("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", *QUICK, "--out", out)
    assert done.code == 0, done.err
    return out


def refused(done: Ran, *parts: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    assert all(part in done.err for part in parts), done.err


TEXTS = ["good film", 'a "quoted"\tfilm', "two\nlines", "a,comma; and\r\nmore", "=1+1", "caf\u00e9\u2028", " x "]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_both_ways(trained, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rows = "".join(json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(TEXTS))
    out, again = tmp_path / f"out{suffix}", tmp_path / f"again{suffix}"
    done = ran("predict", "--adapter", trained, "--out", out, stdin=rows)
    assert (done.code, done.out) == (0, ""), done.err
    assert [(row["text"], row["id"]) for row in read_rows(out)] == [(text, str(i)) for i, text in enumerate(TEXTS)]
    done = ran("predict", "--adapter", trained, out, "--out", again)
    assert done.code == 0, done.err
    assert [row["text"] for row in read_rows(again)] == TEXTS
    assert [row["label"] for row in read_rows(again)] == [row["label"] for row in read_rows(out)]
    assert [row["given_label"] for row in read_rows(again)] == [row["label"] for row in read_rows(out)]


def test_suffixes_that_name_no_format(trained, tmp_path):
    for name in ("out.xlsx", "out", "out.txt"):
        done = ran("predict", "--adapter", trained, "--out", tmp_path / name, stdin="good\n")
        refused(done, f"--out {tmp_path / name} has", ".csv, .json, .jsonl, .ndjson, .parquet, .tsv")
    assert list(tmp_path.iterdir()) == []


# --- outputs ---


def test_an_output_is_never_an_input(trained, tmp_path):
    table = write_csv(tmp_path / "rows.csv", reviews(5))
    (tmp_path / "link.csv").symlink_to(table)
    os.link(table, tmp_path / "hard.csv")
    before = table.read_bytes()
    for name in ("rows.csv", "link.csv", "hard.csv"):
        refused(ran("predict", "--adapter", trained, table, "--out", tmp_path / name), "would overwrite the input")
    config = next((trained / "adapter").glob("*.json"))
    kept = config.read_bytes()
    refused(ran("predict", "--adapter", trained, table, "--out", config), "would overwrite the input")
    assert (table.read_bytes(), config.read_bytes()) == (before, kept)


def test_outputs_that_are_no_files(trained, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing" / "x.csv")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    started = time.monotonic()
    for name, part in {
        "folder.csv": "is a folder; name a file in it",
        "pipe.csv": "it is a pipe (FIFO), not a regular file",
        "gone.csv": "which does not exist",
        "null.csv": "it is a device, not a regular file",
        "no/x.csv": f"there is no folder {tmp_path / 'no'}",
    }.items():
        refused(ran("predict", "--adapter", trained, "--out", tmp_path / name, stdin="good\n"), part)
    assert time.monotonic() - started < 10
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(trained, tmp_path):
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "real.jsonl").chmod(0o600)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    done = ran("predict", "--adapter", trained, "--out", tmp_path / "link.jsonl", stdin="good\n")
    assert done.code == 0, done.err
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real.jsonl").read_text())["text"] == "good"
    assert stat.S_IMODE((tmp_path / "real.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_failure_leaves_the_old_file_and_nothing_else(trained, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"out{suffix}"
    out.write_text("old")
    rows = '{"text": "a"}\n{"text": "b", "text": "c"}\n'
    done = ran("predict", "--adapter", trained, "--batch-size", "1", "--out", out, stdin=rows)
    refused(done, "stdin is malformed", "line 2: the key 'text' is repeated")
    assert (out.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", [out.name])


# --- inputs ---


def test_inputs_that_are_no_files(trained, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    started = time.monotonic()
    for name, part in {
        "folder.csv": "is a folder; a file is needed here",
        "pipe.csv": f"a stream is read from stdin: deltatune predict - < {tmp_path / 'pipe.csv'}",
        "pipe": "it is a pipe (FIFO), not a regular file",
        "gone.csv": "which does not exist",
        "gone": "which does not exist",
        "absent": "no file",
    }.items():
        refused(ran("predict", "--adapter", trained, tmp_path / name), part)
    refused(ran("predict", "--adapter", trained, "/dev/zero"), "it is a device")
    assert time.monotonic() - started < 10


def test_files_are_read_as_read_does(trained, tmp_path):
    long = "good " * 40_000
    (tmp_path / "long.csv").write_text(f"text\n{long}\n")
    done = ran("predict", "--adapter", trained, tmp_path / "long.csv")
    assert json.loads(done.out)["text"] == long
    (tmp_path / "quotes.tsv").write_text('text\tn\n"a film\t0\nof it"\t1\n')
    done = ran("predict", "--adapter", trained, tmp_path / "quotes.tsv")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ['"a film', 'of it"']
    stdin = (tmp_path / "quotes.tsv").read_text()
    assert ran("predict", "--adapter", trained, stdin=stdin).out == done.out
    (tmp_path / "bad.csv").write_text("text,n\na,0\nb\nc\n")
    refused(ran("predict", "--adapter", trained, tmp_path / "bad.csv"), "line 3 has 1 field", "line 4 has 1 field")


def test_a_json_list_is_no_text(trained):
    for stdin in ('[{"text": "good"}]\n', '[\n{"text": "good"}\n]\n'):
        refused(ran("predict", "--adapter", trained, stdin=stdin), "this is a JSON list; give one object on each line")
    assert json.loads(ran("predict", "--adapter", trained, stdin="[laughs] good\n").out)["text"] == "[laughs] good"


def test_rows_of_later_batches_are_named(trained, tmp_path):
    rows = "".join(json.dumps({"text": "good" if i != 5 else 7}) + "\n" for i in range(6))
    done = ran("predict", "--adapter", trained, "--batch-size", "4", "--out", tmp_path / "a.csv", stdin=rows)
    refused(done, "error: stdin row 6: text is 7, not a text")
    refused(ran("predict", "--adapter", trained, stdin='{"text": null}\n'), "no text in column 'text'; its columns")


def test_values_that_json_has_no_form_for(trained, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {
            "text": ["good"],
            "day": pyarrow.array([19_000], pyarrow.date32()),
            "n": [float("nan")],
            "raw": pyarrow.array([b"\xff"], pyarrow.binary()),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    done = ran("predict", "--adapter", trained, tmp_path / "a.parquet")
    assert done.code == 0, done.err
    row = json.loads(done.out, parse_constant=pytest.fail)
    assert (row["day"], row["n"], row["raw"]) == ("2022-01-08", None, "b'\\xff'")


def piped(trained: Path, stdin: bytes | int) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "deltatune", "predict", "--adapter", str(trained)]
    if isinstance(stdin, int):
        return subprocess.run(argv, stdin=stdin, capture_output=True, check=False, timeout=60)
    return subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=60)


@pytest.mark.slow
def test_stdin_of_every_kind(trained, tmp_path):
    done = piped(trained, '\ufefftext,n\n"one,\r\ntwo",3\n'.encode())
    assert json.loads(done.stdout)["text"] == "one,\r\ntwo", done.stderr
    done = piped(trained, "gut\n".encode("utf-16-le"))
    assert (done.returncode, b"looks like UTF-16" in done.stderr) == (2, True)
    done = piped(trained, b"good\ncaf\xe9\n")
    assert (done.returncode, b"stdin is not UTF-8" in done.stderr) == (2, True)
    folder = os.open(tmp_path, os.O_RDONLY)
    done = piped(trained, folder)
    os.close(folder)
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


def test_columns_of_earlier_answers_stay(trained, tmp_path):
    rows, first, second, third = (tmp_path / f"{i}.csv" for i in range(4))
    write_csv(rows, [{"text": "good film", "label": "mine"}, {"text": "bad film", "label": "yours"}])
    for source, out in ((rows, first), (first, second), (second, third)):
        assert ran("predict", "--adapter", trained, source, "--out", out).code == 0
        assert [row["given_label"] for row in read_rows(out)] == ["mine", "yours"]
    labels = [row["label"] for row in read_rows(first)]
    assert [row["given_given_label"] for row in read_rows(third)] == labels


@pytest.mark.parametrize(
    ("header", "fix"),
    [("Text,Id", "write the columns in this case"), ("id|text", "with commas, not bars")],
)
def test_a_header_that_is_no_text(trained, header, fix):
    refused(ran("predict", "--adapter", trained, stdin=f"{header}\ngood,1\n"), f"the first line, {header!r}", fix)
    assert ran("predict", "--adapter", trained, stdin="Text, it is\nid| text\n").code == 0


def test_a_table_with_semicolons(trained):
    done = ran("predict", "--adapter", trained, stdin='id;text\n1;"good; film"\n2;bad\n')
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["id"], row["text"]) for row in answers] == [("1", "good; film"), ("2", "bad")]


def test_a_label_column_that_is_not_there_is_named(trained, tmp_path):
    rows = [{"text": text, "lable": "good"} for text in ("good film", "bad film", "the plot")]
    done = ran("evaluate", "--adapter", trained, "--data", write_csv(tmp_path / "a.csv", rows))
    refused(done, "has no column 'label', did you mean 'lable'?", "its columns: 'text', 'lable'.")
