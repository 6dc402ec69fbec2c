"""The tables of a study's page: scores of methods in all comparisons, totals for many tasks, published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.html_page import folded, table_region
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.study_results import StudyComparison, StudyMethod, StudyResults
from deltatune.comparison.report.tables import marked_name
from deltatune.tasks.metrics.metric_facts import bounds

COLUMNS = 10
"""Comparisons beside each other in one table, which then fits a page of 1,200 pixels."""
CELLS = "not told apart from the best of the column, which is coloured. Below each score half of its 95 % interval."
HINT = f'<p class="hint">Bold: {CELLS} Click a heading to sort.</p>'
AVERAGES_HINT = f'<p class="hint">Means of test scores; click a heading to sort. In the tables below, bold: {CELLS}</p>'


def score_tables(results: StudyResults) -> str:
    """The main table with means and ranks; with several groups of comparisons a folded table for each."""
    groups = results.groups
    only = next(iter(groups.values()), [])
    if len(groups) <= 1 and len(only) <= COLUMNS:
        return table_region(_table(results, only, averages=True), "Results") + HINT
    parts = [table_region(_overall(results), "Averages") + AVERAGES_HINT]
    for name, comparisons in groups.items():
        for start in range(0, len(comparisons), COLUMNS):
            some = comparisons[start : start + COLUMNS]
            columns = f"{results.column_axis} {start + 1} to {start + len(some)}"
            title = ", ".join(filter(None, [name, columns if len(comparisons) > COLUMNS else ""]))
            parts.append(folded(title, table_region(_table(results, some, averages=False), title)))
    return "".join(parts)


def _table(results: StudyResults, comparisons: Sequence[StudyComparison], averages: bool) -> str:
    head = _heading("method", "Method", "", "c-method") + (_average_heads(results) if averages else "")
    for each in comparisons:
        name = html(results.value_text(results.column_axis, each.at.get(results.column_axis)))
        link = f'<a href="{html(each.report)}">{name}</a>' if _is_local(each.report) else name
        metric = f"<small>{html(each.metric)}</small>" if results.metric == "score" else ""
        button = '<button type="button" aria-label="sort"><i aria-hidden="true"></i></button>'
        order = f'data-key="c{each.index}" data-first="descending" aria-sort="none"'
        head += f'<th scope="col" class="set" {order}>{link}{button}{metric}</th>'
    body = ""
    for method in results.methods:
        cells = _average_cells(method) if averages else ""
        cells += "".join(_cell(method, each) for each in comparisons)
        body += f"<tr>{_method_cell(method)}{cells}</tr>"
    return f'<table class="sortable study"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _overall(results: StudyResults) -> str:
    """Means and ranks, and the mean of each group where there are few groups."""
    groups = results.groups if 1 < len(results.groups) <= COLUMNS else {}
    head = _heading("method", "Method", "", "c-method") + _average_heads(results)
    for i, name in enumerate(groups):
        head += _heading(f"g{i}", name, "mean", "set")
    body = ""
    for method in results.methods:
        cells = _average_cells(method)
        for comparisons in groups.values():
            scores = [results.score(method, each) for each in comparisons]
            known = [score for score in scores if score is not None]
            mean = sum(known) / len(known) if known and len(known) == len(scores) else None
            cells += _number_cell(mean, formats.score)
        body += f"<tr>{_method_cell(method)}{cells}</tr>"
    return f'<table class="sortable study"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _average_heads(results: StudyResults) -> str:
    ranked = any(method.rank is not None for method in results.methods)
    return _heading("mean", "Mean", "", "") + _heading("rank", "Rank", "mean" if ranked else "", "")


def _average_cells(method: StudyMethod) -> str:
    def rank(value: float | None) -> str:
        return formats.MISSING if value is None else f"{value:.1f}"

    return _number_cell(method.mean, lambda value: f"<b>{formats.score(value)}</b>") + _number_cell(method.rank, rank)


def _number_cell(value: float | None, write: Callable[[float | None], str]) -> str:
    return f'<td data-value="{value:.6g}">{write(value)}</td>' if value is not None else f"<td>{formats.MISSING}</td>"


def _heading(key: str, title: str, subtitle: str, class_: str) -> str:
    first = "ascending" if key in ("method", "rank") else "descending"
    small = f"<small>{html(subtitle)}</small>" if subtitle else ""
    button = f'<button type="button">{html(title)}<i aria-hidden="true"></i>{small}</button>'
    return f'<th scope="col" class="{class_}" data-key="{key}" data-first="{first}" aria-sort="none">{button}</th>'


def _method_cell(method: StudyMethod) -> str:
    name = marked_name(method.style, method.label, method.asked)
    return f'<th scope="row" class="c-method" data-value="{html(method.label.lower())}">{name}</th>'


def _cell(method: StudyMethod, comparison: StudyComparison) -> str:
    entry = comparison.entries.get(method.asked)
    score = formats.number(entry or {}, "score")
    if entry is None or score is None:
        failed = (entry or {}).get("failed")
        title = f' title="{html(formats.clip(str(failed), 200))}"' if failed else ""
        return f"<td{title}>{'failed' if failed else formats.MISSING}</td>"
    ends = entry.get("ci95")
    half = f"<small>±{(ends[1] - ends[0]) / 2:.3f}</small>" if ends else ""
    class_ = "lead" if score == comparison.best else "top" if entry.get("tied_with_best") else ""
    return f'<td data-value="{score:.6g}"{f" class={class_}" if class_ else ""}>{formats.score(score)}{half}</td>'


def comparisons_table(results: StudyResults) -> str:
    """A row for each comparison: what it recommends, its duration, the link to its own report."""
    rows = ""
    for each in results.comparisons:
        label = html(results.label(each))
        name = f'<a href="{html(each.report)}">{label}</a>' if _is_local(each.report) else label
        summary = each.summary
        if summary is None:
            said, time = (f"failed: {each.error}" if each.error else "not finished"), None
        else:
            said = str((summary.get("recommendation") or {}).get("sentence") or "")
            time = formats.number(summary, "elapsed_seconds")
        rows += (
            f'<tr><th scope="row" class="c-method">{name}</th><td class="text">{html(formats.clip(said, 400))}</td>'
            f"<td>{formats.seconds(time)}</td></tr>"
        )
    head = '<th class="c-method">Comparison</th><th class="text">Recommendation</th><th>Duration</th>'
    return table_region(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", "Comparisons")


def totals_table(results: StudyResults) -> str:
    """Parameters and bytes for many tasks, the base once; "" without them. The smallest first."""
    totals = [row for row in results.study.get("totals") or () if formats.number(row, "bytes") is not None]
    if not totals:
        return ""
    varied = [
        axis
        for axis in ("model", "quantize", "budget")
        if len({str((row.get("at") or {}).get(axis)) for row in totals}) > 1
    ]
    labels = {method.asked: method.label for method in results.methods}
    rows = ""
    for row in sorted(totals, key=lambda row: formats.number(row, "bytes") or 0.0):
        name = html(labels.get(str(row["method"]), row["method"]))
        where = f"<small> {html(results.place(row.get('at') or {}, varied))}</small>" if varied else ""
        cells = [formats.count(formats.number(row, key)) for key in ("tasks", "params")]
        cells += [formats.size(formats.number(row, key)) for key in ("bytes", "copies")]
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        rows += f'<tr><th scope="row" class="c-method"><b>{name}</b>{where}</th>{numbers}</tr>'
    head = '<th class="c-method">Method</th><th>Tasks</th><th>Parameters trained</th><th>On disk</th>'
    head += "<th>As fine-tuned copies</th>"
    return table_region(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", "Totals")


def suite_tables(results: StudyResults) -> str:
    """The average of each suite, such as GLUE, and the score of each of its tasks; "" without suites."""
    labels = {method.asked: method.label for method in results.methods}
    suites = results.study.get("suites") or ()
    varied = [
        axis
        for axis in ("model", "quantize", "limit", "budget", "shots")
        if len({str((suite.get("at") or {}).get(axis)) for suite in suites}) > 1
    ]
    tables = ""
    for suite in suites:
        tasks = [str(task) for task in suite.get("tasks") or ()]
        rows = ""
        for row in sorted(suite.get("methods") or (), key=lambda row: -(formats.number(row, "average") or 0.0)):
            scores = row.get("tasks") or {}
            cells = "".join(f"<td>{formats.score(formats.number(scores, task))}</td>" for task in tasks)
            name = html(labels.get(str(row.get("method")), row.get("method")))
            average = formats.score(formats.number(row, "average"))
            rows += f'<tr><th scope="row" class="c-method"><b>{name}</b></th><td><b>{average}</b></td>{cells}</tr>'
        head = f'<th class="c-method">Method</th><th>{html(suite.get("suite"))}</th>'
        head += "".join(f"<th>{html(task)}</th>" for task in tasks)
        missing = ", ".join(map(str, suite.get("missing") or ()))
        where = results.place(suite.get("at") or {}, varied)
        caption = "; ".join(filter(None, [where, f"without {missing}" if missing else ""]))
        tables += f'<p class="caption">{html(caption)}</p>' if caption else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        tables += table_region(table, str(suite.get("suite")))
    return tables


def published_table(study: Mapping[str, Any], results: StudyResults) -> str:
    """Published figures beside those measured here, on the published scale; "" if the study has none."""
    published = study.get("published") or ()
    labels = {method.asked: method.label for method in results.methods}
    rows = ""
    for row in published:
        value, metric = formats.number(row, "value"), str(row.get("metric") or "")
        measured = measured_value(row, results)
        scale = published_scale(value, measured, metric)
        here = None if measured is None else measured * scale
        apart = None if here is None or value is None else here - value
        digits = 1 if scale == 100 else 3
        cells = "".join(f"<td>{_signed(number, digits, sign)}</td>" for number, sign in
                        ((value, False), (here, False), (apart, True)))  # fmt: skip
        name = html(labels.get(str(row.get("method")), row.get("method")))
        where = html(results.place(row.get("at") or {}, list(row.get("at") or {})))
        rows += (
            f'<tr><th scope="row" class="c-method"><b>{name}</b></th><td class="text">{where}</td>'
            f'<td class="text">{html(metric)}</td>{cells}<td class="text">{_source(row.get("source"))}</td></tr>'
        )
    if not rows:
        return ""
    head = '<th class="c-method">Method</th><th class="text">On</th><th class="text">Metric</th><th>Published</th>'
    head += '<th>Here</th><th>Difference</th><th class="text">Source</th>'
    return table_region(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", "Published figures")


def published_scale(published: float | None, measured: float | None, metric: str) -> float:
    """100 for a score of at most 1 that papers give in per cent, 1 for others: CIDEr and NIST go beyond 1."""
    if published is None or measured is None or bounds(metric)[1] != 1:
        return 1.0
    return 100.0 if abs(published) > 1.5 >= abs(measured) else 1.0


def measured_value(published: Mapping[str, Any], results: StudyResults) -> float | None:
    """The score here that a published figure is about: of its method, at its place, in its metric."""
    at, metric = published.get("at") or {}, str(published.get("metric") or "")
    for each in results.comparisons:
        entry = each.entries.get(str(published.get("method")))
        if entry is None or any(str(each.at.get(name)) != str(value) for name, value in at.items()):
            continue
        if metric in ("", each.metric):
            return formats.number(entry, "score")
        return formats.number(entry.get("scores") or {}, metric)
    return None


def _signed(value: float | None, digits: int, sign: bool) -> str:
    return formats.MISSING if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _source(source: object) -> str:
    text = str(source or "")
    is_link = text.startswith(("https://", "http://")) and " " not in text
    return f'<a href="{html(text)}" rel="noreferrer">{html(text)}</a>' if is_link else html(text)


def _is_local(report: str | None) -> bool:
    """Whether a link leads to a file below the page: a study's file may come from elsewhere."""
    return bool(report) and not str(report).startswith(("/", "\\")) and ":" not in str(report).partition("/")[0]
