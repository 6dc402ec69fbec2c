"""LM-BFF: label words and templates searched for, then a tuning method trained through them, with demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method, at_least, at_most
from deltatune.methods.base_weights.unfreeze import Full
from deltatune.models.architecture import family
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, label_words_task, split_words
from deltatune.prompting.default_prompts import default_templates, needs_description
from deltatune.prompting.in_context.demonstrations import training_rows, with_training_demonstrations
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, attach_prompt
from deltatune.prompting.prompt_search.blank_readings import blank_words, rows_in_turn
from deltatune.prompting.prompt_search.chosen_by_score import ScoredPrompt, choosing_rows, score_of, try_all
from deltatune.prompting.prompt_search.label_word_search import search_label_words
from deltatune.prompting.prompt_search.template_generation import (
    Generator,
    check_config,
    load_generator,
    write_templates,
)
from deltatune.prompting.prompt_search.template_rules import rule_templates
from deltatune.prompting.prompt_search.template_search import given_tasks, with_templates
from deltatune.prompting.published_prompts import find_prompts, with_columns
from deltatune.prompting.zero_shot import Cloze, check_classes, prompt_text
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords, as_label_words
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Encoded, Row
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session
from deltatune.training.settings import Settings
from deltatune.training.train_adapter import Outcome

FULL = Full()


@dataclass(frozen=True)
class LMBFF(Cloze):
    """words and templates searched for on few rows, then cross-entropy over the words' scores, after demonstrations

    Gao et al. 2021, https://arxiv.org/abs/2012.15723
    """

    method: Method = FULL
    """What is trained; the whole model in the paper."""
    search: Literal["words", "templates", "both", "none"] = "words"
    """What is searched for: label words in a template, templates for the words, templates and then words; nothing."""
    demonstrations: bool = True
    """Whether every row comes with a demonstration of each class, out of the most similar half of its training rows."""
    sets: int = 16
    """Draws of demonstrations in prediction, whose scores are averaged."""
    generator: str = ""
    """Folder of an encoder-decoder such as T5 that writes templates; without one the published templates, plain ones
    and those made by rules are compared."""
    beams: int = 20
    """Templates that the generator writes for each place of the blank. The paper: 100."""
    likely: int = 100
    """Likeliest words of each class that are paired with those of the others."""
    neighbors: int = 30
    """Of the likeliest words only as many as are nearest to the class's own words, where it has any, by the cosine of
    their output vectors; 0 takes all. The paper takes all of two classes, and 30 of more."""
    candidates: int = 10
    """Pairings, and templates, that are compared on the validation rows. The paper: 100."""
    search_steps: int = 0
    """Steps that each of them is trained for before it is compared; 0 compares them untrained. The paper: 1000."""

    @property
    def label(self) -> str:
        return f"LM-BFF, {self.method.label}"

    def check(self) -> None:
        at_least(self, sets=1, beams=1, likely=1, neighbors=0, candidates=1, search_steps=0)
        at_most(self, sets=1000, beams=1000)
        problems = []
        if isinstance(self.method, PromptMethod):
            problems.append(f"it trains a tuning method such as LoRA(r=8), and {self.method!r} is a prompting method")
        elif self.method.input_template:
            problems.append(f"{self.method!r} places virtual tokens by a template of its own; train it with Cloze")
        if self.search in ("words", "both") and self.words and not self.neighbors:
            problems.append(f"search={self.search!r} finds the words; leave words out, or give neighbors")
        if self.search in ("templates", "both") and self.template:
            problems.append(f"search={self.search!r} finds the template; leave template out, or search='words'")
        if self.generator and self.search not in ("templates", "both"):
            problems.append(f"a generator writes templates, and search={self.search!r} takes none: search='templates'")
        raise_all(problems, "LMBFF:" if problems else "")

    def prompt(self, session: Session, options: PromptOptions = NO_OPTIONS) -> LabelWords:
        """The prompt before the search, from the classes of the session's task."""
        task = check_classes(self, session.task)
        if self.search in ("words", "both") and not self._has_words(session, task, options):
            return self._any_words(session, task, options)
        return label_words_task(
            task, session.host.model.config, options, self.template, self.words, scoring=self.scoring
        )

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        super().check_session(session, rows, options)
        if self.generator:
            check_config(self.generator, "generator")

    def _has_words(self, session: Session, task: Classify, options: PromptOptions) -> bool:
        """Whether words are known before they are searched for."""
        left_to_right = family(session.host.model.config) == "decoder"  # type: ignore[arg-type]
        published = find_prompts(task.labels, len(task.text), options.data, left_to_right)
        return bool(split_words(self.words) or options.words or options.describe or published) or not (
            needs_description(task.labels)
        )

    def _any_words(self, session: Session, task: Classify, options: PromptOptions) -> LabelWords:
        """A prompt with any words, for a search that will find them."""
        left_to_right = family(session.host.model.config) == "decoder"  # type: ignore[arg-type]
        template = self.template or options.template
        if not template:
            published = find_prompts(task.labels, len(task.text), options.data, left_to_right)
            named = [with_columns(template, task.text, each.texts) for each in published for template in each.templates]
            template = [*named, *default_templates(task.text, left_to_right)][0]
        found = blank_words(session.tokenizer, Template(template), session.host.sites.facts.vocabulary)
        words = [*found.values()][: len(task.labels)]
        if len(words) < len(task.labels):
            raise DeltatuneError(
                f"{len(task.labels)} classes need a word each, and this tokenizer has {len(words)} words of one token; "
                "give the words and choose search='none'"
            )
        return as_label_words(task, template=template, words=tuple((word,) for word in words), scoring=self.scoring)

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
        **more: Any,
    ) -> Fitted:
        task = self.prompt(session, options)
        rows_in_turn(task, rows.train)  # raises for classes without rows
        generator = load_generator(self.generator) if self.generator else None
        trials: list[ScoredPrompt] = []
        notes: tuple[str, ...] = ()
        if self.search != "none":
            choosing, notes = choosing_rows(rows, "the prompt")
            known = self._has_words(session, check_classes(self, session.task), options)
            search = PromptComparison(self, session, rows.train, choosing, settings, known)
            if self.search == "words" or not known:
                trials += search.words(task)
                task = trials[0].task
            if self.search in ("templates", "both"):
                given = (
                    given_tasks(session, check_classes(self, session.task), options, self.words, (), self.scoring)
                    if known
                    else [task]
                )
                trials = search.templates(given, generator) + trials
                task = trials[0].task
            if self.search == "both" and known:
                trials = sorted([*search.words(task), *trials], key=lambda trial: trial.score, reverse=True)
                task = trials[0].task  # the words that the template was chosen with are among them
        own, outcome, of_room = self._train(session, task, rows, settings, on_step, **more)
        texts = tuple((prompt_text(trial.task), trial.score.metric) for trial in trials)
        return Fitted(own, outcome, (prompt_text(task),), texts, (*notes, *of_room))

    def _train(
        self,
        session: Session,
        task: LabelWords,
        rows: PromptRows,
        settings: Settings,
        on_step: OnProgress | None,
        **more: Any,
    ) -> tuple[Session, Outcome, tuple[str, ...]]:
        """The session with its adapter attached, the training, and how many rows have no room for demonstrations."""
        own = replace(session, task=task, head={})
        own.attach(with_token_ids(self.method, session.tokenizer, task), settings.seed, head=False)
        try:
            train: Sequence[Row] | Encoded = rows.train
            notes: tuple[str, ...] = ()
            if self.demonstrations:
                own = replace(own, task=with_training_demonstrations(task, rows.train, own, self.sets, settings.seed))
                train = training_rows(own, rows.train)
                notes = train.notes
            return own, own.train(train, rows.validation, settings, on_step=on_step, **more), notes
        except BaseException:
            own.detach()
            raise


@dataclass(frozen=True)
class PromptComparison:
    """Prompts compared on the validation rows, as they are or after a short training."""

    method: LMBFF
    session: Session
    train: Sequence[Row]
    choosing: Sequence[Row]
    settings: Settings
    known: bool
    """Whether the words of the classes are known before the search."""

    def words(self, task: LabelWords) -> list[ScoredPrompt]:
        """Label words for the template of a prompt, the best first."""
        neighbors = self.method.neighbors if self.known else 0
        own = attach_prompt(self.session, self.method, task, self.settings.seed)
        try:
            found = search_label_words(own, task, self.train, self.method.likely, self.method.candidates, neighbors)
        finally:
            own.detach()
        return self.compared([replace(task, words=words) for words, _ in found])

    def templates(self, given: Sequence[LabelWords], generator: Generator | None) -> list[ScoredPrompt]:
        """Templates for the words of the first of these prompts, the best first: these too."""
        left_to_right = family(self.session.host.model.config) == "decoder"  # type: ignore[arg-type]
        if generator is not None:
            written = write_templates(generator, given[0], self.train, self.method.beams, left_to_right)
            more = [each.template for each in written]
        else:
            more = rule_templates(given[0].text, left_to_right)
        return self.compared(with_templates(given, more))

    def compared(self, tasks: Sequence[LabelWords]) -> list[ScoredPrompt]:
        """The prompts with their scores, the best first; with `search_steps` the first `candidates` of them trained."""
        own = attach_prompt(self.session, self.method, tasks[0], self.settings.seed)
        try:
            trials, _ = try_all(own, tasks, self.choosing)
        finally:
            own.detach()
        if not self.method.search_steps:
            return trials
        trained = [self.trained(trial.task) for trial in trials[: self.method.candidates]]
        return sorted(trained, key=lambda trial: trial.score, reverse=True)

    def trained(self, task: LabelWords) -> ScoredPrompt:
        """A prompt with its score after a short training, of which nothing else is kept."""
        own = replace(self.session, task=task, head={})
        short = replace(self.settings, max_steps=self.method.search_steps, evaluate="end", report_to=())
        own.attach(with_token_ids(self.method.method, own.tokenizer, task), self.settings.seed, head=False)
        try:
            own.train(self.train, None, short)
            encoded = own.encode(self.choosing)
            return ScoredPrompt(task, score_of(task, own.predict(encoded), encoded.references))
        finally:
            own.detach()
