"""Scores by which a search chooses: the primary metric on the validation rows, then the likelihood of their classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.prompt_method import PromptRows
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Row
from deltatune.training.session import Session


class Score(NamedTuple):
    """How good a prompt is; compared as a tuple."""

    metric: float
    """The task's primary metric."""
    likelihood: float
    """Mean log-probability of the rows' classes among all classes, which decides between equal metrics."""


@dataclass(frozen=True)
class ScoredPrompt:
    """One prompt that was tried."""

    task: LabelWords
    score: Score


def score_of(task: LabelWords, scores: NDArray[Any], labels: Any) -> Score:
    """The score of scores of the classes (N, C) for rows of the classes `labels` (N,)."""
    values = scores.astype(np.float64)
    log_probabilities = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
    metric = float(task.score(scores, np.asarray(labels))[task.metric])
    likelihood = float(log_probabilities[np.arange(len(values)), np.asarray(labels)].mean())
    return Score(metric if np.isfinite(metric) else -np.inf, likelihood)


def prompt_score(session: Session, task: LabelWords, rows: Sequence[Row]) -> Score:
    """The score of a prompt on rows, with the session's adapter. Raises DeltatuneError for rows that do not fit."""
    own = replace(session, task=task)
    encoded = own.encode(rows)
    return score_of(task, own.predict(encoded), encoded.references)


def choosing_rows(rows: PromptRows, what: str) -> tuple[Sequence[Row], tuple[str, ...]]:
    """The rows by which to choose, and a note where they are the training rows; `what` is chosen.

    Raises DeltatuneError where there are no rows at all.
    """
    if rows.validation:
        return rows.validation, ()
    if not rows.train:
        raise DeltatuneError(f"{what} is chosen by its score on labelled rows, and there are none; give training rows")
    return rows.train, (f"There are no validation rows: {what} was chosen by its score on the training rows.",)


def try_all(
    session: Session,
    tasks: Sequence[LabelWords],
    rows: Sequence[Row],
    required: bool = False,
    on_trial: Callable[[int, int, float], None] | None = None,
) -> tuple[list[ScoredPrompt], list[str]]:
    """The prompts with their scores on the rows, the best first, equal ones in the given order; and why others failed.

    required: whether a prompt that the model cannot read is an error; else it is left out. on_trial: called with the
    number of the trial, of all, and the cross-entropy of its classes.
    Raises DeltatuneError where none can be read.
    """
    trials: list[ScoredPrompt] = []
    problems: list[str] = []
    for number, task in enumerate(tasks):
        try:
            trials.append(ScoredPrompt(task, prompt_score(session, task, rows)))
        except DeltatuneError as error:
            if required:
                raise
            problems.append(str(error))
            continue
        if on_trial is not None:
            on_trial(number + 1, len(tasks), -trials[-1].score.likelihood)
    if not trials:
        raise DeltatuneError(problems[0] if problems else "there is no prompt to try")
    return sorted(trials, key=lambda trial: trial.score, reverse=True), problems
