"""CoNLL files: one word a line, its tag last, a blank line after each sentence."""

from __future__ import annotations

import re
from typing import Any

COMMENT = re.compile(r"#\s*([\w.:-]+\s*=|newdoc|newpar)")  # "# sent_id = 3": a sentence may begin with the word "#"
DOCUMENT = "-DOCSTART-"

ENDINGS = (".conll", ".bio", ".iob", ".iob2")

TAG = re.compile(r"O|[BIES]-\S+")

FIX = "A line is a word and its tag, between them a tab or blanks; other columns may stand between these two."


def parse(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {"tokens", "tags"}, and problems with line numbers.

    Columns are separated by tabs if the first line with a word has one, else by blanks; the word is the first, the tag
    the last. Comments before a sentence and -DOCSTART- lines belong to no sentence.
    """
    lines = text.split("\n")
    tabs = any("\t" in line for line in lines[:1000])
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    words: list[tuple[str, str]] = []
    width = 0
    for number, line in enumerate([*lines, ""], start=1):
        line = line.rstrip("\r")
        fields = line.split("\t") if tabs else line.split()
        if not line.strip():
            if words:
                rows.append({"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]})
            words = []
            continue
        if fields[0].strip() == DOCUMENT or (not words and COMMENT.match(line)):
            continue
        width = width or len(fields)
        if len(fields) != width or width < 2:
            problems.append(
                f"line {number} has {_columns(len(fields))}" + (f", others have {width}" if width > 1 else "")
            )
        else:
            words.append((fields[0], fields[-1].strip()))
    return rows, problems


def _columns(number: int) -> str:
    return f"{number} column{'' if number == 1 else 's'}"


def looks_like_conll(text: str) -> bool:
    """Whether a plain text has a word and a tag such as B-person in nearly every line."""
    lines = [line.split() for line in text.split("\n", 400)[:400] if line.strip()]
    tagged = sum(len(fields) > 1 and TAG.fullmatch(fields[-1]) is not None for fields in lines)
    return tagged >= 4 and tagged > 0.9 * len(lines)
