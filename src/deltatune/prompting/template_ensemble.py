"""Template ensembles: every row is read in several templates, and the probabilities of its classes are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deltatune.core.errors import raise_all
from deltatune.core.method import Method, at_least
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, attach_prompt
from deltatune.prompting.several_templates import TemplateChoice, choose_templates, spread_note
from deltatune.prompting.zero_shot import check_classes, check_prompt, prompt_text
from deltatune.tasks.label_words.label_words import LabelWords
from deltatune.tasks.task import Row, Task
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome


@dataclass(frozen=True)
class TemplateEnsemble(PromptMethod):
    """p(y | x) = Σᵢ wᵢ p(y | templateᵢ(x)); with a method, each row is trained on in each template

    Schick and Schütze 2021, https://arxiv.org/abs/2001.07676; Jiang et al. 2020, https://arxiv.org/abs/1911.12543. The
    templates share the words of the classes. Prediction reads every row once for each template.
    """

    method: Method | None = None
    """What is trained, with the templates as data augmentation; None trains nothing."""
    patterns: int = 0
    """How many templates: the first of those chosen for the data; 0 for all published ones, filled up to four."""
    templates: tuple[str, ...] = ()
    """The templates themselves, instead of chosen ones."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: published ones, else the class names."""
    scoring: Literal["likelihood", "probability", "logit"] = "likelihood"
    """Score of a class with several words, or words of several tokens; see LabelWords."""
    weighting: Literal["uniform", "accuracy"] = "uniform"
    """Weights of the templates: all equal, or their accuracy on the training rows before training."""

    def check(self) -> None:
        at_least(self, patterns=0)
        problems = []
        if isinstance(self.method, PromptMethod):
            problems.append(
                f"TemplateEnsemble trains a tuning method such as LoRA(r=8), or nothing; {self.method!r} is a "
                "prompting method"
            )
        elif self.method is not None and self.method.input_template:
            problems.append(f"TemplateEnsemble: {self.method!r} has a template of its own; leave that one out")
        if self.templates and self.patterns > len(self.templates):
            problems.append(f"TemplateEnsemble(patterns={self.patterns}): {len(self.templates)} templates are given")
        raise_all(problems)

    # ---- facts

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Whether there is a tuning method."""
        return self.method is not None

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether it trains, or weighs templates by the training rows."""
        return self.trains or self.weighting == "accuracy"

    @property
    def inner(self) -> Method | None:
        return self.method

    @property
    def label(self) -> str:
        return "Template ensemble" + ("" if self.method is None else f", {self.method.label}")

    # ---- before anything runs

    def check_task(self, task: Task) -> None:
        check_classes(self, task)

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        task, _ = self._prompt(session, rows, options)
        check_prompt(session, self.method or self, task, rows)

    def _prompt(self, session: Session, rows: PromptRows, options: PromptOptions) -> tuple[LabelWords, tuple[str, ...]]:
        """The task with all templates, and notes on those left out."""
        choice = TemplateChoice(self.patterns, self.templates, self.words)
        tried = rows.train[:1] or rows.validation[:1] or rows.unlabelled[:1]
        prompts, notes = choose_templates(
            session, check_classes(self, session.task), tried, choice, options, self.scoring, same_words=True
        )
        return replace(prompts[0], more_templates=tuple(each.template for each in prompts[1:])), notes

    # ---- training

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        task, left_out = self._prompt(session, rows, options)
        notes = list(left_out)
        if self.weighting == "accuracy" and rows.train:
            weights = self._accuracies(session, task, rows.train)
            notes.append(f"weights of the templates: {', '.join(f'{weight:.3f}' for weight in weights)}")
            task = replace(task, template_weights=tuple(weights) if any(weights) else ())
        elif self.weighting == "accuracy":
            notes.append("there are no training rows to weigh the templates by: all weigh the same")
        own, outcome = self._trained(session, task, rows, settings, on_step)
        singles = [_alone(task, template) for template in (task.template, *task.more_templates)]
        try:
            scores = [_score(own, single, rows.validation) for single in singles if rows.validation]
        except BaseException:
            own.detach()
            raise
        trials = tuple((single.template, score) for single, score in zip(singles, scores, strict=False))
        if trials:
            notes.append(spread_note(trials, task.metric, len(rows.validation)))
        else:
            notes.append("there are no validation rows to score each template on; with some, their spread is reported")
        return Fitted(own, outcome, tuple(map(prompt_text, singles)), trials, tuple(notes))

    def _trained(
        self, session: Session, task: LabelWords, rows: PromptRows, settings: Settings, on_step: OnProgress | None
    ) -> tuple[Session, Outcome | None]:
        """The session with its adapter attached, and the training."""
        if self.method is None:
            return attach_prompt(session, self, task, settings.seed), None
        own = replace(session, task=task, head={})
        own.attach(with_token_ids(self.method, session.tokenizer, task), settings.seed, head=False)
        try:
            return own, own.train(rows.train, rows.validation, settings, on_step=on_step)
        except BaseException:
            own.detach()
            raise

    def _accuracies(self, session: Session, task: LabelWords, train: Sequence[Row]) -> list[float]:
        """Accuracy of each template on the training rows before training."""
        own = attach_prompt(session, self, task)
        try:
            templates = (task.template, *task.more_templates)
            return [_score(own, replace(_alone(task, each), metric="accuracy"), train) for each in templates]
        finally:
            own.detach()


def _alone(task: LabelWords, template: str) -> LabelWords:
    """The task with one of its templates."""
    return replace(task, template=template, more_templates=(), template_weights=())


def _score(session: Session, task: LabelWords, rows: Sequence[Row]) -> float:
    """The primary metric of a prompt on rows, with the session's adapter."""
    own = replace(session, task=task)
    return own.score(own.encode(rows))[task.metric]
