"""TaskModel: base, adapter, head and task as one module that returns the loss, with logits at labelled tokens alone.

Most tokens have no label and a vocabulary is large, so a language-model head reads the states of labelled tokens only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.core.host_parts.adapter_module import adapter_module
from deltatune.models.architecture import family
from deltatune.tasks.heads import Head, Heads
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.preferences.pair_collator import REFERENCE
from deltatune.tasks.preferences.preference import Prefer
from deltatune.tasks.task import IGNORED, LanguageModelTask, Task
from deltatune.training.forward import adapter_logits, selected_states, text_mask, text_states, token_logits
from deltatune.training.label_word_logits import label_word_logits


class TaskModel(nn.Module):
    """Base, adapter, head and task as one module that returns the loss."""

    def __init__(self, host: Host, name: str, task: Task, bfloat16: bool = False) -> None:
        super().__init__()
        self.model = host.model
        self.host, self.name, self.task, self.uses_bfloat16 = host, name, task, bfloat16
        self.head_only = host.adapters[name].count == 0 and isinstance(host.adapters[name].head, (Head, Heads))

    def train(self, mode: bool = True) -> TaskModel:
        """Set the mode. A base without anything to train stays in evaluation mode: a probe reads it without dropout.

        So does the base of preferences: dropout would be a difference to the reference that is not learned.
        """
        super().train(mode)
        if isinstance(self.task, Prefer):
            without_base_dropout_(self.model, mode)
        if self.head_only:
            self.model.eval()
            head = self.host.adapters[self.name].head
            assert head is not None
            head.train(mode)
        return self

    def forward(
        self, labels: Tensor, items: float | None = None, part: str | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss, summed over labelled items and divided by `items`, and the logits.

        `items`: the labelled items of the whole optimizer step; by default those of this batch. `part`: the part of a
        mixture whose rows these are.
        """
        task = task_of(self.task, part)
        if isinstance(task, Prefer):
            outputs = self._pairs(task, labels, batch)
        elif isinstance(task, LanguageModelTask):
            outputs = self._language_model(task, labels, batch)
        else:
            outputs = self._head(task, labels, batch, part)
        return {**outputs, "loss": self.normalised(outputs["loss"], task, labels, items)}

    def normalised(self, loss: Tensor, task: Task, labels: Tensor, items: float | None = None) -> Tensor:
        """A summed loss over `items`, with the adapter's penalty, which the passes of a step share by their items."""
        own_items = task.items(labels)
        items = own_items if items is None else items
        return loss / items + self.host.adapters[self.name].penalty() * (own_items / items)

    def _head(self, task: Task, labels: Tensor, batch: dict[str, Tensor], part: str | None) -> dict[str, Tensor]:
        logits = part_logits(self.host, self.name, self.task, part, batch, self.uses_bfloat16)
        return {"loss": task.loss(logits, labels), "logits": logits}

    def _language_model(self, task: LanguageModelTask, labels: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        extra_labels = {name: batch.pop(name) for name in task.extra_labels}
        outputs, token_labels = labelled_outputs(self.host, batch, labels, self.uses_bfloat16, bool(extra_labels))
        logits = token_logits(outputs)
        return {"loss": task.model_loss(logits, token_labels, outputs, extra_labels), "logits": logits}

    def _pairs(self, task: Prefer, labels: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        reference = batch.pop(REFERENCE)  # (B, 2)
        policy, tokens = answer_log_probabilities(self.host, batch, labels, self.uses_bfloat16)
        return {"loss": task.losses(policy, reference, tokens).sum(), "logits": policy}


def task_of(task: Task, part: str | None) -> Task:
    """The task of a part, if it is one of a mixture."""
    return task.part(part) if isinstance(task, Mixture) and part is not None else task


def part_logits(
    host: Host, name: str, task: Task, part: str | None, batch: dict[str, Tensor], bfloat16: bool
) -> Tensor:
    """Logits of an adapter's head; of a mixture those of one part, whose head may be columns of one for all parts."""
    own = task_of(task, part)
    if isinstance(own, LabelWords):
        return label_word_logits(host, own, batch, bfloat16)
    return own_columns(host, name, task, part, adapter_logits(host, name, batch, bfloat16, part))


def own_columns(host: Host, name: str, task: Task, part: str | None, logits: Tensor) -> Tensor:
    """The columns of a mixture's part, where one head is that of all parts; otherwise all of them."""
    shared = isinstance(task, Mixture) and part is not None and isinstance(host.adapters[name].head, Head)
    return logits[..., task.columns(part)] if shared else logits  # type: ignore[attr-defined]


def labelled_outputs(
    host: Host, batch: dict[str, Tensor], labels: Tensor, bfloat16: bool = False, row_labels: bool = False
) -> tuple[Any, Tensor]:
    """Run the base; return its outputs, with logits (1, M, V) at the M labelled tokens alone, and the labels (M,).

    A decoder predicts a token from the state before it, a masked language model from the state at it. The decoder of an
    encoder-decoder reads the labels one step later, after its start token, unless the batch says what it reads.
    `row_labels`: whole rows have labels too, which the adapter's head predicts if it has one, as
    `seq_relationship_logits` (B, C).
    """
    kind = family(host.model.config)  # type: ignore[arg-type]
    batch = dict(batch)
    if kind == "encoder-decoder" and "decoder_input_ids" not in batch:
        batch["decoder_input_ids"] = shift_right(host.model, labels)
    if kind == "decoder" and "use_cache" in signature(host.model.forward).parameters:
        batch["use_cache"] = False  # type: ignore[assignment]  # with a cache, packed rows would see each other
    targets = labels[:, 1:] if kind == "decoder" else labels
    labelled = targets != IGNORED

    def select(states: Tensor) -> Tensor:
        if kind != "encoder-decoder":
            states = text_states(host, states, batch)
        return states[:, : labelled.shape[1]][labelled][None]  # (1, M, D)

    names = host.route.names if row_labels else ()
    heads = [head for name in names if isinstance(head := host.adapters[name].head, Head)]
    with selected_states(host.model, select), torch.autocast(labels.device.type, torch.bfloat16, enabled=bfloat16):
        recording: AbstractContextManager[list[Tensor]] = recorded_states(host.model) if heads else nullcontext([])
        with host.answers(labels, batch.get("attention_mask")), recording as recorded:
            outputs = host.model(**batch)
    for head in heads:
        outputs.seq_relationship_logits = head(recorded[-1], text_mask(host, batch))
    return outputs, targets[labelled]


def answer_log_probabilities(
    host: Host, batch: dict[str, Tensor], labels: Tensor, bfloat16: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities in nats and numbers of tokens of both answers of B pairs, (B, 2) each, under the route.

    batch and labels have 2B rows, the chosen answers first.
    """
    outputs, targets = labelled_outputs(host, batch, labels, bfloat16)
    losses = F.cross_entropy(token_logits(outputs), targets, reduction="none")  # (M,)
    predicted = labels[:, 1:] if family(host.model.config) == "decoder" else labels  # type: ignore[arg-type]
    rows = (predicted != IGNORED).nonzero()[:, 0]  # (M,)
    sums = losses.new_zeros(len(labels)).index_add(0, rows, -losses)  # (2B,)
    return sums.view(2, -1).T, (predicted != IGNORED).sum(1).view(2, -1).T


def without_base_dropout_(model: nn.Module, mode: bool) -> None:
    """Put the base into evaluation mode; its adapters, and what checkpoints its activations, get the mode given."""
    model.eval()
    adapter_module(model).train(mode)
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):  # it does so in training mode alone
            module.training = mode


@contextmanager
def recorded_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context the list gets the last hidden states (B, T', D) of every forward of the body."""
    states: list[Tensor] = []
    body: nn.Module = getattr(model, "base_model", model)
    handle = body.register_forward_hook(lambda module, args, output: states.append(output[0]))
    try:
        yield states
    finally:
        handle.remove()


def shift_right(model: nn.Module, labels: Tensor) -> Tensor:
    """Decoder inputs (B, T): the labels one step later, with padding for tokens without a label."""
    config: Any = model.config
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id or 0)
