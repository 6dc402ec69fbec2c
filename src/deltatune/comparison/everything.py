"""Every metric of every method, and of the baseline, as a table of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.entries import Entry
from deltatune.comparison.formats import html, score
from deltatune.comparison.scales import LOWER_IS_BETTER


def metrics_table(methods: Sequence[Entry], baseline: Mapping[str, Any] | None) -> str:
    """A section with mean test scores; "" where there is but one metric."""
    found = [(entry.label, entry.row["scores"]) for entry in methods if entry.row.get("scores")]
    if baseline and baseline.get("scores"):
        found.append(("untrained model", baseline["scores"]))
    names = list(found[0][1]) if found else []
    if len(names) < 2:
        return ""
    head = "".join(f'<th scope="col">{html(name)}{_arrow(name)}</th>' for name in names)
    body = "".join(_row(label, scores, names) for label, scores in found)
    table = f'<table><thead><tr><th class="c-method">Method</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="All metrics, scrolls sideways">{table}</div>'
    return (
        '<section class="metrics"><h2>All metrics</h2><p class="hint">Means over the seeds, on the test rows; the '
        "learning rate was chosen by the first metric of the results alone. ↓ lower is better.</p>"
        f"{region}</section>"
    )


def _row(label: str, scores: Mapping[str, float], names: Sequence[str]) -> str:
    cells = "".join(f"<td>{score(scores.get(name))}</td>" for name in names)
    return f'<tr><th scope="row" class="c-method"><b>{html(label)}</b></th>{cells}</tr>'


def _arrow(name: str) -> str:
    return " ↓" if name in LOWER_IS_BETTER else ""
