"""What is trained: base, adapter, head and task as one module with a loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.host import Host
from deltatune.tasks.heads import Head
from deltatune.tasks.task import Task
from deltatune.training.forward import adapter_logits
from deltatune.training.words import logits_of, word_outputs


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
