"""What a training loop trains, and its batches: the whole model on tokens, or only a head on cached vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.diffusion.text_to_image import EncodedPictures, TextToImage
from deltatune.tasks.mixture import Mixture, MixtureEncoded
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.task import Encoded, LanguageModelTask, Task, row_length
from deltatune.training.denoising import denoising_and_loader
from deltatune.training.inference.pair_rewards import with_references
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.scaling.distributed import Processes
from deltatune.training.scaling.packing import check_packing
from deltatune.training.scaling.probe_features import FeatureModel, extract_features, probe_head
from deltatune.training.scaling.row_states import RepeatedRows
from deltatune.training.settings import Settings
from deltatune.training.task_model import TaskModel
from deltatune.training.training_loop.sampler import BatchLoader, BatchSampler, MixtureSampler


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
    if isinstance(task, TextToImage) and isinstance(rows, EncodedPictures):
        return denoising_and_loader(host, name, task, rows, settings, processes)
    collate = adapter_collator(host, name, tokenizer, rows, settings.packing)
    if settings.packing:
        check_packing(host, name, collate, rows.rows)
    sampler = BatchSampler(
        [row_length(row) for row in rows],
        settings.batch_size,
        settings.accumulation,
        settings.seed,
        settings.length_grouping,
        processes,
    )
    bfloat16 = uses_bfloat16(host.model, settings.precision)
    if isinstance(task, Prefer):
        rows = with_references(host, task, rows, collate, bfloat16, numbers_read(sampler, settings))
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


def numbers_read(sampler: BatchSampler, settings: Settings) -> list[int] | None:
    """The rows that a run of less than one epoch reads; None for all."""
    steps = settings.max_steps or math.ceil(settings.epochs * sampler.steps_per_epoch)
    if steps >= sampler.steps_per_epoch:
        return None
    return [number for batch in sampler.batches(0)[:steps] for number in batch]


def repeated_rows(
    host: Host, name: str, task: Task, rows: Encoded, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> RepeatedRows | None:
    """The training rows, if all of them are read, as they are: not for packed, mixed or newly drawn ones."""
    steps = settings.max_steps or settings.epochs * len(rows) / settings.batch_size
    if (
        isinstance(task, Prefer)
        or isinstance(rows, MixtureEncoded)
        or settings.packing
        or task.dynamic
        or steps * settings.batch_size < len(rows)
    ):
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
        [row_length(row) for row in rows],
        settings.batch_size,
        settings.accumulation,
        settings.seed,
        settings.length_grouping,
        processes,
    )

    def make_batch(numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return collators[sampler.part(numbers[0])]([rows.rows[number] for number in numbers])

    return TaskModel(host, name, task, uses_bfloat16(host.model, settings.precision)), BatchLoader(sampler, make_batch)
