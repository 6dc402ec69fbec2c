"""The table of the report: one row a method, sortable, scores drawn as small intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.metric_scales import LOWER_IS_BETTER
from deltatune.comparison.recommend import percent
from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.entries import Entry
from deltatune.comparison.report.number_format import html, score
from deltatune.comparison.report.svg import Axis, group, line, linear, mark, svg, tag


@dataclass(frozen=True)
class Column:
    """One column: its name for links and scripts, its heading, and what a row says and sorts by."""

    key: str
    title: str
    under: str
    """Second line of the heading: unit or meaning."""
    cell: Callable[[Entry], str]
    """Markup of a cell."""
    value: Callable[[Entry], float | str | None]
    """What the column is sorted by; None is always last."""
    rising: bool = True
    """Whether the first click puts the least on top: costs yes, merits no."""


def results_table(methods: Sequence[Entry], base_params: float | None, lower: bool = False) -> str:
    """The whole table: methods fitted to the budget first, references apart. lower: a low score is good."""
    columns = _columns(methods, base_params, lower)
    head = "".join(_heading(column) for column in columns)
    fitted = "".join(_row(entry, columns) for entry in methods if not entry.reference)
    references = "".join(_row(entry, columns) for entry in methods if entry.reference)
    bodies = f"<tbody>{fitted}</tbody>" if fitted else ""
    if references:
        apart = f'<tr class="apart"><th colspan="{len(columns)}" scope="colgroup"><span>References'
        apart += " <small>they have no size to fit to the budget</small></span></th></tr>"
        bodies += f"<tbody>{apart if fitted else ''}{references}</tbody>"
    return f'<table id="results"><thead><tr>{head}</tr></thead>{bodies}</table>'


def failures(failed: Sequence[Mapping[str, Any]]) -> str:
    """Cells that did not finish, each with its error; an empty string when all did."""
    if not failed:
        return ""
    items = []
    for cell in failed:
        where = [str(cell[key]) for key in ("stage",) if cell.get(key)]
        where += (
            [f"learning rate {formats.rate(formats.number(cell, 'learning_rate'))}"]
            if cell.get("learning_rate")
            else []
        )
        where += [f"seed {cell['seed']}"] if cell.get("seed") is not None else []
        about = f"<b>{html(cell.get('method', ''))}</b> <span>{html(', '.join(where))}</span>"
        items.append(f"<li>{about}<pre>{html(cell.get('error') or 'no message')}</pre></li>")
    count = "One cell" if len(items) == 1 else f"{len(items)} cells"
    return f'<section class="failures"><h2>{count} failed</h2><ul>{"".join(items)}</ul></section>'


def _columns(methods: Sequence[Entry], base_params: float | None, lower: bool) -> list[Column]:
    ends = [value for entry in methods for value in (entry.interval or ())]
    ends += [entry.score for entry in methods if entry.score is not None]
    scale = linear(ends, 4, 104, pad=0.04)
    scores = [entry.score for entry in methods if entry.score is not None]
    best = (min if lower else max)(scores, default=None)
    return [
        Column("method", "Method", "", _method, lambda entry: entry.label.lower()),
        Column("score", "Score", "test, 95 % CI", lambda entry: _score(entry, scale), lambda entry: entry.score, lower),
        Column(
            "tied",
            "Verdict",
            "against best",
            lambda entry: _verdict(entry, best),
            lambda entry: _standing(entry, best),
            rising=False,
        ),
        Column("params", "Parameters", "trained, share", lambda entry: _params(entry, base_params), _number("params")),
        Column("adapter", "File", "adapter", _written("adapter_bytes", formats.size), _number("adapter_bytes")),
        Column("time", "Training", "one seed", _written("train_seconds", formats.seconds), _number("train_seconds")),
        Column("speed", "Speed", "examples/s", _speed, _number("examples_per_second"), False),
        Column("memory", "Memory", "peak", _written("peak_memory_bytes", formats.size), _number("peak_memory_bytes")),
        Column("latency", "Latency", "live / merged", _latency, _number("latency_ratio")),
        Column("pscp", "PSCP", "see below", _written("pscp", formats.score), _number("pscp"), False),
        Column("rate", "Rate", "chosen", _written("learning_rate", formats.rate), _number("learning_rate")),
        Column("seeds", "Seeds", "scores", _seeds, lambda entry: float(len(_seed_scores(entry))) or None),
    ]


def _heading(column: Column) -> str:
    under = f"<small>{html(column.under)}</small>" if column.under else ""
    first = "ascending" if column.rising else "descending"
    order = f' data-first="{first}" aria-sort="{first if column.key == "score" else "none"}"'
    button = f'<button type="button">{html(column.title)}<i aria-hidden="true"></i>{under}</button>'
    return f'<th scope="col" data-key="{column.key}" class="c-{column.key}"{order}>{button}</th>'


def _row(entry: Entry, columns: Sequence[Column]) -> str:
    cells = []
    for column in columns:
        value = column.value(entry)
        sort = "" if value is None else f' data-value="{html(value)}"'
        kind = "th" if column.key == "method" else "td"
        scope = ' scope="row"' if kind == "th" else ""
        cells.append(f'<{kind} class="c-{column.key}"{scope}{sort}>{column.cell(entry)}</{kind}>')
    return f"<tr{' class=failed' if entry.row.get('failed') else ''}>{''.join(cells)}</tr>"


def _method(entry: Entry) -> str:
    swatch = tag(
        "svg",
        group(entry.look, mark(entry.look, 8, 8, 5)),
        viewBox="0 0 16 16",
        width=14,
        height=14,
        aria_hidden="true",
    )
    method = str(entry.row["method"])
    whole = "" if method == entry.label else f"<code>{html(method)}</code>"
    error = f"<em>failed: {html(formats.clip(str(entry.row['failed']), 60))}</em>" if entry.row.get("failed") else ""
    label = html(entry.label).replace("(", "<wbr>(")
    return f"<span>{swatch}<b>{label}</b></span>{whole}{error}"


def _score(entry: Entry, scale: Axis) -> str:
    if entry.score is None:
        return formats.MISSING
    low, high = entry.interval or (entry.score, entry.score)
    ticks = "".join(line(scale.at(value), 3, scale.at(value), 13, "seed") for value in _seed_scores(entry))
    bar = line(scale.start, 8, scale.end, 8, "rail") + line(scale.at(low), 8, scale.at(high), 8, "span")
    words = f"{formats.score(low)}–{formats.score(high)}" if entry.interval else "no interval"
    drawn = group(entry.look, bar + ticks + mark(entry.look, scale.at(entry.score), 8, 4))
    picture = svg(108, 16, drawn, f"interval {words}")
    return f"<b>{formats.score(entry.score)}</b><span>{picture}<small>{words}</small></span>"


def _standing(entry: Entry, best: float | None) -> float | None:
    return (
        None if entry.score is None else 2.0 if entry.score == best else 1.0 if entry.row.get("tied_with_best") else 0.0
    )


def _verdict(entry: Entry, best: float | None) -> str:
    words = {2.0: ("best", "★ best"), 1.0: ("tied", "≈ tied"), 0.0: ("worse", "worse")}
    standing = _standing(entry, best)
    if standing is None:
        return formats.MISSING
    class_, said = words[standing]
    return f'<span class="{class_}">{said}</span>'


def _params(entry: Entry, base_params: float | None) -> str:
    params, share = entry.number("params"), entry.number("share")
    if params is None:
        return formats.MISSING
    if share is None and base_params:
        share = params / base_params
    return formats.count(params) + (f"<small>{percent(share)}</small>" if share is not None else "")


def _speed(entry: Entry) -> str:
    value = entry.number("examples_per_second")
    return formats.MISSING if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _latency(entry: Entry) -> str:
    live, merged = entry.number("latency_ratio"), entry.number("latency_ratio_merged")
    return formats.MISSING if live is None else f"{formats.ratio(live)}<small>{formats.ratio(merged)}</small>"


def _seed_scores(entry: Entry) -> list[float]:
    scores = [{"score": value} for value in entry.row.get("seed_scores") or []]
    return [value for score in scores if (value := formats.number(score, "score")) is not None]


def _seeds(entry: Entry) -> str:
    return " ".join(formats.score(value) for value in _seed_scores(entry)) or formats.MISSING


def _number(key: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.number(key)


def _written(key: str, write: Callable[[float | None], str]) -> Callable[[Entry], str]:
    return lambda entry: html(write(entry.number(key)))


def metrics_table(methods: Sequence[Entry], baseline: Mapping[str, Any] | None) -> str:
    """A section with mean test scores; "" where there is but one metric."""
    found = [(entry.label, entry.row["scores"]) for entry in methods if entry.row.get("scores")]
    if baseline and baseline.get("scores"):
        found.append(("untrained model", baseline["scores"]))
    names = list(found[0][1]) if found else []
    if len(names) < 2:
        return ""
    head = "".join(f'<th scope="col">{html(name)}{_arrow(name)}</th>' for name in names)
    body = "".join(_metric_row(label, scores, names) for label, scores in found)
    table = f'<table><thead><tr><th class="c-method">Method</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="All metrics, scrolls sideways">{table}</div>'
    return (
        '<section class="metrics"><h2>All metrics</h2><p class="hint">Means over the seeds, on the test rows; the '
        "learning rate was chosen by the first metric of the results alone. ↓ lower is better.</p>"
        f"{region}</section>"
    )


def _metric_row(label: str, scores: Mapping[str, float], names: Sequence[str]) -> str:
    cells = "".join(f"<td>{score(scores.get(name))}</td>" for name in names)
    return f'<tr><th scope="row" class="c-method"><b>{html(label)}</b></th>{cells}</tr>'


def _arrow(name: str) -> str:
    return " ↓" if name in LOWER_IS_BETTER else ""
