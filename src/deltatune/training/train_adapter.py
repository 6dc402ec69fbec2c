"""Train one adapter of a host on a task."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models import hardware
from deltatune.models.hardware import uses_bfloat16
from deltatune.store.fingerprint import base_identity
from deltatune.tasks.task import Encoded, Row, Task
from deltatune.training import checkpoint
from deltatune.training.checkpoint import digest_of
from deltatune.training.gradient_check import idle
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.prediction import collate_on, encoded_rows, predict
from deltatune.training.reporting import check_installed
from deltatune.training.sampler import Batches, Drawn, Order
from deltatune.training.scaling.distributed import World, check_launch, join
from deltatune.training.scaling.feature_cache import Probe, extract, probed
from deltatune.training.scaling.gradient_checkpointing import recomputing
from deltatune.training.scaling.packing import check_packing
from deltatune.training.scaling.sharding import gather_root_, shard_
from deltatune.training.settings import Settings
from deltatune.training.task_model import Tuned
from deltatune.training.trainer import DeltaTrainer, OnStep, names_of
from deltatune.training.trainer_arguments import arguments


@dataclass(frozen=True)
class Outcome:
    """What a training run did."""

    history: list[tuple[int, float]]
    """(step, loss) of every optimiser step."""
    evaluations: list[tuple[int, dict[str, float]]]
    """(step, scores on the validation rows); the last one is the trained adapter's. Empty without validation rows."""
    seconds: float
    """Time spent training, without evaluations and checkpoints; over all sessions of a resumed run."""
    examples_per_second: float
    """Rows trained on, repeats counted, a second."""
    peak_memory_bytes: int | None
    """Highest memory while training: the GPU's, or the process's on Linux; None where it cannot be measured."""
    learning_rate: float
    """The peak rate used."""
    bfloat16: bool
    """Whether the base ran under bfloat16 autocast."""
    truncated: int = 0
    """Training and validation rows that were cut at the task's max_length."""
    idle: tuple[str, ...] = ()
    """Trainable tensors that this task's head does not read, such as the base's pooler: they stayed what they were."""
    resumed: int = 0
    """The step this session went on from."""


def train(
    host: Host,
    name: str,
    task: Task,
    rows_train: Sequence[Row] | Encoded,
    rows_validation: Sequence[Row] | Encoded | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings | None = None,
    out: str | Path | None = None,
    on_step: OnStep | None = None,
    reports: str | Path | None = None,
) -> Outcome:
    """Train adapter `name` and score it on the validation rows; rows may be encoded already.

    With `out`, checkpoints go there, and a run that was stopped goes on from the newest complete one when called
    again in the same way; metrics.jsonl goes there too, or to `reports`. Reparametrisations are dropped at the end
    (`host.finish_`); route and modes of the model are left as found. Several processes under torchrun train together:
    each calls this alike and gets the same Outcome. Raises DeltatuneError for rows the task refuses, a checkpoint of
    another run, a trainable tensor that does not learn, and a loss that is not finite. The global random generators
    are seeded with the settings' seed.
    """
    settings = resolved(settings or Settings(), host, name)
    check_installed(settings.report_to)
    rows = encoded_rows(host, name, task, rows_train, tokenizer)
    if not len(rows):
        raise DeltatuneError("there are no rows to train on")
    validation = encoded_rows(host, name, task, rows_validation or [], tokenizer)
    precision = "bfloat16" if uses_bfloat16(host.model, settings.precision) else "float32"

    def evaluate() -> dict[str, float]:
        gather_root_(host.model)
        return task.score(predict(host, name, task, validation, tokenizer, precision=precision), validation.references)

    place = Path(out) if out is not None else None
    told = Path(reports) if reports is not None else place
    check_launch(precision == "bfloat16" or host.model.dtype == torch.bfloat16)
    world = join(device_of(host))
    shard_(host, world)
    each_epoch = evaluate if settings.evaluate == "epoch" and len(validation) else None
    with host.using(name, training=True), recomputing(host.model, settings.checkpointing):
        hardware.reset_peak_memory(device_of(host))
        started = time.perf_counter()
        trainer = build(host, name, task, rows, tokenizer, settings, place, on_step, each_epoch, world, told)
        trainer.progress.seconds = time.perf_counter() - started  # a probe's features are most of its training
        resume = trainer.resumable()
        trainer.run(resume)
        peak = hardware.peak_memory(device_of(host))
    host.finish_(name)
    done, last = trainer.progress, trainer.state.global_step
    with trainer.reporter:
        if len(validation) and not (done.evaluations and done.evaluations[-1][0] == last):
            trainer.scored(evaluate())
    return Outcome(
        history=done.history,
        evaluations=done.evaluations,
        seconds=done.seconds,
        examples_per_second=done.rows / done.seconds if done.seconds else 0.0,
        peak_memory_bytes=peak,
        learning_rate=settings.learning_rate or 0.0,
        bfloat16=precision == "bfloat16",
        truncated=rows.truncated + validation.truncated,
        idle=tuple(sorted(idle(host, name))),
        resumed=checkpoint.step_of(resume) if resume else 0,
    )


def resolved(settings: Settings, host: Host, name: str) -> Settings:
    """Settings with a rate: the method's recommended one where none is given."""
    if name not in host.adapters:
        raise DeltatuneError(f"no adapter is called {name!r}; attached: {', '.join(host.adapters) or 'none'}")
    if not host.trainable(name):
        raise DeltatuneError(
            f"adapter {name!r} has nothing to train: {host.adapters[name].method!r} trains only a head, and there is "
            "none where the model's own words are the answer; choose another method"
        )
    if settings.learning_rate is not None:
        return settings
    return dataclasses.replace(settings, learning_rate=host.adapters[name].method.learning_rate)


def build(
    host: Host,
    name: str,
    task: Task,
    rows: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    out: Path | None,
    on_step: OnStep | None,
    evaluate: Callable[[], dict[str, float]] | None,
    world: World,
    reports: Path | None,
) -> DeltaTrainer:
    """The trainer of one run: on the whole model, or on stored features where nothing but a head is trained."""
    bfloat16 = uses_bfloat16(host.model, settings.precision)
    collate = collate_on(host, name, tokenizer, rows, settings.packing)
    if settings.packing:
        check_packing(host, name, collate, rows.rows)
    head = probed(host, name, len(rows))
    model: nn.Module
    data: Any
    batch: Callable[[Any], dict[str, torch.Tensor]]
    if head is None:
        model, data, batch = Tuned(host, name, task, bfloat16), list(rows), collate
    else:
        host.model.eval()
        model, data, batch = Probe(head, task), extract(host, head, rows, collate, bfloat16), as_it_is
    lengths = [len(row["input_ids"]) for row in rows]
    order = Order(lengths, settings.batch_size, settings.accumulation, settings.seed, settings.length_grouping, world)
    if hasattr(task, "draw"):
        data = Drawn(data, task.draw, order)
    loader = Batches(data, order, batch)
    args = arguments(settings, order, out)
    compared = out is not None or world.size > 1
    identity = identity_of(host, name, task, rows, settings) if compared else None
    return DeltaTrainer(model, host, name, task, loader, settings, args, on_step, evaluate, identity, reports)


def as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Features come in batches already."""
    return batch


def identity_of(host: Host, name: str, task: Task, rows: Encoded, settings: Settings) -> dict[str, Any]:
    """What a checkpoint must agree on before training goes on from it, as plain data."""
    adapter, asked = host.adapters[name], dataclasses.asdict(settings)
    for free in ("checkpointing", "report_to"):  # the result is the same
        del asked[free]
    return {
        "method": repr(adapter.method),
        "adapter_seed": adapter.seed,
        "tensors": names_of(host.trainable(name)),
        "base": base_identity(host),
        "task": task.to_json(),
        "rows": [len(rows), digest_of(rows.rows)],
        **{f"settings.{field}": value for field, value in asked.items()},
        "bfloat16": uses_bfloat16(host.model, settings.precision),
    }
