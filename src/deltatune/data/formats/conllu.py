"""CoNLL-U files of Universal Dependencies: ten columns for each token, a blank line after each sentence.

https://universaldependencies.org/format.html
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, lines_of, raise_malformed, read_text

WIDTH = 10
FORM, UPOS, XPOS = 1, 3, 4
UNSPECIFIED = "_"

FIX = "A line is a token in ten columns separated by tabs; a comment begins with #."


def read_conllu(path: Path) -> list[Row]:
    """One row for each sentence."""
    rows, problems = parse(read_text(path))
    raise_malformed(path, problems, FIX)
    return rows


def parse(text: str) -> tuple[list[Row], list[str]]:
    """Rows {"tokens", "tags", "xpos"}, and problems with line numbers. `tags` are the universal parts of speech.

    Multiword ranges (1-2) and empty nodes (1.1) are not tokens. The language-specific tags, `xpos`, are left out where
    the file has none.
    """
    problems: list[str] = []
    rows: list[Row] = []
    for tokens in _sentences(text, problems):
        row = {"tokens": [token[FORM] for token in tokens], "tags": [token[UPOS] for token in tokens]}
        rows.append(row | {"xpos": [token[XPOS] for token in tokens]})
    if all(tag == UNSPECIFIED for row in rows for tag in row["xpos"]):
        rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in rows]
    return rows, problems


def _sentences(text: str, problems: list[str]) -> Iterator[list[list[str]]]:
    """The columns of the tokens of each sentence; malformed lines are added to `problems`."""
    lines = enumerate(lines_of(text, problems), start=1)
    for blank, group in groupby(lines, key=lambda numbered: not numbered[1].strip()):
        if blank:
            continue
        numbered = [(number, line.split("\t")) for number, line in group if not line.startswith("#")]
        problems += [
            f"line {number} has {len(columns)} columns, not ten"
            for number, columns in numbered
            if len(columns) != WIDTH
        ]
        tokens = [columns for _, columns in numbered if len(columns) == WIDTH and columns[0].isdigit()]
        if tokens:
            yield tokens


FORMATS = (FileFormat(read_conllu, (".conllu",)),)
