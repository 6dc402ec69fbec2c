"""Models of PET's patterns: one adapter for each pattern and repetition, of which only the scores are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltatune.core.delta import generator_for
from deltatune.core.method import Method
from deltatune.models.architecture import family
from deltatune.prompting.pet.next_sets import mean_scores
from deltatune.prompting.prompt_method import OnProgress
from deltatune.prompting.several_templates import spread_note
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Row
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.auxiliary_loss import AuxiliaryMLM
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.session import Session
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome


@dataclass(frozen=True)
class PatternModel:
    """What is kept of one model. Its weights are not: the next model takes their place on the base."""

    pattern: int
    """Number of its pattern."""
    unlabelled: NDArray[Any]
    """Scores of the classes for the unlabelled rows (N, C)."""
    validation: NDArray[Any]
    """Scores of the classes for the validation rows (V, C)."""
    score: float | None
    """The primary metric on the validation rows; None without any."""


@dataclass
class StepCount:
    """One count of steps over several trainings."""

    on_step: OnProgress | None
    total: int = 0
    done: int = 0

    def training(self, steps: int) -> OnProgress | None:
        """The callback of the next training, which has so many steps."""
        before, self.done = self.done, self.done + steps
        if self.on_step is None:
            return None
        report = self.on_step

        def on_step(step: int, total: int, loss: float, rate: float) -> None:
            report(before + step, self.total, loss, rate)

        return on_step


@dataclass
class PatternTraining:
    """Trains a model for each pattern, one after another on one base."""

    session: Session
    patterns: Sequence[LabelWords]
    method: Method
    """What is trained; ZeroShot for models that are not."""
    repetitions: int
    train: Sequence[Row]
    validation: Sequence[Row]
    unlabelled: Sequence[Row]
    """Rows without labels."""
    settings: Settings
    mlm: float
    """Weight of the masked language model on the unlabelled rows."""
    progress: StepCount
    _accuracies: list[float] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether there is a tuning method."""
        return not isinstance(self.method, ZeroShot)

    def models(self, generation: int = 0, added: Sequence[Sequence[Row]] = ()) -> list[PatternModel]:
        """A model for each pattern and repetition, pattern by pattern; `added` are further labelled rows of each."""
        models: list[PatternModel] = []
        for pattern in range(len(self.patterns)):
            for repetition in range(self.repetitions):
                rows = [*self.train, *(added[len(models)] if added else ())]
                untrained = not (self.trains and rows)
                if untrained and repetition:  # without training all repetitions are the same
                    models.append(models[-1])
                else:
                    models.append(self._model(pattern, rows, f"pet.{generation}.{pattern}.{repetition}", untrained))
        return models

    def _model(self, number: int, rows: Sequence[Row], name: str, untrained: bool) -> PatternModel:
        task, settings = self.patterns[number], self.settings
        own, seed = replace(self.session, task=task, head={}), seed_of(settings.seed, name)
        method = ZeroShot() if untrained else with_token_ids(self.method, own.tokenizer, task)
        own.attach(method, seed, head=False)
        try:
            unlabelled = own.encode(self.unlabelled, labelled=False)
            if not untrained:
                steps = self.steps(len(rows))
                masked = self.mlm > 0 and family(own.host.model.config) == "encoder"  # type: ignore[arg-type]
                own.train(
                    rows, None, replace(settings, seed=seed, max_steps=steps), on_step=self.progress.training(steps),
                    auxiliary=AuxiliaryMLM(unlabelled, self.mlm) if masked else None,
                )  # fmt: skip
            scores, score = own.predict(unlabelled), None
            validation = np.zeros((0, task.outputs), np.float32)
            if self.validation:
                encoded = own.encode(self.validation)
                validation = own.predict(encoded)
                score = float(task.score(validation, encoded.references)[task.metric])
        finally:
            own.detach()
        return PatternModel(number, scores, validation, score)

    def steps(self, rows: int) -> int:
        """Steps of one model: those that the settings mean for the labelled rows, however many rows are added."""
        return steps_of(self.settings, len(self.train) or rows)

    def accuracies(self) -> list[float]:
        """Accuracy of each pattern on the training rows before training."""
        if not self._accuracies:
            for task in self.patterns:
                own = replace(self.session, task=task, head={})
                own.attach(ZeroShot(), self.settings.seed, head=False)
                try:
                    encoded = own.encode(self.train)
                    scores = own.predict(encoded)
                finally:
                    own.detach()
                self._accuracies.append(float(np.mean(scores.argmax(1) == np.asarray(encoded.references))))
        return self._accuracies


def seed_of(seed: int, name: str) -> int:
    """A seed for one of several trainings, which depends on the seed and the training's name alone."""
    return int(torch.randint(2**32 - 1, (), generator=generator_for(seed, name)))


# ---- what a user sees


def trials_of(patterns: Sequence[LabelWords], models: Sequence[PatternModel]) -> tuple[tuple[str, float], ...]:
    """Each pattern with the mean validation score of its models; empty without validation rows."""
    scores: dict[int, list[float]] = {}
    for model in models:
        if model.score is not None:
            scores.setdefault(model.pattern, []).append(model.score)
    return tuple((patterns[number].template, fmean(of_pattern)) for number, of_pattern in scores.items())


def validation_notes(
    history: Sequence[Sequence[PatternModel]],
    trials: Sequence[tuple[str, float]],
    weights: Sequence[float],
    task: Classify,
    validation: Sequence[Row],
    outcome: Outcome,
) -> list[str]:
    """Scores on the validation rows, in sentences: of the patterns, the generations, the ensemble, the classifier."""
    if not trials:
        return []
    metric, notes = task.metric, [spread_note(trials, task.metric, len(validation))]
    if len(history) > 1:
        means = [fmean(model.score or 0.0 for model in models) for models in history]
        notes.append(f"mean {metric} of the models by generation: {', '.join(f'{mean:.3f}' for mean in means)}")
    scores = mean_scores([model.validation for model in history[-1]], weights)
    references = [task.labels.index(str(row[task.label])) for row in validation]
    ensemble = task.score(scores, np.asarray(references))[metric]
    classifier = outcome.evaluations[-1][1][metric]
    notes.append(f"{metric} of the ensemble {ensemble:.3f}, of the classifier that learned from it {classifier:.3f}")
    return notes
