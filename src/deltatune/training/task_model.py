"""Logits of a language model at labelled tokens alone: most tokens have no label, and a vocabulary is wide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.architecture import family
from deltatune.tasks.heads import Head
from deltatune.tasks.task import IGNORED, Task
from deltatune.training.forward import adapter_logits, text_states


def word_outputs(host: Host, batch: dict[str, Tensor], labels: Tensor, bfloat16: bool = False) -> tuple[Any, Tensor]:
    """The base's outputs, their logits (1, M, V) at the M labelled tokens alone, and the labels (M,).

    A decoder's state before a token predicts it; a masked language model's state at it does; an encoder-decoder reads
    the labels one step later, behind its start token.
    """
    kind = family(host.model.config)  # type: ignore[arg-type]
    batch = dict(batch)
    if kind == "encoder-decoder":
        batch["decoder_input_ids"] = behind_start(host.model, labels)
    if kind == "decoder" and "use_cache" in signature(host.model.forward).parameters:
        batch["use_cache"] = False  # type: ignore[assignment]  # with a cache, packed rows would see each other
    there = labels[:, 1:] if kind == "decoder" else labels
    found = there != IGNORED

    def pick(states: Tensor) -> Tensor:
        if kind != "encoder-decoder":
            states = text_states(host, states, batch)
        return states[:, : found.shape[1]][found][None]  # (1, M, D)

    with picking(host.model, pick), torch.autocast(labels.device.type, torch.bfloat16, enabled=bfloat16):
        outputs = host.model(**batch)
    return outputs, there[found]


def logits_of(outputs: Any) -> Tensor:
    """The words' logits (M, V) among the outputs."""
    found = outputs.get("logits", outputs.get("prediction_logits"))
    logits: Tensor = found[0]
    return logits.float()


@contextmanager
def picking(model: nn.Module, pick: Any) -> Iterator[None]:
    """While this lasts, the model's output embeddings read `pick(states)` instead of all states (B, T, D)."""
    head = output_embeddings(model)
    # first of all hooks, so that an adapter of the head sees the picked states too
    handle = head.register_forward_pre_hook(lambda module, args: (pick(args[0]), *args[1:]), prepend=True)
    try:
        yield
    finally:
        handle.remove()


def output_embeddings(model: nn.Module) -> nn.Module:
    """The layer that makes logits over the vocabulary. Raises DeltatuneError where there is none."""
    found: nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if found is None:
        raise DeltatuneError(
            f"{type(model).__name__} has no language model head, so it can neither write nor be trained on words; load "
            "it with load_backbone(name, answers='text')"
        )
    return found


def behind_start(model: nn.Module, labels: Tensor) -> Tensor:
    """What the decoder reads (B, T): the labels one step later, padding where there are none."""
    config: Any = model.config
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id or 0)


class Tuned(nn.Module):
    """Base, adapter, head and task as one module with a loss: what transformers.Trainer trains."""

    accepts_loss_kwargs = True  # tells the Trainer that the loss is divided by the whole effective batch here

    def __init__(self, host: Host, name: str, task: Task, bfloat16: bool = False) -> None:
        super().__init__()
        self.model = host.model
        self.host, self.name, self.task, self.in_half = host, name, task, bfloat16
        self.features_only = host.adapters[name].count == 0 and isinstance(host.adapters[name].head, Head)

    def train(self, mode: bool = True) -> Tuned:
        """A base that has nothing to learn stays in eval mode: a probe reads features without dropout."""
        super().train(mode)
        if self.features_only:
            self.model.eval()
            head = self.host.adapters[self.name].head
            assert head is not None
            head.train(mode)
        return self

    def forward(
        self, labels: Tensor, num_items_in_batch: int | Tensor | None = None, **batch: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss, divided by `num_items_in_batch` (by the batch's own items without it), and the logits."""
        mine = self.task.items(labels)
        items = mine if num_items_in_batch is None else num_items_in_batch
        found = self._words(labels, **batch) if self.task.answers in ("text", "words") else self._head(labels, batch)
        penalty = self.host.adapters[self.name].penalty()  # shared among the passes of a step by their items
        return {**found, "loss": found["loss"] / items + penalty * (mine / items)}

    def _head(self, labels: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        values = adapter_logits(self.host, self.name, batch, self.in_half)
        return {"loss": self.task.loss(values, labels), "logits": values}

    def _words(self, labels: Tensor, pair_labels: Tensor | None = None, **batch: Any) -> dict[str, Tensor]:
        outputs, there = word_outputs(self.host, batch, labels, self.in_half)
        values = logits_of(outputs)
        loss = self.task.loss(values, there)
        if pair_labels is not None:  # next sentence prediction; its mean counts as much as the words' mean
            pairs = F.cross_entropy(outputs.seq_relationship_logits.float(), pair_labels)
            loss = loss + pairs * self.task.items(labels)
        return {"loss": loss, "logits": values}
