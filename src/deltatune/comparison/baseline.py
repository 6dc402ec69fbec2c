"""What is scored without learning anything: the most frequent answer everywhere, or the model as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from deltatune.comparison.plan import Plan
from deltatune.comparison.records import Records
from deltatune.methods.base_weights.unfreeze import Probe
from deltatune.training import predict

BARE = "untouched"
"""The name under which the untouched model's answers are stored."""


def baseline(plan: Plan, records: Records) -> dict[str, Any] | None:
    """The primary metric of a baseline on the test rows and what it is, in words; None where there is none."""
    if plan.task.answers not in ("text", "words"):
        return majority(plan)
    if not records.answered(BARE):
        records.keep(BARE, untouched(plan))
    score = plan.task.score(records.answers(BARE), plan.splits["test"].references)
    return {"score": score[plan.task.metric], "words": "The model as it is, untrained,", "scores": score}


def untouched(plan: Plan) -> Any:
    """What the base answers with nothing attached to it but an empty adapter."""
    plan.host.attach(BARE, Probe(), head=False)
    try:
        test = plan.splits["test"]
        return predict(plan.host, BARE, plan.task, test, plan.tokenizer, precision=plan.settings.precision)
    finally:
        plan.host.detach(BARE)


def majority(plan: Plan) -> dict[str, Any] | None:
    """The primary metric of one answer for every row: the training rows' most frequent one."""
    task: Any = plan.task
    references = plan.splits["test"].references
    if plan.data.kind == "classes":
        labels, counts = np.unique(plan.splits["train"].references, return_counts=True)
        score = task.measure(np.full(len(references), labels[counts.argmax()]), references)
        return {"score": score, "words": "Always answering the most frequent label"}
    if plan.data.kind == "tags":
        tag = Counter(tag for tags in plan.splits["train"].references for tag in tags).most_common(1)[0][0]
        score = task.score([[tag] * len(tags) for tags in references], references)[task.metric]
        return {"score": score, "words": f"Tagging every word {tag}"}
    if plan.data.kind == "span" and task.abstains:
        none = {"text": "", "start": -1, "end": -1, "score": 0.0}
        return {"score": task.score([none] * len(references), references)[task.metric], "words": "Never answering"}
    return None
