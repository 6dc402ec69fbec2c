"""Train an adapter of a host on a task."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.trained_rows import TrainedRows, no_rows
from deltatune.models import hardware
from deltatune.models.hardware import uses_bfloat16
from deltatune.store.fingerprint import identity_for
from deltatune.store.folder_lock import FolderLock
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.task import Encoded, Row, Task, TokenRow
from deltatune.training.auxiliary_loss import AuxiliaryMLM
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.pair_rewards import check_reference, with_references
from deltatune.training.inference.prediction import adapter_collator, ensure_encoded, predict
from deltatune.training.learning_rates.rate_search import RateSearch, train_searched
from deltatune.training.learning_rates.recommended_rate import recommended_rate, steps_of
from deltatune.training.model_and_loader import model_and_loader, repeated_rows
from deltatune.training.reporting import Reporter, check_installed
from deltatune.training.scaling.activation_offload import offloaded_activations
from deltatune.training.scaling.compiled_blocks import CompiledBlocks, compiled_blocks
from deltatune.training.scaling.disk_file import folder_for
from deltatune.training.scaling.distributed import Processes, check_launch, join_processes
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from deltatune.training.scaling.lower_layers import LOWER_LAYERS_VERSION, find_lower_blocks, lower_layers
from deltatune.training.scaling.sharding import shard_, unshard_root_
from deltatune.training.settings import AUTO, Settings
from deltatune.training.training_loop import checkpoint
from deltatune.training.training_loop.gradient_check import unread_tensors
from deltatune.training.training_loop.loop import OnStep, TrainingLoop
from deltatune.training.training_loop.memory_advice import plain_memory_errors


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
    search: RateSearch | None = None
    """How the learning rate was found, where it was searched."""

    def facts(self) -> dict[str, Any]:
        """Cost and course of the training as plain data."""
        steps, final_loss = self.history[-1]
        names = ("seconds", "examples_per_second", "peak_memory_bytes", "bfloat16", "learning_rate")
        return {"steps": steps, "final_loss": final_loss, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class AdapterTraining:
    """What a training is asked to do: the arguments of `train`, for one of several adapters of `train_together`."""

    name: str
    """The attached adapter."""
    task: Task
    """Its task."""
    rows_train: Sequence[Row] | Encoded
    """Rows to train on; they may be encoded already."""
    rows_validation: Sequence[Row] | Encoded | None = None
    """Rows that score it."""
    settings: Settings | None = None
    """Its own settings; None: the defaults."""
    out: str | Path | None = None
    """Folder of its checkpoints."""
    on_step: OnStep | None = None
    """Called after each of its optimizer steps."""
    reports: str | Path | None = None
    """Folder of its metrics.jsonl, if not `out`."""
    until: int | None = None
    """The step to pause after."""


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
    with the settings' seed. `auxiliary` is a further loss, on rows of its own. `until` pauses the run after that step,
    with a checkpoint in `out` and scores on the validation rows; the same call without it goes on, and ends bit for bit
    as a run that never paused: the schedule is that of the whole run. Raises DeltatuneError for rows that the task
    refuses, a checkpoint of another run, a trainable tensor that does not learn, and a loss that is not finite.
    """
    settings = settings or Settings()
    if settings.learning_rate == AUTO:
        check_trainable(host, name)
        rows = ensure_encoded(host, name, task, rows_train, tokenizer)
        validation = ensure_encoded(host, name, task, rows_validation or [], tokenizer)
        if until is not None:
            raise DeltatuneError(f"until={until}: a run whose learning_rate is {AUTO} does not pause; give a rate")

        def attempt(tried: Settings, scored: Encoded, folder: Path, log: Path | None, until: int | None) -> Outcome:
            return train(host, name, task, rows, scored, tokenizer, tried, folder, on_step, log, auxiliary, until)

        identity = identity_of(host, name, task, rows, settings)
        folders = [None if folder is None else Path(folder) for folder in (out, reports)]
        return train_searched(attempt, host, name, task, rows, validation, settings, identity, *folders)
    asked = AdapterTraining(name, task, rows_train, rows_validation, settings, out, on_step, reports, until)
    run = TrainingRun(host, asked, tokenizer)
    check_launch(run.bfloat16 or host.model.dtype == torch.bfloat16)
    processes = join_processes(run.device)
    shard_(host, processes)
    with plain_memory_errors(run.settings, run.all_rows), run.reporting(processes) as reporter:
        return run.train_(reporter, processes, auxiliary)


class TrainingRun:
    """One training from its rows to its Outcome: what `train` and `train_together` share."""

    loop: TrainingLoop
    resume: Path | None = None
    """The checkpoint to go on from."""
    compiled: CompiledBlocks | None = None
    """The blocks that may run compiled, while it trains."""

    def __init__(self, host: Host, asked: AdapterTraining, tokenizer: PreTrainedTokenizerBase) -> None:
        """Encode the rows. Raises DeltatuneError for what cannot be trained, and for rows that the task refuses."""
        name = asked.name
        self.host, self.name, self.task, self.asked, self.tokenizer = host, name, asked.task, asked, tokenizer
        settings = asked.settings or Settings()
        check_trainable(host, name)
        if asked.until is not None and (asked.out is None or asked.until < 1):
            raise DeltatuneError(
                f"until={asked.until}: a run pauses after a step of at least 1, with `out`, a folder to go on from"
            )
        check_installed(settings.report_to)
        if isinstance(asked.task, Prefer):
            check_reference(host, asked.task)
        self.rows = ensure_encoded(host, name, asked.task, asked.rows_train, tokenizer)
        if not len(self.rows):
            raise DeltatuneError("there are no rows to train on")
        self.settings = with_learning_rate(settings, host, name, len(self.rows))
        self.validation = ensure_encoded(host, name, asked.task, asked.rows_validation or [], tokenizer)
        self.bfloat16, self.device = uses_bfloat16(host.model, self.settings.precision), device_of(host)
        self.out = None if asked.out is None else Path(asked.out)

    @property
    def all_rows(self) -> list[TokenRow]:
        """The rows to train on and those that score."""
        return [*self.rows, *self.validation]

    @contextmanager
    def reporting(self, processes: Processes) -> Iterator[Reporter]:
        """Hold the locks of the run's folders, and write its metrics."""
        folders = [Path(folder) for folder in (self.asked.reports, self.out) if folder is not None]
        reports = self.out if self.asked.reports is None else Path(self.asked.reports)
        with (
            locked(folders if processes.is_main else []),
            Reporter(reports, self.settings, self.device, self.host.model) as reporter,
        ):
            yield reporter

    def train_(self, reporter: Reporter, processes: Processes, auxiliary: AuxiliaryMLM | None = None) -> Outcome:
        """Train the adapter by itself."""
        host, name, settings = self.host, self.name, self.settings
        checkpointing = gradient_checkpointing(host.model, settings.checkpointing)
        with host.using(name, training=True), checkpointing, ExitStack() as stack:
            hardware.reset_peak_memory(self.device)
            self.open_(reporter, processes, auxiliary)
            stack.enter_context(self.offloaded())
            stack.callback(self.loop.close)
            repeated = repeated_rows(host, name, self.task, self.rows, self.tokenizer, settings)
            always = host.adapters[name].count > 0
            with compiled_blocks(host, settings.compile) as self.compiled, lower_layers(host, repeated, always=always):
                if self.compiled is not None:
                    self.loop.on_step = self.compiled.watching(self.loop.on_step)
                self.loop.run(self.resume, self.asked.until)
            peak_memory = hardware.peak_memory(self.device)
        return self.finish_(peak_memory)

    def offloaded(self) -> AbstractContextManager[None]:
        """Within this context activations are kept elsewhere, if the settings say so."""
        settings, host = self.settings, self.host
        stay = [*host.model.parameters(), *host.model.buffers()]
        stay += [tensor for adapter in host.adapters.values() for tensor in (*adapter.parameters(), *adapter.buffers())]
        return offloaded_activations(
            settings.offload_activations, self.device, stay, lambda: folder_for(settings.optimizer_folder, self.out)
        )

    def open_(self, reporter: Reporter, processes: Processes, auxiliary: AuxiliaryMLM | None = None) -> None:
        """Make the loop, and find the checkpoint to go on from; the adapter is active (`Host.using`)."""
        host, name, task, settings = self.host, self.name, self.task, self.settings
        started = time.perf_counter()
        model, loader = model_and_loader(host, name, task, self.rows, self.tokenizer, settings, processes)
        if auxiliary is not None:
            model, loader = auxiliary.beside(model, loader, self.tokenizer, settings.seed)
        identity = None
        if self.out is not None or processes.size > 1:
            identity = identity_of(host, name, task, self.rows, settings)
        each_epoch = self.evaluate if settings.evaluate == "epoch" and len(self.validation) else None
        out, on_step = self.out, self.asked.on_step
        self.loop = TrainingLoop(
            model, host, name, task, loader, settings, reporter, processes, out, on_step, each_epoch, identity
        )
        self.loop.progress.seconds = time.perf_counter() - started  # a probe's features are most of its training
        self.resume = None if out is None else checkpoint.to_resume(out, processes)

    def evaluate(self) -> dict[str, float]:
        """Scores on the validation rows."""
        unshard_root_(self.host.model)
        if isinstance(self.task, Prefer) and len(self.validation):
            collate = adapter_collator(self.host, self.name, self.tokenizer, self.validation)
            self.validation = with_references(self.host, self.task, self.validation, collate, self.bfloat16)
        precision = "bfloat16" if self.bfloat16 else "float32"
        with nullcontext() if self.compiled is None else self.compiled.paused():
            answers = predict(self.host, self.name, self.task, self.validation, self.tokenizer, precision=precision)
        return self.task.score(answers, self.validation.references)

    def finish_(self, peak_memory: int | None) -> Outcome:
        """Finish the adapter, unless the run has paused, and score it."""
        loop, progress = self.loop, self.loop.progress
        paused = progress.step < loop.total_steps
        if not paused:
            self.host.remove_reparametrisation_(self.name)
        note_rows_(self.host, self.name, self.rows, self.validation)
        if len(self.validation) and not (progress.evaluations and progress.evaluations[-1][0] == progress.step):
            loop.add_scores(self.evaluate())
        return Outcome(
            history=progress.history,
            evaluations=progress.evaluations,
            seconds=progress.seconds,
            examples_per_second=progress.rows / progress.seconds if progress.seconds else 0.0,
            peak_memory_bytes=peak_memory,
            learning_rate=self.settings.peak_rate,
            bfloat16=self.bfloat16,
            truncated=self.rows.truncated + self.validation.truncated,
            untrained_tensors=tuple(sorted(unread_tensors(self.host, self.name, self.task))),
            resumed=checkpoint.step_of(self.resume) if self.resume else 0,
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
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """Hold the locks of these folders. Raises DeltatuneError if another process writes one of them."""
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(FolderLock(folder, option=""))
        yield


def check_trainable(host: Host, name: str) -> None:
    """Raise DeltatuneError for an adapter without anything to train."""
    if not host.trainable(name):
        raise DeltatuneError(
            f"adapter {name!r} has nothing to train: {host.adapters[name].method!r} trains only a head, and tasks that "
            "use the language-model head have none; choose another method"
        )


def with_learning_rate(settings: Settings, host: Host, name: str, rows: int) -> Settings:
    """Settings with a learning rate: the recommended one for the method and so many rows, if none is given."""
    if settings.learning_rate is not None:
        return settings
    rate = recommended_rate(host.adapters[name].method, steps_of(settings, rows))
    return dataclasses.replace(settings, learning_rate=rate)


def identity_of(host: Host, name: str, task: Task, rows: Encoded, settings: Settings) -> dict[str, Any]:
    """The facts in which a checkpoint must equal the run that resumes from it, as plain data."""
    adapter, fields = host.adapters[name], settings.identity(device_of(host).type)
    return {
        "method": repr(adapter.method),
        "adapter_seed": adapter.seed,
        "tensors": {n: list(parameter.shape) for n, parameter in host.trainable(name)},
        "base": {key: value for key, value in identity_for(host, name).items() if key != "scales"},
        "task": task.to_json(),
        "rows": [len(rows), checkpoint.digest_of(rows.rows)],
        **{f"settings.{field}": value for field, value in fields.items()},
        "schedule_version": settings.schedule_version(),
        **({"lower_layers": LOWER_LAYERS_VERSION} if adapter.count and find_lower_blocks(host) else {}),
        "bfloat16": uses_bfloat16(host.model, settings.precision),
    }
