"""The report of a comparison: one HTML file that needs nothing but itself. It knows `summary.json` alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deltatune.comparison.metric_scales import LOWER_IS_BETTER
from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.entries import Entry, entries
from deltatune.comparison.report.explanations import how_to_read
from deltatune.comparison.report.number_format import html
from deltatune.comparison.report.plots import costs, learning_curves, rate_sensitivity
from deltatune.comparison.report.tables import failures, metrics_table, results_table
from deltatune.comparison.report.tradeoff import score_against_parameters
from deltatune.store.atomic_files import write_file


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page for a summary. Whole or not at all: a temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, render(summary))


def render(summary: Mapping[str, Any]) -> str:
    """The page as text. Everything that comes from data is escaped; scripts other than the page's own cannot run."""
    methods = entries(summary)
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_asset("page.html")).substitute(
        title=html(f"{short_name(summary['model']).rpartition('/')[2]} × {summary['data']['name']}"),
        style=_asset("page.css"),
        script=script,
        digest=digest,
        facts=_facts(summary),
        sentence=_sentence(summary["recommendation"]),
        table=results_table(methods, formats.number(summary, "base_params"), summary["metric"] in LOWER_IS_BETTER),
        failures=failures(summary.get("failed") or []),
        figures=_figures(summary, methods),
        samples=sample_cards(summary.get("samples") or [], {entry.row["method"]: entry.label for entry in methods}),
        metrics=metrics_table(methods, summary.get("majority")),
        reading=how_to_read(summary),
        settings=_settings(summary),
        created=html(_date(summary.get("created"))),
    )


def short_name(model: str) -> str:
    """A hub name as it is, a folder by its last part."""
    return model if model.count("/") <= 1 and not model.startswith((".", "/")) else Path(model).name or model


def _asset(name: str) -> str:
    return files("deltatune.comparison.report").joinpath(name).read_text(encoding="utf-8")


def _date(created: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(created)):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return str(created or "")


def _sentence(recommendation: Mapping[str, Any]) -> str:
    """The sentence with the method set in bold."""
    sentence, method = str(recommendation["sentence"]), str(recommendation.get("method") or "")
    before, found, after = sentence.partition(method) if method else (sentence, "", "")
    return html(before) + (f"<strong>{html(found)}</strong>" if found else "") + html(after)


def _facts(summary: Mapping[str, Any]) -> str:
    rows, budget = summary["data"].get("rows") or {}, summary.get("budget")
    facts = [("Model", f"{short_name(summary['model'])} ({formats.short_count(summary.get('base_params') or 0)})")]
    facts.append(("Rows", " / ".join(f"{split} {formats.count(rows[split])}" for split in rows)))
    facts.append(
        ("Metric", str(summary["metric"]) + (", lower is better" if summary["metric"] in LOWER_IS_BETTER else ""))
    )
    if budget:
        facts.append(
            ("Budget", f"{budget.get('text') or ''}, {formats.short_count(budget['params'])} parameters".lstrip(", "))
        )
    facts += _baseline(summary.get("majority") or {})
    facts.append(("Seeds", str(len(summary.get("seeds") or []))))
    facts.append(("Took", formats.seconds(formats.number(summary, "elapsed_seconds"))))
    return "".join(f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in facts)


def _baseline(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is scored without training: the model as it is, or one answer for all."""
    value = formats.number(found, "score")
    return [] if value is None else [("Untrained model" if found.get("scores") else "One answer", formats.score(value))]


def _figures(summary: Mapping[str, Any], methods: Sequence[Entry]) -> str:
    metric, budget = str(summary["metric"]), summary.get("budget")
    # Two drawings of the main figure: letters stay readable on a phone, and the page shows the one that fits.
    wide = score_against_parameters(methods, metric, budget, 1080, 480)
    slim = score_against_parameters(methods, metric, budget, 352, 430)
    return (
        _figure(
            "What a parameter buys",
            "Mean test score with its 95 % interval. The staircase is the Pareto front: nothing cheaper scores better. "
            "Marks that would cover each other stand side by side; hover for exact numbers. "
            "Grey and hollow: references without a size.",
            [wide, slim] if wide else [],
        )
        + _figure(
            "Learning curves",
            "Training at the chosen rate, one line a seed, smoothed; the other methods faint behind. All on one scale.",
            learning_curves(methods, metric),
            "grid small",
        )
        + _figure("What it costs", "Measured in this run on this machine.", costs(methods), "grid")
        + _figure(
            "How much the learning rate matters",
            f"Validation {metric} of each rate tried; the ring marks the rate that was chosen.",
            rate_sensitivity(methods, metric),
            "grid small",
        )
    )


def _figure(title: str, words: str, pictures: Sequence[str], class_: str = "") -> str:
    if not pictures:
        return ""
    caption = f"<figcaption><h2>{html(title)}</h2><p>{html(words)}</p></figcaption>"
    return f'<figure>{caption}<div class="{class_}">{"".join(pictures)}</div></figure>'


def _settings(summary: Mapping[str, Any]) -> str:
    data = summary["data"]
    blocks = [
        ("Data", {**{key: data[key] for key in ("name", "origin", "rows", "labels", "notes") if data.get(key)}}),
        ("Settings", {"model": summary["model"], "task": summary.get("task"), **(summary.get("settings") or {})}),
        ("Versions", summary.get("versions") or {}),
    ]
    return "".join(f"<h3>{name}</h3><dl>{_definitions(some)}</dl>" for name, some in blocks if some)


def _definitions(some: Mapping[str, Any]) -> str:
    return "".join(f"<div><dt>{html(key)}</dt><dd>{html(_plain(found))}</dd></div>" for key, found in some.items())


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def sample_cards(samples: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """A section with a card for each row; "" where there are none. `names`: how a method is called in the report."""
    if not samples:
        return ""
    cards = "".join(_card(sample, names) for sample in samples)
    words = (
        "The same test rows for all methods, first seed: some on which most do well, some on which they differ, some "
        "on which most do badly."
    )
    heading = f"<h2>Sample predictions</h2><p>{words}</p>"
    return f'<section class="samples">{heading}<div class="cards">{cards}</div></section>'


def _card(sample: Mapping[str, Any], names: Mapping[str, str]) -> str:
    answers = "".join(_answer(answer, names) for answer in sample["answers"])
    wanted = f"<span>reference</span> {html(sample['reference'])}" if sample["reference"] else ""
    given = html(sample["input"])
    return f'<article><p class="given">{given}</p><p class="wanted">{wanted}</p><dl>{answers}</dl></article>'


def _answer(answer: Mapping[str, Any], names: Mapping[str, str]) -> str:
    right, score = answer.get("right"), answer.get("score")
    mark = "" if right is None else "✓" if right else "✗"
    class_ = "" if right is None else "right" if right else "wrong"
    note = f" <small>{score:.2f}</small>" if score is not None and score >= 0 else ""
    name = html(names.get(answer["method"], answer["method"]))
    said = html(answer["text"]) or "<em>nothing</em>"
    return f'<div class="{class_}"><dt>{mark} {name}{note}</dt><dd>{said}</dd></div>'
