"""Distillation: a classifier with a new head, trained on the scores that an ensemble gave to unlabelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltatune.core.method import Method
from deltatune.prompting.prompt_method import OnProgress
from deltatune.tasks.classification import Classify
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.soft_labels import plain_fields, soft_labels, with_scores
from deltatune.tasks.task import Row
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome


def plain_classification(task: Classify) -> Classify:
    """The classification that a head is trained for."""
    return task if type(task) is Classify else Classify(**plain_fields(task))


def train_classifier(
    session: Session,
    task: Classify,
    method: Method,
    rows: Sequence[Row],
    scores: NDArray[Any],
    labelled: tuple[Sequence[Row], Sequence[Row]],
    settings: Settings,
    temperature: float,
    on_step: OnProgress | None,
) -> tuple[Session, Outcome]:
    """Train a new adapter with a head on a teacher's scores (N, C) of N rows; it stays attached.

    `labelled`: the training rows that the teacher learned from, which count as seen, and the validation rows. The
    session's task is the plain classification: nothing of the teacher is needed any more.
    """
    own = replace(session, task=task, loads=session.loads or "words")
    own.attach(with_token_ids(method, own.tokenizer, task), settings.seed, own.make_head(settings.seed))
    try:
        train, validation = labelled
        seen = [row_hashes(task, each) for each in (train, rows)]
        taught = replace(with_scores(own.encode(rows, labelled=False), scores), row_hashes=np.concatenate(seen))
        student = replace(own, task=soft_labels(task, temperature))
        outcome = student.train(taught, own.encode(validation), settings, on_step=on_step)
    except BaseException:
        own.detach()
        raise
    return own, outcome
