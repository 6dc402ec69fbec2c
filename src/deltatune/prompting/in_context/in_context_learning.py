"""In-context learning: labelled rows are shown in the prompt, and nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import at_least, at_most
from deltatune.core.trained_rows import TrainedRows
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, label_words_task
from deltatune.prompting.in_context.content_free import CONTENT_FREE, with_sets
from deltatune.prompting.in_context.demonstrations import (
    Labels,
    Look,
    draw_demonstrations,
    longest_demonstrations,
    pool_of,
    shown_texts,
    usable_rows,
    with_label_first,
    with_room,
)
from deltatune.prompting.in_context.order_trials import (
    Trial,
    best_trial,
    random_orders,
    some_rows,
    spread_note,
    trial,
)
from deltatune.prompting.in_context.reading_adapter import attach_reader, reader_notes
from deltatune.prompting.in_context.text_demonstrations import (
    demonstrated_prompt,
    fit_nearest,
    fit_shared,
    usable_text_rows,
)
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows
from deltatune.prompting.text_prompts import writes_texts
from deltatune.prompting.zero_shot import check_classes, prompt_text
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.label_words.label_words import LabelWords, Scoring
from deltatune.tasks.label_words.nearest_demonstrations import NearestDemonstrations, NearestOrder
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.task import Row, Task
from deltatune.training.session import Session
from deltatune.training.settings import Settings

NEAREST_ORDERS: tuple[NearestOrder, ...] = ("nearest-last", "nearest-first", "by-class", "random")
PROMPTS_SHOWN = 3
"""Sets of demonstrations that are shown to people."""
NEAREST_LOOK = 20
"""Rows that are looked at for room where each row's demonstrations take a pass of the model to find."""


@dataclass(frozen=True)
class ICL(PromptMethod):
    """argmax over classes y of log p(y | (x_1, y_1), ..., (x_k, y_k), x) - log p_cf(y); nothing is trained

    Brown et al. 2020, https://arxiv.org/abs/2005.14165; p_cf is contextual calibration, Zhao et al. 2021,
    https://arxiv.org/abs/2102.09690
    """

    shots: int = 4
    """Demonstrations in all, not for each class: labelled training rows that are shown with every text."""
    select: Literal["auto", "balanced", "random", "nearest"] = "auto"
    """`balanced`: drawn, as many of each class but for one; `random`: drawn; `nearest`: for each text those with the
    most similar texts (Liu et al. 2022, https://arxiv.org/abs/2101.06804). auto: balanced, random for texts as
    answers."""
    order: Literal["auto", "random", "given", "by-class", "search", "nearest-last", "nearest-first"] = "auto"
    """`random`: as drawn; `given`: as in the data; `search`: the best of several random orders on the validation rows
    (Lu et al. 2022, https://arxiv.org/abs/2104.08786). auto: nearest-last for `nearest`, else random."""
    sets: int = 1
    """Draws, each in a prompt of its own; the answers are averaged."""
    calibration: Literal["auto", "content-free", "none"] = "auto"
    """Whether what a text without content gets is divided out. auto: for classes, but not with scoring="channel"."""
    labels: Labels = "gold"
    """Labels of the demonstrations: `gold`; `random` ones; `none`, only the texts; `only` the labels without a text
    (Min et al. 2022, https://arxiv.org/abs/2202.12837)."""
    format: str = "same"
    """Template of the demonstrations: the same as the text's, or another one."""
    template: str = ""
    """The text with a blank: "{text} It was {mask}."; default: a published one for the data, else a plain one.
    For texts as answers it ends where they begin: "English: {text}\\nFrench:"; default: the task's own prompt."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: published ones, else the class names."""
    scoring: Scoring = "likelihood"
    """Score of a class, see LabelWords; `channel`: p(x | y), each demonstration with its label first."""
    separator: str = "\n\n"
    """Text between demonstrations, before which a written answer ends; masked models have their separator token."""
    length: int = 0
    """Longest demonstration in tokens: texts of longer ones are cut, never the answer. 0 cuts none."""
    orders: int = 8
    """Orders that are tried for order="search"."""
    scored: int = 200
    """Validation rows that score orders and sets, drawn by the seed."""
    pool: int = 1000
    """Training rows that `nearest` chooses from, drawn by the seed; they are stored with the prompt."""
    encoder: str = ""
    """Folder of the model that compares texts for `nearest`; default: the model itself, without its prompt."""
    adapter: str = ""
    """Folder of a trained adapter that reads the prompt, such as one of MetaICL."""

    draws: ClassVar[bool] = True

    def check(self) -> None:
        at_least(self, shots=1, sets=1, length=0, orders=2, scored=1, pool=2)
        at_most(self, sets=1000, orders=1000)
        problems = []
        if self.select == "nearest":
            if self.order not in ("auto", *NEAREST_ORDERS):
                problems.append(f"order={self.order!r} is for one set for all texts; here: {', '.join(NEAREST_ORDERS)}")
            if self.sets > 1:
                problems.append("sets are draws, and the nearest rows are not drawn: leave sets out")
            if self.pool <= self.shots:
                problems.append(f"pool={self.pool} must be more rows than shots={self.shots}")
        elif self.order.startswith("nearest"):
            problems.append(f"order={self.order!r} is for select='nearest'")
        if self.encoder and self.select != "nearest":
            problems.append("encoder compares texts for select='nearest'")
        if self.calibration == "content-free" and self.scoring == "channel":
            problems.append(
                "calibration='content-free' divides probabilities of classes, which scoring='channel' lacks"
            )
        if not self.format.strip():
            problems.append("format is 'same' or a template with a blank")
        raise_all(problems, f"{self!r}:" if problems else "")

    @property
    def label(self) -> str:
        return "In-context learning"

    def check_task(self, task: Task) -> None:
        if not writes_texts(task):
            check_classes(self, task)

    @property
    def calibrates(self) -> bool:
        """Whether the scores of classes are calibrated."""
        return self.calibration != "none" and self.scoring != "channel"

    # --- the prompt, before any demonstration

    def prompt(self, session: Session, options: PromptOptions = NO_OPTIONS) -> LabelWords | GenerateInContext:
        """The task of this prompt without demonstrations, from the columns and classes of the session's task."""
        if writes_texts(session.task):
            return demonstrated_prompt(self, session.task, options)
        task = label_words_task(
            check_classes(self, session.task), session.host.model.config, options, self.template, self.words,
            separator=self.separator,
        )  # fmt: skip
        template = with_label_first(task.template) if self.scoring == "channel" else task.template
        task = replace(task, template=template, scoring=self.scoring)
        raise_all([
            f"the template {each.text!r} has virtual tokens, which demonstrations in text cannot show; use Cloze"
            for each in (*task.templates, *([] if self.format == "same" else [Template(self.format)]))
            if any(part.kind in ("virtual", "ids") for part in each.parts)
        ])  # fmt: skip
        return task

    def shown_template(self, task: LabelWords) -> Template:
        """The template of the demonstrations. Raises DeltatuneError for one with other columns than the data."""
        if self.format == "same":
            return task.templates[0]
        return replace(task, template=self.format, more_templates=()).templates[0]  # its columns are checked there

    def _look(self, session: Session, seed: int) -> Look:
        return Look(self.labels, seed, session.tokenizer, self.length)

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        task = self.prompt(session, options)
        found = attach_reader(session, self, self.adapter, task, 0)
        try:
            usable = shown_rows(task, rows.train)
            self._numbers(task, usable, 0, 0)
            if self.order == "search":
                self._check_validation(rows.validation)
            found.encode(rows.train[:1])
        finally:
            found.detach()

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        task = self.prompt(session, options)
        found = attach_reader(session, self, self.adapter, task, settings.seed)
        try:
            of_adapter = reader_notes(found, self.adapter, self.scoring)
            usable = shown_rows(task, rows.train)
            if isinstance(task, GenerateInContext):
                fitted, known = self._texts(found, task, usable, rows.validation, settings.seed)
            elif self.select == "nearest":
                fitted, known = self._nearest(found, task, usable, settings.seed)
            else:
                fitted, known = self._drawn(found, task, usable, rows.validation, settings.seed)
            notes = [*of_adapter, *fitted.notes, *self._room_notes(fitted.session, rows)]
        except BaseException:
            found.detach()
            raise
        before = found.adapter.trained_rows if self.adapter else TrainedRows()
        found.adapter.trained_rows = (before or TrainedRows(complete=False)).with_rows(
            row_hashes(task, known), row_hashes(task, rows.validation if fitted.trials else [])
        )
        if self.format != "same":
            notes.insert(0, "the demonstrations have another template than the text that is asked about")
        if left_out := len(rows.train) - len(usable):
            what = "an answer" if isinstance(task, GenerateInContext) else "a known class"
            notes.insert(0, f"{left_out} training rows without a text or {what} are not shown")
        return replace(fitted, notes=tuple(notes))

    def _room_notes(self, session: Session, rows: PromptRows) -> tuple[str, ...]:
        """How many of the validation or training rows have no room for all demonstrations."""
        number = NEAREST_LOOK if self.select == "nearest" else self.scored
        return session.encode(list(rows.validation or rows.train)[:number], labelled=False).notes

    def _check_validation(self, validation: Sequence[Row]) -> None:
        if not validation:
            raise DeltatuneError(f"{self!r}: order='search' needs validation rows, and there are none")

    # --- one set for all texts

    def _texts(
        self, found: Session, task: GenerateInContext, rows: Sequence[Row], validation: Sequence[Row], seed: int
    ) -> tuple[Fitted, list[Row]]:
        if self.select == "nearest":
            chosen = [rows[i] for i in sorted(self._numbers(task, rows, seed, 0))]
            return fit_nearest(self, found, chosen, len(rows), seed)
        if self.order == "search":
            self._check_validation(validation)
        return fit_shared(self, found, rows, validation, seed)

    def _numbers(self, task: Task, rows: Sequence[Row], seed: int, number: int) -> list[int]:
        if self.select == "nearest":
            if len(rows) <= self.shots:
                raise DeltatuneError(
                    f"the {self.shots} nearest are asked for, and {len(rows)} training rows can be shown: there must "
                    "be more, since a row is not shown to itself"
                )
            return torch.randperm(len(rows), generator=generator_for(seed, "pool")).tolist()[: self.pool]
        balanced = self.select != "random" and isinstance(task, LabelWords)
        numbers = draw_demonstrations(task, rows, self.shots, balanced, seed, number)
        if self.order == "given":
            numbers.sort()
        elif self.order == "by-class":
            numbers.sort(key=lambda i: task.labels.index(str(rows[i][task.label])))
        return numbers

    def _drawn(
        self, found: Session, task: LabelWords, rows: Sequence[Row], validation: Sequence[Row], seed: int
    ) -> tuple[Fitted, list[Row]]:
        template = self.shown_template(task)
        draws, known = [], []
        for number in range(self.sets):
            chosen = [rows[i] for i in self._numbers(task, rows, seed, number)]
            draws.append(tuple(shown_texts(task, chosen, template, self._look(found, seed), number)))
            known += chosen
        longest = max(longest_demonstrations(shown, len(shown), task, found) for shown in draws)
        roomy = replace(found, task=with_room(task, found, longest))
        scored = some_rows(validation, self.scored, seed)
        trials: list[Trial] = []
        if self.order == "search":
            self._check_validation(validation)
            for number, shown in enumerate(draws):
                of_set = f"set {number + 1}, " if self.sets > 1 else ""
                tried = [
                    trial(roomy, f"{of_set}order {place}", order, scored, self.calibrates)
                    for place, order in enumerate(random_orders(shown, self.orders, seed, number), 1)
                ]
                trials += tried
                draws[number] = best_trial(tried).shown
        elif self.sets > 1 and scored:
            trials = [trial(roomy, f"set {n}", shown, scored, self.calibrates) for n, shown in enumerate(draws, 1)]
        final = with_sets(roomy, draws, self.calibrates)
        prompts = (prompt_text(final.task), *(task.separator.join(shown) for shown in draws[:PROMPTS_SHOWN]))  # type: ignore[arg-type]
        notes = [spread_note(trials, len(scored), task.metric)] if trials else []
        unseen = [label for label in task.labels if label not in {row[task.label] for row in known}]
        if unseen and self.labels in ("gold", "only"):
            notes.append(
                f"{len(unseen)} of {len(task.labels)} classes are in no demonstration: {', '.join(unseen[:4])}"
                f"{', ...' if len(unseen) > 4 else ''}; shots={len(task.labels)} shows one of each"
            )
        scores = tuple((each.name, each.score) for each in trials)
        return Fitted(final, prompts=prompts, trials=scores, notes=tuple(notes)), known

    # --- a set for each text

    def _nearest(self, found: Session, task: LabelWords, rows: Sequence[Row], seed: int) -> tuple[Fitted, list[Row]]:
        chosen = [rows[i] for i in sorted(self._numbers(task, rows, seed, 0))]
        pool = pool_of(task, chosen, self.shown_template(task), self._look(found, seed))
        order: NearestOrder = "nearest-last" if self.order == "auto" else self.order  # type: ignore[assignment]
        shared = ("labels", "text", "label", "max_length", "metric", "too_long", "positive", "template", "words")
        own = NearestDemonstrations(
            **{name: getattr(task, name) for name in shared},
            scoring=task.scoring,
            separator=task.separator,
            pool=pool,
            shots=self.shots,
            order=order,
            encoder=self.encoder,
            content_free=CONTENT_FREE if self.calibrates else (),
            seed=seed,
        )
        tokens = longest_demonstrations([shown for shown, *_ in pool], self.shots, task, found)
        final = replace(found, task=with_room(own, found, tokens))
        notes = []
        if len(rows) > len(chosen):
            notes.append(f"the nearest are chosen from {len(chosen)} of {len(rows)} training rows; pool= sets how many")
        prompt = f"{prompt_text(task)}, after the {self.shots} nearest of {len(pool)} training rows"
        return Fitted(final, prompts=(prompt,), notes=tuple(notes)), chosen


def shown_rows(task: Task, rows: Sequence[Row]) -> list[Row]:
    """The training rows that can be shown. Raises DeltatuneError where there are none."""
    if isinstance(task, GenerateInContext):
        return usable_text_rows(task, rows)
    assert isinstance(task, LabelWords)
    return usable_rows(task, rows)
