"""Screens of one training: what is about to run, its progress, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.options.task_options import with_marked_columns
from deltatune.cli.ui.error_screen import Interrupted
from deltatune.cli.ui.live import TrainingProgress
from deltatune.cli.ui.screen import base_text, facts, plural, say, scores_table, show, truncation_notes
from deltatune.comparison.report.number_format import count, rate, seconds, size
from deltatune.comparison.results.recommend import percent
from deltatune.store import run_folder

if TYPE_CHECKING:
    from deltatune.comparison.costs.training_memory import Memory
    from deltatune.tasks import Task
    from deltatune.training import Settings
    from deltatune.training.job import Prepared


def introduce(ready: Prepared, folder: Path, memory: Memory | None = None) -> None:
    """Print what was read, inferred and decided, before the long part begins; `memory` is the forecast."""
    from deltatune.data import remarks
    from deltatune.models.hardware import uses_bfloat16

    data, session, settings = ready.data, ready.session, ready.settings
    host, adapter, base = session.host, session.adapter, session.host.sites.base_params
    head = adapter.head_count
    splits = ", ".join(f"{count(len(rows))} {split}" for split, rows in data.splits().items())
    share = percent(adapter.count / base) if base else "–"
    bfloat16 = uses_bfloat16(host.model, settings.precision)
    dtype = "bfloat16" if bfloat16 else str(host.model.dtype).removeprefix("torch.")
    pairs = [
        ("data", f"{data.origin}: {splits} rows"),
        ("task", session.task.describe()),
        ("model", base_text(session.model, host)),
        ("method", repr(adapter.method)),
        ("trained", f"{count(adapter.count)} parameters ({share})" + (f" and a head of {count(head)}" if head else "")),
        (
            "training",
            f"{_length(settings)}, batches of {settings.batch_size} rows, "
            f"learning rate {_rate_of(ready)}, seed {settings.seed}, {dtype} on {host.model.device.type}",
        ),
        *([("memory", f"about {size(memory.total)} at most, forecast")] if memory else []),
        ("folder", str(folder)),
    ]
    show(facts(pairs), "", aside=True)
    marked = with_marked_columns(data, session.task)
    notes = [
        *data.notes,
        *remarks(marked),
        *ready.notes,
        *truncation_notes(session.task, ready.encoded),
    ]
    if notes:
        show(facts([("note", note) for note in notes]), "", aside=True)


def _rate_of(ready: Prepared) -> str:
    """The learning rate, or how it will be searched."""
    settings, encoded = ready.settings, ready.encoded
    if settings.learning_rate != "auto":
        return rate(settings.learning_rate)
    from deltatune.training.learning_rates.rate_search import plan_search
    from deltatune.training.learning_rates.recommended_rate import steps_of

    plan = plan_search(settings, ready.session.task, encoded["train"], encoded.get("validation"))
    return plan.describe(steps_of(settings, len(encoded["train"])))


def searched_text(search: Mapping[str, Any], metric: str) -> str:
    """What the search of a learning rate tried, chose and cost, in one sentence."""
    last = {each["rate"]: each for each in search["tried"]}
    tried = ", ".join(
        f"{rate(each['rate'])} {'failed' if each['score'] is None else round(each['score'], 3)} (step {each['step']})"
        for each in sorted(last.values(), key=lambda each: float(each["rate"]))
    )
    return (
        f"Learning rate {rate(search['rate'])}, chosen by validation {metric}: {tried}. The search added "
        f"{plural(search['steps'], 'step')} and {seconds(search['seconds'])}."
    )


def _length(settings: Settings) -> str:
    """Length of the training: epochs, or steps if they are set."""
    if settings.max_steps is not None:
        return plural(settings.max_steps, "step")
    return plural(settings.epochs, "epoch")


def watched_run(ready: Prepared, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Train, score and save under a progress line; after an interruption, print what is kept."""
    from deltatune.training.job import run

    try:
        with TrainingProgress(len(ready.encoded["train"]), ready.settings.batch_size) as progress:
            return run(ready, folder, record, progress)
    except KeyboardInterrupt:
        raise Interrupted(kept_step(folder) or "no checkpoint yet; the same command starts again") from None


def kept_step(folder: Path) -> str | None:
    """What is kept of a run in this folder after an interruption; None without a checkpoint."""
    from deltatune.training.training_loop import checkpoint

    path = checkpoint.newest(folder / run_folder.CHECKPOINTS)
    step = "" if path is None else path.name.removeprefix(checkpoint.PREFIX)
    return f"step {step} is kept in {path}; the same command resumes" if path else None


def report(task: Task, metrics: dict[str, Any], folder: Path, use: bool = True) -> None:
    """The closing screen: scores, cost, and what to do next."""
    show(scores_table(task, score_rows(metrics)), "")
    spent = metrics["training"]
    memory = f", at most {size(spent['peak_memory_bytes'])} of memory" if spent["peak_memory_bytes"] else ""
    show(f"Trained in {seconds(spent['seconds'])}, {spent['examples_per_second']:.0f} rows/s{memory}.", aside=True)
    if "search" in spent:
        show(searched_text(spent["search"], task.metric_name(spent["search"]["metric"])))
    adapter = folder / run_folder.ADAPTER
    held = sum(file.stat().st_size for file in adapter.rglob("*") if file.is_file())
    say(f"Adapter: {adapter} ({size(held)})")
    if use:
        say(f"Use it: deltatune {use_of(task, folder)}", aside=True)


def use_of(task: Task, folder: Path) -> str:
    """The command that uses an adapter."""
    if task.answers == "noise":
        return f'draw --adapter {folder} --text "what to draw"'
    return f"predict --adapter {folder} {example_file(task)}"


def score_rows(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Scores by split; of an adapter that was trained before, also those at the start and on its earlier data."""
    rows: dict[str, Mapping[str, float]] = {}
    for split in [name for name in metrics if name not in ("training", "before", "earlier")]:
        if "before" in metrics:
            rows[f"{split}, before"] = metrics["before"][split]
        rows[split] = metrics[split]
    for earlier in metrics.get("earlier", ()):
        name = f"earlier: {Path(earlier['source']).name}"
        name = f"{name} ({len(rows)})" if name in rows else name
        part = f"{earlier['part']}." if earlier["part"] else ""
        for title, state in ((f"{name}, before", "before"), (name, "after")):
            rows[title] = {f"{part}{metric}": value for metric, value in earlier[state].items()}
    return rows


def example_file(task: Task) -> str:
    """Example of a file name for `deltatune predict`."""
    parts = getattr(task, "parts", None)
    if parts:
        name = next(iter(parts))
        return f"--part {name} {example_file(parts[name])}"
    files = {"image": "*.png", "audio": "*.wav"}
    if (reads := task.inputs) in files:
        return files[reads]
    one = len(task.text) == 1 and task.answers in ("row", "text")
    return "texts.txt" if one else "rows.jsonl"
