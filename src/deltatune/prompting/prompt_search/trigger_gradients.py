"""Trigger tokens: tokens at fixed places of every row, their gradients, and the tokens that would lower the loss.

The first-order estimate is that of HotFlip (Ebrahimi et al. 2018, https://arxiv.org/abs/1712.06751) as in Shin et al.
2020, https://arxiv.org/abs/2010.15980: exchanging token v for w at a place with the gradient g changes the loss by
about (e_w - e_v) . g, so the candidates are the tokens with the highest -(e_w . g).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.tasks.collator import PaddingCollator
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Encoded, Row
from deltatune.training.inference.batches import device_of
from deltatune.training.inference.prediction import adapter_collator
from deltatune.training.label_word_logits import label_word_logits
from deltatune.training.session import Session

TRIGGERS = "{triggers}"
"""What stands for the trigger tokens in a template."""
ID_TENSORS = ("input_ids", "decoder_ids")
"""Tensors of a batch that may hold trigger tokens."""
TOKENS_AT_ONCE = 8192


def with_triggers(task: LabelWords, template: str, ids: Sequence[int]) -> LabelWords:
    """The task with the template in which `{triggers}` are these tokens."""
    return replace(task, template=template.replace(TRIGGERS, "{ids:" + " ".join(map(str, ids)) + "}"))


@dataclass(frozen=True)
class TriggerBatch:
    """A batch of B rows in which trigger tokens can be exchanged."""

    inputs: dict[str, Tensor]
    numbers: dict[str, Tensor]
    """Tensors of ID_TENSORS: which trigger stands at each place, counted from 0; -1 where none does."""
    labels: Tensor
    """(B,)"""

    def filled(self, triggers: Tensor) -> dict[str, Tensor]:
        """The inputs with these triggers (P,)."""
        filled = {
            name: torch.where(at >= 0, triggers[at.clamp(min=0)], self.inputs[name])
            for name, at in self.numbers.items()
        }
        return {**self.inputs, **filled}


class TriggerRows:
    """Rows in a template with triggers, encoded once; found by two encodings that differ in the triggers alone."""

    def __init__(self, session: Session, task: LabelWords, template: str, count: int, rows: Sequence[Row]) -> None:
        """`count` triggers stand in the template. Raises DeltatuneError for what `LabelWords.encode` refuses."""
        self.session, self.task, self.count = session, task, count
        self.encoded: list[Encoded] = [
            replace(session, task=with_triggers(task, template, [token] * count)).encode(rows) for token in (0, 1)
        ]
        self.collate: PaddingCollator = adapter_collator(session.host, session.name, session.tokenizer, self.encoded[0])

    def __len__(self) -> int:
        return len(self.encoded[0])

    @property
    def references(self) -> Any:
        """Class numbers (N,)."""
        return self.encoded[0].references

    def batch(self, numbers: Sequence[int]) -> TriggerBatch:
        """These rows as a batch."""
        device = device_of(self.session.host)
        one, other = (self.collate([encoded[number] for number in numbers]) for encoded in self.encoded)
        at = {}
        for name in ID_TENSORS:
            if name in one:
                differ = one[name] != other[name]  # (R, T)
                at[name] = torch.where(differ, (differ.cumsum(1) - 1) % self.count, -1).to(device)
        labels = one.pop("labels")
        return TriggerBatch({name: tensor.to(device) for name, tensor in one.items()}, at, labels.to(device))

    def in_order(self, size: int) -> Iterator[TriggerBatch]:
        """All rows in their order, in batches."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))))

    def scores(self, batch: TriggerBatch, triggers: Tensor) -> Tensor:
        """Scores of the classes (B, C) with these triggers (P,), under the current route."""
        host = self.session.host
        bfloat16 = uses_bfloat16(host.model, self.session.precision)
        return label_word_logits(host, self.task, batch.filled(triggers), bfloat16)

    def gradients(self, batches: Sequence[TriggerBatch], triggers: Tensor) -> tuple[dict[str, Tensor], float]:
        """Gradients (P, D) of the loss with respect to the vectors of the triggers, by embedding module; and the loss.

        The loss is the mean over the rows of -log p(the words of the class), so the gradients are summed over them.
        """
        host = self.session.host
        sums: dict[str, Tensor] = {}
        total = rows = 0.0
        for batch in batches:
            with torch.enable_grad(), recorded_vectors(host, batch, triggers) as recorded:
                scores = self.scores(batch, triggers)
                loss = F.nll_loss(scores, batch.labels, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
            for path, vectors, at in recorded:
                if vectors.grad is None:
                    continue
                own = at >= 0
                zeros = vectors.grad.new_zeros(self.count, vectors.shape[-1], dtype=torch.float32)
                gradient = zeros.index_add(0, at[own], vectors.grad[own].float())  # (P, D)
                sums[path] = sums[path] + gradient if path in sums else gradient
            total += float(loss.detach())
            rows += len(batch.labels)
        return {path: gradient / rows for path, gradient in sums.items()}, total / rows


@contextmanager
def recorded_vectors(host: Host, batch: TriggerBatch, triggers: Tensor) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Within this context the list gets, of each call of an embedding that reads triggers, its module's path, its
    vectors (R, T, D), which take a gradient, and which trigger is where (R, T)."""
    filled = batch.filled(triggers)
    known = [(filled[name], at) for name, at in batch.numbers.items()]
    known += [(F.pad(ids, (1, 0)), F.pad(at, (1, 0), value=-1)) for ids, at in known]  # a decoder's, after its start
    recorded: list[tuple[str, Tensor, Tensor]] = []

    def hook(path: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            ids = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
            for values, at in known:
                read = at >= 0
                if ids is not None and ids.shape == values.shape and torch.equal(ids[read], values[read]):
                    vectors = output.detach().requires_grad_()
                    recorded.append((path, vectors, at))
                    return vectors
            return None

        return record

    handles = [
        host.model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True)
        for path in embedding_paths(host)
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def embedding_paths(host: Host) -> list[str]:
    """Paths of the modules that make vectors of tokens. Raises DeltatuneError for a model without any."""
    paths = list(dict.fromkeys(host.sites[name].module for name in host.sites if host.sites[name].kind == "embed"))
    if not paths:
        raise DeltatuneError(
            f"{type(host.model).__name__} has no table of token vectors, so no gradient says which tokens to try; use "
            "TemplateSearch or another model"
        )
    return paths


@torch.no_grad()
def candidate_tokens(host: Host, gradients: dict[str, Tensor], place: int, allowed: Tensor, most: int) -> list[int]:
    """The `most` of the `allowed` (V,) tokens with the highest -(e . g) at a trigger's place, the highest first."""
    scores = first_order_scores(host, gradients, place, len(allowed)).masked_fill(~allowed, -torch.inf)
    count = min(most, int(allowed.sum()))
    return [int(token) for token in scores.topk(count).indices]


@torch.no_grad()
def first_order_scores(host: Host, gradients: dict[str, Tensor], place: int, vocabulary: int) -> Tensor:
    """-(e . g) of every token (V,), e its vector as the model reads it, scaled where the model scales its vectors."""
    scores = torch.zeros(vocabulary, device=device_of(host))
    for path, gradient in gradients.items():
        module = host.model.get_submodule(path)
        for start in range(0, vocabulary, TOKENS_AT_ONCE):
            ids = torch.arange(start, min(start + TOKENS_AT_ONCE, vocabulary), device=scores.device)
            scores[ids] -= module(ids).float() @ gradient[place]
    return scores


def allowed_tokens(vocabulary: int, refused: Collection[int], device: torch.device) -> Tensor:
    """Which tokens (V,) may be triggers."""
    allowed = torch.ones(vocabulary, dtype=torch.bool, device=device)
    allowed[torch.tensor(sorted(refused), dtype=torch.long, device=device)] = False
    return allowed
