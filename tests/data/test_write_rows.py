"""Rows written to files of each format, and read again as they were."""

import datetime
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatune.core.errors import DeltatuneError
from deltatune.data import read_rows
from deltatune.data.write_rows import check_suffix, row_writer

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXT = st.text(st.one_of(st.sampled_from("ab,;\t\n\r \"'\\\u2028\x00\x1f\ufeff"), st.characters(codec="utf-8")))


def written(rows, suffix, folder):
    path = Path(folder) / f"rows{suffix}"
    with row_writer(path, suffix) as put:
        for row in rows:
            put([row])
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None)
@given(table=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_any_text_comes_back(suffix, table):
    rows = [{"text": "x" + text, "label": label} for text, label in table]
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        assert read_rows(written(rows, suffix, folder)) == rows


ROWS = [
    {"text": "a", "label": "x", "score": 0.5, "scores": {"x": 0.5, "y": 0.25}, "n": None},
    {"text": "b", "label": "y", "score": math.nan, "scores": {"x": 0.5, "y": math.inf}, "more": ["p", "q"]},
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_hold_every_column_and_json_in_cells(tmp_path, suffix):
    assert read_rows(written(ROWS, suffix, tmp_path)) == [
        {"text": "a", "label": "x", "score": "0.5", "scores": '{"x": 0.5, "y": 0.25}', "n": "", "more": ""},
        {"text": "b", "label": "y", "score": "", "scores": '{"x": 0.5, "y": null}', "n": "", "more": '["p", "q"]'},
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_is_strict(tmp_path, suffix):
    first, second = read_rows(written([*ROWS, {"day": datetime.date(2030, 1, 2)}], suffix, tmp_path))[:2]
    assert first == ROWS[0]
    assert (second["score"], second["scores"]) == (None, {"x": 0.5, "y": None})


def test_parquet_holds_every_column(tmp_path):
    pytest.importorskip("pyarrow")
    first, second = read_rows(written(ROWS, ".parquet", tmp_path))
    assert (first["more"], second["more"], first["scores"]) == (None, ["p", "q"], {"x": 0.5, "y": 0.25})
    with pytest.raises(DeltatuneError, match=r"the values of 'n' have several; write \.jsonl instead"):
        written([{"n": 1}, {"n": "one"}], ".parquet", tmp_path)


def test_no_rows(tmp_path):
    assert [written([], suffix, tmp_path).read_text() for suffix in (".jsonl", ".csv", ".json")] == ["", "", "[]\n"]


@pytest.mark.parametrize("suffix", ["", ".txt", ".xlsx", ".jsonlines"])
def test_other_suffixes(suffix):
    with pytest.raises(DeltatuneError) as caught:
        check_suffix(suffix, "--out rows")
    assert "--out rows has" in str(caught.value)
    assert str(caught.value).endswith("it chooses the format of the rows: .csv, .json, .jsonl, .ndjson, .parquet, .tsv")
