"""Contextual calibration: which classes a prompt prefers whatever the text says, measured with texts that say nothing.

Zhao et al. 2021, https://arxiv.org/abs/2102.09690
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deltatune.tasks.label_words.content_free_scores import log_content_free
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.training.session import Session

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts without content, which stand in every text column."""


def content_free_calibration(session: Session) -> tuple[tuple[float, ...], ...]:
    """What is added to the scores of the classes: -log p_cf for each set of demonstrations of the session's task.

    p_cf is the normalised mean over `CONTENT_FREE` of the words' probabilities; W = diag(p_cf)^-1 and b = 0 in the
    paper.
    """
    task = session.task
    assert isinstance(task, LabelWords)
    rows = [dict.fromkeys(task.text, text) for text in CONTENT_FREE]
    result = []
    for shown in task.demonstrations or ((),):
        single = replace(task, demonstrations=(shown,) if shown else (), calibration=())
        own = replace(session, task=single)
        preferred = log_content_free(np.asarray(own.predict(own.encode(rows, labelled=False))), task.scoring)  # (C,)
        result.append(tuple(float(f"{-value:.6g}") for value in preferred))
    return tuple(result)


def with_sets(session: Session, sets: Sequence[tuple[str, ...]], calibrated: bool) -> Session:
    """The session with these sets of demonstrations in its task, each with a calibration of its own."""
    task = session.task
    assert isinstance(task, LabelWords)
    plain = replace(session, task=replace(task, demonstrations=tuple(sets), calibration=()))
    if not calibrated:
        return plain
    final = replace(task, demonstrations=tuple(sets), calibration=content_free_calibration(plain))
    return replace(session, task=final)
