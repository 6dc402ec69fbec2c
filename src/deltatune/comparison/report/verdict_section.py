"""What a comparison has decided: which methods are told apart, which are equal within the margin, which are neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.html_page import folded, table_region
from deltatune.comparison.report.method_results import MethodResult
from deltatune.comparison.report.number_format import html
from deltatune.comparison.statistics.pair_forecast import forecast

Pair = Mapping[str, Any]
"""An entry of `summary["pairs"]`: first, second, difference (first - second), ci, verdict of the first."""
LISTED = 6
"""Undecided pairs that are listed at once; the others are folded."""
OPPOSITE = {"better": "worse", "worse": "better"}
MARKS = {"better": "+", "worse": "−", "equal": "=", "undecided": "?"}
STOPPED = {
    "decided": "every pair was decided",
    "time": "the time was up",
    "seeds": "every method had the most seeds",
}


def decision_section(summary: Mapping[str, Any], methods: Sequence[MethodResult]) -> str:
    """The section; "" for summaries without pairs, as earlier versions wrote them."""
    pairs = [pair for pair in summary.get("pairs") or () if pair.get("verdict") in MARKS]
    decision = summary.get("decision") or {}
    if not pairs:
        return ""
    labels = {
        **{str(result.row.get("asked") or ""): result.label for result in methods},
        **{str(result.row["method"]): result.label for result in methods},
    }
    margin, examples = formats.number(decision, "margin"), formats.number(summary["data"].get("rows") or {}, "test")
    undecided = [pair for pair in pairs if pair["verdict"] == "undecided"]
    return (
        f'<section class="decision"><h2>What is decided</h2><p>{html(_counts(pairs, decision))}</p>'
        + _matrix(pairs, methods)
        + _undecided(undecided, labels, margin, examples)
        + "</section>"
    )


def _counts(pairs: Sequence[Pair], decision: Mapping[str, Any]) -> str:
    """How many pairs are decided, how sure that is, and why no runs were added any more."""
    number = {mark: sum(pair["verdict"] == mark for pair in pairs) for mark in MARKS}
    margin = formats.number(decision, "margin")
    parts = [f"{number['better'] + number['worse']} of {len(pairs)} pairs of methods are told apart"]
    if margin is not None:
        parts.append(f"{number['equal']} are equal within {margin:g}")
    parts.append(f"{number['undecided']} are not told apart")
    text = f"{', '.join(parts)}."
    alpha, looks = formats.number(decision, "alpha"), formats.number(decision, "looks")
    if alpha is not None:
        text += (
            f" Any of these verdicts is wrong in at most {100 * alpha:g} % of such comparisons if the seeds of the "
            "methods vary alike, and in somewhat more if one method's vary far more."
        )
    if looks is not None:
        reason = STOPPED.get(str(decision.get("stopped")), "")
        text += f" The results were looked at {formats.times(looks)}{f'; then {reason}' if reason else ''}."
    return text


def _matrix(pairs: Sequence[Pair], methods: Sequence[MethodResult]) -> str:
    """A row and a column for each method, the best first; a cell says what the row is against the column."""
    verdicts: dict[tuple[str, str], tuple[str, str]] = {}
    for pair in pairs:
        first, second = str(pair["first"]), str(pair["second"])
        verdicts[first, second] = str(pair["verdict"]), f"{first} − {second}: {difference(pair)}"
        verdicts[second, first] = OPPOSITE.get(str(pair["verdict"]), str(pair["verdict"])), verdicts[first, second][1]
    named = {name for pair in verdicts for name in pair}
    shown = [(_name_in(result, named), result.label) for result in methods if _name_in(result, named)]
    if len(shown) < 3:
        return ""
    better = {name: sum(verdicts.get((name, other), ("",))[0] == "better" for other, _ in shown) for name, _ in shown}
    shown.sort(key=lambda each: -better[each[0]])  # stable: by score among equals
    head = "".join(f'<th scope="col" title="{html(label)}">{i}</th>' for i, (_, label) in enumerate(shown, 1))
    rows = ""
    for i, (name, label) in enumerate(shown, 1):
        cells = ""
        for other, _ in shown:
            verdict, title = verdicts.get((name, other), ("", ""))
            cells += f'<td class="{verdict}" title="{html(title)}">{MARKS[verdict]}</td>' if verdict else "<td></td>"
        rows += f'<tr><th scope="row" class="c-method">{i} <b>{html(label)}</b></th>{cells}</tr>'
    hint = (
        '<p class="hint">Row against column: + better, − worse, = equal within the margin, ? not told apart. Hover for '
        "the difference and its interval.</p>"
    )
    table = f'<table class="matrix"><thead><tr><th class="c-method">Method</th>{head}</tr></thead>'
    return table_region(f"{table}<tbody>{rows}</tbody></table>", "Verdicts of all pairs") + hint


def _name_in(result: MethodResult, named: set[str]) -> str:
    """The name of a method in the pairs; "" where it is in none."""
    names = (str(result.row["method"]), str(result.row.get("asked") or ""))
    return next((name for name in names if name in named), "")


def _undecided(pairs: Sequence[Pair], labels: Mapping[str, str], margin: float | None, examples: float | None) -> str:
    """The pairs that are open, the closest last, with what would decide them."""
    items = [
        f"<li><b>{html(labels.get(str(pair['first']), pair['first']))}</b> and "
        f"<b>{html(labels.get(str(pair['second']), pair['second']))}</b>: "
        f"{html(difference(pair) + outlook(pair, margin, examples))}</li>"
        for pair in sorted(pairs, key=lambda pair: -abs(formats.number(pair, "difference") or 0.0))
    ]
    if not items:
        return ""
    more = folded(f"{len(items) - LISTED} more", f"<ul>{''.join(items[LISTED:])}</ul>") if len(items) > LISTED else ""
    return f"<h3>Not told apart</h3><ul>{''.join(items[:LISTED])}</ul>{more}"


def difference(pair: Pair) -> str:
    """`+0.021 (0.004 to 0.038)`."""
    value, ends = formats.number(pair, "difference"), pair.get("ci")
    text = formats.MISSING if value is None else f"{'+' if value > 0 else ''}{formats.score(value)}"
    if not ends or any(not isinstance(end, int | float) for end in ends):
        return text
    return f"{text} ({formats.score(float(ends[0]))} to {formats.score(float(ends[1]))})"


def outlook(pair: Pair, margin: float | None = None, examples: float | None = None) -> str:
    """What would decide an open pair, as the end of a sentence; "" if the summary does not say enough."""
    expected = forecast(pair, margin, examples)
    if expected is None:
        return ""
    seeds, rows = expected
    if seeds:
        return f"; about {formats.count(seeds)} more seed{'' if seeds == 1 else 's'} would tell"
    if rows:
        return f"; about {formats.count(rows)} more test rows would tell, more seeds would not"
    return "; neither a few more seeds nor a few times the test rows would tell"


def search_details(methods: Sequence[MethodResult]) -> str:
    """A table for each method with what the search tried: sizes, learning rates, and the score at every rung."""
    return "".join(_rungs_table(result) for result in methods if result.row.get("rungs"))


def _rungs_table(result: MethodResult) -> str:
    rungs = [rung for rung in result.row["rungs"] if formats.number(rung, "step") is not None]
    steps = sorted({int(rung["step"]) for rung in rungs})
    runs: dict[tuple[str, float], dict[int, Mapping[str, Any]]] = {}
    for rung in rungs:
        key = str(rung.get("method") or result.row["method"]), formats.number(rung, "learning_rate") or 0.0
        runs.setdefault(key, {})[int(rung["step"])] = rung
    several = len({method for method, _ in runs}) > 1
    head = "".join(f'<th scope="col">step {step:,}</th>' for step in steps)
    first = "Size and learning rate" if several else "Learning rate"
    rows = ""
    for (method, learning_rate), tried in sorted(runs.items()):
        name = f"<code>{html(method)}</code> {formats.rate(learning_rate)}" if several else formats.rate(learning_rate)
        cells = "".join(_rung_cell(tried.get(step)) for step in steps)
        rows += f'<tr><th scope="row" class="c-method">{name}</th>{cells}</tr>'
    table = f'<table><thead><tr><th class="c-method">{first}</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<h3>{html(result.label)}</h3>{table_region(table, f'Search of {result.label}')}"


def _rung_cell(rung: Mapping[str, Any] | None) -> str:
    if rung is None:
        return "<td></td>"
    value = formats.score(formats.number(rung, "score"))
    return f"<td><b>{value}</b></td>" if rung.get("kept") else f"<td>{value}<small>stopped</small></td>"
