"""Cells of prompting methods: a prompt is found, or trained, on rows as they were read, and stored as an adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.plans.plan import Cell, Plan
from deltatune.core.adapter import Adapter
from deltatune.data import Row
from deltatune.prompting.prompt_cost import PromptCost
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, with_stored_task
from deltatune.prompting.prompt_run import find_prompt
from deltatune.tasks import Encoded, task_from_json
from deltatune.tasks.label_words.prompt_rows import VIRTUAL
from deltatune.training.session import Session
from deltatune.training.train_adapter import Outcome


def fit_prompt(plan: Plan, cell: Cell, extra: Mapping[str, Any], on_step: OnProgress) -> tuple[Fitted, PromptCost]:
    """What a prompting method finds on the rows of the cell's draw, and what that costs; its adapter is attached."""
    method = cell.candidate.method
    assert isinstance(method, PromptMethod)
    rows = plan.rows_of(cell.draw)
    settings = dataclasses.replace(plan.settings, learning_rate=cell.rate or None, seed=cell.seed)
    seen = PromptRows(rows["train"], rows["validation"], plan.unlabelled(cell.draw))
    fitted, cost = find_prompt(plan.session, method, seen, settings, plan.options, on_step)
    with_stored_task(fitted.session, dict(extra))
    return fitted, cost


def prompt_record(fitted: Fitted, cost: PromptCost, validation: Sequence[Row]) -> dict[str, Any]:
    """The part of a cell's record that every method has, and the prompts that were found."""
    session = fitted.session
    scores = session.score(session.encode(validation))
    return {
        **training_record(session, params_of(session.adapter), fitted.outcome, cost.seconds, scores, cost),
        "prompts": list(fitted.prompts),
        "trials": [list(trial) for trial in fitted.trials],
        "notes": list(fitted.notes),
    }


def params_of(adapter: Adapter) -> dict[str, int]:
    """Trainable parameters of a method, and of the head."""
    return {"params": adapter.count, "head_params": adapter.head_count}


def training_record(
    session: Session,
    params: Mapping[str, int],
    outcome: Outcome | None,
    seconds: float,
    validation: Mapping[str, float],
    cost: PromptCost,
) -> dict[str, Any]:
    """The part of a cell's record that every method has; `outcome` is None where nothing was trained.

    params: those of `params_of`. validation: every metric on the validation rows.
    """
    evaluations = outcome.evaluations if outcome else []
    return {
        **params,
        "share": params["params"] / session.host.sites.base_params,
        "history": outcome.history if outcome else [],
        "evaluations": [(step, scores[session.task.metric]) for step, scores in evaluations],
        "train_seconds": seconds,
        "examples_per_second": outcome.examples_per_second if outcome else None,
        "peak_memory_bytes": outcome.peak_memory_bytes if outcome else None,
        "bfloat16": outcome.bfloat16 if outcome else False,
        "idle": outcome.untrained_tensors if outcome else (),
        "truncated": outcome.truncated if outcome else 0,
        "scores": {"validation": validation, "test": None},
        "cost": cost.to_json(),
    }


def as_read(session: Session, encoded: Encoded) -> str:
    """The first row as the model reads it, special tokens included; `[v1]` is a virtual token."""
    ids = encoded.rows[0]["input_ids"]
    pieces, known = [], []
    for token in [*ids, VIRTUAL]:
        if token < VIRTUAL:
            known.append(token)
            continue
        pieces += [str(session.tokenizer.decode(known)), f"[v{token - VIRTUAL + 1}]"]
        known = []
    return " ".join(piece for piece in pieces[:-1] if piece)


class FittedSessions:
    """The sessions of trained adapters, with the rows that each task reads encoded once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._encoded: dict[tuple[str, str], Encoded] = {}

    def opened(self, folder: str) -> Session:
        """Load an adapter of the plan's folder; the session's task is the adapter's own."""
        session = self.plan.session
        adapter = session.host.load(self.plan.out / folder, name=session.name)
        task = task_from_json(adapter.extra["task"])
        return session if task == session.task else dataclasses.replace(session, task=task, head={})

    def rows(self, session: Session, split: str) -> Encoded:
        """The rows of a split as this session's task reads them."""
        if session.task == self.plan.session.task:
            return self.plan.splits[split]
        key = (repr(session.task), split)
        if key not in self._encoded:
            if len(self._encoded) > 8:
                self._encoded.clear()
            self._encoded[key] = session.encode(self.plan.data.splits()[split])
        return self._encoded[key]
