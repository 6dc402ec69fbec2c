"""One pass of the base for the batches of several adapters: a loss for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.core.route import Route, read_route
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import IGNORED, LanguageModelTask
from deltatune.training.forward import (
    attention_mask_of,
    base_head_logits,
    base_outputs,
    classified,
    head_of,
    row_features,
    token_logits,
)
from deltatune.training.joint_training.joint_batches import JointBatch, Member, PassKind, grouped, joined
from deltatune.training.label_word_logits import place_logits, scores_of_classes
from deltatune.training.task_model import labelled_outputs, own_columns
from deltatune.training.training_loop.checkpoint import random_tensors, set_random_tensors


class OwnDraws:
    """The random numbers of each adapter of several: what its head drops is what it drops when it is trained alone."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Tensor]] = {}

    def keep(self, name: str) -> None:
        """Let an adapter go on from the state that the generators have now."""
        self.states[name] = random_tensors()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Within this context the generators are an adapter's own, if it has a state."""
        if name not in self.states:
            yield
            return
        others = random_tensors()
        set_random_tensors(self.states[name])
        try:
            yield
        finally:
            self.states[name] = random_tensors()
            set_random_tensors(others)


class JointPasses:
    """Forward and backward passes of several adapters of a host, each for rows of its own."""

    def __init__(self, host: Host, tokenizer: PreTrainedTokenizerBase, most_rows: int | None = None) -> None:
        """`most_rows`: rows of one pass, unless one adapter's batch has more."""
        self.host, self.tokenizer, self.most_rows = host, tokenizer, most_rows
        self.draws = OwnDraws()
        self.routes: dict[tuple[tuple[str, int], ...], Route] = {}

    def backward(self, members: Sequence[Member]) -> list[Tensor]:
        """Add each member's gradients to its adapter, and return the losses, scalars in order.

        A loss that is not finite adds none, so that it reaches no other adapter.
        """
        losses: list[Tensor] = [torch.zeros(())] * len(members)
        for kind, numbers in grouped(self.host, members, self.most_rows):
            of_pass = self.losses(kind, [members[i] for i in numbers])
            finite = torch.isfinite(torch.stack([loss.detach() for loss in of_pass])).tolist()
            learned = [loss for loss, fine in zip(of_pass, finite, strict=True) if fine]
            if learned:
                torch.stack(learned).sum().backward()  # type: ignore[no-untyped-call]
            for i, loss in zip(numbers, of_pass, strict=True):
                losses[i] = loss.detach()
        return losses

    def losses(self, kind: PassKind, members: Sequence[Member]) -> list[Tensor]:
        """The loss of each member by one pass of the base, as its own model computes it."""
        batch = joined(self.host, kind, members, self.tokenizer)
        self._use_route(members)
        if kind.reads == "language model":
            summed = self._language_model(kind, members, batch)
        elif kind.reads == "label words":
            summed = self._label_words(kind, members, batch)
        else:
            summed = self._heads(kind, members, batch)
        return [
            member.model.normalised(loss, member.task, member.batch["labels"], member.items)
            for member, loss in zip(members, summed, strict=True)
        ]

    def _use_route(self, members: Sequence[Member]) -> None:
        """The rows of each adapter. Routes are kept: most steps have the same ones."""
        key = tuple((member.name, member.sequences) for member in members)
        if key not in self.routes:
            self.routes[key] = read_route([name for name, rows in key for _ in range(rows)], self.host.adapters)
        if self.host.route is not self.routes[key]:
            self.host.use(self.routes[key])

    def _heads(self, kind: PassKind, members: Sequence[Member], batch: JointBatch) -> list[Tensor]:
        host, inputs, tokens = self.host, batch.inputs, kind.reads == "token states"
        outputs = base_outputs(host, inputs, kind.bfloat16, states=kind.reads != "own head", shift_right=not tokens)
        losses = []
        for member, rows in zip(members, batch.rows, strict=True):
            head = head_of(host, member.name, member.part)
            if head is None:
                logits = base_head_logits(outputs, member.name).float()[rows]
            else:
                features, mask = row_features(host, head, outputs, inputs, rows), attention_mask_of(inputs)[rows]
                if tokens:  # (B, T, D) without the columns that other adapters' rows are longer by
                    own = slice(-member.width, None) if kind.left else slice(member.width)
                    features, mask = features[:, own], mask[:, own]
                with self.draws.of(member.name) if head.config.dropout else nullcontext():
                    logits = classified(head, features, mask)
            logits = own_columns(host, member.name, member.model.task, member.part, logits)
            losses.append(member.task.loss(logits, member.batch["labels"]))
        return losses

    def _language_model(self, kind: PassKind, members: Sequence[Member], batch: JointBatch) -> list[Tensor]:
        assert batch.labels is not None
        outputs, token_labels = labelled_outputs(self.host, batch.inputs, batch.labels, kind.bfloat16)
        logits = token_logits(outputs)  # (M, V), row by row
        counts = [int((batch.labels[rows] != IGNORED).sum()) for rows in batch.rows]
        losses = []
        split = (torch.split(logits, counts), torch.split(token_labels, counts))
        for member, own_logits, own_labels in zip(members, *split, strict=True):
            assert isinstance(member.task, LanguageModelTask)
            losses.append(member.task.model_loss(own_logits, own_labels, outputs, {}))
        return losses

    def _label_words(self, kind: PassKind, members: Sequence[Member], batch: JointBatch) -> list[Tensor]:
        encoder_decoder = self.host.sites.facts.encoder_decoder
        spans = batch.decoder_rows if encoder_decoder else batch.rows
        places = [
            member.batch["places"] + torch.tensor([rows.start, 0], device=member.batch["places"].device)
            for member, rows in zip(members, spans, strict=True)
        ]
        logits = place_logits(self.host, {**batch.inputs, "places": torch.cat(places)}, kind.bfloat16)  # (M, V)
        losses = []
        for member, own_logits in zip(members, torch.split(logits, [len(each) for each in places]), strict=True):
            assert isinstance(member.task, LabelWords)
            scores = scores_of_classes(member.task, own_logits, dict(member.batch))
            losses.append(member.task.loss(scores, member.batch["labels"]))
        return losses
