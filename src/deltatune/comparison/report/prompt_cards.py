"""The prompts of a comparison: what each method found, the spread of its trials, and a row as the model reads it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from deltatune.comparison.report.figures.svg import line, linear, svg, tag
from deltatune.comparison.report.method_results import MethodResult
from deltatune.comparison.report.number_format import count, html, score

SHOWN = 8
"""Prompts and trials of a method that are listed; the spread is of all of them."""


def prompt_cards(methods: Sequence[MethodResult], metric: str) -> str:
    """A section with a card for each method that found a prompt; "" if there are none."""
    cards = [_card(result, metric) for result in methods if result.row.get("prompts")]
    if not cards:
        return ""
    caption = (
        "What was found on the training and validation rows; the test rows chose nothing. Trials are scored by the "
        "primary metric on the validation rows."
    )
    heading = f"<h2>Prompts</h2><p>{caption}</p>"
    return f'<section class="samples prompts">{heading}<div class="cards">{"".join(cards)}</div></section>'


def _card(result: MethodResult, metric: str) -> str:
    row = result.row
    prompts = "".join(f"<li><code>{html(prompt)}</code></li>" for prompt in row["prompts"][:SHOWN])
    more = len(row["prompts"]) - SHOWN
    listed = f"<ul>{prompts}{f'<li>and {more} more</li>' if more > 0 else ''}</ul>"
    notes = "".join(f"<p>{html(note)}</p>" for note in row.get("notes") or ())
    example = f"<p>A test row as the model reads it:</p><pre>{html(row['example'])}</pre>" if row.get("example") else ""
    cost = row.get("cost") or {}
    spent = (
        f"<p><small>{count(cost['passes'])} rows through the model, {count(cost['tokens'])} tokens"
        f"{', ' + count(cost['calls']) + ' requests' if cost.get('calls') else ''}</small></p>"
        if cost
        else ""
    )
    trials = _trials(row.get("trials") or [], metric)
    return f"<article><h3>{html(result.label)}</h3>{listed}{trials}{notes}{example}{spent}</article>"


def _trials(trials: Sequence[Sequence[Any]], metric: str) -> str:
    """The spread over what was tried: a dot for each trial, the mean and the deviation, and the best ones."""
    values = [float(value) for _, value in trials]
    if len(values) < 2:
        return ""
    scale = linear(values, 6, 294, pad=0.06)
    dots = "".join(tag("circle", cx=scale.at(value), cy=10, r=4, fill_opacity=0.5) for value in values)
    picture = svg(300, 20, line(6, 10, 294, 10, "rail") + dots, f"{len(values)} trials")
    spread = (
        f"{len(values)} trials: {html(metric)} {score(min(values))} to {score(max(values))}, mean "
        f"{score(statistics.mean(values))}, standard deviation {score(statistics.stdev(values))}"
    )
    best = sorted(trials, key=lambda trial: -float(trial[1]))[:SHOWN]
    rows = "".join(f"<li>{score(float(value))} <code>{html(name)}</code></li>" for name, value in best)
    return f"<p>{picture}<br><small>{spread}</small></p><ol>{rows}</ol>"
