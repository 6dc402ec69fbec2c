"""Mutated files of every format: an error that names the file, or rows that the bytes explain; `data check` as well."""

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.strict_json import dumps
from deltatune.data import Data, problems, read, read_rows, remarks
from deltatune.data.dataset import describe
from deltatune.data.formats.class_folders import read_class_folders
from support.fuzz import mutate, mutations, outcome

FAST, FULL = 40, 1000

rng = random.Random(0)
WORDS = ["film", "good", "bad", 'a "quoted" word', "caf\u00e9", "two, commas", "line\nbreak", "\u65e5\u672c", "it's"]
ROWS = [
    {"text": f"{rng.choice(WORDS)} {i} {rng.choice(WORDS)}", "label": "ab"[i % 2], "n": round(i / 7, 3)}
    for i in range(24)
]
SENTENCES = [[("Ann", "B-per"), (f"w{i}", "O"), ("met", "O"), ("Bo", "B-per")] for i in range(12)]


def delimited(rows: list[dict], separator: str) -> bytes:
    def cell(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"' if set(str(value)) & set('",\n\t') else str(value)

    lines = [separator.join(map(cell, fields)) for fields in ([*rows[0]], *(row.values() for row in rows))]
    return "\n".join(lines).encode()


def squad() -> bytes:
    qas = [
        {"id": "a", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": f"Ann met {i}.", "qas": qas} for i in range(8)]
    return json.dumps({"version": "v2.0", "data": [{"title": "Ann", "paragraphs": paragraphs}]}).encode()


def parquet() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    rows = [{**row, "tags": ["x", row["label"]]} for row in ROWS]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), buffer, compression="none")
    return buffer.getvalue()


def conllu() -> bytes:
    columns = "{i}\t{token}\t_\tX\tY\t_\t0\troot\t_\t_"
    sentences = [
        "# sent_id = 1\n" + "\n".join(columns.format(i=i, token=token) for i, (token, _) in enumerate(sentence, 1))
        for sentence in SENTENCES
    ]
    return "\n\n".join(sentences).encode()


GOOD: dict[str, Callable[[], bytes]] = {
    "a.csv": lambda: delimited(ROWS, ","),
    "a.tsv": lambda: delimited(ROWS, "\t"),
    "a.jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(ROWS)).encode(),
    "a.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "chats.jsonl": lambda: "\n".join(
        json.dumps({"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}!"}]})
        for i in range(12)
    ).encode(),
    "squad.json": squad,
    "a.conll": lambda: "\n\n".join("\n".join(map("\t".join, s)) for s in SENTENCES).encode(),
    "blanks.bio": lambda: "\n\n".join("\n".join(map(" ".join, s)) for s in SENTENCES).encode(),
    "a.conllu": conllu,
    "a.txt": lambda: "".join(f"Line {i} of a play.\n" + "\n" * (i % 5 == 0) for i in range(60)).encode(),
    "a.parquet": parquet,
}


@pytest.fixture(params=[pytest.param(FAST, id="fast"), pytest.param(FULL, id="full", marks=pytest.mark.slow)])
def count(request: pytest.FixtureRequest) -> int:
    """Mutations of each file."""
    return int(request.param)


@pytest.mark.parametrize("name", GOOD)
def test_a_mutated_file(tmp_path, name, count):
    path = tmp_path / name
    good = GOOD[name]()
    path.write_bytes(good)
    assert read_rows(path)
    for what, content in mutated(path.suffix, good, count):
        path.write_bytes(content)
        rows = outcome(lambda: read_rows(path), what)
        if isinstance(rows, DeltatuneError):
            assert str(path) in str(rows), f"{what}: {rows}"
        else:
            assert unexplained(path.suffix, content, rows) == "", what
        outcome(lambda: check(path), what)
        if name == "a.csv":
            outcome(lambda: check(path, label="n"), what)


def mutated(suffix: str, good: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Mutations of the whole file; of JSON Lines, half of them are mutations of the JSON of one line."""
    for number, (what, content) in enumerate(mutations(good, seed=1, count=count)):
        if suffix == ".jsonl" and number % 2:
            lines = good.split(b"\n")
            at = number % len(lines)
            what, lines[at] = mutate(lines[at], random.Random(f"line-{number}"), number)
            yield f"{what} (line {at + 1})", b"\n".join(lines)
        else:
            yield what, content


@pytest.mark.parametrize("name", ["train/neg/1.txt", "train/pos/2.txt"])
def test_mutated_folders_of_classes(tmp_path, name, count):
    for label in ("neg", "pos"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "train" / label / f"{i}.txt").write_text(f"A {label} text, number {i}.\n")
    path = tmp_path / name
    good = path.read_bytes()
    for what, content in mutations(good, seed=2, count=count):
        path.write_bytes(content)
        rows = outcome(lambda: read_class_folders(tmp_path / "train"), what)
        if not isinstance(rows, DeltatuneError):
            (row,) = [row for row in rows if (row["label"], row["name"]) == (path.parent.name, path.name)]
            assert unexplained(".txt", content, [row]) == "", what
        outcome(lambda: check(tmp_path), what)


def check(path: Path, label: str | None = None) -> None:
    """What `data check` does; its figures are strict JSON, and hand-made data of the same rows have no less faults."""
    data = read(path, label=label, strict=False)
    text = dumps(describe(data) | {"problems": data.problems, "remarks": remarks(data)})
    assert len(text) < 1_000_000
    text.encode()
    assert isinstance(data, Data)
    if not data.problems:
        assert problems(data) == []


# --- rows that the bytes explain ---

MARKS = set('",\t \n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029\ufeff') | {chr(c) for c in range(0x2000, 0x2010)}
"""Separators, quotes and white space: what reading a table may remove."""


def unexplained(suffix: str, content: bytes, rows: list[dict]) -> str:
    """How rows and bytes differ: "" where each character of one is in the other."""
    if suffix == ".parquet":
        return "" if all(isinstance(row, dict) for row in rows) else "no rows"
    text = content.decode("utf-8-sig")
    if suffix == ".txt":
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        return "" if [row["text"] for row in rows] == [plain] else "another text"
    if suffix == ".jsonl":
        return "" if rows == [loads(line) for line in text.split("\n") if line.strip()] else "other values"
    if suffix == ".json":
        return json_difference(text, rows)
    if suffix in (".csv", ".tsv"):
        cells = [*dict.fromkeys(name for row in rows for name in row), *(cell for row in rows for cell in row.values())]
        return difference("".join(cells), text)
    tokens = [token for row in rows for token in row["tokens"]]
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if suffix == ".conllu":
        lines = [line for line in lines if line.split("\t")[0].isdigit()]
    else:
        lines = [line for line in lines if not line.lstrip().startswith("-DOCSTART-")]
    return "" if all(token in text for token in tokens) and len(tokens) <= len(lines) else "other tokens"


def loads(text: str) -> Any:
    """JSON in which no key is repeated and no number is infinite: what a reader may accept."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key is repeated"
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique, parse_constant=pytest.fail)


def json_difference(text: str, rows: list[dict]) -> str:
    try:
        value = loads(text)
    except ValueError:
        value = [loads(line) for line in text.split("\n") if line.strip()]
    if isinstance(value, dict) and "data" in value:
        questions = [q for article in value["data"] for part in article["paragraphs"] for q in part["qas"]]
        return "" if [q["question"] for q in questions] == [row["question"] for row in rows] else "other questions"
    return "" if rows in (value, [value]) else "other values"


def difference(read: str, written: str) -> str:
    left, right = (Counter(c for c in text if c not in MARKS and not c.isspace()) for text in (read, written))
    return "" if left == right else f"read {left - right}, lost {right - left}"
