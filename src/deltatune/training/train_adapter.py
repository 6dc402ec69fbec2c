"""Train an adapter of a host on a task."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, OutOfMemory, is_out_of_memory, raise_all
from deltatune.core.host import Host
from deltatune.core.trained_rows import TrainedRows, no_rows
from deltatune.models import hardware
from deltatune.models.hardware import uses_bfloat16
from deltatune.store.fingerprint import base_identity
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.mixture import Mixture, MixtureEncoded
from deltatune.tasks.task import Encoded, LanguageModelTask, Row, Task, TokenRow
from deltatune.training import checkpoint
from deltatune.training.auxiliary_loss import AuxiliaryMLM
from deltatune.training.gradient_check import unread_tensors
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.prediction import adapter_collator, ensure_encoded, predict
from deltatune.training.loop import OnStep, TrainingLoop
from deltatune.training.reporting import Reporter, check_installed
from deltatune.training.sampler import BatchLoader, BatchSampler, MixtureSampler
from deltatune.training.scaling.distributed import Processes, check_launch, join_processes
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from deltatune.training.scaling.lower_layers import LOWER_LAYERS_VERSION, find_lower_blocks, lower_layers
from deltatune.training.scaling.packing import check_packing
from deltatune.training.scaling.probe_features import FeatureModel, extract_features, probe_head
from deltatune.training.scaling.row_states import RepeatedRows
from deltatune.training.scaling.sharding import shard_, unshard_root_
from deltatune.training.settings import Settings
from deltatune.training.task_model import TaskModel


@dataclass(frozen=True)
class Outcome:
    """What a training run did."""

    history: list[tuple[int, float]]
    """(step, loss) of every optimizer step."""
    evaluations: list[tuple[int, dict[str, float]]]
    """(step, scores on the validation rows); the last one is the trained adapter's. Empty without validation rows."""
    seconds: float
    """Time spent training, without evaluations and checkpoints, including the time before a run was resumed."""
    examples_per_second: float
    """Rows trained on per second, repeats counted."""
    peak_memory_bytes: int | None
    """Peak memory while training: of the GPU, or of the process on Linux; None where it cannot be measured."""
    learning_rate: float
    """The peak rate used."""
    bfloat16: bool
    """Whether the base ran under bfloat16 autocast."""
    truncated: int = 0
    """Training and validation rows that were truncated at the task's max_length."""
    untrained_tensors: tuple[str, ...] = ()
    """Trainable tensors that this task's head does not read, such as the base's pooler: they did not change."""
    resumed: int = 0
    """The step of the checkpoint that the run was resumed from; 0 for a new run."""
    paused: bool = False
    """Whether steps are left: the run was asked to pause before its end."""


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
    auxiliary: AuxiliaryMLM | None = None,
    until: int | None = None,
) -> Outcome:
    """Train adapter `name` and score it on the validation rows; rows may be encoded already.

    With `out`, checkpoints go there, and the same call resumes a stopped run from the newest complete checkpoint;
    metrics.jsonl goes there too, or to `reports`. At the end `host.remove_reparametrisation_` replaces
    reparametrisations by their values; the route and the modes of the model are restored. Several processes under
    torchrun train together: each makes the same call and gets the same Outcome. The global random generators are seeded
    with the settings' seed. `auxiliary` is a further loss, on rows of its own. `until` pauses the run after that step, with
    a checkpoint in `out` and scores on the validation rows; the same call without it goes on, and ends bit for bit as a
    run that never paused: the schedule is that of the whole run. Raises DeltatuneError for rows that the
    task refuses, a checkpoint of another run, a trainable tensor that does not learn, and a loss that is not finite.
    """
    settings = with_learning_rate(settings or Settings(), host, name)
    if until is not None and (out is None or until < 1):
        raise DeltatuneError(f"until={until}: a run pauses after a step of at least 1, with `out`, a folder to go on from")
    check_installed(settings.report_to)
    rows = ensure_encoded(host, name, task, rows_train, tokenizer)
    if not len(rows):
        raise DeltatuneError("there are no rows to train on")
    validation = ensure_encoded(host, name, task, rows_validation or [], tokenizer)
    bfloat16, device = uses_bfloat16(host.model, settings.precision), device_of(host)

    def evaluate() -> dict[str, float]:
        unshard_root_(host.model)
        precision = "bfloat16" if bfloat16 else "float32"
        answers = predict(host, name, task, validation, tokenizer, precision=precision)
        return task.score(answers, validation.references)

    check_launch(bfloat16 or host.model.dtype == torch.bfloat16)
    processes = join_processes(device)
    shard_(host, processes)
    out = None if out is None else Path(out)
    with (
        plain_memory_errors(settings, [*rows, *validation]),
        locked([Path(folder) for folder in (reports, out) if folder is not None and processes.is_main]),
        Reporter(out if reports is None else Path(reports), settings, device, host.model) as reporter,
    ):
        with host.using(name, training=True), gradient_checkpointing(host.model, settings.checkpointing):
            hardware.reset_peak_memory(device)
            started = time.perf_counter()
            model, loader = model_and_loader(host, name, task, rows, tokenizer, settings, processes)
            if auxiliary is not None:
                model, loader = auxiliary.beside(model, loader, tokenizer, settings.seed)
            identity = None
            if out is not None or processes.size > 1:
                identity = identity_of(host, name, task, rows, settings)
            each_epoch = evaluate if settings.evaluate == "epoch" and len(validation) else None
            loop = TrainingLoop(
                model, host, name, task, loader, settings, reporter, processes, out, on_step, each_epoch, identity
            )
            loop.progress.seconds = time.perf_counter() - started  # a probe's features are most of its training
            resume = None if out is None else checkpoint.to_resume(out, processes)
            repeated, tunes = repeated_rows(host, name, task, rows, tokenizer, settings), host.adapters[name].count > 0
            with lower_layers(host, repeated, always=tunes):
                loop.run(resume, until)
            peak_memory = hardware.peak_memory(device)
        paused = loop.progress.step < loop.total_steps
        if not paused:
            host.remove_reparametrisation_(name)
        note_rows_(host, name, rows, validation)
        progress = loop.progress
        if len(validation) and not (progress.evaluations and progress.evaluations[-1][0] == progress.step):
            loop.add_scores(evaluate())
    return Outcome(
        history=progress.history,
        evaluations=progress.evaluations,
        seconds=progress.seconds,
        examples_per_second=progress.rows / progress.seconds if progress.seconds else 0.0,
        peak_memory_bytes=peak_memory,
        learning_rate=settings.learning_rate or 0.0,
        bfloat16=bfloat16,
        truncated=rows.truncated + validation.truncated,
        untrained_tensors=tuple(sorted(unread_tensors(host, name, task))),
        resumed=checkpoint.step_of(resume) if resume else 0,
        paused=paused,
    )


def note_rows_(host: Host, name: str, rows: Encoded, validation: Encoded) -> None:
    """Note in the adapter which rows it was trained on, and which scored it."""
    adapter, hashes = host.adapters[name], [encoded.row_hashes for encoded in (rows, validation)]
    known = adapter.trained_rows or TrainedRows(complete=False)
    if hashes[0] is None:  # rows that were encoded elsewhere
        known = dataclasses.replace(known, complete=False)
    adapter.trained_rows = known.with_rows(*(no_rows() if values is None else values for values in hashes))


@contextmanager
def plain_memory_errors(settings: Settings, rows: Sequence[TokenRow]) -> Iterator[None]:
    """Within this context, memory that is used up is an error that says what to lower."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        size, parts = settings.batch_size, settings.accumulation
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        advice = [
            f"accumulation: {parts} forward passes a step now, up to {size}: the same result" if parts < size else "",
            "checkpointing: true, about half more time" if not settings.checkpointing else "",
            f"batch_size, now {size}" if size > 1 else "",
            f"max_length: the longest text has {longest} tokens",
            "a method with fewer parameters, or a smaller model",
        ]
        lines = "".join(f"\n  {line}" for line in advice if line)
        raise OutOfMemory(f"out of memory while training; what needs less of it, the best first:{lines}") from None


@contextmanager
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """Hold the locks of these folders. Raises DeltatuneError if another process writes one of them."""
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(FolderLock(folder, option=""))
        yield


def with_learning_rate(settings: Settings, host: Host, name: str) -> Settings:
    """Settings with a learning rate: the method's recommended one if none is given."""
    if not host.trainable(name):
        raise DeltatuneError(
            f"adapter {name!r} has nothing to train: {host.adapters[name].method!r} trains only a head, and tasks that "
            "use the language-model head have none; choose another method"
        )
    if settings.learning_rate is not None:
        return settings
    return dataclasses.replace(settings, learning_rate=host.adapters[name].method.learning_rate)


def model_and_loader(
    host: Host,
    name: str,
    task: Task,
    rows: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    processes: Processes,
) -> tuple[nn.Module, BatchLoader]:
    """What the loop trains, and its batches: the whole model on tokens, or only a head on cached features."""
    if isinstance(rows, MixtureEncoded):
        return mixture_and_loader(host, name, task, rows, tokenizer, settings, processes)
    collate = adapter_collator(host, name, tokenizer, rows, settings.packing)
    if settings.packing:
        check_packing(host, name, collate, rows.rows)
    sampler = BatchSampler(
        [len(row["input_ids"]) for row in rows],
        settings.batch_size,
        settings.accumulation,
        settings.seed,
        settings.length_grouping,
        processes,
    )
    bfloat16 = uses_bfloat16(host.model, settings.precision)
    head = None if isinstance(task, LanguageModelTask) else probe_head(host, name, len(rows))
    if head is not None:
        host.model.eval()
        features = extract_features(host, head, RepeatedRows(rows, collate), bfloat16)
        return FeatureModel(head, task), BatchLoader(sampler, features.batch)

    def make_batch(numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
        if not task.dynamic:
            return collate([rows.rows[number] for number in numbers])
        # what a row draws, such as its masked tokens, depends on seed, epoch and row alone
        generators = [generator_for(settings.seed, f"draw.{epoch}.{number}") for number in numbers]
        return collate([task.draw(rows.rows[n], generator) for n, generator in zip(numbers, generators, strict=True)])

    return TaskModel(host, name, task, bfloat16), BatchLoader(sampler, make_batch)


def repeated_rows(
    host: Host, name: str, task: Task, rows: Encoded, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> RepeatedRows | None:
    """The training rows, if all of them are read, as they are: not for packed, mixed or newly drawn ones."""
    steps = settings.max_steps or settings.epochs * len(rows) / settings.batch_size
    if isinstance(rows, MixtureEncoded) or settings.packing or task.dynamic or steps * settings.batch_size < len(rows):
        return None
    return RepeatedRows(rows, adapter_collator(host, name, tokenizer, rows))


def mixture_and_loader(
    host: Host,
    name: str,
    task: Task,
    rows: MixtureEncoded,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    processes: Processes,
) -> tuple[nn.Module, BatchLoader]:
    """The whole model, and batches of a mixture: forward passes of one part each."""
    assert isinstance(task, Mixture)
    head_only = [n for n, part in task.parts.items() if part.loads == "text"] if not host.adapters[name].count else []
    raise_all([
        f"part {part} uses the language-model head, and {host.adapters[name].method!r} trains only heads; choose "
        "another method"
        for part in head_only
    ])  # fmt: skip
    if settings.packing:
        raise DeltatuneError(
            "packing is for a single task: a mixture's parts have labels of different kinds; leave it out"
        )
    absent = [part for part in task.parts if part not in rows.parts]
    raise_all([f"part {part} of the mixture has no rows to train on" for part in absent])
    collators = {part: adapter_collator(host, name, tokenizer, encoded) for part, encoded in rows.parts.items()}
    sampler = MixtureSampler(
        rows.pieces(),
        task.shares({part: len(encoded) for part, encoded in rows.parts.items()}),
        [len(row["input_ids"]) for row in rows],
        settings.batch_size,
        settings.accumulation,
        settings.seed,
        settings.length_grouping,
        processes,
    )

    def make_batch(numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return collators[sampler.part(numbers[0])]([rows.rows[number] for number in numbers])

    return TaskModel(host, name, task, uses_bfloat16(host.model, settings.precision)), BatchLoader(sampler, make_batch)


def identity_of(host: Host, name: str, task: Task, rows: Encoded, settings: Settings) -> dict[str, Any]:
    """The facts in which a checkpoint must equal the run that resumes from it, as plain data."""
    adapter, fields = host.adapters[name], dataclasses.asdict(settings)
    for free in ("checkpointing", "report_to"):  # the result is the same
        del fields[free]
    return {
        "method": repr(adapter.method),
        "adapter_seed": adapter.seed,
        "tensors": {n: list(parameter.shape) for n, parameter in host.trainable(name)},
        "base": base_identity(host),
        "task": task.to_json(),
        "rows": [len(rows), checkpoint.digest_of(rows.rows)],
        **{f"settings.{field}": value for field, value in fields.items()},
        "schedule_version": settings.schedule_version(),
        **({"lower_layers": LOWER_LAYERS_VERSION} if adapter.count and find_lower_blocks(host) else {}),
        "bfloat16": uses_bfloat16(host.model, settings.precision),
    }
