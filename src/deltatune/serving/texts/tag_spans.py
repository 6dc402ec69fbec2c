"""Entities that tags mark, with their place in the words and in the text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from deltatune.tasks.metrics.tag_scores import is_entity_scheme

BEGINS, ENDS = "BSU", "ESLU"


def tag_spans(words: Sequence[str], tags: Sequence[str], scheme: Sequence[str]) -> list[dict[str, Any]]:
    """Entities as `{"type", "text", "start", "end", "first_word", "last_word"}`; none if the tags mark none.

    Characters count in the words joined by single blanks, the end is behind the last one. An entity begins with B, S
    or U, after an entity of another type, or after the end of one; it ends with E, L, S or U, or where another tag is.
    """
    if not is_entity_scheme(scheme):
        return []
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    spans: list[tuple[str, int, int]] = []  # type, first and last word
    is_open = False
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "O":
            is_open = False
            continue
        if is_open and prefix not in BEGINS and spans[-1][0] == kind:
            spans[-1] = (kind, spans[-1][1], place)
        else:
            spans.append((kind, place, place))
        is_open = prefix not in ENDS
    return [
        {
            "type": kind,
            "text": " ".join(words[first : last + 1]),
            "start": starts[first],
            "end": starts[last] + len(words[last]),
            "first_word": first,
            "last_word": last,
        }
        for kind, first, last in spans
    ]
