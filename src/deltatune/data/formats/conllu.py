"""CoNLL-U files, as Universal Dependencies has them: ten columns a word, a blank line after each sentence.

https://universaldependencies.org/format.html
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

ENDING = ".conllu"
WIDTH = 10
FORM, UPOS, XPOS = 1, 3, 4
NONE = "_"

FIX = "A line is a word in ten columns with tabs between them; a comment begins with #."


def parse(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {"tokens", "tags", "xpos"}, and problems with line numbers. `tags` are the universal parts of speech.

    Ranges of words (1-2) and words that are not in the text (1.1) are no tokens. `xpos`, the language's own tags, is
    there where the file has any.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for words in _sentences(text, problems):
        row = {"tokens": [word[FORM] for word in words], "tags": [word[UPOS] for word in words]}
        rows.append(row | {"xpos": [word[XPOS] for word in words]})
    if all(tag == NONE for row in rows for tag in row["xpos"]):
        rows = [{"tokens": row["tokens"], "tags": row["tags"]} for row in rows]
    return rows, problems


def _sentences(text: str, problems: list[str]) -> Iterator[list[list[str]]]:
    lines = enumerate((line.rstrip("\r") for line in text.split("\n")), start=1)
    for blank, group in groupby(lines, key=lambda numbered: not numbered[1].strip()):
        if blank:
            continue
        words = [(number, line.split("\t")) for number, line in group if not line.startswith("#")]
        problems += [f"line {number} has {len(w)} columns, not ten" for number, w in words if len(w) != WIDTH]
        found = [word for _, word in words if len(word) == WIDTH and word[0].isdigit()]
        if found:
            yield found
