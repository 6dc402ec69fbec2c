"""Screens of a prompting run: what is about to run, the prompts that were found, their scores and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.live import TrainingProgress
from deltatune.cli.ui.screen import base_text, facts, long_texts, plural, say, scores_table, show
from deltatune.cli.ui.training_screen import example_file, kept_step
from deltatune.comparison.report.number_format import clip, count, rate, score, seconds
from deltatune.comparison.results.recommend import percent
from deltatune.store import run_folder

if TYPE_CHECKING:
    from deltatune.prompting.prompt_run import PreparedPrompt

PROMPTS_SHOWN = 6
"""Prompts that are printed; metrics.json has all."""
LONGEST_PROMPT = 400
"""Characters of a prompt that are printed: demonstrations are long."""


def introduce_prompt(ready: PreparedPrompt, folder: Path) -> None:
    """Print what was read, inferred and decided, before the long part begins."""
    from deltatune.data import remarks

    data, session, settings, method = ready.data, ready.session, ready.settings, ready.method
    sites = session.host.sites
    splits = [f"{count(len(rows))} {split}" for split, rows in data.splits().items()]
    if ready.rows.unlabelled:
        splits.append(f"{count(len(ready.rows.unlabelled))} unlabelled")
    pairs = [
        ("data", f"{data.origin}: {', '.join(splits)} rows"),
        ("task", session.task.describe()),
        ("model", base_text(session.model, session.host)),
        ("method", repr(method)),
    ]
    if method.inner is not None:
        trained = method.count(sites)
        share = percent(trained / sites.base_params) if sites.base_params else "–"
        pairs.append(("trained", f"{count(trained)} parameters ({share}) of {method.inner!r}, through label words"))
    if method.trains:
        length = plural(settings.epochs, "epoch") if settings.max_steps is None else plural(settings.max_steps, "step")
        pairs.append((
            "training",
            f"{length}, batches of {settings.batch_size} rows, learning rate {rate(settings.peak_rate)}, seed "
            f"{settings.seed}",
        ))  # fmt: skip
    else:
        pairs.append(("trained", "nothing: the prompt is found" + (f", seed {settings.seed}" if method.draws else "")))
    show(facts([*pairs, ("folder", str(folder))]), "", aside=True)
    notes = [*data.notes, *remarks(data), *ready.notes]
    if notes:
        show(facts([("note", note) for note in notes]), "", aside=True)


def watched_prompt(ready: PreparedPrompt, folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Find or train the prompt under a progress line; after an interruption, print what is kept."""
    from deltatune.prompting.prompt_run import run

    try:
        with TrainingProgress(len(ready.rows.train), ready.settings.batch_size) as progress:
            return run(ready, folder, record, progress)
    except KeyboardInterrupt:
        raise Interrupted(kept_step(folder) or "nothing is kept of it; the same command starts again") from None


def report_prompt(metrics: Mapping[str, Any], folder: Path) -> None:
    """The closing screen: scores, prompts, cost, and what to do next."""
    from deltatune.prompting.prompt_run import scores_of
    from deltatune.store import adapter_folder
    from deltatune.tasks import task_from_json

    task = task_from_json(adapter_folder.read_config(folder / run_folder.ADAPTER)["extra"]["task"])
    show(scores_table(task, scores_of(metrics)), "")
    show_prompts(metrics.get("prompts") or [])
    pairs = []
    trials = [value for _, value in metrics.get("trials") or [] if value is not None]
    if len(trials) > 1:
        mean = sum(trials) / len(trials)
        pairs.append((
            "tried", f"{len(trials)} prompts on the validation rows: {task.metric} from {score(min(trials))} to "
            f"{score(max(trials))}, mean {score(mean)}",
        ))  # fmt: skip
    pairs.append(("cost", describe_cost(metrics["cost"])))
    scoring = metrics.get("scoring") or {}
    if scoring.get("rows") and scoring["passes"]:
        pairs.append(("a row", per_row(scoring)))
    truncated = metrics["training"].get("truncated") or {}
    pairs += [("note", f"{split}: {long_texts(task, rows)}") for split, rows in truncated.items() if rows]
    pairs += [("note", note) for note in metrics.get("notes") or []]
    show(facts(pairs))
    say(f"Adapter: {folder / run_folder.ADAPTER}")
    say(f"Use it: deltatune predict --adapter {folder} {example_file(task)}", aside=True)


def show_prompts(prompts: list[str]) -> None:
    """Print the prompts that were found, the first ones of many."""
    lines = [("prompt" if not i else "", clip(prompt, LONGEST_PROMPT)) for i, prompt in enumerate(prompts)]
    if len(lines) > PROMPTS_SHOWN:
        left = len(lines) - PROMPTS_SHOWN
        lines = [*lines[:PROMPTS_SHOWN], ("", f"and {left} more, in metrics.json")]
    if lines:
        show(facts(lines), "")


def describe_cost(cost: Mapping[str, Any]) -> str:
    """What finding or training a prompt took."""
    spent = [seconds(cost["seconds"])]
    if cost["passes"]:
        spent.append(f"{count(cost['passes'])} rows with {count(cost['tokens'])} tokens through the model")
    if cost.get("calls"):
        spent.append(f"{count(cost['calls'])} requests to a server")
    return "; ".join(spent)


def per_row(scoring: Mapping[str, Any]) -> str:
    """What answering one row takes."""
    rows = scoring["rows"]
    return f"{plural(round(scoring['passes'] / rows, 1), 'pass').replace('passs', 'passes')} of the model, " + (
        f"{count(scoring['tokens'] / rows)} tokens"
    )
