"""`deltatune train`: one adapter on one model and one data set, from the texts to scores and a folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deltatune.cli import runs
from deltatune.cli.endings import Interrupted
from deltatune.cli.env import environment
from deltatune.cli.exporting import ExportFor, check_export, check_peer
from deltatune.cli.options import (
    BUDGET,
    DATA,
    HEAD,
    METHOD,
    OUTPUT,
    SETTINGS,
    SOURCE,
    TASK,
    TRAINING,
    BatchSize,
    Dense,
    Epochs,
    Label,
    Limit,
    MaxLength,
    Metric,
    Model,
    Pooling,
    Precision,
    Text,
    head_of,
    option,
)
from deltatune.cli.progress import TrainingProgress
from deltatune.cli.scores import scores_table
from deltatune.cli.screen import facts, plural, say, show
from deltatune.comparison.formats import count, rate, seconds, size
from deltatune.comparison.recommend import percent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deltatune.core.host import Host
    from deltatune.data import Data
    from deltatune.tasks import Classify, Encoded
    from deltatune.training import Outcome, Settings

NAME = "adapter"
"""What the adapter is called on its host while it is trained."""


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked."""

    host: Host
    tokenizer: PreTrainedTokenizerBase
    task: Classify
    settings: Settings
    data: Data
    encoded: dict[str, Encoded]
    """Tokens of each split."""
    notes: list[str]
    """What is to be said of the export."""


def train(
    model: Model = "builtin",
    data: Annotated[str, option("--data", "-d", panel=DATA, metavar="DATA", help=SOURCE)] = "python-docs",
    text: Text = None,
    label: Label = None,
    limit: Limit = None,
    max_length: MaxLength = None,
    metric: Metric = None,
    method: Annotated[
        str,
        option(
            "--method", panel=METHOD, metavar="METHOD", help="What to train; `deltatune methods` lists what there is."
        ),
    ] = "LoRA(r=8)",
    budget: Annotated[
        str | None,
        option("--budget", panel=METHOD, metavar="SIZE", help=f"{BUDGET} Sets the method's rank, size or length."),
    ] = None,
    pooling: Pooling = None,
    dense: Dense = HEAD["dense"].default,
    epochs: Epochs = SETTINGS["epochs"].default,
    lr: Annotated[
        float | None,
        option(
            "--lr", panel=TRAINING, metavar="RATE", help="Peak learning rate. By default the method's recommended one."
        ),
    ] = None,
    batch_size: BatchSize = SETTINGS["batch_size"].default,
    seed: Annotated[
        int,
        option(
            "--seed", panel=TRAINING, metavar="NUMBER", help="Of the initial values, the order of rows and dropout."
        ),
    ] = SETTINGS["seed"].default,
    precision: Precision = SETTINGS["precision"].default,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FOLDER", help="By default runs/train-<data>-<method>."),
    ] = None,
    export_for: ExportFor = None,
    force: Annotated[
        bool, option("--force", panel=OUTPUT, help="Replace a run of other settings in that folder.")
    ] = False,
) -> None:
    """Train one adapter and score it.

    The folder gets the adapter (in adapter/) and metrics.json with the scores on the validation and the test split.
    Interrupted, the same command goes on from the last checkpoint.

      deltatune train --data train.csv --method "LoRA(r=8)"
      deltatune train --model roberta-base --data train.csv --text premise --text hypothesis
    """
    from deltatune.data import read

    check_peer(export_for)
    found = read(data, text=text or [], label=label, limit=limit)  # before torch is imported: mistakes show at once
    from deltatune.training import Settings

    wanted = Settings(epochs=epochs, batch_size=batch_size, learning_rate=lr, seed=seed, precision=precision)  # type: ignore[arg-type]
    over = head_of(pooling, dense)
    ready = prepare(model, found, (max_length, metric), method, budget, over, wanted, export_for)
    folder = out or runs.default_folder(ready.data.name, repr(ready.host.adapters[NAME].method))
    record = record_of(ready, model, data)
    before = runs.open_run(folder, record, force)
    introduce(ready, model, folder)
    if before is None:
        metrics = run(ready, folder, record)
    else:
        metrics = before
        show("This run was finished before; --force trains it again.\n")
    report(ready.task, metrics, folder)


def prepare(
    model_name: str,
    data: Data,
    limits: tuple[int | None, str | None],
    method: str,
    budget: str | None,
    head: dict[str, Any],
    settings: Settings,
    export_for: str | None = None,
) -> Prepared:
    """Load, attach and encode, the cheap things first; every mistake of the user shows here, before training."""
    from deltatune.core.budget import fit_budget
    from deltatune.core.host import Host
    from deltatune.core.text import parse
    from deltatune.tasks import Classify, Head
    from deltatune.tasks.backbone import best_device, load_backbone
    from deltatune.tasks.words import worded
    from deltatune.training import encode_for

    wanted = parse(method)
    max_length, metric = limits
    task = Classify(data.labels, data.text, data.label, max_length or TASK["max_length"].default, metric or "")
    model, tokenizer = load_backbone(model_name, pooler=head.get("pooling") == "pooler")
    host = Host(model.to(best_device()))  # type: ignore[arg-type]
    wanted = worded(wanted, tokenizer, task)
    if budget is not None:
        wanted = fit_budget(wanted, host.sites, budget)
    own = Head(task.head_config(model.config, **head), settings.seed)
    notes = check_export(export_for, wanted, host, own)
    host.attach(NAME, wanted, seed=settings.seed, head=own)
    if max_length is None:
        task = dataclasses.replace(task, max_length=fitting_length(host, task.max_length))
    if settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=wanted.learning_rate)
    encoded = {split: encode_for(host, NAME, task, rows, tokenizer) for split, rows in data.splits().items()}
    return Prepared(host, tokenizer, task, settings, data, encoded, notes)


def fitting_length(host: Host, wanted: int) -> int:
    """The wanted number of tokens, or as many as the model has positions for beside the adapter's."""
    from deltatune.tasks import longest_input
    from deltatune.training.predict import room

    positions = longest_input(host.model)
    return wanted if positions is None else max(1, min(wanted, positions - room(host, NAME)))


def record_of(ready: Prepared, model_name: str, source: str) -> dict[str, Any]:
    """What was asked for, as plain data: two runs with equal records are the same run."""
    adapter = ready.host.adapters[NAME]
    found = environment()
    return {
        "model": model_name,
        "data": runs.data_record(ready.data, source),
        "task": ready.task.to_json(),
        "method": repr(adapter.method),
        "head": adapter.head.config.to_json() if adapter.head is not None else None,  # type: ignore[operator,union-attr]
        "settings": dataclasses.asdict(ready.settings),
        "versions": {"deltatune": found["deltatune"], "python": found["python"], **found["packages"]},
    }


def introduce(ready: Prepared, model_name: str, folder: Path) -> None:
    """Say what was read, guessed and decided, before the long part begins."""
    from deltatune.data import remarks
    from deltatune.training.settings import half

    data, host, settings = ready.data, ready.host, ready.settings
    adapter, base = host.adapters[NAME], host.sites.base_params
    splits = ", ".join(f"{count(len(rows))} {split}" for split, rows in data.splits().items())
    share = percent(adapter.count / base) if base else "–"
    dtype = "bfloat16" if half(host.model, settings.precision) else str(host.model.dtype).removeprefix("torch.")
    pairs = [
        ("data", f"{data.origin}: {splits} rows"),
        ("task", ready.task.describe()),
        ("model", f"{model_name}: {host.sites.facts.architecture}, {count(base)} parameters, frozen"),
        ("method", repr(adapter.method)),
        ("trained", f"{count(adapter.count)} parameters ({share}) and a head of {count(adapter.head_count)}"),
        (
            "training",
            f"{plural(settings.epochs, 'epoch')}, batches of {settings.batch_size} rows, "
            f"rate {rate(settings.learning_rate)}, seed {settings.seed}, {dtype} on {host.model.device.type}",
        ),
        ("folder", str(folder)),
    ]
    show(facts(pairs), "")
    cut = [f"{rows.truncated} of {len(rows)} {split}" for split, rows in ready.encoded.items() if rows.truncated]
    notes = [*data.notes, *remarks(data), *ready.notes]
    if cut:
        notes.append(f"cut at {ready.task.max_length} tokens because they are longer: {', '.join(cut)} texts")
    if notes:
        show(facts([("note", note) for note in notes]), "")


def run(ready: Prepared, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Train, score, save; returns what metrics.json holds."""
    from deltatune.tasks import tokenizer_fingerprint
    from deltatune.training import checkpoint, predict
    from deltatune.training import train as train_adapter

    host, task, settings, encoded = ready.host, ready.task, ready.settings, ready.encoded
    place = folder / runs.CHECKPOINTS
    try:
        with TrainingProgress(len(encoded["train"]), settings.batch_size) as progress:
            outcome = train_adapter(
                host, NAME, task, encoded["train"], encoded["validation"], ready.tokenizer, settings, place, progress
            )
        logits = predict(host, NAME, task, encoded["test"], ready.tokenizer, precision=settings.precision)
    except KeyboardInterrupt:
        last = checkpoint.newest(place)
        kept = (
            f"step {last.name.removeprefix(checkpoint.PREFIX)} is kept in {last}, and"
            if last
            else "no checkpoint yet, so"
        )
        again = "goes on from there" if last else "starts anew"
        raise Interrupted(f"{kept} the same command {again}") from None
    metrics = {
        "validation": outcome.evaluations[-1][1],
        "test": task.score(logits, encoded["test"].references),
        "training": training_facts(outcome, encoded),
    }
    extra = {**record, "tokenizer": tokenizer_fingerprint(ready.tokenizer), "scores": metrics}
    host.save(NAME, folder / runs.ADAPTER, extra=extra)
    runs.finish(folder, metrics)
    return metrics


def training_facts(outcome: Outcome, encoded: dict[str, Encoded]) -> dict[str, Any]:
    """What the training cost, as plain data."""
    return {
        "steps": outcome.history[-1][0],
        "final_loss": outcome.history[-1][1],
        "seconds": outcome.seconds,
        "examples_per_second": outcome.examples_per_second,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "bfloat16": outcome.bfloat16,
        "truncated": {split: rows.truncated for split, rows in encoded.items()},
    }


def report(task: Classify, metrics: dict[str, Any], folder: Path) -> None:
    """The closing screen: scores, cost, and what to do next."""
    show(scores_table(task, {split: metrics[split] for split in ("validation", "test")}), "")
    spent = metrics["training"]
    memory = f", at most {size(spent['peak_memory_bytes'])} of memory" if spent["peak_memory_bytes"] else ""
    show(f"Trained in {seconds(spent['seconds'])}, {spent['examples_per_second']:.0f} rows/s{memory}.")
    adapter = folder / runs.ADAPTER
    held = sum(file.stat().st_size for file in adapter.rglob("*") if file.is_file())
    say(f"Adapter: {adapter} ({size(held)})")
    say(f"Use it: deltatune predict --adapter {folder} texts.txt")
