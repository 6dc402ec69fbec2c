"""Passes for rows that need no generation: rows of different adapters with the same kind of head share them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.serving.engine.engine_jobs import RowsJob
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.engine.requests import RowsEvent
from deltatune.serving.engine.routed_host import RoutedHost, attempt
from deltatune.serving.serving_errors import CannotServe, RequestTooLong
from deltatune.tasks.collator import PaddingCollator, collator_for
from deltatune.tasks.task import Encoded
from deltatune.tasks.tokenization import longest_input
from deltatune.training.forward import (
    attention_mask_of,
    base_head_logits,
    base_outputs,
    classified,
    head_of,
    hidden_states,
    row_features,
    text_states,
)
from deltatune.training.inference.prediction import adapter_collator, encode_for, positions_taken, predict
from deltatune.training.task_model import own_columns, task_of


@dataclass(frozen=True)
class RowKind:
    """What rows need of those they share a pass with."""

    reads: str
    """What answers: `embedding`, `task`, the model's `own head`, or a head on `pooled` or on `token` states."""
    inputs: tuple[tuple[str, int], ...]
    """The inputs of the model, with their padding."""
    left: bool
    alone: Hashable = None
    """The adapter or the request that shares no pass."""
    virtual: int = 0
    """Virtual tokens, where rows are padded on the left: other padding would move their positions."""


@dataclass(frozen=True)
class _Plan:
    kind: RowKind
    collate: PaddingCollator | None


class RowPasses:
    """Rows that wait for a pass."""

    def __init__(self, routed: RoutedHost, limits: EngineLimits, tokenizer: PreTrainedTokenizerBase, precision: str):
        self.routed, self.limits, self.tokenizer, self.precision = routed, limits, tokenizer, precision
        self.jobs: list[RowsJob] = []

    def add(self, job: RowsJob) -> None:
        """Take up a job whose adapters are in memory, and encode its rows.

        Raises DeltatuneError for rows that the task refuses, too long ones, and adapters that cannot answer.
        """
        job.plan = self._planned(job)
        self.jobs.append(job)

    def drop_ended(self) -> None:
        """Let go of jobs that have ended."""
        self.jobs = [job for job in self.jobs if not job.ended]

    def clear(self) -> None:
        """Let go of all jobs."""
        self.jobs = []

    def read(self) -> bool:
        """One pass, if rows wait: for rows of the oldest request and those that can share a pass with them."""
        if not self.jobs:
            return False
        oldest = self.jobs[0]
        if oldest.plan.kind.reads == "task":
            self._predict_some(oldest)
            return True
        rows = self._next_rows(oldest)
        for job, _ in rows:
            job.begin()
        answers = attempt(partial(self._pass, rows))
        if isinstance(answers, Exception) and len({id(job) for job, _ in rows}) > 1:
            answers = []
            for job in dict.fromkeys(job for job, _ in rows):
                own = [row for row in rows if row[0] is job]
                each = attempt(partial(self._pass, own))
                answers += [each] * len(own) if isinstance(each, Exception) else each
            order = [row for job in dict.fromkeys(job for job, _ in rows) for row in rows if row[0] is job]
            rows = order
        for i, (job, number) in enumerate(rows):
            answer = answers if isinstance(answers, Exception) else answers[i]
            if isinstance(answer, Exception):
                job.end("error", answer)
            else:
                job.values[number] = answer
        for job in dict.fromkeys(job for job, _ in rows):
            if not job.ended and not job.open_rows:
                self._finish(job, job.values)
        self.drop_ended()
        return True

    # ---- which rows

    def _next_rows(self, oldest: RowsJob) -> list[tuple[RowsJob, int]]:
        """Rows of one kind and of similar length, with those of the oldest request first."""
        waiting = [(job, number) for job in self.jobs if job.plan.kind == oldest.plan.kind for number in job.open_rows]
        collate = oldest.plan.collate
        assert collate is not None
        first = _tokens(*waiting[0])
        if collate.left:
            waiting = [row for row in waiting if collate.width([[0] * _tokens(*row)]) == collate.width([[0] * first])]
        switch = self.routed.rope_switch
        if switch is not None:
            waiting = [row for row in waiting if (_tokens(*row) > switch) == (first > switch)]
        waiting.sort(key=lambda row: abs(_tokens(*row) - first))
        rows, width = [waiting[0]], first
        for row in waiting[1:]:
            wider = max(width, _tokens(*row))
            if (len(rows) + 1) * wider <= self.limits.pass_tokens and len(rows) < self.limits.rows:
                rows.append(row)
                width = wider
        return sorted(rows, key=lambda row: sorted(row[0].route.items()))

    def _planned(self, job: RowsJob) -> _Plan:
        request, host = job.request, self.routed.host
        name = max(job.route, key=lambda each: positions_taken(host, each), default=None)
        if request.count > self.limits.request_rows:
            raise RequestTooLong(f"{request.count} rows; one request has at most {self.limits.request_rows}")
        if request.kind == "task":
            if request.encoded and name is not None:
                self._check_fits(job, name)
            return _Plan(RowKind("task", (), False, id(job)), None)
        encoded: Any = request.rows
        if request.task is not None and not _is_encoded(request.rows):
            task = task_of(request.task, request.part)
            if name is None:
                raise CannotServe("rows of a task need the adapter that was trained on it")
            encoded = job.encoded = encode_for(host, name, task, request.rows, self.tokenizer, labelled=False)
        elif request.task is not None and name is not None:
            self._check_fits(job, name)
        job.rows = list(encoded)
        job.values = [None] * len(job.rows)
        if not job.rows:
            raise CannotServe("the request has no rows")
        self._check_lengths(job, 0 if name is None else positions_taken(host, name))
        if name is None:
            collate = collator_for(host.model, self.tokenizer, job.rows[0], longest_input(host.model))
        else:
            collate = adapter_collator(
                host, name, self.tokenizer, encoded if isinstance(encoded, Encoded) else job.rows
            )
        reads = "embedding" if request.kind == "embedding" else self._reads(job)
        virtual = max((host.adapters[each].needs.virtual_tokens for each in job.route), default=0)
        inputs = tuple(sorted(collate.fill.items()))
        return _Plan(RowKind(reads, inputs, collate.left, job.alone, virtual if collate.left else 0), collate)

    def _check_fits(self, job: RowsJob, name: str) -> None:
        """Raise DeltatuneError where the task cannot be encoded for this adapter on this base, whatever the rows."""
        assert job.request.task is not None
        encode_for(
            self.routed.host, name, task_of(job.request.task, job.request.part), [], self.tokenizer, labelled=False
        )

    def _reads(self, job: RowsJob) -> str:
        host, part = self.routed.host, job.request.part
        kinds = set()
        for name in job.route:
            head = head_of(host, name, part)
            kinds.add("own head" if head is None else "token" if head.config.pooling == "none" else "pooled")
        if len(kinds) > 1:
            raise CannotServe(f"these adapters answer in different ways ({', '.join(sorted(kinds))}); name one of them")
        return kinds.pop()

    def _check_lengths(self, job: RowsJob, taken: int) -> None:
        longest, positions = max(len(row["input_ids"]) for row in job.rows), longest_input(self.routed.host.model)
        if positions is not None and longest + taken > positions:
            raise RequestTooLong(
                f"a text has {longest} tokens{f' and the adapter takes {taken}' if taken else ''}; this model's "
                f"maximum context length is {positions} tokens"
            )

    # ---- passes

    def _pass(self, rows: Sequence[tuple[RowsJob, int]]) -> list[Any]:
        """The answers of rows, or an error for one whose adapters' weights have no mean."""
        host, plan = self.routed.host, rows[0][0].plan
        limits = [job.plan.collate.longest for job, _ in rows if job.plan.collate.longest is not None]
        collate = replace(plan.collate, longest=min(limits, default=None))
        batch = collate([job.rows[number] for job, number in rows])
        batch = {name: batch[name].to(self.routed.device) for name in plan.collate.fill}
        shifted = plan.kind.reads == "pooled"
        with self.routed.routed([job.route for job, _ in rows]):
            states = plan.kind.reads != "own head"
            outputs = base_outputs(host, batch, self.routed.bfloat16, states=states, shift_right=shifted)
            if plan.kind.reads == "embedding":
                values = list(mean_states(host, outputs, batch))
            elif states:
                values = self._head_logits(rows, outputs, batch)
            else:
                values = list(base_head_logits(outputs, ", ".join(sorted(host.route.names))).float())
        answers = []
        for (job, number), value in zip(rows, values, strict=True):
            length = len(job.rows[number]["input_ids"])
            if plan.kind.reads == "token":
                value = value[-length:] if plan.kind.left else value[:length]
            own = np.asarray(value.float().cpu().numpy(), dtype=np.float32)
            finite = bool(np.isfinite(own).all())
            answers.append(own if finite else DeltatuneError(NOT_FINITE))
        return answers

    def _head_logits(self, rows: Sequence[tuple[RowsJob, int]], outputs: Any, batch: dict[str, Tensor]) -> list[Tensor]:
        """Logits (C,) or (T, C) of each row: the weighted mean of those of its adapters' heads."""
        host = self.routed.host
        sums: list[Tensor | None] = [None] * len(rows)
        heads: dict[tuple[str, str | None], list[int]] = {}
        for i, (job, _) in enumerate(rows):
            for name in job.route:
                heads.setdefault((name, job.request.part), []).append(i)
        for (name, part), numbers in heads.items():
            head = head_of(host, name, part)
            assert head is not None
            index = torch.tensor(numbers, device=self.routed.device)
            features = row_features(host, head, outputs, batch, index)
            logits = classified(head, features, attention_mask_of(batch)[index])
            for i, own in zip(numbers, logits, strict=True):
                job = rows[i][0]
                own = own_columns(host, name, job.request.task, part, own) if job.request.task is not None else own
                own = own * _share(job.route, name)
                before = sums[i]
                sums[i] = own if before is None else before + own
        return [value for value in sums if value is not None]

    def _predict_some(self, job: RowsJob) -> None:
        """What `predict` gives for a task that needs more than a head: for a few rows, then others have their turn."""
        job.begin()
        given, done = job.request.encoded, len(job.values)
        whole = not given and _is_encoded(job.request.rows)  # pieces of a row stay together
        rows: Any = job.request.rows if whole else job.request.rows[done : done + PREDICTED]
        if given:
            rows = given[job.turns]
            job.turns += 1
        answers = attempt(partial(self._predicted, job, rows))
        if whole or isinstance(answers, Exception):
            self._finish(job, answers)
        else:
            job.values += list(answers)
            if len(job.values) >= len(job.request.rows):
                together = np.stack(job.values) if isinstance(answers, np.ndarray) else job.values
                self._finish(job, together)
        self.jobs.remove(job)
        if not job.ended:
            self.jobs.append(job)

    def _predicted(self, job: RowsJob, rows: Any) -> Any:
        request, host = job.request, self.routed.host
        (name, weight) = next(iter(job.route.items()))
        assert request.task is not None
        if not _is_encoded(rows):
            task = task_of(request.task, request.part)
            rows = encode_for(host, name, task, rows, self.tokenizer, labelled=False)
            before = job.encoded
            truncated = rows.truncated + (0 if before is None else before.truncated)
            job.encoded = Encoded([*(() if before is None else before), *rows], truncated)
        self.routed.forget_route()
        return predict(host, name, request.task, rows, self.tokenizer, 32, self.precision, request.part, weight)

    def _finish(self, job: RowsJob, answer: Any) -> None:
        if isinstance(answer, Exception):
            job.end("error", answer)
            return
        job.report(RowsEvent(answer, job.encoded))
        job.end("stop")


PREDICTED = 16
"""Rows that are predicted in one turn, where a task needs more than a head."""
NOT_FINITE = "the answers are not finite numbers: the adapter's values, or its weight, are too large"


def mean_states(host: Host, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    """Vectors (B, D) of length 1: means of the last hidden states over each row's tokens."""
    encoded = getattr(outputs, "encoder_last_hidden_state", None)
    states = hidden_states(outputs)[0] if encoded is None else encoded
    states = text_states(host, states, batch).float()  # (B, T, D)
    weights = attention_mask_of(batch)[..., None].to(states.dtype)
    return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def _share(route: Mapping[str, float], name: str) -> float:
    """The share of an adapter's head in the mean of the heads."""
    total = sum(route.values())
    if len(route) == 1:
        return 1.0
    if math.isclose(total, 0.0, abs_tol=1e-12):
        raise DeltatuneError("the weights of the adapters sum to 0, so that their logits have no weighted mean")
    return route[name] / total


def _is_encoded(rows: Any) -> bool:
    return isinstance(rows, Encoded) or all("input_ids" in row for row in rows)


def _tokens(job: RowsJob, number: int) -> int:
    return len(job.rows[number]["input_ids"])
