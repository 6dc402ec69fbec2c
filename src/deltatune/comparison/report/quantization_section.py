"""Quantisations of the base side by side in a study's page: scores, verdicts against the plain base, memory, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.html_page import table_region
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.study_results import StudyComparison, StudyResults

SETS = 4
"""Places beside each other in one table, which then fits a page of 1,200 pixels."""
MARKS = {"better": "+ better", "worse": "− worse", "equal": "= equal", "undecided": "? undecided"}
HINT = (
    "Below a score: its difference to that of the same method on the first base of the table, the interval of the "
    "difference, and the verdict. Runs are paired by test rows and seeds; at each place all verdicts hold together "
    "with 95 % probability. Base size: bytes of the weights as they are stored. Peak: most memory of the process in a "
    "training. Time: of a training, relative to the first base, as measured one comparison after another."
)


def quantization_section(study: Mapping[str, Any], results: StudyResults) -> str:
    """The section; "" for a study of one quantisation."""
    found = study.get("quantizations") or {}
    rows = found.get("rows") or ()
    if not rows:
        return ""
    sentences = "".join(f"<li>{html(each.get('sentence'))}</li>" for each in found.get("sentences") or ())
    places: dict[str, list[StudyComparison]] = {}
    names = [name for name in results.varying if name != "quantize"]
    for each in results.comparisons:
        places.setdefault(results.place(each.at, names) if names else "score", []).append(each)
    tables = ""
    for start in range(0, len(places), SETS):
        some = dict(list(places.items())[start : start + SETS])
        tables += table_region(_table(found, results, some), "Quantisations")
    return (
        f"<section><h2>Quantised base</h2>{f'<ul>{sentences}</ul>' if sentences else ''}{tables}"
        f'<p class="hint">{html(HINT)}</p></section>'
    )


def _table(found: Mapping[str, Any], results: StudyResults, places: Mapping[str, list[StudyComparison]]) -> str:
    head = '<th scope="col" class="c-method">Method</th><th scope="col" class="text">Base</th>'
    for name, comparisons in places.items():
        metric = f"<small>{html(comparisons[0].metric)}</small>" if results.metric == "score" else ""
        head += f'<th scope="col">{html(name)}{metric}</th>'
    head += '<th scope="col">Base size</th><th scope="col">Peak</th><th scope="col">Time</th>'
    labels = {method.asked: method.label for method in results.methods}
    body, last = "", ""
    for row in found.get("rows") or ():
        method, scheme = str(row.get("method")), row.get("scheme")
        name = f"<b>{html(labels.get(method, method))}</b>" if method != last else ""
        cells = "".join(_cell(found, method, scheme, comparisons) for comparisons in places.values())
        ratio = formats.number(row, "time_ratio")
        time = formats.seconds(formats.number(row, "train_seconds"))
        times = formats.MISSING if ratio is None else f"{ratio:.2f}×"
        body += (
            f'<tr><th scope="row" class="c-method">{name}</th>'
            f'<td class="text">{html(results.value_text("quantize", scheme))}</td>{cells}'
            f"<td>{formats.size(formats.number(row, 'base_bytes'))}</td>"
            f"<td>{formats.size(formats.number(row, 'peak_memory_bytes'))}</td>"
            f"<td>{times}<small>{html(time)}</small></td></tr>"
        )
        last = method
    return f'<table class="study"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(found: Mapping[str, Any], method: str, scheme: Any, comparisons: Sequence[StudyComparison]) -> str:
    each = next((each for each in comparisons if each.at.get("quantize") == scheme), None)
    entry = each.entries.get(method) if each is not None else None
    score = formats.number(entry or {}, "score")
    if each is None or score is None:
        return f"<td>{formats.MISSING}</td>"
    at = {name: value for name, value in each.at.items() if name != "quantize"}
    pair = next(
        (
            pair
            for pair in found.get("pairs") or ()
            if pair.get("method") == method and pair.get("scheme") == scheme and pair.get("at") == at
        ),
        None,
    )
    small = ""
    if pair is not None and pair.get("verdict") in MARKS and len(pair.get("ci") or ()) == 2:
        low, high = (f"{float(end):+.3f}" for end in pair["ci"])
        text = f"{float(pair['difference']):+.3f} ({low} to {high})".replace("-", "−")
        small = f"<small>{html(text)}</small><small>{MARKS[pair['verdict']]}</small>"
    return f"<td>{formats.score(score)}{small}</td>"
