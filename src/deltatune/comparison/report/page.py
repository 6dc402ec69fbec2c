"""The report of a comparison: one self-contained HTML page, made from summary.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.explanations import explanations
from deltatune.comparison.report.figures.plots import cost_bars, learning_curves, learning_rate_plots
from deltatune.comparison.report.figures.rung_plots import rung_plots
from deltatune.comparison.report.figures.tradeoff import score_against_parameters
from deltatune.comparison.report.html_page import (
    definitions,
    figure,
    folded,
    html_page,
    recommendation_section,
    short_name,
    table_region,
    written_date,
)
from deltatune.comparison.report.method_results import MethodResult, method_results
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.prompt_cards import prompt_cards
from deltatune.comparison.report.tables import failures, metrics_table, results_table
from deltatune.comparison.report.verdict_section import decision_section, search_details
from deltatune.store.atomic_files import write_file
from deltatune.tasks.metrics.metric_facts import lower_is_better


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page for a summary, atomically: a temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, render(summary))


def render(summary: Mapping[str, Any]) -> str:
    """Return the page as HTML. Text from data is escaped; no script but the page's own can run."""
    methods = method_results(summary)
    labels = {str(result.row["method"]): result.label for result in methods}
    table = results_table(methods, formats.number(summary, "base_params"), lower_is_better(summary["metric"]))
    hint = '<p class="hint">Click a heading to sort. Thin ticks in the intervals are single runs.</p>'
    return html_page(
        title=f"{short_name(summary['model']).rpartition('/')[2]} × {summary['data']['name']}",
        eyebrow="deltatune comparison",
        facts=_facts(summary),
        main=[
            recommendation_section(summary["recommendation"]),
            f"<section><h2>Results</h2>{table_region(table, 'Results table')}{hint}</section>",
            decision_section(summary, methods),
            failures(summary.get("failed") or []),
            _figures(summary, methods),
            prompt_cards(methods, str(summary["metric"])),
            metrics_table(methods, summary.get("majority")),
            sample_cards(summary.get("samples") or [], labels),
            f'<section class="explanations"><h2>How to read this</h2><dl>{explanations(summary)}</dl></section>',
            folded("Every step of the search", search_details(methods)),
            folded("Data, settings and versions", _settings(summary)),
        ],
        footer=f"Written by deltatune, {written_date(summary.get('created'))}. The numbers are in summary.json and "
        "results.jsonl beside this file.",
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows, budget = summary["data"].get("rows") or {}, summary.get("budget")
    facts = [("Model", f"{short_name(summary['model'])} ({formats.short_count(summary.get('base_params') or 0)})")]
    if summary.get("quantize"):
        size = formats.size(formats.number(summary, "base_bytes"))
        facts.append(("Base", f"linear maps in {summary['quantize']}, {size}"))
    facts.append(("Rows", " / ".join(f"{split} {formats.count(rows[split])}" for split in rows)))
    facts.append(
        ("Metric", str(summary["metric"]) + (", lower is better" if lower_is_better(summary["metric"]) else ""))
    )
    if summary.get("positive"):
        facts.append(("Positive class", str(summary["positive"])))
    if budget:
        facts.append(
            ("Budget", f"{budget.get('text') or ''}, {formats.short_count(budget['params'])} parameters".lstrip(", "))
        )
    facts += _baseline(summary.get("majority") or {})
    if summary.get("shots"):
        facts.append(("Few-shot", f"{summary.get('draws') or 1} draws of {summary['shots']} rows a class"))
    facts.append(("Seeds", seeds_range(summary)))
    facts.append(("Duration", formats.seconds(formats.number(summary, "elapsed_seconds"))))
    return facts


def seeds_range(summary: Mapping[str, Any]) -> str:
    """How many seeds the methods have: "3", or "2 to 5" where seeds were added to some."""
    draws = summary.get("draws") or 1
    counts = {len(row.get("seed_scores") or ()) // draws for row in summary["methods"]} - {0}
    if not summary.get("decision") or not counts:
        return str(len(summary.get("seeds") or []))
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _baseline(baseline: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The baseline without training: the untrained model, or a constant prediction."""
    value = formats.number(baseline, "score")
    name = "Untrained model" if baseline.get("scores") else "Baseline"
    return [] if value is None else [(name, formats.score(value))]


def _figures(summary: Mapping[str, Any], methods: Sequence[MethodResult]) -> str:
    metric, budget = str(summary["metric"]), summary.get("budget")
    # Two versions of the main figure, so that its text stays readable on a phone; the page shows the one that fits.
    wide = score_against_parameters(methods, metric, budget, 1080, 480)
    narrow = score_against_parameters(methods, metric, budget, 352, 430)
    return (
        figure(
            "Score against parameters",
            "Mean test score with its 95 % confidence interval. The staircase is the Pareto front: no method with "
            "fewer parameters scores better. Overlapping markers are moved apart; hover for exact numbers. Hollow grey "
            "markers are references, which have no size to fit to the budget.",
            [wide, narrow] if wide else [],
        )
        + figure(
            "Learning curves",
            "Training at the chosen learning rate, smoothed, one line per seed; the other methods in grey. All "
            "panels share one scale.",
            learning_curves(methods, metric),
            "grid small",
        )
        + figure("Costs", "Measured in this run on this machine.", cost_bars(methods), "grid")
        + figure(
            "Search by successive halving",
            f"Validation {metric} at each step at which runs were compared. A line is a learning rate, or a size; the "
            "better ones went on, the others (thin, ending in a cross) were stopped there.",
            rung_plots(methods, metric),
            "grid small",
        )
        + figure(
            "Sensitivity to the learning rate",
            f"Validation {metric} at each learning rate tried, at its last step or where it was stopped; the ring "
            "marks the chosen one. Its score is the mean of all seeds, that of others mostly of one: another rate may "
            "lie above it within the noise of the validation rows.",
            learning_rate_plots(methods, metric),
            "grid small",
        )
    )


def _settings(summary: Mapping[str, Any]) -> str:
    data = summary["data"]
    blocks = [
        ("Data", {**{key: data[key] for key in ("name", "origin", "rows", "labels", "notes") if data.get(key)}}),
        ("Settings", {"model": summary["model"], "task": summary.get("task"), **(summary.get("settings") or {})}),
        ("Versions", summary.get("versions") or {}),
    ]
    return "".join(f"<h3>{name}</h3><dl>{definitions(values.items())}</dl>" for name, values in blocks if values)


def sample_cards(samples: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """A section with a card for each sample; "" if there are none. `names` maps methods to labels of the report."""
    if not samples:
        return ""
    cards = "".join(_card(sample, names) for sample in samples)
    caption = (
        "The same test rows for all methods, first seed: some that most methods predict well, some on which they "
        "differ, some that most predict badly."
    )
    heading = f"<h2>Sample predictions</h2><p>{caption}</p>"
    return f'<section class="samples">{heading}<div class="cards">{cards}</div></section>'


def _card(sample: Mapping[str, Any], names: Mapping[str, str]) -> str:
    predictions = "".join(_prediction(answer, names) for answer in sample["answers"])
    reference = f"<span>reference</span> {html(sample['reference'])}" if sample["reference"] else ""
    text = f'<p>{html(sample["input"])}</p><p class="reference">{reference}</p>'
    return f"<article>{text}<dl>{predictions}</dl></article>"


def _prediction(answer: Mapping[str, Any], names: Mapping[str, str]) -> str:
    right, score = answer.get("right"), answer.get("score")
    mark = "" if right is None else "✓" if right else "✗"
    class_ = "" if right is None else "right" if right else "wrong"
    note = f" <small>{score:.2f}</small>" if score is not None and score >= 0 else ""
    name = html(names.get(answer["method"], answer["method"]))
    text = html(answer["text"]) or "<em>empty</em>"
    return f'<div class="{class_}"><dt>{mark} {name}{note}</dt><dd>{text}</dd></div>'
