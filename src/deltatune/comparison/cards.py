"""Sample predictions as cards of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.formats import html


def sample_cards(samples: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """A section with a card for each row; "" where there are none. `names`: how a method is called in the report."""
    if not samples:
        return ""
    cards = "".join(_card(sample, names) for sample in samples)
    words = (
        "The same test rows for all methods, first seed: some on which most do well, some on which they differ, some "
        "on which most do badly."
    )
    heading = f"<h2>Sample predictions</h2><p>{words}</p>"
    return f'<section class="samples">{heading}<div class="cards">{cards}</div></section>'


def _card(sample: Mapping[str, Any], names: Mapping[str, str]) -> str:
    answers = "".join(_answer(answer, names) for answer in sample["answers"])
    wanted = f"<span>reference</span> {html(sample['reference'])}" if sample["reference"] else ""
    given = html(sample["input"])
    return f'<article><p class="given">{given}</p><p class="wanted">{wanted}</p><dl>{answers}</dl></article>'


def _answer(answer: Mapping[str, Any], names: Mapping[str, str]) -> str:
    right, score = answer.get("right"), answer.get("score")
    mark = "" if right is None else "✓" if right else "✗"
    class_ = "" if right is None else "right" if right else "wrong"
    note = f" <small>{score:.2f}</small>" if score is not None and score >= 0 else ""
    name = html(names.get(answer["method"], answer["method"]))
    said = html(answer["text"]) or "<em>nothing</em>"
    return f'<div class="{class_}"><dt>{mark} {name}{note}</dt><dd>{said}</dd></div>'
