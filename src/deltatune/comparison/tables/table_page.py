"""The page of a table: published figures beside those measured here, and all that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.html_page import definitions, folded, html_page, table_region, written_date
from deltatune.comparison.report.number_format import html
from deltatune.store.atomic_files import write_file


def write_table_page(table: Mapping[str, Any], path: Path) -> None:
    """Write the page of `run_table`'s result, atomically."""
    write_file(path, render_table(table))


def render_table(table: Mapping[str, Any]) -> str:
    """The page as HTML; text from data is escaped."""
    published, measured = table.get("published") or [], table.get("measured") or []
    notes = "".join(f"<li>{html(note)}</li>" for note in table.get("notes") or [])
    caption = "Other data splits, models, or settings make figures differ; the notes say which are known."
    return html_page(
        title=str(table["title"]),
        eyebrow="deltatune table",
        facts=[
            ("Experiment", str(table["experiment"])),
            ("Figures", formats.count(len(measured))),
            ("Duration", formats.seconds(formats.number(table, "elapsed_seconds"))),
        ],
        main=[
            _section("Published and measured", caption, _rows(published, ("value", "here"))) if published else "",
            _section("Measured here", "", _rows(measured, ("value",))),
            f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else "",
            folded("Settings", f"<dl>{definitions((table.get('settings') or {}).items())}</dl>"),
        ],
        footer=f"Written by deltatune, {written_date(table.get('created'))}. The numbers are in table.json beside this "
        "file.",
    )


def place_text(at: Mapping[str, Any]) -> str:
    """`data sst2, model roberta-base`."""
    return ", ".join(f"{axis} {value}" for axis, value in at.items())


def figure_text(value: float | None) -> str:
    """A figure with the digits that it needs; a dash for none."""
    if value is None:
        return formats.MISSING
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}"


def _section(title: str, caption: str, content: str) -> str:
    heading = f"<h2>{html(title)}</h2>" + (f'<p class="caption">{html(caption)}</p>' if caption else "")
    return f"<section>{heading}{content}</section>"


def _rows(figures: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    names = {"value": "Published" if len(columns) > 1 else "Figure", "here": "Here"}
    head = '<th class="c-method">Method</th><th class="text">On</th><th class="text">Metric</th>'
    head += "".join(f"<th>{names[column]}</th>" for column in columns)
    head += '<th class="text">Source</th>' if len(columns) > 1 else ""
    body = ""
    for figure in figures:
        cells = "".join(f"<td>{html(figure_text(figure[column]))}</td>" for column in columns)
        source = f'<td class="text">{html(figure["source"])}</td>' if len(columns) > 1 else ""
        body += (
            f'<tr><th scope="row" class="c-method"><b>{html(figure["method"])}</b></th>'
            f'<td class="text">{html(place_text(figure["at"]))}</td><td class="text">{html(figure["metric"])}</td>'
            f"{cells}{source}</tr>"
        )
    return table_region(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "Figures")
