"""The report of a comparison: one self-contained HTML page, made from summary.json alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.explanations import explanations
from deltatune.comparison.report.figures.plots import cost_bars, learning_curves, learning_rate_plots
from deltatune.comparison.report.figures.tradeoff import score_against_parameters
from deltatune.comparison.report.method_results import MethodResult, method_results
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.prompt_cards import prompt_cards
from deltatune.comparison.report.tables import failures, metrics_table, results_table
from deltatune.core.input_validation.strict_json import dumps
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
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_asset("page.html")).substitute(
        title=html(f"{short_name(summary['model']).rpartition('/')[2]} × {summary['data']['name']}"),
        style=_asset("page.css"),
        script=script,
        digest=digest,
        facts=_facts(summary),
        recommendation=_recommendation(summary["recommendation"]),
        table=results_table(methods, formats.number(summary, "base_params"), lower_is_better(summary["metric"])),
        failures=failures(summary.get("failed") or []),
        figures=_figures(summary, methods) + prompt_cards(methods, str(summary["metric"])),
        samples=sample_cards(summary.get("samples") or [], {result.row["method"]: result.label for result in methods}),
        metrics=metrics_table(methods, summary.get("majority")),
        explanations=explanations(summary),
        settings=_settings(summary),
        created=html(_date(summary.get("created"))),
    )


def short_name(model: str) -> str:
    """Return a hub name unchanged, of a folder the last part."""
    return model if model.count("/") <= 1 and not model.startswith((".", "/")) else Path(model).name or model


def _asset(name: str) -> str:
    return files("deltatune.comparison.report").joinpath(name).read_text(encoding="utf-8")


def _date(created: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(created)):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return str(created or "")


def _recommendation(recommendation: Mapping[str, Any]) -> str:
    """The recommendation with the method in bold."""
    sentence, method = str(recommendation["sentence"]), str(recommendation.get("method") or "")
    before, bold, after = sentence.partition(method) if method else (sentence, "", "")
    return html(before) + (f"<strong>{html(bold)}</strong>" if bold else "") + html(after)


def _facts(summary: Mapping[str, Any]) -> str:
    rows, budget = summary["data"].get("rows") or {}, summary.get("budget")
    facts = [("Model", f"{short_name(summary['model'])} ({formats.short_count(summary.get('base_params') or 0)})")]
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
    facts.append(("Seeds", str(len(summary.get("seeds") or []))))
    facts.append(("Duration", formats.seconds(formats.number(summary, "elapsed_seconds"))))
    return "".join(f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in facts)


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
        _figure(
            "Score against parameters",
            "Mean test score with its 95 % confidence interval. The staircase is the Pareto front: no method with "
            "fewer parameters scores better. Overlapping markers are moved apart; hover for exact numbers. Hollow grey "
            "markers are references, which have no size to fit to the budget.",
            [wide, narrow] if wide else [],
        )
        + _figure(
            "Learning curves",
            "Training at the chosen learning rate, smoothed, one line per seed; the other methods in grey. All "
            "panels share one scale.",
            learning_curves(methods, metric),
            "grid small",
        )
        + _figure("Costs", "Measured in this run on this machine.", cost_bars(methods), "grid")
        + _figure(
            "Sensitivity to the learning rate",
            f"Validation {metric} at each learning rate tried; the ring marks the chosen one.",
            learning_rate_plots(methods, metric),
            "grid small",
        )
    )


def _figure(title: str, caption: str, images: Sequence[str], class_: str = "") -> str:
    if not images:
        return ""
    heading = f"<figcaption><h2>{html(title)}</h2><p>{html(caption)}</p></figcaption>"
    return f'<figure>{heading}<div class="{class_}">{"".join(images)}</div></figure>'


def _settings(summary: Mapping[str, Any]) -> str:
    data = summary["data"]
    blocks = [
        ("Data", {**{key: data[key] for key in ("name", "origin", "rows", "labels", "notes") if data.get(key)}}),
        ("Settings", {"model": summary["model"], "task": summary.get("task"), **(summary.get("settings") or {})}),
        ("Versions", summary.get("versions") or {}),
    ]
    return "".join(f"<h3>{name}</h3><dl>{_definitions(values)}</dl>" for name, values in blocks if values)


def _definitions(values: Mapping[str, Any]) -> str:
    return "".join(f"<div><dt>{html(key)}</dt><dd>{html(_text(value))}</dd></div>" for key, value in values.items())


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else dumps(value, nonfinite="null", default=str)


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
