"""The report of a study: one self-contained HTML page for many comparisons, made from study.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.critical_difference import RankedMethod, critical_difference
from deltatune.comparison.report.figures.series_plots import Series, read_points, series_panel, size_families
from deltatune.comparison.report.figures.tradeoff import score_against_parameters
from deltatune.comparison.report.html_page import (
    definitions,
    figure,
    folded,
    html_page,
    recommendation_section,
    written_date,
)
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.quantization_section import quantization_section
from deltatune.comparison.report.study_results import AXIS_TITLES, StudyResults, mean_results
from deltatune.comparison.report.study_tables import (
    comparisons_table,
    published_table,
    score_tables,
    suite_tables,
    totals_table,
)
from deltatune.comparison.report.tables import failures
from deltatune.store.atomic_files import write_file

PANELS = 6
"""Panels of one axis that are shown at once; the others are folded."""
LEAST_SETS = 3
"""Data sets from which on average ranks are drawn."""


def write_study_report(study: Mapping[str, Any], path: Path) -> None:
    """Write the page of a study, atomically: a temporary file, fsync, rename. The study may be unfinished."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, render_study(study))


def render_study(study: Mapping[str, Any]) -> str:
    """Return the page as HTML. Text from data is escaped; no script but the page's own can run."""
    results = StudyResults(study)
    published = published_table(study, results)
    totals = totals_table(results)
    return html_page(
        title=str(study.get("name") or "Study"),
        eyebrow="deltatune study",
        facts=_facts(study, results),
        main=[
            recommendation_section(study.get("recommendation") or {}),
            f"<section><h2>Results</h2>{score_tables(results)}</section>" if results.methods else "",
            quantization_section(study, results),
            _section("Suites", "A task's score is the mean of its metrics over its test rows and their further parts.",
                     suite_tables(results)),
            _ranks(study, results),
            _series(study, results),
            _parameters(results),
            _section("Published and measured", "On the published scale. Other data splits, models, or settings make "
                     "figures differ; the settings of each comparison are in its report.", published),
            _section("For many tasks", "Trained parameters and files, the base model stored once.", totals),
            _failures(results),
            _section("Comparisons", "Each has a report of its own, with curves, costs and settings.",
                     comparisons_table(results)),
            folded("Notes", _notes(study, results)),
            folded("Settings and versions", _settings(results)),
        ],
        footer=f"Written by deltatune, {written_date(study.get('created'))}. The numbers are in study.json beside this "
        "file.",
    )  # fmt: skip


def _section(title: str, caption: str, content: str) -> str:
    """A section with content; "" without."""
    heading = f'<h2>{html(title)}</h2><p class="caption">{html(caption)}</p>'
    return f"<section>{heading}{content}</section>" if content else ""


def _facts(study: Mapping[str, Any], results: StudyResults) -> list[tuple[str, str]]:
    done = sum(each.summary is not None for each in results.comparisons)
    total = len(results.comparisons)
    facts = [("Comparisons", str(total) if done == total else f"{done} of {total} finished")]
    facts.append(("Methods", str(len(results.methods))))
    for name in results.varying:
        values = list(dict.fromkeys(results.value_text(name, each.at.get(name)) for each in results.comparisons))
        shown = ", ".join(values) if len(values) <= 4 else f"{len(values)}: {', '.join(values[:3])}, …"
        facts.append((name.capitalize(), shown))
    facts.append(("Metric", results.metric if results.metric != "score" else "the primary one of each data set"))
    facts.append(("Duration", formats.seconds(formats.number(study, "elapsed_seconds"))))
    return facts


def _ranks(study: Mapping[str, Any], results: StudyResults) -> str:
    ranks = study.get("ranks") or {}
    sets = formats.number(ranks, "sets") or 0
    ranked = [
        RankedMethod(method.asked, method.label, method.rank, method.style)
        for method in results.methods
        if method.rank is not None
    ]
    if sets < LEAST_SETS:
        return ""
    p, difference = formats.number(ranks, "p"), formats.number(ranks, "critical_difference")
    caption = f"Average ranks over {formats.count(sets)} data sets, 1 is the best. Methods under one bar are not told "
    caption += "apart"
    if p is not None:
        caption += f"; that all methods are equal has p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    caption += f" ({ranks.get('test') or 'Friedman + Nemenyi'}; Demšar 2006)."
    return figure("Ranks", caption, critical_difference(ranked, difference, ranks.get("cliques") or []))


def _series(study: Mapping[str, Any], results: StudyResults) -> str:
    """A figure for each axis: one panel for each combination of the other axes, with a line for each method."""
    methods = {method.asked: method for method in results.methods}
    panels: dict[str, dict[str, list[Series]]] = {}
    for series in study.get("series") or ():
        method = methods.get(str(series.get("method")))
        if method is not None:
            axis, at = str(series.get("axis")), series.get("at") or {}
            names = [name for name in at if name in results.varying] or [name for name in at if name == "data"]
            lines = panels.setdefault(axis, {}).setdefault(results.place(at, names), [])
            lines.append(Series(method.label, method.style, read_points(series.get("points") or ())))
    figures = ""
    for axis, by_place in panels.items():
        title = AXIS_TITLES.get(axis, axis)
        figures += _panels(f"Score against {title}", title, results.metric, by_place)
    for axis, by_place in _sizes(results).items():
        figures += _panels(f"Score against {axis}", axis, results.metric, by_place)
    return figures


def _sizes(results: StudyResults) -> dict[str, dict[str, list[Series]]]:
    """Methods that differ in one number, such as a prompt's length, along it."""
    panels: dict[str, dict[str, list[Series]]] = {}
    styles = {method.asked: method.style for method in results.methods}
    for (rest, field), family in size_families(list(styles)).items():
        for each in results.comparisons:
            points = []
            for value, asked in family:
                entry = each.entries.get(asked) or {}
                points.append({"x": value, "score": formats.number(entry, "score"), "ci": entry.get("ci95")})
            label = rest.replace("()", "")
            series = Series(label, styles[family[0][1]], read_points(points))
            panels.setdefault(field, {}).setdefault(results.label(each), []).append(series)
    return panels


def _panels(title: str, axis: str, metric: str, by_place: Mapping[str, list[Series]]) -> str:
    images = [series_panel(place, axis, metric, lines) for place, lines in by_place.items()]
    images = [image for image in images if image]
    if not images:
        return ""
    caption = "Test score with its 95 % interval; points are moved a little apart. Hover for exact numbers."
    more = f'<div class="grid">{"".join(images[PANELS:])}</div>' if len(images) > PANELS else ""
    return figure(title, caption, images[:PANELS], "grid") + folded(f"{len(images) - PANELS} more panels", more)


def _parameters(results: StudyResults) -> str:
    """Mean score against trained parameters."""
    methods = mean_results(results)
    if len(methods) < 2:
        return ""
    metric = f"{results.metric}, mean"
    images = [score_against_parameters(methods, metric, None, *size) for size in ((1080, 480), (352, 430))]
    caption = "Mean over the data sets, and trained parameters of one task. The staircase is the Pareto front."
    return figure("Mean score against parameters", caption, images)


def _failures(results: StudyResults) -> str:
    """Comparisons that failed as a whole, and failed runs of the others."""
    failed: list[Mapping[str, Any]] = []
    for each in results.comparisons:
        where = results.label(each)
        if each.error:
            failed.append({"method": where, "error": each.error})
        for run in (each.summary or {}).get("failed") or ():
            failed.append({**run, "method": f"{where}: {run.get('method', '')}"})
    return failures(failed)


def _notes(study: Mapping[str, Any], results: StudyResults) -> str:
    """Notes on the study as a whole, then those on the data, each with the comparisons that have it."""
    everywhere = [results.label(each) for each in results.comparisons]
    notes: dict[str, list[str]] = {str(note): list(everywhere) for note in study.get("notes") or ()}
    for each in results.comparisons:
        for note in ((each.summary or {}).get("data") or {}).get("notes") or ():
            notes.setdefault(str(note), []).append(results.label(each))
    items = ""
    for note, at in notes.items():
        where = "" if len(at) == len(results.comparisons) else f" ({formats.clip('; '.join(at), 200)})"
        items += f"<li>{html(note + where)}</li>"
    return f"<ul>{items}</ul>" if items else ""


def _settings(results: StudyResults) -> str:
    """What all comparisons share, then what differs, with the values."""
    summaries = [each.summary for each in results.comparisons if each.summary]
    if not summaries:
        return ""
    blocks = []
    for title, key in (("Settings", "settings"), ("Versions", "versions")):
        names = dict.fromkeys(name for summary in summaries for name in summary.get(key) or {})
        pairs = []
        for name in names:
            values = [(summary.get(key) or {}).get(name) for summary in summaries]
            distinct = [value for i, value in enumerate(values) if value not in values[:i]]
            pairs.append((name, distinct[0] if len(distinct) == 1 else distinct))
        blocks.append(f"<h3>{title}</h3><dl>{definitions(pairs)}</dl>" if pairs else "")
    return "".join(blocks)
