"""`data check` and train agree: train succeeds, with strict JSON, on just the files that `data check` finds fine."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support import models
from support.command_line import ran
from support.language_models import generation_tokenizer

WORDS = models.WORDS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny encoder, a decoder and an encoder-decoder each."""
    made = {}
    for kind in ("bert", "gpt2", "t5"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tokenizer = generation_tokenizer()
        if kind == "gpt2":
            tokenizer.bos_token = "[CLS]"
        models.tiny(kind, "lm").save_pretrained(made[kind])
        tokenizer.save_pretrained(made[kind])
    return made


def reviews(*odd: dict, count: int = 40) -> list[dict]:
    """Rows of two classes, then odd ones."""
    rows = [{"text": f"{WORDS[4 + i % 8]} film {i}", "label": ("bad", "good")[i % 2]} for i in range(count)]
    return [*rows, *odd]


def scores(*odd: object, scale: float = 1.0, offset: float = 0.0) -> list[dict]:
    rows = [{"text": f"{WORDS[4 + i % 8]} film {i}", "score": offset + scale * (i / 7)} for i in range(40)]
    return [*rows, *({"text": f"odd {i}", "score": value} for i, value in enumerate(odd))]


def tags(*odd: dict) -> list[dict]:
    rows = [{"tokens": ["the", WORDS[4 + i % 8], f"{i}"], "tags": ["O", "B-x", "O"]} for i in range(40)]
    return [*rows, *odd]


def questions(*odd: dict) -> list[dict]:
    rows = [{"question": f"what {i}", "context": f"the film {i} was", "answers": [str(i)]} for i in range(40)]
    return [*rows, *odd]


def pairs(*odd: dict) -> list[dict]:
    return [*({"input": f"film {i}", "output": f"good {i}"} for i in range(40)), *odd]


def documents(*odd: dict) -> list[dict]:
    return [*({"text": f"the film {i} was {WORDS[4 + i % 8]}"} for i in range(40)), *odd]


def jsonl(rows: list[dict]) -> tuple[str, bytes]:
    return "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()


def text(name: str, content: str) -> tuple[str, bytes]:
    return name, content.encode("utf-8", "surrogatepass")


def table(rows: list[dict], *lines: str) -> tuple[str, bytes]:
    head = ",".join(rows[0])
    return text("a.csv", "\n".join([head, *(",".join(map(str, row.values())) for row in rows), *lines]) + "\n")


LONG = "film " * 20_000
FILES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "good": lambda: jsonl(reviews()),
    "half a pair in a text": lambda: jsonl(reviews({"text": "a\ud800", "label": "good"})),
    "half a pair in a label": lambda: jsonl(reviews(*[{"text": f"a {i}", "label": "\udfff"} for i in range(30)])),
    "half a pair in another column": lambda: jsonl(reviews({"text": "a", "label": "good", "note": "\ud800"})),
    "a repeated key": lambda: text("a.jsonl", jsonl(reviews())[1].decode() + '{"text": "a", "text": "b"}\n'),
    "a huge score": lambda: jsonl(scores(1e308)),
    "scores beyond float32": lambda: jsonl(scores(1e39, -1e39)),
    "large scores": lambda: jsonl(scores(scale=1e36)),
    "tiny scores": lambda: jsonl(scores(scale=1e-30)),
    "scores that vanish in float32": lambda: jsonl(scores(scale=1e-60)),
    "scores that are one in float32": lambda: jsonl(scores(offset=1e12, scale=1e-3)),
    "one score for all": lambda: jsonl([{**row, "score": 0.5} for row in scores()]),
    "nan in a table": lambda: table(scores("nan")),
    "infinite in a table": lambda: table(scores("1e400")),
    "a word in a table": lambda: table(scores("much")),
    "long integers": lambda: jsonl([{**row, "label": 2**70 + i % 2} for i, row in enumerate(reviews())]),
    "scores as long integers": lambda: jsonl([{"text": f"a {i}", "score": 2**64 + i * 10**18} for i in range(40)]),
    "empty texts": lambda: jsonl(reviews({"text": "", "label": "good"})),
    "blank texts": lambda: jsonl(reviews({"text": " \n\t", "label": "good"})),
    "invisible texts": lambda: jsonl(reviews({"text": "\u200b\u2060", "label": "good"})),
    "null characters": lambda: jsonl(reviews({"text": "\x00\x00", "label": "good"})),
    "control characters": lambda: jsonl(reviews({"text": "\x1b[31mred\x07", "label": "good"})),
    "long texts": lambda: jsonl(reviews({"text": LONG, "label": "good"}, {"text": "x" * 100_000, "label": "bad"})),
    "labels of one form": lambda: jsonl([{**r, "label": ("Good", "good ")[i % 2]} for i, r in enumerate(reviews())]),
    "labels of lists": lambda: jsonl([{**row, "label": [[]]} for row in reviews()]),
    "labels of bools": lambda: jsonl([{**row, "label": row["label"] == "good"} for row in reviews()]),
    "one label in lists": lambda: jsonl([{**row, "label": [row["label"]]} for row in reviews()]),
    "no label in any list": lambda: jsonl([{**row, "label": []} for row in reviews()]),
    "one odd class": lambda: jsonl(reviews({"text": "a film", "label": "odd"})),
    "a label of 10,000 characters": lambda: jsonl([{**r, "label": r["label"] * 2500} for r in reviews()]),
    "one row": lambda: jsonl(reviews(count=1)),
    "three rows": lambda: jsonl(reviews(count=3)),
    "six rows": lambda: jsonl(reviews(count=6)),
    "one text for all": lambda: jsonl([{**row, "text": "a film"} for row in reviews()]),
    "old macs": lambda: ("a.csv", table(reviews())[1].replace(b"\n", b"\r")),
    "ragged": lambda: table(reviews(), "a,b,c"),
    "good tags": lambda: jsonl(tags()),
    "empty tokens": lambda: jsonl(tags({"tokens": ["", " "], "tags": ["O", "O"]})),
    "an empty tag": lambda: jsonl(tags({"tokens": ["a", "b"], "tags": ["O", ""]})),
    "half a pair in a token": lambda: jsonl(tags({"tokens": ["\ud800"], "tags": ["O"]})),
    "ten thousand tokens": lambda: jsonl(tags({"tokens": ["film"] * 10_000, "tags": ["O"] * 10_000})),
    "conll without a tag": lambda: text("a.conll", "".join(f"film{i}\tB-x\nis\tO\n\n" for i in range(40)) + "a\t\n"),
    "good answers": lambda: jsonl(questions()),
    "an answer of blanks": lambda: jsonl(questions({"question": "a", "context": "b  c", "answers": [" "]})),
    "an answer beyond the end": lambda: jsonl(
        questions({"question": "a", "context": "b", "answers": [{"text": "b", "start": 9}]})
    ),
    "an answer at 2**70": lambda: jsonl(
        questions({"question": "a", "context": "b", "answers": [{"text": "b", "start": 2**70}]})
    ),
    "invisible context": lambda: jsonl(questions({"question": "a", "context": "\u200b", "answers": []})),
    "good outputs": lambda: jsonl(pairs()),
    "an output of blanks": lambda: jsonl(pairs({"input": "a", "output": " "})),
    "an invisible output": lambda: jsonl(pairs({"input": "a", "output": "\u200b"})),
    "a long output": lambda: jsonl(pairs({"input": "a", "output": LONG})),
    "a table with NaN": lambda: text("a.jsonl", jsonl(pairs())[1].decode() + '{"input": {"a": NaN}, "output": "x"}\n'),
    "good documents": lambda: jsonl(documents()),
    "an invisible document": lambda: jsonl(documents({"text": "\u200b"})),
    "a document of one letter": lambda: text("a.txt", "a"),
    "a document of a line": lambda: text("a.txt", "the film was good"),
    "a document of blanks": lambda: text("a.txt", " \n\n"),
    "a document in UTF-16": lambda: ("a.txt", "the film was good".encode("utf-16")),
}
QUICKLY = {"good", "half a pair in a text", "a huge score", "large scores", "nan in a table", "invisible texts"}
"""Files of the quick tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICKLY else [pytest.mark.slow]) for name in FILES]
)
def test_train_succeeds_on_what_is_fine(folders, tmp_path, name):
    file, content = FILES[name]()
    path = tmp_path / file
    path.write_bytes(content)
    checked = ran("data", "check", path, "--json")
    assert checked.code in (0, 1, 2), checked.err
    figures = loads(checked.out) if checked.code < 2 else {"task": "classify"}
    model = folders[{"generate": "t5", "lm": "gpt2"}.get(figures["task"], "bert")]
    options = ("--new-tokens", "4") if figures["task"] == "generate" else ()
    out = tmp_path / "run"
    done = ran(
        *("train", "--model", model, "--data", path, "--epochs", "1", "--batch-size", "64", "--max-length", "24"),
        *("--precision", "float32", "--out", out, *options),
    )
    assert "This should not happen" not in done.err
    assert (done.code == 0) == (checked.code == 0), (checked.code, figures.get("problems"), done.err)
    if done.code:
        assert (done.code, done.err[:7]) == (2, "error: ")
        return
    for written in out.rglob("*.json*"):
        for line in written.read_text().splitlines() if written.suffix == ".jsonl" else [written.read_text()]:
            loads(line)
    evaluated = ran("evaluate", "--adapter", out, "--data", path, "--json")
    assert evaluated.code == 0, evaluated.err
    loads(evaluated.out)
    predicted = ran("predict", "--adapter", out, path)
    assert predicted.code == 0 or file.endswith(".txt"), predicted.err
    for line in predicted.out.splitlines():
        loads(line)


def loads(text: str) -> dict:
    """Strict JSON."""
    value: dict = json.loads(text, parse_constant=pytest.fail)
    return value
