"""AutoPrompt: trigger tokens in a template, found by gradients; label words too, by a classifier."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import View, at_least, at_most
from deltatune.models.architecture import family
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, label_words_task
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, attach_prompt
from deltatune.prompting.prompt_search.blank_readings import blank_words, class_numbers, read_blanks, rows_in_turn
from deltatune.prompting.prompt_search.chosen_by_score import Score, choosing_rows, score_of
from deltatune.prompting.prompt_search.label_word_search import fit_classifier, label_token_scores
from deltatune.prompting.prompt_search.trigger_gradients import (
    TRIGGERS,
    TriggerBatch,
    TriggerRows,
    allowed_tokens,
    candidate_tokens,
    with_triggers,
)
from deltatune.prompting.zero_shot import check_classes, prompt_text
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords, as_label_words
from deltatune.tasks.label_words.verbalizer import word_tokens
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Row, Task
from deltatune.tasks.tokenization import not_words, word_of
from deltatune.training.inference.batches import device_of
from deltatune.training.session import Session
from deltatune.training.settings import Settings

START_WORD = "the"
"""What triggers are at first where there is no mask token: Wallace et al. 2019, https://arxiv.org/abs/1908.07125."""
VALIDATION_BATCH = 64
_BLANK = re.compile(r"\{\s*mask\s*\}")


@dataclass(frozen=True)
class AutoPrompt(PromptMethod):
    """tokens t that maximise p(words of the class | text, t), exchanged one by one by -(e_w · ∂loss/∂e_t); none trained

    Shin et al. 2020, https://arxiv.org/abs/2010.15980
    """

    triggers: int = 3
    """Trigger tokens."""
    candidates: int = 10
    """Tokens with the best first-order estimate that are tried at a place."""
    iterations: int = 50
    """Tokens that are tried to be exchanged, one in each iteration. The paper's code takes 100 to 1,000."""
    accumulation: int = 1
    """Batches whose gradients are summed, and as many new ones on which the candidates are compared. Theirs: 10."""
    batch_size: int = 32
    """Rows of a batch."""
    label_tokens: int = 0
    """Label words to find for each class, by a classifier of the states at the blank; 0 takes the words given, or those
    of the classes."""
    template: str = ""
    """The text with {triggers} and a blank; default: the run's template with the triggers before its blank, else
    "{text} {triggers} {mask} .", for pairs with the triggers between the texts."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: published ones, else the class names."""
    measure: Literal["likelihood", "accuracy"] = "likelihood"
    """What a candidate must raise on the training rows: the likelihood of the words, as in the paper, or the accuracy,
    as in its code, in which few rows have many equal candidates."""
    tokens: Literal["lower-case", "any"] = "lower-case"
    """Which tokens may be triggers; never special tokens or label words. `lower-case` leaves out capitals: names."""

    view: ClassVar[View] = View("x ← template(x, t)", "none", "the text", "replace")
    draws: ClassVar[bool] = True

    def check(self) -> None:
        at_least(self, triggers=1, candidates=1, iterations=0, accumulation=1, batch_size=1, label_tokens=0)
        at_most(self, triggers=1000, accumulation=1000)
        if self.label_tokens and self.words:
            raise DeltatuneError(
                "AutoPrompt: label_tokens finds the words of the classes; leave words out, or set it to 0"
            )
        if self.template and self.template.count(TRIGGERS) != 1:
            raise DeltatuneError(
                f"AutoPrompt(template={self.template!r}): a template has {TRIGGERS} once, where they stand, as in "
                f"'{{text}} {TRIGGERS} {{mask}} .'"
            )

    def check_task(self, task: Task) -> None:
        check_classes(self, task)

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        classify = check_classes(self, session.task)
        template = self.template_for(session, classify, options)
        if not self.label_tokens:
            start = with_triggers(self._with_words(session, classify, options), template, [0] * self.triggers)
            attached = attach_prompt(session, self, start)
            try:
                attached.encode(rows.train[:1])
            finally:
                attached.detach()

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        classify = check_classes(self, session.task)
        template = self.template_for(session, classify, options)
        ids = self.start_ids(session)
        task = with_triggers(self._with_words(session, classify, options), template, ids)
        own = attach_prompt(session, self, task, settings.seed)
        try:
            rows_in_turn(task, rows.train)  # raises for classes without rows
            if self.label_tokens:
                task = replace(task, words=self.find_label_words(own, task, rows.train))
            search = TriggerSearch(self, own, task, template, rows, settings.seed)
            trials = list(search.run(ids, on_step))
        except BaseException:
            own.detach()
            raise
        best = max(trials, key=lambda trial: trial[1])  # the first of equals
        found = replace(own, task=with_triggers(task, template, best[0]))
        texts = tuple(
            (readable(session, with_triggers(task, template, tried)), score.metric) for tried, score in trials
        )
        return Fitted(found, None, (readable(session, found.task),), texts, search.notes)

    def template_for(self, session: Session, task: Classify, options: PromptOptions = NO_OPTIONS) -> str:
        """The template, with {triggers}. Raises DeltatuneError for one that a left-to-right model cannot read."""
        decoder = family(session.host.model.config) == "decoder"  # type: ignore[arg-type]
        given = self.template or options.template
        if given and TRIGGERS not in given:
            given = _BLANK.sub(f"{TRIGGERS} {{mask}}", given, count=1)
        if given:
            if decoder and given.find(TRIGGERS) > given.find("{mask}") >= 0:
                raise DeltatuneError(
                    f"AutoPrompt(template={given!r}): the triggers stand behind the blank, and a left-to-right "
                    f"model reads only what is before it; put {TRIGGERS} first"
                )
            return given
        first, *others = [f"{{{name}}}" for name in task.text]
        if decoder or not others:
            return " ".join([first, *others, TRIGGERS, "{mask}"]) + ("" if decoder else " .")
        return " ".join([first, "{mask}", TRIGGERS, *others])

    def start_ids(self, session: Session) -> list[int]:
        """The triggers at first: mask tokens, or the word "the" for a model without them."""
        tokenizer = session.tokenizer
        if tokenizer.mask_token_id is not None:
            return [int(tokenizer.mask_token_id)] * self.triggers
        ids = tokenizer(f" {START_WORD}", add_special_tokens=False, verbose=False)["input_ids"]
        return [int(ids[-1]) if ids else 0] * self.triggers

    def _with_words(self, session: Session, task: Classify, options: PromptOptions) -> LabelWords:
        """The task with the words of the classes, or with any where they are still to be found."""
        plain = " ".join(f"{{{name}}}" for name in task.text) + " {mask}"
        if not self.label_tokens:
            return label_words_task(task, session.host.model.config, options, plain, self.words, scoring="probability")
        words = [*blank_words(session.tokenizer, Template(plain), session.host.sites.facts.vocabulary).values()]
        needed = self.label_tokens * len(task.labels)
        if len(words) < needed:
            raise DeltatuneError(
                f"AutoPrompt(label_tokens={self.label_tokens}): {len(task.labels)} classes need {needed} words, and "
                f"this tokenizer has {len(words)} of one token; ask for fewer"
            )
        return as_label_words(
            task, template=plain, words=tuple((word,) for word in words[: len(task.labels)]), scoring="probability"
        )

    def find_label_words(self, session: Session, task: LabelWords, rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
        """The words of each class by the classifier of Shin et al. 2020, section 2.3, on the states at the blank.

        A word goes to the class that it scores highest for. Raises DeltatuneError where a class gets none.
        """
        vocabulary = session.host.sites.facts.vocabulary
        words = blank_words(session.tokenizer, task.templates[0], vocabulary)
        chosen, columns = rows_in_turn(task, rows), list(words)
        states = read_blanks(session, task, chosen, columns[:1]).states
        weights = fit_classifier(states, class_numbers(task, chosen), len(task.labels))
        head = session.host.model.get_output_embeddings()  # type: ignore[operator]
        scores = label_token_scores(weights, head.weight.detach().cpu()[torch.tensor(columns)])  # (C, W)
        owner = scores.argmax(0)
        found = []
        for number in range(len(task.labels)):
            own = scores[number].masked_fill(owner != number, -torch.inf)
            count = min(self.label_tokens, int((owner == number).sum()))
            found.append(tuple(words[columns[int(place)]] for place in own.topk(count).indices))
        raise_all([
            f"no word was found for the class {label!r}; give the words (--words)"
            for label, of_class in zip(task.labels, found, strict=True)
            if not of_class
        ])  # fmt: skip
        return tuple(found)


class TriggerSearch:
    """One search for triggers on rows; every draw depends on the seed alone."""

    def __init__(
        self, method: AutoPrompt, session: Session, task: LabelWords, template: str, rows: PromptRows, seed: int
    ) -> None:
        self.method, self.session = method, session
        choosing, self.notes = choosing_rows(rows, "the triggers")
        self.rows = TriggerRows(session, task, template, method.triggers, rows.train)
        judged = TriggerRows(session, task, template, method.triggers, choosing)
        self.judged, self.validation = judged, list(judged.in_order(VALIDATION_BATCH))
        self.order, self.places = (generator_for(seed, f"autoprompt.{name}") for name in ("rows", "places"))
        self.allowed = allowed_tokens(
            session.host.sites.facts.vocabulary, self._refused(task, template), device_of(session.host)
        )
        if not bool(self.allowed.any()):
            raise DeltatuneError("no token of this tokenizer may be a trigger; choose AutoPrompt(tokens='any')")

    def run(self, start: Sequence[int], on_step: OnProgress | None = None) -> Iterator[tuple[list[int], Score]]:
        """Each set of triggers that was kept, with its score on the validation rows; the first are the given ones."""
        method, host = self.method, self.session.host
        triggers = torch.tensor(start, device=self.allowed.device)
        batches = self._batches()
        with host.using({self.session.name: 1.0}, training=False):
            yield triggers.tolist(), self._validated(triggers)
            for iteration in range(method.iterations):
                gradients, loss = self.rows.gradients(self._next(batches), triggers)
                place = int(torch.randint(method.triggers, (1,), generator=self.places))
                tried = candidate_tokens(host, gradients, place, self.allowed, method.candidates)
                better = self._best(self._next(batches), triggers, place, tried)
                if on_step is not None:
                    on_step(iteration + 1, method.iterations, loss, 0.0)
                if better is not None:
                    triggers = better
                    yield triggers.tolist(), self._validated(triggers)

    @torch.no_grad()
    def _best(
        self, batches: Sequence[TriggerBatch], triggers: Tensor, place: int, tried: Sequence[int]
    ) -> Tensor | None:
        """The triggers with the best of the tokens tried, the first of equals; None if none is better than these."""
        best, highest = None, self._measure(batches, triggers)
        for token in tried:
            changed = triggers.clone()
            changed[place] = token
            value = self._measure(batches, changed)
            if value > highest:
                best, highest = changed, value
        return best

    def _measure(self, batches: Sequence[TriggerBatch], triggers: Tensor) -> float:
        """What the search raises, summed over the rows."""
        total = 0.0
        for batch in batches:
            scores = self.rows.scores(batch, triggers)
            if self.method.measure == "accuracy":
                total += float((scores.argmax(1) == batch.labels).sum())
            else:
                total += float(scores.gather(1, batch.labels[:, None]).double().sum())
        return total

    @torch.no_grad()
    def _validated(self, triggers: Tensor) -> Score:
        scores = torch.cat([self.judged.scores(batch, triggers) for batch in self.validation])
        return score_of(self.judged.task, scores.float().cpu().numpy(), self.judged.references)

    def _batches(self) -> Iterator[TriggerBatch]:
        """Batches of shuffled rows without end; where one holds all rows it is made once."""
        count, size = len(self.rows), self.method.batch_size
        if count <= size:
            whole = self.rows.batch(range(count))
            while True:
                yield whole
        while True:
            order = torch.randperm(count, generator=self.order).tolist()
            for start in range(0, count - count % size, size):
                yield self.rows.batch(order[start : start + size])

    def _next(self, batches: Iterator[TriggerBatch]) -> list[TriggerBatch]:
        whole = len(self.rows) <= self.method.batch_size  # the same rows again would change nothing
        return [next(batches) for _ in range(1 if whole else self.method.accumulation)]

    def _refused(self, task: LabelWords, template: str) -> set[int]:
        """Tokens that are no triggers: special ones, tokens of label words, unreadable ones, and capitals."""
        tokenizer, vocabulary = self.session.tokenizer, self.session.host.sites.facts.vocabulary
        refused = set(not_words(tokenizer, vocabulary))
        words = Template(template.replace(TRIGGERS, " "))
        refused.update(token for ids in word_tokens(task.words, words, tokenizer) for token in ids)
        for token in range(min(vocabulary, len(tokenizer))):
            text = "" if token in refused else word_of(tokenizer, token)
            if not text or "\ufffd" in text or (self.method.tokens == "lower-case" and text != text.lower()):
                refused.add(token)
        return refused


def readable(session: Session, task: Any) -> str:
    """A prompt on one line, for people, with the text of its tokens."""
    text = prompt_text(task)
    for part in Template(task.template).parts:
        if part.kind == "ids":
            text = text.replace("{ids:" + part.text + "}", "[" + str(session.tokenizer.decode(list(part.ids))) + "]")
    return text
