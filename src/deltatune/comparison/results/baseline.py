"""Baseline without training: the most frequent answer for every row, or the model as it is."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from deltatune.comparison.plans.plan import Plan
from deltatune.comparison.results.records import Records
from deltatune.methods.base_weights.unfreeze import Probe

UNTRAINED = "untouched"
"""Key of the untrained model's answers in the records."""


def baseline(plan: Plan, records: Records) -> dict[str, Any] | None:
    """The primary metric of a baseline on the test rows and its description; None for tasks without one."""
    task = plan.session.task
    if task.answers not in ("text", "likelihood"):
        return majority(plan)
    if not records.answered(UNTRAINED):
        records.keep(UNTRAINED, untrained_answers(plan))
    scores = task.score(records.answers(UNTRAINED), plan.splits["test"].references)
    return {"score": scores[task.metric], "words": "The model as it is, untrained,", "scores": scores}


def untrained_answers(plan: Plan) -> Any:
    """Answers of the base with an adapter that changes nothing."""
    session = dataclasses.replace(plan.session, name=UNTRAINED)
    session.attach(Probe(), 0, head=False)
    try:
        return session.predict(plan.splits["test"])
    finally:
        session.detach()


def majority(plan: Plan) -> dict[str, Any] | None:
    """The primary metric of one answer for every row: the training rows' most frequent one."""
    task: Any = plan.session.task
    references = plan.splits["test"].references
    if plan.data.kind == "classes":
        counts = Counter(row[plan.data.label] for row in plan.data.train)  # of all rows, also if few are drawn
        most = max(range(len(task.labels)), key=lambda i: counts[task.labels[i]])
        score = task.measure(np.full(len(references), most), references)
        return {"score": score, "words": "Always answering the most frequent label"}
    if plan.data.kind == "tags":
        tag = Counter(tag for tags in plan.splits["train"].references for tag in tags).most_common(1)[0][0]
        score = task.score([[tag] * len(tags) for tags in references], references)[task.metric]
        return {"score": score, "words": f"Tagging every word {tag}"}
    if plan.data.kind == "span" and task.abstains:
        no_answer = {"text": "", "start": -1, "end": -1, "score": 0.0}
        score = task.score([no_answer] * len(references), references)[task.metric]
        return {"score": score, "words": "Never answering"}
    return None
