"""Screens of a comparison: what is about to run, and the closing table with the recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.options.task_options import with_marked_columns
from deltatune.cli.ui.comparison_live import adds_tokens, results
from deltatune.cli.ui.screen import base_text, console, facts, plural, say, show, truncation_notes
from deltatune.comparison.report.number_format import count, rate, score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltatune.comparison.plans.candidates import Candidate
    from deltatune.comparison.plans.plan import Plan

LEGEND = (
    ("95 %", "half the interval of the score, over seeds and test rows"),
    ("tied", "not told apart from the best by so many runs and test rows"),
    ("trained", "parameters without the head, and their share of the model"),
    ("time", "of one training"),
    ("latency", "inference time of a batch, bare model = 1; merged: after merging into the weights"),
    ("*", "a reference: it has no size to fit to a budget"),
)
"""What the columns of the closing table mean."""
TOKENS = ("tokens", "by which a prompt or prefix makes each text longer")
"""The same for a column that is shown where a method adds tokens."""


def introduce(plan: Plan) -> None:
    """Print what was read, inferred and decided, before the long part begins."""
    from deltatune.data import remarks

    data, session, settings = plan.data, plan.session, plan.settings
    splits = ", ".join(f"{count(len(rows))} {split}" for split, rows in data.splits().items())
    length = plural(settings.max_steps or settings.epochs, "step" if settings.max_steps else "epoch")
    names = [_named(asked, sizes) for asked, sizes in plan.contestants.items()]
    starred = "   (* has no size to fit)" if any(candidate.reference for candidate in plan.candidates) else ""
    pairs = [
        ("data", f"{data.origin}: {splits} rows"),
        ("task", session.task.describe()),
        ("model", base_text(session.model, session.host)),
        ("budget", f"{plan.budget.text}: {count(plan.budget.params)} parameters" if plan.budget else "as written"),
        ("methods", ", ".join(names) + starred),
        ("runs", f"{_runs(plan)}, {length} a run"),
        ("folder", str(plan.out)),
    ]
    marked = with_marked_columns(data, session.task)
    notes = [
        *plan.notes(),
        *remarks(marked),
        *truncation_notes(session.task, plan.splits),
    ]
    show(facts(pairs), "", aside=True)
    if notes:
        show(facts([("note", note) for note in notes]), "", aside=True)


def _runs(plan: Plan) -> str:
    rates = plural(max(len(candidate.rates) for candidate in plan.candidates), "learning rate")
    methods, unit = plural(len(plan.contestants), "method"), "draw" if plan.draws else "seed"
    first = plural(plan.start // plan.look, unit)
    most = f", up to {len(plan.repeats) // plan.look} where methods are not told apart"
    each = f" and {plural(len(plan.seeds), 'seed')} each" if plan.draws and len(plan.seeds) > 1 else ""
    more = most if len(plan.repeats) > plan.start else ""
    time = f", within {plan.minutes:g} minutes" if plan.minutes is not None else ""
    return f"{methods} at {rates}, the best learning rate of each with {first}{each}{more}{time}"


def _named(asked: str, sizes: Sequence[Candidate]) -> str:
    """A method at its size, or as it was written where sizes are tried; with a star if it has none to fit."""
    return asked if len(sizes) > 1 else f"{sizes[0].text}{'*' if sizes[0].reference else ''}"


def report(summary: dict[str, Any], path: Path) -> None:
    """The closing screen: the table, the recommendation, what failed, where the report is."""
    shown = results(summary, console().width)
    show(shown, "")
    drawn = [(LEGEND[0][0], LEGEND[0][1].replace("seeds", "draws, seeds"))] if summary.get("draws") else [LEGEND[0]]
    legend = [*drawn, *LEGEND[1:-1], *([TOKENS] if adds_tokens(summary) else []), LEGEND[-1]]
    costs = {"trained", "time", "latency", "tokens"} - {column.header for column in shown.columns}
    legend = [(name, meaning) for name, meaning in legend if name not in costs]
    if summary.get("positive") and summary["metric"] in ("f1", "precision", "recall"):
        legend.insert(0, (summary["metric"], f"of the positive class, {summary['positive']}"))
    show(facts(legend), "")
    baseline = summary.get("majority") or {}
    if baseline.get("score") is not None:
        words = str(baseline.get("words") or "Always answering the most frequent label").rstrip(",")
        show(f"{words}: {score(baseline['score'])} {summary['metric']}.")
    decided = (summary.get("decision") or {}).get("sentence")
    if decided and len(summary["methods"]) > 1:
        show(str(decided))
    show(str(summary["recommendation"]["sentence"]))
    for cell in summary.get("failed") or []:
        problem = str(cell.get("error") or "no message").partition("\n")[0]
        lr = rate(cell.get("learning_rate"))
        show(f"failed: {cell['method']}, learning rate {lr}, seed {cell.get('seed')}: {problem}")
    say(f"report: {path}")
