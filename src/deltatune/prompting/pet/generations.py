"""Generations of PET's models: the first learns from the labelled rows, later ones also from what others labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.prompting.pet.next_sets import added_rows, labelled_by
from deltatune.prompting.pet.pattern_models import PatternModel, PatternTraining
from deltatune.tasks.classification import Classify
from deltatune.tasks.task import Row

MOST_ADDED = 100_000
"""Rows that a training set may grow by."""


@dataclass(frozen=True)
class Generations:
    """How the training sets of iPET grow; one generation is PET."""

    count: int = 1
    scale: float = 5.0
    teachers: float = 0.25
    """Share of the other models that label the rows for a model."""
    most_likely: int = 100
    """Without labelled rows: the most likely rows of each class from which the first set is drawn."""

    def added(self, train: Sequence[Row], task: Classify) -> list[list[int]]:
        """How many rows of each class are added in each generation but the first.

        Raises DeltatuneError for more than 100,000.
        """
        labelled = Counter(str(row.get(task.label)) for row in train)
        per_class = [labelled[label] for label in task.labels]
        counts = [added_rows(per_class, self.scale, generation) for generation in range(1, self.count)]
        if counts and sum(counts[-1]) > MOST_ADDED:
            raise DeltatuneError(
                f"generations={self.count} with scale={self.scale:g} would add {sum(counts[-1]):,} rows to the "
                f"training set of the last generation; at most {MOST_ADDED:,} are possible, so lower one of the two"
            )
        return counts

    def train(self, training: PatternTraining, weights: Sequence[float], task: Classify) -> list[list[PatternModel]]:
        """The models of every generation. The labels of the unlabelled rows are those of models, for each its own."""
        models = training.models()
        history, seed = [models], training.settings.seed
        for generation, counts in enumerate(self.added(training.train, task), 1):
            zero_shot = generation == 1 and not training.train
            further = []
            for number, model in enumerate(models):
                others = [k for k, other in enumerate(models) if other is not model]
                labelled = labelled_by(
                    [models[k].unlabelled for k in others], [weights[k] for k in others], counts, self.teachers,
                    generator_for(seed, f"pet.set.{generation}.{number}"), self.most_likely if zero_shot else 0,
                )  # fmt: skip
                further.append([{**training.unlabelled[row], task.label: task.labels[of]} for row, of in labelled])
            models = training.models(generation, further)
            history.append(models)
        return history

    def total_steps(self, training: PatternTraining, task: Classify) -> int:
        """Steps of all models."""
        sizes = [len(training.train), *(sum(counts) for counts in self.added(training.train, task))]
        each = sum(training.steps(size) for size in sizes if size) if training.trains else 0
        return each * len(training.patterns) * training.repetitions
