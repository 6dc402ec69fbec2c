"""Joint batches: the batches of several adapters that one pass of the base can read, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.tasks.collator import DECODER_IDS
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.label_words.prompt_batches import SCORED
from deltatune.tasks.task import IGNORED, LanguageModelTask, Task
from deltatune.tasks.tokenization import longest_input, padding_id
from deltatune.training.forward import head_of
from deltatune.training.inference.prediction import positions_taken
from deltatune.training.task_model import TaskModel, task_of

Reads = Literal["pooled states", "token states", "own head", "language model", "label words"]
"""What gives the logits of a batch: a Head on pooled or on all states, or a head of the model's own."""
PASS_TOKENS = {"cpu": 32}
"""Tokens in whose time a pass does what costs the same for any number of tokens, by device; measured on a CPU with a
model of 6 layers and width 384."""
PASS_TOKENS_ELSEWHERE = 8192
"""On other devices, where launching a small pass takes longer than computing it."""


@dataclass(frozen=True)
class PassKind:
    """What batches must have in common to share a pass."""

    reads: Reads
    names: frozenset[str]
    """The inputs of the model."""
    bfloat16: bool
    left: bool
    """Whether rows are padded on the left."""
    length: tuple[int, int]
    """Columns and virtual tokens, where rows are padded on the left: more padding would move their positions."""
    states_answers: bool
    """Whether an adapter treats prompt and answer differently, which all rows of a pass must have then."""
    placed_prompts: bool
    """Whether the rows have virtual tokens already."""
    decoders: int = 1
    """Decoders of a row."""


@dataclass(frozen=True)
class Member:
    """The micro-batch of one adapter."""

    model: TaskModel
    batch: Mapping[str, Tensor]
    """Its tensors, `labels` among them, on the base's device."""
    part: str | None
    items: float
    """The number by which its summed loss is divided."""
    left: bool = False
    """Whether its rows are padded on the left."""
    packed: bool = False
    """Whether its rows share sequences."""

    @property
    def name(self) -> str:
        """The adapter."""
        return self.model.name

    @property
    def task(self) -> Task:
        """The task of its rows."""
        return task_of(self.model.task, self.part)

    @property
    def sequences(self) -> int:
        """Rows of `input_ids`."""
        return len(self.batch["input_ids"])

    @property
    def width(self) -> int:
        """Padded length of its rows, without soft prompts."""
        return self.batch["input_ids"].shape[1]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model reads."""
        return {name: t for name, t in self.batch.items() if name != "labels" and name not in SCORED}


def kind_of(host: Host, member: Member) -> PassKind:
    """What a batch needs of those it shares a pass with."""
    return PassKind(
        _reads(host, member),
        frozenset(member.inputs),
        member.model.uses_bfloat16,
        member.left,
        (member.width, _virtual(host, member)) if member.left else (0, 0),
        host.adapters[member.name].needs.answer_offsets,
        member.task.has_virtual_tokens,
        len(member.batch["decoder_ids"]) // member.sequences if "decoder_ids" in member.batch else 1,
    )


def _reads(host: Host, member: Member) -> Reads:
    task = member.task
    if isinstance(task, LabelWords):
        return "label words"
    if isinstance(task, LanguageModelTask):
        return "language model"
    head = head_of(host, member.name, member.part)
    if head is None:
        return "own head"
    return "token states" if head.config.pooling == "none" else "pooled states"


# --- which batches share a pass ---


def grouped(host: Host, members: Sequence[Member], most_rows: int | None = None) -> list[tuple[PassKind, list[int]]]:
    """The passes, each with the numbers of the batches in it: of one kind, and of similar length.

    Padding costs less than the passes that it saves. `most_rows`: rows of a pass, unless one batch has more.
    """
    kinds: dict[PassKind, list[int]] = {}
    for i, member in enumerate(members):
        kinds.setdefault(kind_of(host, member), []).append(i)
    longest, device = longest_input(host.model), members[0].batch["input_ids"].device.type
    passes = []
    for kind, numbers in kinds.items():
        sizes = [
            _Size(members[i].sequences, members[i].width, _virtual(host, members[i]), _taken(host, members[i]))
            for i in numbers
        ]
        for cut in cut_by_width(sizes, PASS_TOKENS.get(device, PASS_TOKENS_ELSEWHERE), longest, most_rows):
            passes.append((kind, sorted(numbers[i] for i in cut)))
    return passes


@dataclass(frozen=True)
class _Size:
    """The size of one adapter's batch."""

    rows: int
    width: int
    virtual: int
    """Virtual tokens in front of each row."""
    taken: int
    """Positions that the adapter takes from the text."""


def _virtual(host: Host, member: Member) -> int:
    return 0 if member.task.has_virtual_tokens else host.adapters[member.name].needs.virtual_tokens


def _taken(host: Host, member: Member) -> int:
    return 0 if member.task.has_virtual_tokens else positions_taken(host, member.name)


def cut_by_width(
    sizes: Sequence[_Size], pass_tokens: int, longest: int | None = None, most_rows: int | None = None
) -> list[list[int]]:
    """Cut batches, sorted by length, into passes so that padded tokens and passes together cost least."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i].width + sizes[i].virtual)

    def cost(numbers: Sequence[int]) -> float:
        members = [sizes[i] for i in numbers]
        rows, width = sum(size.rows for size in members), max(size.width for size in members)
        crowded = most_rows is not None and rows > most_rows
        too_long = longest is not None and width + max(size.taken for size in members) > longest
        if len(members) > 1 and (crowded or too_long):
            return math.inf
        return rows * (width + max(size.virtual for size in members)) + pass_tokens

    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first n batches: the cost, and where their last pass begins
    for end in range(1, len(order) + 1):
        best.append(min((best[start][0] + cost(order[start:end]), start) for start in range(end)))
    passes, end = [], len(order)
    while end:
        start = best[end][1]
        passes.append(order[start:end])
        end = start
    return passes[::-1]


# --- one batch of several ---


@dataclass(frozen=True)
class JointBatch:
    """The batches of several adapters as one."""

    inputs: dict[str, Tensor]
    """What the model reads."""
    labels: Tensor | None
    """Labels of tokens, for a language model."""
    rows: tuple[slice, ...]
    """The rows of each adapter."""
    decoder_rows: tuple[slice, ...]
    """The rows of each adapter among the decoders."""


def joined(host: Host, kind: PassKind, members: Sequence[Member], tokenizer: PreTrainedTokenizerBase) -> JointBatch:
    """Pad the batches to one length and put them side by side."""
    pad = padding_id(tokenizer)
    fills = {"input_ids": int(pad == 0) if members[0].packed else pad, "decoder_ids": pad}
    inputs = {
        name: stacked([member.batch[name] for member in members], fills.get(name, 0), _on_left(kind, name))
        for name in members[0].inputs
    }
    labels = None
    if kind.reads == "language model":
        each = [member.batch["labels"] for member in members]
        if host.sites.facts.decoder:  # nothing is before a batch's first token
            each = [torch.cat([torch.full_like(one[:, :1], IGNORED), one[:, 1:]], 1) for one in each]
        labels = stacked(each, IGNORED, kind.left and not host.sites.facts.encoder_decoder)
    rows = _spans([member.sequences for member in members])
    return JointBatch(inputs, labels, rows, _spans([member.sequences * kind.decoders for member in members]))


def _on_left(kind: PassKind, name: str) -> bool:
    return kind.left and name not in (DECODER_IDS, "decoder_ids")


def stacked(tensors: Sequence[Tensor], fill: int, left: bool) -> Tensor:
    """Tensors (B, T) of several lengths as one."""
    width = max(tensor.shape[1] for tensor in tensors)
    missing = [width - tensor.shape[1] for tensor in tensors]
    return torch.cat([
        F.pad(tensor, (extra, 0) if left else (0, extra), value=fill)
        for tensor, extra in zip(tensors, missing, strict=True)
    ])  # fmt: skip


def _spans(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return tuple(slice(end - count, end) for end, count in zip(ends, counts, strict=True))
