"""CoNLL files: a token and its tag on each line, a blank line after each sentence."""

from __future__ import annotations

import re
from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, lines_of, raise_malformed, read_text

COMMENT = re.compile(r"#\s*([\w.:-]+\s*=|newdoc|newpar)")  # "# sent_id = 3": a sentence may begin with the token "#"
DOCUMENT_START = "-DOCSTART-"
TAG = re.compile(r"O|[BIES]-\S+")

FIX = "A line is a token and its tag, separated by a tab or by blanks; other columns may be between the two."


def read_conll(path: Path) -> list[Row]:
    """One row for each sentence."""
    rows, problems = parse(read_text(path))
    raise_malformed(path, problems, FIX)
    return rows


def parse(text: str) -> tuple[list[Row], list[str]]:
    """Rows {"tokens", "tags"}, and problems with line numbers.

    Columns are separated by tabs if the file has any, else by blanks. The first column is the token, the last one the
    tag. Comments before a sentence and -DOCSTART- lines belong to no sentence.
    """
    problems: list[str] = []
    lines = lines_of(text, problems)
    tabs = any("\t" in line for line in lines[:1000] if line.strip())
    rows: list[Row] = []
    sentence: list[tuple[str, str]] = []
    width = 0
    for number, line in enumerate([*lines, ""], start=1):
        fields = line.split("\t") if tabs else line.split()
        if not line.strip():
            if sentence:
                rows.append({"tokens": [token for token, _ in sentence], "tags": [tag for _, tag in sentence]})
            sentence = []
            continue
        if fields[0].strip() == DOCUMENT_START or (not sentence and COMMENT.match(line)):
            continue
        width = width or len(fields)
        if len(fields) != width or width < 2:
            count = f"{len(fields)} column{'' if len(fields) == 1 else 's'}"
            problems.append(f"line {number} has {count}" + (f", others have {width}" if width > 1 else ""))
        elif not fields[-1].strip():
            problems.append(f"line {number} has no tag")
        else:
            sentence.append((fields[0], fields[-1].strip()))
    return rows, problems


def looks_like_conll(text: str) -> bool:
    """Whether nearly every line has a word and a tag such as B-person."""
    lines = [line.split() for line in text.split("\n", 400)[:400] if line.strip()]
    tagged = sum(len(fields) > 1 and TAG.fullmatch(fields[-1]) is not None for fields in lines)
    return tagged >= 4 and tagged > 0.9 * len(lines)


FORMATS = (FileFormat(read_conll, (".conll", ".bio", ".iob", ".iob2")),)
