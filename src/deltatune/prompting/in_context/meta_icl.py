"""MetaICL: training on the demonstrations of many tasks, so that a model learns a new task from those in its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method, at_least
from deltatune.data.mixture_data import PART
from deltatune.methods.low_rank.lora import LoRA
from deltatune.models.architecture import Family, family
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, label_words_task
from deltatune.prompting.default_prompts import needs_description
from deltatune.prompting.in_context.demonstrations import (
    Look,
    draw_demonstrations,
    longest_demonstrations,
    shown_texts,
    usable_rows,
    with_label_first,
    with_room,
)
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows
from deltatune.prompting.zero_shot import prompt_text
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import DEMONSTRATIONS, LabelWords
from deltatune.tasks.label_words.nearest_demonstrations import REDRAW
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.pretraining.objective import Objective
from deltatune.tasks.row_hashes import row_hashes
from deltatune.tasks.task import IGNORED, Encoded, Row, Task, TokenRow
from deltatune.tasks.tokenization import with_token_ids
from deltatune.training.session import Session
from deltatune.training.settings import Settings

DEFAULT_METHOD = LoRA()
NOTED_ROWS = 200
"""Rows of each task that are looked at for room."""
UNNAMED = (
    "the classes {} say nothing in words; write words in their place in the data, or name the part after a published "
    "data set whose classes are numbered so, such as rte=..."
)


@dataclass(frozen=True)
class MetaICL(PromptMethod):
    """Σ -log p(y | x_1, y_1, ..., x_k, y_k, x), demonstrations and row of the same task; channel: -log p(x | ..., y)

    Min et al. 2022, https://arxiv.org/abs/2110.15943; trained on a mixture of classification data sets
    """

    method: Method = DEFAULT_METHOD
    """What is trained; Full() in the paper."""
    shots: int = 8
    """Demonstrations of each row, drawn anew in every epoch out of its own task; 16 in the paper."""
    scoring: Literal["likelihood", "channel"] = "likelihood"
    """`likelihood`: the label behind the text is learned (direct); `channel`: the text behind the label."""
    template: str = ""
    """The text with a blank, for every task: {text} is all columns of a row, one a line. Default: a published template
    for the data, else a plain one."""
    separator: str = "\n\n"
    """Text between demonstrations."""
    length: int = 256
    """Longest demonstration in tokens: texts of longer ones are cut, never the answer."""
    max_length: int = 1024
    """Longest input in tokens; where there is no room for all demonstrations the oldest go."""
    rows: int = 16384
    """Training rows of each task at most; of more, so many are drawn by the seed."""

    trains: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    reads_mixtures: ClassVar[bool] = True

    def check(self) -> None:
        at_least(self, shots=1, length=8, max_length=16, rows=2)
        if isinstance(self.method, PromptMethod):
            raise DeltatuneError(
                f"MetaICL trains a tuning method such as LoRA(r=8) or Full(), and {self.method!r} is a prompting method"
            )
        if self.method.input_template:
            raise DeltatuneError(f"MetaICL: {self.method!r} places its virtual tokens by a template; leave it out")

    # --- the tuning method

    @property
    def inner(self) -> Method:
        return self.method

    @property
    def label(self) -> str:
        return f"MetaICL, {self.method.label}"

    # --- the tasks

    def check_task(self, task: Task) -> None:
        if not isinstance(task, Mixture):
            raise DeltatuneError(
                f"{self!r} learns from several tasks: name their data sets, --data NAME=DATA for each; this task is "
                f"{task.describe()}"
            )
        raise_all([
            f"part {name} is for {part.describe()}; {type(self).__name__} learns classifications with one class a row"
            for name, part in task.parts.items()
            if not isinstance(part, Classify) or part.label_kind != "classes"
        ])  # fmt: skip

    def prompts(self, session: Session, options: PromptOptions = NO_OPTIONS) -> dict[str, LabelWords]:
        """The tasks of the parts as prompts, without demonstrations."""
        self.check_task(session.task)
        if family(session.host.model.config) != "decoder":  # type: ignore[arg-type]
            raise DeltatuneError(f"{self!r} trains left-to-right models; {type(session.host.model).__name__} is none")
        if options.words or options.describe:
            raise DeltatuneError("--words and --describe are for one data set, and MetaICL learns from several")
        tasks, problems = {}, []
        for name, part in session.task.parts.items():  # type: ignore[attr-defined]
            own = replace(options, template=self.template or options.template, data=name)
            own = replace(own, template=own.template.replace("{text}", "\n".join(f"{{{each}}}" for each in part.text)))
            try:
                task = label_words_task(part, session.host.model.config, own, separator=self.separator)
                first = with_label_first(task.template) if self.scoring == "channel" else task.template
                tasks[name] = replace(task, template=first, scoring=self.scoring)
            except DeltatuneError as error:
                unnamed = needs_description(part.labels)
                problems.append(f"part {name}: {UNNAMED.format(', '.join(part.labels[:6])) if unnamed else error}")
        raise_all(problems)
        return tasks

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        own = self._attached(session, 0)
        try:
            for instances in self.instances(own, rows, options).values():
                instances.first(0, 1)
        finally:
            own.detach()

    def _attached(self, session: Session, seed: int) -> Session:
        self.check_task(session.task)
        own = replace(session, head={})
        own.attach(with_token_ids(self.method, session.tokenizer, session.task), seed, head=False)
        return own

    def instances(
        self, session: Session, rows: PromptRows, options: PromptOptions, seed: int = 0
    ) -> dict[str, Instances]:
        """What is learned of each part. Raises DeltatuneError for parts with too few rows, all of them at once."""
        result, problems = {}, []
        for name, task in self.prompts(session, options).items():
            own = [row for row in rows.train if row.get(PART) == name]
            if len(own) > self.rows:
                order = torch.randperm(len(own), generator=generator_for(seed, f"rows.{name}")).tolist()
                own = [own[i] for i in sorted(order[: self.rows])]
            try:
                usable = usable_rows(task, own)
                if len(usable) <= self.shots:
                    raise DeltatuneError(
                        f"{len(usable)} training rows can be shown, and more than {self.shots} are needed"
                    )
                look = Look(tokenizer=session.tokenizer, length=self.length)
                shown = shown_texts(task, usable, task.templates[0], look)
            except DeltatuneError as error:
                problems.append(f"part {name}: {error}")
                continue
            limited = replace(task, max_length=min(task.max_length, self.max_length))
            tokens = longest_demonstrations(shown, self.shots, task, session)
            roomy = with_room(limited, session, min(tokens, self.max_length - limited.max_length))
            result[name] = Instances(replace(session, task=roomy), usable, tuple(shown), self.shots)
        raise_all(problems)
        return result

    # --- training

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        own = self._attached(session, settings.seed)
        try:
            parts = self.instances(own, rows, options, settings.seed)
            objective = InContextObjective(max_length=self.max_length)
            learned = [row for instances in parts.values() for row in instances.first(settings.seed)]
            seen = [row for instances in parts.values() for row in instances.rows]
            train = replace(objective.encoded(learned), row_hashes=row_hashes(session.task, seen))
            validation = self._validation(session, parts, rows.validation, objective, settings.seed)
            outcome = replace(own, task=objective).train(train, validation, settings, on_step=on_step)
            tasks = {name: instances.shown_task(settings.seed) for name, instances in parts.items()}
            notes = tuple(
                f"part {name}: {note}" for name, each in parts.items() for note in each.room_notes(settings.seed)
            )
        except BaseException:
            own.detach()
            raise
        mixture = Mixture(tasks)
        prompts = tuple(f"{name}: {prompt_text(task)}" for name, task in tasks.items())
        return Fitted(replace(own, task=mixture), outcome, prompts, notes=notes)

    def _validation(
        self,
        session: Session,
        parts: Mapping[str, Instances],
        rows: Sequence[Row],
        objective: InContextObjective,
        seed: int,
    ) -> Encoded:
        """Rows of the validation split behind demonstrations of the training rows, the same in every evaluation."""
        encoded: list[TokenRow] = []
        kept: list[Row] = []
        for name, instances in parts.items():
            own = [
                row
                for row in rows
                if row.get(PART) == name and str(row.get(instances.task.label)) in instances.task.labels
            ]
            generators = [generator_for(seed, f"validation.{name}.{i}") for i in range(len(own))]
            encoded += instances.encoded([instances.behind(*pair) for pair in zip(own, generators, strict=True)])
            kept += own
        return replace(objective.encoded(encoded), row_hashes=row_hashes(session.task, kept))


@dataclass(frozen=True)
class Instances:
    """The rows of one task, each of which is learned behind demonstrations that are drawn out of the others."""

    session: Session
    """A session whose task is the prompt, and whose adapter is trained."""
    rows: Sequence[Row]
    shown: tuple[str, ...]
    """The rows as demonstrations."""
    shots: int

    @property
    def task(self) -> LabelWords:
        """The prompt."""
        assert isinstance(self.session.task, LabelWords)
        return self.session.task

    def behind(self, row: Row, generator: torch.Generator) -> Row:
        """A row with drawn demonstrations; a row with the same texts is never shown."""
        chosen: list[str] = []
        own = [str(row[name]) for name in self.task.text]
        for i in torch.randperm(len(self.rows), generator=generator).tolist():
            if [str(self.rows[i][name]) for name in self.task.text] != own:
                chosen.append(self.shown[i])
            if len(chosen) == self.shots:
                break
        return {**row, DEMONSTRATIONS: chosen}

    def encoded(self, rows: Sequence[Row]) -> list[TokenRow]:
        """Rows with demonstrations as tokens to train on."""
        return [learned_tokens(row, self.task) for row in self.session.encode(rows)] if rows else []

    def redraw(self, row: Row, generator: torch.Generator) -> TokenRow:
        """One row behind other demonstrations."""
        return self.encoded([self.behind(row, generator)])[0]

    def first(self, seed: int, number: int | None = None) -> list[TokenRow]:
        """The rows with their first demonstrations, and with what draws others in later epochs."""
        rows = self.rows if number is None else self.rows[:number]
        drawn = [self.behind(row, generator_for(seed, f"instance.{i}")) for i, row in enumerate(rows)]
        encoded = zip(rows, self.encoded(drawn), strict=True)
        return [{**token_row, REDRAW: partial(self.redraw, row)} for row, token_row in encoded]

    def room_notes(self, seed: int) -> tuple[str, ...]:
        """How many of the first rows have no room for all demonstrations."""
        rows = [self.behind(row, generator_for(seed, f"instance.{i}")) for i, row in enumerate(self.rows[:NOTED_ROWS])]
        return self.session.encode(rows).notes

    def shown_task(self, seed: int) -> LabelWords:
        """The prompt with one drawn set of demonstrations, for rows of this task after training."""
        numbers = draw_demonstrations(self.task, self.rows, self.shots, False, seed)
        return replace(self.task, demonstrations=(tuple(self.shown[i] for i in numbers),))


def learned_tokens(row: TokenRow, task: LabelWords) -> TokenRow:
    """A prompt row as tokens to train on: labels are those of the class's first word, or of the text behind it."""
    before = sum(len(of_class) for of_class in task.words[: row["label"]])
    prompt, word = list(row["prompt"]), list(row["words"][before])
    after = list(row["after"]) if task.scoring == "channel" else []
    labels = [*[IGNORED] * len(prompt), *([IGNORED] * len(word) if after else word), *after]
    ids = [*prompt, *word, *after]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


@dataclass(frozen=True)
class InContextObjective(Objective):
    """-log p of the label behind demonstrations and a text, or of the text behind demonstrations and a label."""

    name: ClassVar[str] = "in-context"
    families: ClassVar[tuple[Family, ...]] = ("decoder",)

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> Encoded:
        """No rows, where there are none; `Instances` makes the others. Raises DeltatuneError for rows."""
        if rows:
            raise DeltatuneError("rows of MetaICL are encoded with the demonstrations of their task")
        return self.encoded([])

    def encoded(self, rows: list[TokenRow]) -> Encoded:
        """Rows that are encoded already."""
        nothing: list[Any] = [None] * len(rows)
        return Encoded(rows, 0, range(len(rows)), nothing, nothing)

    def draw(self, row: TokenRow, generator: torch.Generator) -> TokenRow:
        """The row behind other demonstrations."""
        drawn: TokenRow = row[REDRAW](generator)
        return drawn

    def target(self) -> str:
        return "the label behind demonstrations"
