"""Train several adapters of a host together: one pass of the base for the next batches of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, OutOfMemory, raise_all
from deltatune.core.host import Host
from deltatune.core.route import unknown_adapters
from deltatune.models import hardware
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.mixture import Mixture, MixtureEncoded
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.task import Encoded, LanguageModelTask
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.joint_training.joint_batches import Member
from deltatune.training.joint_training.joint_pass import JointPasses
from deltatune.training.reporting import Reporter
from deltatune.training.scaling.distributed import Processes, join_processes
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from deltatune.training.scaling.lower_layers import find_lower_blocks
from deltatune.training.settings import AUTO
from deltatune.training.task_model import TaskModel
from deltatune.training.train_adapter import AdapterTraining, Outcome, TrainingRun
from deltatune.training.training_loop.gradient_check import output_modules
from deltatune.training.training_loop.loop import Step
from deltatune.training.training_loop.memory_advice import plain_memory_errors
from deltatune.training.training_loop.sampler import MicroBatch


def train_together(
    host: Host,
    trainings: Sequence[AdapterTraining],
    tokenizer: PreTrainedTokenizerBase,
    most_rows: int | None = None,
) -> list[Outcome | DeltatuneError]:
    """Train several attached adapters at once; each has its own data, task, optimizer, schedule, order and checkpoints.

    At each step the next batch of every training goes through the base in one pass, in which a Route names the adapter
    of each row. Each adapter ends as `train` would leave it, up to rounding; what the base and the Deltas drop is drawn
    for all rows of a pass, as other numbers. A training ends, pauses and resumes as it does alone, also from a
    checkpoint of the other kind. Its `seconds` are its share of the time by rows. `most_rows` bounds the rows of a
    pass.

    Returns an Outcome for each training, or the error that stopped it: a loss that is not finite, a tensor that does
    not learn or a checkpoint of another run stops one training and leaves the others as they are. Adapters whose
    lower blocks or whose whole base never change, and those to be compiled, are trained one after another in the same
    call. Raises DeltatuneError for adapters that cannot share a pass, listing those that can, for folders that two
    trainings write, and for rows that a task refuses.
    """
    runs = opened(host, trainings, tokenizer)
    processes = join_processes(runs[0].device)
    if processes.size > 1:
        raise DeltatuneError("several adapters are trained together by one process: start it without torchrun")
    outcomes: dict[int, Outcome | DeltatuneError] = {}
    settings, rows = runs[0].settings, [row for run in runs for row in run.all_rows]
    fewer = f"most_rows, or fewer adapters together, now {len(runs)}"
    with plain_memory_errors(settings, rows, [fewer]), ExitStack() as stack:
        reporters = [stack.enter_context(run.reporting(processes)) for run in runs]
        shared = [i for i, run in enumerate(runs) if not trains_alone(run)]
        shared = shared if len(shared) > 1 else []
        for i, run in enumerate(runs):
            if i not in shared:
                with keeping_errors(outcomes, i):
                    outcomes[i] = run.train_(reporters[i], processes)
        if shared:
            joint = JointTraining(host, {i: runs[i] for i in shared}, tokenizer, most_rows)
            outcomes |= joint.train_({i: reporters[i] for i in shared}, processes)
    return [outcomes[i] for i in range(len(runs))]


def opened(host: Host, trainings: Sequence[AdapterTraining], tokenizer: PreTrainedTokenizerBase) -> list[TrainingRun]:
    """The trainings with their rows encoded. Raises DeltatuneError with all that is wrong with any of them."""
    if not trainings:
        raise DeltatuneError("there are no trainings: give one AdapterTraining for each adapter")
    names = [training.name for training in trainings]
    raise_all(unknown_adapters(dict.fromkeys(names), host.adapters))
    problems = [f"adapter {name!r} is in two trainings" for name in dict.fromkeys(names) if names.count(name) > 1]
    mixing = [name for name in names if host.adapters[name].mixes]
    can = f"those that can: {', '.join(mixing)}" if mixing else "none of these can"
    problems += [
        f"adapter {name!r}, {host.adapters[name].method!r}, changes the base's own weights, so that its rows cannot "
        f"share a pass with those of others; train it by itself, with train(...); {can}"
        for name in names
        if not host.adapters[name].mixes and len(names) > 1
    ]
    problems += [
        f"adapter {training.name!r}: learning_rate={AUTO!r} is searched by train(...), one adapter at a time; give a "
        "number"
        for training in trainings
        if training.settings is not None and training.settings.learning_rate == AUTO
    ]
    folders = [Path(folder).resolve() for t in trainings for folder in {t.out, t.reports} if folder is not None]
    problems += [
        f"two trainings write {folder}; give each a folder of its own"
        for folder in dict.fromkeys(folders)
        if folders.count(folder) > 1
    ]
    raise_all(problems)
    runs = []
    for training in trainings:
        try:
            runs.append(TrainingRun(host, training, tokenizer))
        except DeltatuneError as error:
            problems.append(f"adapter {training.name!r}: {error}")
    raise_all(problems)
    return runs


def trains_alone(run: TrainingRun) -> bool:
    """Whether a training gains nothing from a shared pass, or cannot share one.

    A head alone is trained on cached vectors, and lower blocks that nothing changes are run once a row. A change of
    the language-model head sees labelled tokens only, a task with labels for two heads or a reference has passes
    of its own, as have images and sounds, blocks are compiled for one adapter, and all rows share DeBERTa's relative
    positions.
    """
    host, name, task, adapter = run.host, run.name, run.task, run.host.adapters[run.name]
    if not adapter.mixes_rows or not adapter.count or run.settings.compile != "off" or isinstance(task, Prefer):
        return True
    with host.using(name):
        if find_lower_blocks(host) is not None:
            return True
    parts = list(task.parts.values()) if isinstance(task, Mixture) else [task]
    if any(getattr(part, "inputs", "text") != "text" for part in parts):
        return True
    words = any(isinstance(part, (LanguageModelTask, LabelWords)) for part in parts)
    at_head = {site.module for site in adapter.sites.values()} & output_modules(host)
    return bool(words and at_head) or any(part.extra_labels for part in parts)


@contextmanager
def keeping_errors(outcomes: dict[int, Outcome | DeltatuneError], number: int) -> Iterator[None]:
    """Within this context an error of one training becomes its outcome; memory that is used up stops them all."""
    try:
        yield
    except OutOfMemory:
        raise
    except DeltatuneError as error:
        outcomes[number] = error


class JointTraining:
    """Trainings that share passes of the base, by their numbers."""

    def __init__(
        self,
        host: Host,
        runs: Mapping[int, TrainingRun],
        tokenizer: PreTrainedTokenizerBase,
        most_rows: int | None = None,
    ) -> None:
        self.host, self.runs, self.tokenizer = host, runs, tokenizer
        self.passes = JointPasses(host, tokenizer, most_rows)
        self.left = {i: _padded_left(run) for i, run in runs.items()}
        """Whether rows are padded on the left, by training and part."""
        self.outcomes: dict[int, Outcome | DeltatuneError] = {}

    def train_(self, reporters: Mapping[int, Reporter], processes: Processes) -> dict[int, Outcome | DeltatuneError]:
        """Train all to their ends, or to the steps at which they pause."""
        checkpointed = any(run.settings.checkpointing for run in self.runs.values())
        offloading = [run for run in self.runs.values() if run.settings.offload_activations][:1]
        checkpointing = gradient_checkpointing(self.host.model, checkpointed)
        with self.host.using(None, training=True), checkpointing, ExitStack() as stack:
            for run in offloading:
                stack.enter_context(run.offloaded())
            hardware.reset_peak_memory(processes.device)
            steps = {}
            for i, run in self.runs.items():
                with keeping_errors(self.outcomes, i), self.host.using(run.name, training=True):
                    run.open_(reporters[i], processes)
                    stack.callback(run.loop.close)
                    run.loop.start(run.resume, run.asked.until)
                    self.passes.draws.keep(run.name)
                    steps[i] = run.loop.steps()
            while steps:
                self.step_(steps)
            peak_memory = hardware.peak_memory(processes.device)
        for i, run in self.runs.items():
            if i not in self.outcomes:
                with keeping_errors(self.outcomes, i):
                    self.outcomes[i] = run.finish_(peak_memory)
        return self.outcomes

    def step_(self, steps: dict[int, Iterator[Step]]) -> None:
        """The next step of every training that has one left; the others are taken out."""
        started = time.perf_counter()
        due = {i: step for i, each in steps.items() if (step := next(each, None)) is not None}
        for i in [i for i in steps if i not in due]:
            del steps[i]
        self.host.model.train()
        self.seed_passes(due)
        totals = self.backward(due)
        taken = {}
        for i, step in due.items():
            loop = self.runs[i].loop
            alone = nullcontext() if torch.isfinite(totals[i]) else self.host.using(loop.name)  # for its diagnosis
            with keeping_errors(self.outcomes, i), alone:
                taken[i] = loop.update_(step, totals[i])
        seconds = (time.perf_counter() - started) / max(1, sum(step.rows for step in due.values()))
        for i, step in due.items():
            if i in taken:
                with keeping_errors(self.outcomes, i), self.passes.draws.of(self.runs[i].name):  # for its checkpoint
                    self.runs[i].loop.record(step, *taken[i], seconds * step.rows)
            if i in self.outcomes:  # it failed
                del steps[i]
                self.runs[i].loop.optimizer.zero_grad()

    def seed_passes(self, due: Mapping[int, Step]) -> None:
        """Seed what the base drops for all adapters at once: by their seeds and steps, so that a resumed run drops the
        same."""
        key = [(self.runs[i].name, self.runs[i].settings.seed, step.number) for i, step in due.items()]
        torch.manual_seed(generator_for(0, f"passes.{key}").initial_seed())

    def backward(self, due: Mapping[int, Step]) -> dict[int, Tensor]:
        """The gradients of each training's step, and its loss."""
        totals = {i: torch.zeros((), device=self.runs[i].device) for i in due}
        for turn in range(max((len(step.batches) for step in due.values()), default=0)):
            numbers = [i for i, step in due.items() if turn < len(step.batches)]
            members = [self.member(i, due[i].batches[turn], due[i].items) for i in numbers]
            for i, loss in zip(numbers, self.passes.backward(members), strict=True):
                totals[i] += loss
        return totals

    def member(self, number: int, batch: MicroBatch, items: Mapping[str | None, float]) -> Member:
        """One training's part of a pass."""
        run = self.runs[number]
        assert isinstance(run.loop.model, TaskModel)  # others train alone
        tensors = {name: tensor.to(run.device) for name, tensor in batch.tensors.items()}
        left, packed = self.left[number][batch.part], run.settings.packing
        return Member(run.loop.model, tensors, batch.part, items[batch.part], left, packed)


def _padded_left(run: TrainingRun) -> dict[str | None, bool]:
    parts: list[tuple[str | None, Encoded]] = [(None, run.rows)]
    if isinstance(run.rows, MixtureEncoded):
        parts = list(run.rows.parts.items())
    return {
        part: adapter_collator(run.host, run.name, run.tokenizer, rows, run.settings.packing).left
        for part, rows in parts
    }
