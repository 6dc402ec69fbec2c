"""The tables of the report: results, sortable, with a row per method; failed runs; all metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.svg import Axis, MarkerStyle, group, line, linear, mark, svg, tag
from deltatune.comparison.report.method_results import MethodResult
from deltatune.comparison.report.number_format import html, score
from deltatune.comparison.results.recommend import percent
from deltatune.tasks.metrics.metric_facts import lower_is_better


@dataclass(frozen=True)
class Column:
    """One column of the results: its key for links and scripts, its heading, its cells and their sort values."""

    key: str
    title: str
    subtitle: str
    """Second line of the heading: unit or meaning."""
    cell: Callable[[MethodResult], str]
    """HTML of a cell."""
    value: Callable[[MethodResult], float | str | None]
    """Sort value of a cell; None is always last."""
    ascending_first: bool = True
    """Whether the first click sorts in ascending order: yes for costs, no for scores."""


def results_table(methods: Sequence[MethodResult], base_params: float | None, lower: bool = False) -> str:
    """The table of results: methods fitted to the budget first, then references. lower: a low score is good."""
    columns = _columns(methods, base_params, lower)
    head = "".join(_heading(column) for column in columns)
    fitted = "".join(_row(result, columns) for result in methods if not result.reference)
    references = "".join(_row(result, columns) for result in methods if result.reference)
    bodies = f"<tbody>{fitted}</tbody>" if fitted else ""
    if references:
        heading = f'<tr class="references"><th colspan="{len(columns)}" scope="colgroup"><span>References'
        heading += " <small>no size to fit to the budget</small></span></th></tr>"
        bodies += f"<tbody>{heading if fitted else ''}{references}</tbody>"
    return f'<table id="results" class="sortable"><thead><tr>{head}</tr></thead>{bodies}</table>'


def failures(failed: Sequence[Mapping[str, Any]]) -> str:
    """A section with the failed runs and their errors; "" if there are none."""
    if not failed:
        return ""
    items = []
    for run in failed:
        details = [str(run["stage"])] if run.get("stage") else []
        if run.get("learning_rate"):
            details.append(f"learning rate {formats.rate(formats.number(run, 'learning_rate'))}")
        if run.get("seed") is not None:
            details.append(f"seed {run['seed']}")
        title = f"<b>{html(run.get('method', ''))}</b> <span>{html(', '.join(details))}</span>"
        items.append(f"<li>{title}<pre>{html(run.get('error') or 'no message')}</pre></li>")
    count = "One run" if len(items) == 1 else f"{len(items)} runs"
    return f'<section class="failures"><h2>{count} failed</h2><ul>{"".join(items)}</ul></section>'


def _columns(methods: Sequence[MethodResult], base_params: float | None, lower: bool) -> list[Column]:
    ends = [value for result in methods for value in (result.interval or ())]
    ends += [result.score for result in methods if result.score is not None]
    ends += [value for result in methods for value in _seed_scores(result)]  # their ticks stay on the scale
    scale = linear(ends, 4, 104, pad=0.04)
    scores = [result.score for result in methods if result.score is not None]
    best = (min if lower else max)(scores, default=None)
    tokens = _tokens(methods)  # a page of 1,200 pixels has no room for the speed too, which the training time says
    return [
        Column("method", "Method", "", _method, lambda result: result.label.lower()),
        Column(
            "score", "Score", "test, 95 % CI", lambda result: _score(result, scale), lambda result: result.score, lower
        ),
        *_more_scores(methods, lower),
        Column(
            "tied",
            "Verdict",
            "against best",
            lambda result: _verdict(result, best),
            lambda result: _standing(result, best),
            ascending_first=False,
        ),
        Column(
            "params", "Parameters", "trained, share", lambda result: _params(result, base_params), _number("params")
        ),
        Column("adapter", "File", "adapter", _formatted("adapter_bytes", formats.size), _number("adapter_bytes")),
        Column("time", "Training", "one seed", _formatted("train_seconds", formats.seconds), _number("train_seconds")),
        *_passes(methods),
        *([] if tokens else [Column("speed", "Speed", "examples/s", _speed, _number("examples_per_second"), False)]),
        Column("memory", "Memory", "peak", _formatted("peak_memory_bytes", formats.size), _number("peak_memory_bytes")),
        Column("latency", "Latency", "unmerged / merged", _latency, _number("latency_ratio")),
        *tokens,
        Column("pscp", "PSCP", "see below", _formatted("pscp", formats.score), _number("pscp"), False),
        Column("rate", "Learning rate", "chosen", _formatted("learning_rate", formats.rate), _number("learning_rate")),
        Column("seeds", "Seeds", "scores", _seeds, lambda result: float(len(_seed_scores(result))) or None),
    ]


def _passes(methods: Sequence[MethodResult]) -> list[Column]:
    """What finding and training cost in rows through the model, where prompts were found."""
    if not any(result.row.get("prompts") for result in methods):
        return []

    def passes(result: MethodResult) -> float | None:
        return formats.number(result.row.get("cost") or {}, "passes")

    def cell(result: MethodResult) -> str:
        tokens = formats.number(result.row.get("cost") or {}, "tokens")
        read = "" if tokens is None else f"<small>{formats.short_count(tokens)} tokens</small>"
        return formats.count(passes(result)) + read

    return [Column("passes", "Passes", "rows, forward", cell, passes)]


def _tokens(methods: Sequence[MethodResult]) -> list[Column]:
    """The length cost, where a method has one."""
    if not any(result.number("tokens") for result in methods):
        return []
    return [Column("tokens", "Tokens", "added", _formatted("tokens", formats.count), _number("tokens"))]


def _more_scores(methods: Sequence[MethodResult], lower: bool) -> list[Column]:
    """A column for each further test split, with the mean over the seeds; no method is chosen by them."""

    def column(split: str) -> Column:
        def value(result: MethodResult) -> float | None:
            return result.more_scores.get(split)

        return Column(split, "Score", f"{split}, mean", lambda result: formats.score(value(result)), value, lower)

    return [column(split) for split in dict.fromkeys(split for result in methods for split in result.more_scores)]


def _heading(column: Column) -> str:
    subtitle = f"<small>{html(column.subtitle)}</small>" if column.subtitle else ""
    first = "ascending" if column.ascending_first else "descending"
    order = f' data-first="{first}" aria-sort="{first if column.key == "score" else "none"}"'
    before, _, last = html(column.title).rpartition(" ")
    title = f'{before} <span>{last}<i aria-hidden="true"></i></span>'.lstrip()  # the arrow stays beside the last word
    button = f'<button type="button">{title}{subtitle}</button>'
    return f'<th scope="col" data-key="{column.key}" class="c-{column.key}"{order}>{button}</th>'


def _row(result: MethodResult, columns: Sequence[Column]) -> str:
    cells = []
    for column in columns:
        value = column.value(result)
        sort = "" if value is None else f' data-value="{html(value)}"'
        kind = "th" if column.key == "method" else "td"
        scope = ' scope="row"' if kind == "th" else ""
        cells.append(f'<{kind} class="c-{column.key}"{scope}{sort}>{column.cell(result)}</{kind}>')
    return f"<tr{' class=failed' if result.row.get('failed') else ''}>{''.join(cells)}</tr>"


def marked_name(style: MarkerStyle, label: str, method: str) -> str:
    """A method's marker and label, and below them its text form where that is another one."""
    shape = group(style, mark(style, 8, 8, 5))
    swatch = tag("svg", shape, viewBox="0 0 16 16", width=14, height=14, aria_hidden="true")
    full = "" if method == label else f"<code>{html(method)}</code>"
    name = html(label).replace("(", "<wbr>(")
    return f"<span>{swatch}<b>{name}</b></span>{full}"


def _method(result: MethodResult) -> str:
    error = f"<em>failed: {html(formats.clip(str(result.row['failed']), 60))}</em>" if result.row.get("failed") else ""
    return marked_name(result.style, result.label, str(result.row["method"])) + error


def _score(result: MethodResult, scale: Axis) -> str:
    if result.score is None:
        return formats.MISSING
    low, high = result.interval or (result.score, result.score)
    ticks = "".join(line(scale.at(value), 3, scale.at(value), 13, "seed") for value in _seed_scores(result))
    bar = line(scale.start, 8, scale.end, 8, "rail") + line(scale.at(low), 8, scale.at(high), 8, "span")
    interval = f"{formats.score(low)}–{formats.score(high)}" if result.interval else "no interval"
    plot = group(result.style, bar + ticks + mark(result.style, scale.at(result.score), 8, 4))
    image = svg(108, 16, plot, f"interval {interval}")
    return f"<b>{formats.score(result.score)}</b><span>{image}<small>{interval}</small></span>"


def _standing(result: MethodResult, best: float | None) -> float | None:
    return (
        None
        if result.score is None
        else 2.0
        if result.score == best
        else 1.0
        if result.row.get("tied_with_best")
        else 0.0
    )


def _verdict(result: MethodResult, best: float | None) -> str:
    texts = {2.0: ("best", "★ best"), 1.0: ("tied", "≈ tied"), 0.0: ("worse", "worse")}
    standing = _standing(result, best)
    if standing is None:
        return formats.MISSING
    class_, text = texts[standing]
    return f'<span class="{class_}">{text}</span>'


def _params(result: MethodResult, base_params: float | None) -> str:
    params, share = result.number("params"), result.number("share")
    if params is None:
        return formats.MISSING
    if share is None and base_params:
        share = params / base_params
    return formats.count(params) + (f"<small>{percent(share)}</small>" if share is not None else "")


def _speed(result: MethodResult) -> str:
    value = result.number("examples_per_second")
    return formats.MISSING if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _latency(result: MethodResult) -> str:
    unmerged, merged = result.number("latency_ratio"), result.number("latency_ratio_merged")
    return formats.MISSING if unmerged is None else f"{formats.ratio(unmerged)}<small>{formats.ratio(merged)}</small>"


def _seed_scores(result: MethodResult) -> list[float]:
    rows = [{"score": value} for value in result.row.get("seed_scores") or []]
    return [value for row in rows if (value := formats.number(row, "score")) is not None]


def _seeds(result: MethodResult) -> str:
    return " ".join(formats.score(value) for value in _seed_scores(result)) or formats.MISSING


def _number(key: str) -> Callable[[MethodResult], float | None]:
    return lambda result: result.number(key)


def _formatted(key: str, to_text: Callable[[float | None], str]) -> Callable[[MethodResult], str]:
    return lambda result: html(to_text(result.number(key)))


def metrics_table(methods: Sequence[MethodResult], baseline: Mapping[str, Any] | None) -> str:
    """A section with the mean test scores of all metrics; "" if there is only one metric."""
    rows = [(result.label, result.row["scores"]) for result in methods if result.row.get("scores")]
    if baseline and baseline.get("scores"):
        rows.append(("untrained model", baseline["scores"]))
    names = list(rows[0][1]) if rows else []
    if len(names) < 2:
        return ""
    head = "".join(f'<th scope="col">{html(name)}{_arrow(name)}</th>' for name in names)
    body = "".join(_metric_row(label, scores, names) for label, scores in rows)
    table = f'<table><thead><tr><th class="c-method">Method</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="All metrics, scrolls sideways">{table}</div>'
    return (
        '<section class="metrics"><h2>All metrics</h2><p class="hint">Means over the seeds, on the test rows; the '
        "learning rate was chosen by the metric of the results alone. ↓ lower is better.</p>"
        f"{region}</section>"
    )


def _metric_row(label: str, scores: Mapping[str, float], names: Sequence[str]) -> str:
    cells = "".join(f"<td>{score(scores.get(name))}</td>" for name in names)
    return f'<tr><th scope="row" class="c-method"><b>{html(label)}</b></th>{cells}</tr>'


def _arrow(name: str) -> str:
    return " ↓" if lower_is_better(name) else ""
