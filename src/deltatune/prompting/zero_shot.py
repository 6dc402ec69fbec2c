"""Zero-shot prompts, and tuning methods that train through label words instead of a new head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.registry import parse
from deltatune.methods.low_rank.lora import LoRA
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, label_words_task
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, attach_prompt
from deltatune.prompting.text_prompts import shown_prompt, text_prompt, writes_texts
from deltatune.tasks.classification import Classify
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.label_words.label_words import LabelWords, Scoring
from deltatune.tasks.task import Task
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session
from deltatune.training.settings import Settings


def check_classes(method: Method, task: Task) -> Classify:
    """The task as a classification. Raises DeltatuneError for tasks without one class a row."""
    if not isinstance(task, Classify) or task.label_kind != "classes":
        texts = (
            "; for texts as answers: ZeroShot(), ICL(), TemplateSearch(templates=...) or ChainOfThought(), or a tuning "
            "method with --prompt"
        )
        raise DeltatuneError(
            f"{method!r} is for one class a row; this task is {task.describe()}{texts if writes_texts(task) else ''}"
        )
    return task


def check_label_task(method: Method, task: Task, stop: str) -> Classify:
    """The same for a method whose field `stop` is for texts as answers: it must be empty."""
    classify = check_classes(method, task)
    if stop:
        raise DeltatuneError(f"{method!r}: stop is for texts as answers; this task is {task.describe()}")
    return classify


def check_prompt(session: Session, method: Method, task: LabelWords | GenerateInContext, rows: PromptRows) -> None:
    """Raise DeltatuneError for a method that cannot be attached here, and a prompt that cannot take the first row."""
    own = replace(session, task=task, head={})
    own.attach(with_token_ids(method, session.tokenizer, task), 0, head=False)
    try:
        own.encode(rows.train[:1])
    finally:
        own.detach()


@dataclass(frozen=True)
class ZeroShot(PromptMethod):
    """argmax over classes of the score of their words in the blank of a template; nothing is trained

    Where the answers are texts, the text that the model writes behind the template.
    Brown et al. 2020, https://arxiv.org/abs/2005.14165; Schick and Schütze 2021, https://arxiv.org/abs/2001.07676
    """

    template: str = ""
    """The text with a blank: "{text} It was {mask}."; default: a published one for the data, else a plain one.
    For texts as answers it ends where they begin: "English: {text}\\nFrench:"; default: the task's own prompt."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: published ones, else the class names."""
    scoring: Scoring = "likelihood"
    """Score of a class with several words, or words of several tokens; see LabelWords."""
    stop: str = ""
    """For texts as answers: text before which an answer ends, such as a line break; default: where the model ends."""

    @property
    def label(self) -> str:
        return "Zero-shot"

    def check_task(self, task: Task) -> None:
        if writes_texts(task):
            return
        check_label_task(self, task, self.stop)

    def prompt(self, session: Session, options: PromptOptions = NO_OPTIONS) -> LabelWords | GenerateInContext:
        """The task of this prompt, from the columns and classes of the session's task."""
        return self.prompt_for(session.task, session.host.model.config, options)

    def prompt_for(self, task: Task, config: Any, options: PromptOptions) -> LabelWords | GenerateInContext:
        """The same for a model of which only the config is known."""
        self.check_task(task)
        if writes_texts(task):
            left_out = {"words": "", "scoring": "likelihood"}
            return text_prompt(self, task, options, self.template, left_out, stop=self.stop)
        return label_words_task(
            check_classes(self, task), config, options, self.template, self.words, scoring=self.scoring
        )

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        check_prompt(session, self, self.prompt(session, options), rows)

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        task = self.prompt(session, options)
        return Fitted(attach_prompt(session, self, task), prompts=(prompt_text(task),))


DEFAULT_METHOD = LoRA()


@dataclass(frozen=True)
class Cloze(PromptMethod):
    """A tuning method trained through label words: cross-entropy over the scores of the classes, and no new head

    Gao et al. 2021, https://arxiv.org/abs/2012.15723 (prompt-based fine-tuning); with P-tuning or prompt tuning, whose
    template places the virtual tokens, Liu et al. 2021, https://arxiv.org/abs/2103.10385
    """

    method: Method = DEFAULT_METHOD
    """What is trained."""
    template: str = ""
    """The text with a blank; default: the method's own, else a published one for the data, else a plain one."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: published ones, else the class names."""
    scoring: Literal["likelihood", "probability", "logit"] = "likelihood"
    """Score of a class with several words, or words of several tokens; see LabelWords."""

    trains: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def __repr__(self) -> str:
        """The tuning method always; alone where its own template says that it trains through label words."""
        others = {name: getattr(self, name) for name in ("template", "words", "scoring")}
        changed = [f"{name}={value!r}" for name, value in others.items() if value != getattr(type(self), name)]
        return repr(self.method) if self.method.input_template and not changed else self._text(changed)

    def _text(self, changed: list[str]) -> str:
        return f"Cloze({', '.join([repr(self.method), *changed])})"

    def check(self) -> None:
        if isinstance(self.method, PromptMethod):
            raise DeltatuneError(
                f"Cloze trains a tuning method such as LoRA(r=8), and {self.method!r} is a prompting method"
            )
        if self.template and self.method.input_template:
            raise DeltatuneError(f"Cloze: {self.method!r} has a template already; give one of the two")

    @property
    def inner(self) -> Method:
        return self.method

    @property
    def label(self) -> str:
        return f"{self.method.label}, label words"

    def check_task(self, task: Task) -> None:
        check_classes(self, task)

    def prompt(self, session: Session, options: PromptOptions = NO_OPTIONS) -> LabelWords:
        """The task of this prompt, from the classes of the session's task."""
        return label_words_task(
            check_classes(self, session.task), session.host.model.config, options,
            self.template or self.method.input_template, self.words, scoring=self.scoring,
        )  # fmt: skip

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        check_prompt(session, self.method, self.prompt(session, options), rows)

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
        **more: Any,
    ) -> Fitted:
        """As every method's; `more` goes to `Session.train`: with out= the training is resumed."""
        task = self.prompt(session, options)
        own = replace(session, task=task, head={})
        own.attach(with_token_ids(self.method, session.tokenizer, task), settings.seed, head=False)
        try:
            outcome = own.train(rows.train, rows.validation, settings, on_step=on_step, **more)
        except BaseException:
            own.detach()
            raise
        return Fitted(own, outcome, (prompt_text(task),))


def as_prompt_method(text: str | Method) -> Method:
    """A method as it runs: one whose template places its virtual tokens trains through label words."""
    method = parse(text)
    return Cloze(method) if method.input_template and not isinstance(method, PromptMethod) else method


def prompt_text(task: LabelWords | GenerateInContext) -> str:
    """A prompt for people: its texts, or on one line its template and words."""
    if isinstance(task, GenerateInContext):
        return shown_prompt(task)
    words = ", ".join(f"{label}: {'/'.join(of)}" for label, of in zip(task.labels[:8], task.words, strict=False))
    return f"{task.template!r} with {words}{', ...' if len(task.labels) > 8 else ''}"
