"""PromptMethod: what every prompting method does, so that one can be trained, evaluated and compared like any other."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from deltatune.core.delta import Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import PROMPTING_REGISTRY, Method, View
from deltatune.core.sites.site import Site, Sites
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.tasks.task import Row, Task
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome

OnProgress = Callable[[int, int, float, float], None]
"""Called with step, number of steps, loss and learning rate, as `train` does."""


@dataclass(frozen=True)
class PromptRows:
    """The rows that a method may see."""

    train: Sequence[Row]
    """Labelled rows."""
    validation: Sequence[Row] = ()
    """Labelled rows to choose templates, words, orders and rates by."""
    unlabelled: Sequence[Row] = ()
    """Further rows, whose labels are not known."""


@dataclass(frozen=True)
class Fitted:
    """What a method found. Its adapter is attached to the session's host; without tensors where nothing is trained."""

    session: Session
    """The session whose task holds the prompt that was found, and whose adapter what was trained."""
    outcome: Outcome | None = None
    """The training, of the last one where there were several; None where nothing is trained."""
    prompts: tuple[str, ...] = ()
    """The prompts that were found, for people, the one that is used first."""
    trials: tuple[tuple[str, float], ...] = ()
    """What was tried, with the primary metric on the validation rows: the spread over templates, words or orders."""
    notes: tuple[str, ...] = ()
    """What a user must know, in sentences."""


PROMPT_VIEW = View("x ← template(x)", "none", "the text", "replace")
"""The unified view's facts of a method that changes the input alone."""


@dataclass(frozen=True)
class PromptMethod(Method, registry=None):
    """A way to solve a task by the model's input: found, searched or trained, with the model's own head.

    Its adapter has no Deltas of its own; methods that train wrap a tuning method, whose adapter is the result. The task
    of the result holds the template, the label words and the demonstrations.
    """

    trains: ClassVar[bool] = False
    """Whether a learning rate has to be chosen; a property where that depends on the fields."""
    draws: ClassVar[bool] = False
    """Whether the result depends on the seed or on the training rows."""
    reads_mixtures: ClassVar[bool] = False
    """Whether it learns from several data sets."""
    reads_unlabelled: ClassVar[bool] = False
    """Whether it learns from rows whose labels are not known."""
    starts_as_base: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__(registry=PROMPTING_REGISTRY)

    @abstractmethod
    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        """Find the prompt on these rows, and train where the method trains; an adapter of this session is attached.

        `settings` has the seed and the learning rate. Raises DeltatuneError for a task or a model that it is not for,
        with no adapter attached.
        """

    def check_task(self, task: Task) -> None:
        """Raise DeltatuneError for a task that it is not for, before anything runs."""

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        """Raise DeltatuneError for what can be known before anything runs: the task, the prompt, the tuning method.

        No adapter stays attached.
        """
        self.check_task(session.task)
        if self.inner is not None:
            session.attach(with_token_ids(self.inner, session.tokenizer, session.task), 0, head=False)
            session.detach()

    @property
    def inner(self) -> Method | None:
        """The tuning method that is trained; None where nothing is."""
        return None

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """That of the tuning method."""
        return Method.learning_rate if self.inner is None else self.inner.learning_rate

    @property
    def view(self) -> View:  # type: ignore[override]
        """That of the tuning method."""
        return PROMPT_VIEW if self.inner is None else self.inner.view

    @property
    def size(self) -> int | None:
        """That of the tuning method."""
        return None if self.inner is None else self.inner.size

    def sized(self, size: int) -> Method:
        """The same with another size of the tuning method, its field `method`."""
        return self if self.inner is None else dataclasses.replace(self, method=self.inner.sized(size))  # type: ignore[call-arg]

    def limit(self, sites: Sites) -> int:
        return super().limit(sites) if self.inner is None else self.inner.limit(sites)

    def pick(self, sites: Sites) -> list[Site]:
        return []

    def build(self, site: Site) -> Delta:
        raise DeltatuneError(f"{self!r} changes no site of the model")

    def count(self, sites: Sites) -> int:
        """Trained parameters: those of the tuning method within it."""
        return self.inner.count(sites) if self.inner is not None else 0


def attach_prompt(session: Session, method: Method, task: Task, seed: int = 0) -> Session:
    """The session with an adapter without tensors attached, whose task holds a prompt."""
    found = dataclasses.replace(session, task=task, head={})
    found.attach(method, seed, head=False)
    return found


def with_stored_task(session: Session, extra: dict[str, Any] | None = None) -> Session:
    """The session, whose adapter's folder will say how to open it again."""
    session.adapter.extra = {**session.adapter.extra, **session.to_json(), **(extra or {})}
    return session
