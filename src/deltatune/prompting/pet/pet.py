"""PET: pattern-exploiting training; iPET: PET in generations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.method import Method, at_least, at_most
from deltatune.methods.base_weights.unfreeze import Full
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.pet.distillation import plain_classification, train_classifier
from deltatune.prompting.pet.generations import Generations
from deltatune.prompting.pet.next_sets import mean_scores
from deltatune.prompting.pet.pattern_models import PatternTraining, StepCount, trials_of, validation_notes
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows
from deltatune.prompting.several_templates import TemplateChoice, choose_templates
from deltatune.prompting.zero_shot import ZeroShot, check_classes, check_prompt, prompt_text
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Row, Task
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.session import Session
from deltatune.training.settings import Settings

FULL = Full()
LEAST_TEMPERATURE = 0.01
"""T below which a teacher's scores, divided by it, say no more than their highest one."""
STEP_RATIO = 20
"""Most steps of the classifier for one of a pattern's model, where epochs say the number: the paper's 5,000 to 250."""


@dataclass(frozen=True)
class PET(PromptMethod):
    """z(x) = Σᵢ wᵢ zᵢ(x) of models with a pattern each; then T² · KL(softmax(z / T) ‖ softmax(ŷ / T)) on unlabelled x

    Schick and Schütze 2021, https://arxiv.org/abs/2001.07676 and https://arxiv.org/abs/2009.07118. Each model is
    trained through label words; the result is an ordinary classifier with a new head, which needs no pattern. Steps and
    learning rate of the settings are those of every model and of the classifier.
    """

    method: Method = FULL
    """What each pattern's model trains; ZeroShot() leaves them as they are."""
    patterns: int = 0
    """How many patterns: the first of those chosen for the data; 0 for all published ones, filled up to four."""
    templates: tuple[str, ...] = ()
    """The patterns themselves, instead of chosen ones."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: those published with each pattern, else the
    class names."""
    repetitions: int = 1
    """Models for each pattern, with different seeds. The paper has 3."""
    weighting: Literal["uniform", "accuracy"] = "uniform"
    """Weights of the models: all equal, or their pattern's accuracy on the training rows before training."""
    temperature: float = 2.0
    """T of the soft labels."""
    mlm: float = 1e-4
    """Weight of masked language modelling on the unlabelled rows beside each model's loss, for masked models; 0 without
    it."""
    classifier: Method | None = None
    """What the classifier trains beside its head; by default the same as the models. Another method gets a rate in
    proportion to the recommended ones."""
    classifier_steps: int = 0
    """Steps of the classifier; 0 for those of the settings, where epochs are of the unlabelled rows, but at most 20
    times those of a model."""
    unlabelled: int = 10_000
    """Unlabelled rows at most; of more, so many are drawn."""
    generations: int = 1
    """Rounds of training: in each but the first, models learn from rows too that the others labelled before."""
    scale: float = 5.0
    """Growth of the training sets from one generation to the next."""
    teachers: float = 0.25
    """Share of the other models that label the rows for a model."""
    most_likely: int = 100
    """Without labelled rows: the most likely rows of each class from which the first set is drawn."""

    trains: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    reads_unlabelled: ClassVar[bool] = True

    def check(self) -> None:
        at_least(self, patterns=0, repetitions=1, mlm=0, classifier_steps=0, unlabelled=1, generations=1, most_likely=1)
        at_most(self, repetitions=100, generations=10, teachers=1)
        name, problems = type(self).__name__, []
        untrained = isinstance(self.method, ZeroShot)
        for what, method in (("method", self.method), ("classifier", self.classifier)):
            if isinstance(method, PromptMethod) and not (what == "method" and untrained):
                problems.append(f"{name}({what}={method!r}) must be a tuning method such as LoRA(r=8)")
            elif method is not None and method.input_template:
                problems.append(f"{name}({what}={method!r}): templates are those of {name}; leave this one out")
        if untrained and self.method != ZeroShot():
            problems.append(
                f"{name}(method={self.method!r}): templates and words are those of {name}; write ZeroShot()"
            )
        if untrained and self.generations > 1:
            problems.append(f"{name}(method=ZeroShot()) trains no models, so that one generation is all; name a method")
        if self.temperature < LEAST_TEMPERATURE:
            problems.append(f"{name}(temperature={self.temperature}): temperature must be at least {LEAST_TEMPERATURE}")
        if self.mlm >= 1:
            problems.append(f"{name}(mlm={self.mlm}): mlm is a share of the loss, below 1")
        if self.scale <= 1:
            problems.append(f"{name}(scale={self.scale}): sets grow from one generation to the next; scale is above 1")
        if self.teachers <= 0:
            problems.append(f"{name}(teachers={self.teachers}): teachers is a share of the other models, above 0")
        if self.templates and self.patterns > len(self.templates):
            problems.append(f"{name}(patterns={self.patterns}): {len(self.templates)} templates are given")
        raise_all(problems)

    # ---- facts

    @property
    def inner(self) -> Method:
        """What the result trains: the classifier's method."""
        return self.classifier or (FULL if isinstance(self.method, ZeroShot) else self.method)

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """That of the models' method; of the classifier's where the models are not trained."""
        return (self.inner if isinstance(self.method, ZeroShot) else self.method).learning_rate

    @property
    def label(self) -> str:
        name = "PET" if self.generations == 1 else "iPET"
        if isinstance(self.method, ZeroShot):
            return f"{name}, zero-shot"
        return name if self.method == FULL else f"{name}, {self.method.label}"

    def sized(self, size: int) -> Method:
        classifier = None if self.classifier is None else self.classifier.sized(size)
        return replace(self, method=self.method.sized(size), classifier=classifier)

    # ---- before anything runs

    def check_task(self, task: Task) -> None:
        check_classes(self, task)

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        task = plain_classification(check_classes(self, session.task))
        prompts, _ = self._prompts(session, task, rows, options)
        missing = [name for name in task.text if rows.unlabelled and name not in rows.unlabelled[0]]
        raise_all([
            f"the unlabelled rows have no column {name!r}{nearest(name, rows.unlabelled[0])}; columns: "
            f"{', '.join(map(repr, rows.unlabelled[0]))}"
            for name in missing
        ])  # fmt: skip
        if not isinstance(self.method, ZeroShot) and rows.train:
            check_prompt(session, self.method, prompts[0], rows)
        super().check_session(replace(session, task=task), rows, options)

    def _prompts(
        self, session: Session, task: Classify, rows: PromptRows, options: PromptOptions
    ) -> tuple[list[LabelWords], tuple[str, ...]]:
        if not (rows.train or rows.unlabelled):
            raise DeltatuneError(f"{type(self).__name__} learns from labelled or unlabelled rows; there are neither")
        choice = TemplateChoice(self.patterns, self.templates, self.words)
        prompts, notes = choose_templates(
            session, task, rows.train[:1] or rows.unlabelled[:1], choice, options, scoring="logit"
        )
        if self.generations > 1 and len(prompts) * self.repetitions < 2:
            raise DeltatuneError(
                f"{self!r}: from the second generation on each model learns from rows that the others have labelled, "
                "and there is one pattern only; give more templates, or repetitions=3"
            )
        return prompts, notes

    # ---- training

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        task = plain_classification(check_classes(self, session.task))
        patterns, left_out = self._prompts(session, task, rows, options)
        unlabelled, drawn = self._unlabelled(rows, task, settings.seed)
        training = PatternTraining(
            session, patterns, self.method, self.repetitions, rows.train, rows.validation, unlabelled, settings,
            self.mlm, StepCount(on_step),
        )  # fmt: skip
        final = self._classifier_settings(training)
        training.progress.total = self._growth.total_steps(training, task) + (final.max_steps or 0)

        weights = self._weights(training)
        history = self._growth.train(training, weights, task)
        scores = mean_scores([model.unlabelled for model in history[-1]], weights)
        own, outcome = train_classifier(
            session, task, self.inner, unlabelled, scores, (rows.train, rows.validation), final, self.temperature,
            training.progress.training(final.max_steps or 0),
        )  # fmt: skip
        trials = trials_of(patterns, history[-1])
        notes = [*left_out, *drawn, *validation_notes(history, trials, weights, task, rows.validation, outcome)]
        return Fitted(own, outcome, tuple(map(prompt_text, patterns)), trials, tuple(notes))

    @property
    def _growth(self) -> Generations:
        return Generations(self.generations, self.scale, self.teachers, self.most_likely)

    def _unlabelled(self, rows: PromptRows, task: Classify, seed: int) -> tuple[list[Row], list[str]]:
        """The rows that the ensemble labels, without labels of their own, and what a user must know of them."""
        given, notes = rows.unlabelled, []
        if not given:
            given = rows.train
            notes.append(
                f"no unlabelled rows are given: the classifier learns from the texts of the {len(given)} training "
                "rows, with the scores of the ensemble as labels; more texts would teach it more"
            )
        if len(given) > self.unlabelled:
            order = torch.randperm(len(given), generator=generator_for(seed, "pet.unlabelled")).tolist()
            notes.append(f"{self.unlabelled:,} of {len(given):,} unlabelled rows are drawn")
            given = [given[i] for i in sorted(order[: self.unlabelled])]
        return [{name: value for name, value in row.items() if name != task.label} for row in given], notes

    def _weights(self, training: PatternTraining) -> list[float]:
        """The weight of each model."""
        if self.weighting == "uniform" or not training.train:
            return [1.0] * (len(training.patterns) * self.repetitions)
        return [accuracy for accuracy in training.accuracies() for _ in range(self.repetitions)]

    def _classifier_settings(self, training: PatternTraining) -> Settings:
        """Steps and rate of the classifier."""
        settings = training.settings
        rate = None if settings.learning_rate is None else settings.peak_rate
        steps = self.classifier_steps or steps_of(settings, len(training.unlabelled))
        if training.train and not (self.classifier_steps or settings.max_steps):
            steps = min(steps, STEP_RATIO * training.steps(0))
        if rate is not None and training.trains:
            rate *= self.inner.learning_rate / self.method.learning_rate
        return replace(settings, max_steps=steps, learning_rate=rate)


@dataclass(frozen=True)
class IPET(PET):
    """PET in generations: T ∪ rows labelled by other models, d times as many each time     Schick and Schütze 2021

    https://arxiv.org/abs/2001.07676, section 3.4
    """

    generations: int = 3
    """Rounds of training: in each but the first, models learn from rows too that the others labelled before."""
