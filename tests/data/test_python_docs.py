"""The built-in data: real, distinct, the same on every call, and without the answer in the text."""

import logging
from collections import Counter

import pytest

import deltatune.data
from deltatune.data import python_docs
from deltatune.data.python_docs import AREAS, MAX_LENGTH, MIN_LENGTH, paragraph


@pytest.fixture(scope="module")
def rows():
    return python_docs.rows()


def test_ten_areas_with_enough_rows_each(rows):
    counts = Counter(row["label"] for row in rows)
    assert len(AREAS) == 10
    assert set(counts) == set(AREAS)
    assert len(rows) > 3000
    assert min(counts.values()) >= 100


def test_texts_are_distinct_clean_and_bounded(rows):
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts)
    assert all(MIN_LENGTH <= len(text) <= MAX_LENGTH for text in texts)
    assert all(text == " ".join(text.split()) for text in texts)
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("os.listdir", "files and processes"),
        ("socket.create_connection", "networking"),
        ("threading.Barrier", "concurrency"),
        ("math.cos", "mathematics"),
        ("builtins.str.upper", "text"),
        ("json.dumps", "data formats"),
        ("calendar.monthrange", "dates and times"),
        ("collections.deque.rotate", "data structures"),
        ("doctest.testmod", "testing and debugging"),
        ("inspect.getsource", "language tools"),
        ("turtle.forward", None),
        ("builtins.print", None),
    ],
)
def test_names_lie_in_their_area(rows, name, area):
    assert {row["name"]: row["label"] for row in rows}.get(name) == area


def test_a_module_is_in_one_area():
    modules = [name for names in AREAS.values() for name in names.split()]
    assert len(set(modules)) == len(modules)
    assert not {"this", "antigravity", "turtle", "tkinter", "idlelib", "test", "lib2to3"} & set(modules)


def test_patches_of_other_libraries_do_not_show(rows, monkeypatch):
    def brand_new(self):
        """A method that a library has put into the standard library."""

    brand_new.__module__ = "logging"
    monkeypatch.setattr(logging.Logger, "brand_new", brand_new, raising=False)
    python_docs.rows.cache_clear()
    assert python_docs.rows() == rows


def test_read_as_data():
    data = deltatune.data.read("python-docs")
    total = sum(map(len, data.splits().values()))
    assert data.labels == tuple(sorted(AREAS))
    assert (data.name, data.text, data.label, data.kind) == ("python-docs", ("text",), "label", "classes")
    assert data.notes == ()  # nothing was guessed
    assert len(data.test) / total == pytest.approx(0.2, abs=0.03)
    assert len(data.validation) / total == pytest.approx(0.1, abs=0.02)
    assert len(data.test) > 600


def test_reading_does_not_change_the_cached_rows():
    deltatune.data.read("python-docs").train[0]["text"] = "changed"
    assert "changed" not in {row["text"] for row in python_docs.rows()}


@pytest.mark.parametrize(
    ("doc", "text"),
    [
        (None, ""),
        ("One line.", "One line."),
        ("First\n    goes on.\n\n    Second.", "First goes on."),
        ("listen([backlog])\n\nEnable a server.", "Enable a server."),
        ("index(sub[, start]) -> int\n\nReturn the lowest index.", "Return the lowest index."),
        ("D.keys() -> a set-like view of the keys", "a set-like view of the keys"),
        ("D.pop(k) -> v, remove the key\nand return the value", "v, remove the key and return the value"),
        (">>> f(1)\n2", ""),
        ("Sum (of all).", "Sum (of all)."),
    ],
)
def test_paragraph(doc, text):
    assert paragraph(doc) == text


def test_long_paragraphs_end_with_a_sentence_or_a_word():
    assert paragraph("word " * 200) == ("word " * 80).strip()
    assert paragraph("A sentence of some length. " * 30).endswith("length.")
