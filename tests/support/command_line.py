"""Running the command line inside the test process, and small data for it."""

import contextlib
import csv
import io
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltatune.cli import main

QUICK = ("--epochs", "1", "--max-length", "32", "--precision", "float32")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def ran(*argv: str | Path, stdin: str = "") -> Ran:
    """Run `deltatune` with these arguments."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in argv])
    finally:
        sys.stdin = before
    return Ran(code, out.getvalue(), err.getvalue())


def put_over(words: Sequence[str | Path], *over: str | Path) -> tuple[str | Path, ...]:
    """The words with these options in place of those of the same name; each has one value."""
    pairs = list(zip(words[::2], words[1::2], strict=True))
    return (*(word for pair in pairs if pair[0] not in over for word in pair), *over)


def reviews(count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """Texts of the tiny tokenizer's words, with one word that tells the label."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = ("bad", "good")[i % 2]
        words = rng.choices(["film", "the", "is", "and", "was", "very", "it", "this", "plot", "actor"], k=5)
        words.insert(rng.randrange(6), rng.choice(["good", "great"] if label == "good" else ["bad", "awful"]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as a CSV file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def review_folder(folder: Path) -> Path:
    """A folder with train, dev and test files."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": 64, "dev": 20, "test": 20}.items()):
        write_csv(folder / f"{split}.csv", reviews(count, seed))
    return folder
