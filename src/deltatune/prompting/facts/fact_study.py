"""Study of facts: every wording of every relation on one model, and prompts that are trained beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.input_validation.regular_files import expanded, read_text
from deltatune.core.method import Method
from deltatune.core.quantization.schemes import scheme_text
from deltatune.prompting.facts.fact_questions import FactStudy, OpenedFacts, open_facts
from deltatune.prompting.facts.fact_ranks import WordingRanks, rank_objects
from deltatune.prompting.facts.fact_report import fact_report
from deltatune.prompting.facts.fact_training import NAME, prompt_method, train_prompt
from deltatune.prompting.facts.wordings import as_template
from deltatune.tasks.blanks import blank_of, wording_problems
from deltatune.tasks.fact_completion import FactCompletion, fact_task
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.row_columns import raise_listed
from deltatune.training.open_session import open_adapter, open_host

OBJECTS = "objects"
"""Value of `candidates`: the objects of the relation in the data."""
TRAINED, ADAPTED = "trained", "adapter"
"""Where a wording is from: virtual tokens trained in this study, or the wording that an adapter was trained in."""
MAX_NAME = 60
"""Longest part of a relation's name in that of its folder."""
AskProgress = Callable[[int, int, str], None]
"""Called with what is done, its total, and what comes next."""


def run_study(study: FactStudy, progress: AskProgress | None = None) -> dict[str, Any]:
    """Rank the objects of all facts in all wordings, and train what is to be trained; the report as plain data.

    Raises DeltatuneError for data without the columns, relations or wordings that do not exist, wordings that the model
    cannot read, and what training refuses.
    """
    opened = open_facts(study)
    asked = _Asked(study, opened)
    plans = {relation: asked.plan(relation) for relation in asked.wordings}
    total = sum(len(asked.questions(relation)) + len(plan) for relation, plan in plans.items())
    done = 0

    def tell(text: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, text)
        done += 1

    results: dict[str, list[WordingRanks]] = {}
    for relation, plan in plans.items():
        ranks = results[relation] = []
        for source, text in asked.questions(relation):
            tell(f"{relation} {text}".strip())
            ranks.append(asked.ranks(relation, source, text))
        for number, (method, template) in enumerate(plan):
            tell(f"{relation} training {study.methods[number]}".strip())
            trained = asked.trained(relation, method, template, number)
            ranks += [] if trained is None else [trained]
    if asked.untrained and not any(each.source == TRAINED for ranks in results.values() for each in ranks):
        raise DeltatuneError(asked.untrained[0])
    column = opened.scored.columns.object
    objects = {relation: [row[column] for row in opened.scored.relations[relation]] for relation in results}
    return {
        "model": asked.model,
        "adapter": study.adapter,
        "data": study.data,
        "candidates": asked.candidates(),
        "top": list(study.top),
        "methods": list(study.methods),
        **fact_report(results, objects, study.top, opened.scored.repeats),
        "prompts": str(prompts_folder(study)) if study.methods else None,
        "notes": [*opened.notes, *asked.notes, *asked.untrained],
    }


class _Asked:
    """A model, and what it is asked: the wordings of each relation that it can read, and their candidates."""

    def __init__(self, study: FactStudy, opened: OpenedFacts) -> None:
        self.study, self.opened = study, opened
        self.words = None if study.candidates in (None, OBJECTS) else read_words(str(study.candidates))
        self.one_token: dict[str, int] = {}
        """Number of candidates of each relation."""
        self.notes: list[str] = []
        self.untrained: list[str] = []
        """Why relations were not trained."""
        self.host: Host
        self.tokenizer: PreTrainedTokenizerBase
        self.name: str | None = None
        """The adapter that acts."""
        self.own: FactCompletion | None = None
        """The task that it was trained for, if that is to complete facts."""
        if study.adapter is None:
            self.model, self.quantize = str(study.model), scheme_text(study.quantize)
            self.host, self.tokenizer = open_host(self.model, "words", quantize=self.quantize)
        else:
            self._open_adapter(study.adapter)
        self.wordings = self._readable()

    def _open_adapter(self, folder: str) -> None:
        session = open_adapter(folder, self.study.model, self.study.other_base, quantize=self.study.quantize)
        if session.task.loads not in ("words", "mask", "text"):
            raise DeltatuneError(
                f"{folder} was trained for {session.task.name}, on a model without a language-model head; facts are "
                "asked of adapters that were trained on words"
            )
        self.model, self.host, self.tokenizer, self.name = session.model, session.host, session.tokenizer, session.name
        self.quantize = session.quantize
        if isinstance(session.task, FactCompletion):
            self.own = session.task
            relations = self.opened.scored.relations
            if len(relations) > 1:
                raise DeltatuneError(
                    f"{folder} was trained to complete the facts of one relation, and {self.study.data} has "
                    f"{len(relations)}: name one with --relation, such as {next(iter(relations))}"
                )

    def _readable(self) -> dict[str, tuple[str, ...]]:
        """The wordings that the model can read. Those of a file that it cannot are left out and noted."""
        study = self.study
        blank = blank_of(self.host.model.config, self.tokenizer)  # type: ignore[arg-type]
        given = self.opened.wordings
        if self.own is not None and not study.wordings and study.templates is None:
            given = {relation: () for relation in self.opened.scored.relations}  # the wording that it was trained in
        problems = {
            text: wording_problems(as_template(text), blank) or _virtual_tokens(text)
            for texts in given.values()
            for text in texts
        }
        refused = [problem for of_text in problems.values() for problem in of_text]
        if study.wordings:
            raise_all(refused)
        wordings = {relation: tuple(text for text in texts if not problems[text]) for relation, texts in given.items()}
        kept = {r: texts for r, texts in wordings.items() if texts or self.own is not None or not study.needs_wordings}
        if self.name is not None and self.own is None:
            kept = {relation: texts for relation, texts in kept.items() if texts}
        if not kept:
            raise_listed(refused)
            raise DeltatuneError('there are no wordings: give one with --template "[X] is located in [Y]."')
        if refused:
            number = (
                "1 wording that this model cannot read was"
                if len(refused) == 1
                else (f"{len(refused)} wordings that this model cannot read were")
            )
            self.notes.append(f"{number} left out{'' if len(refused) == 1 else ', such as'}: {refused[0]}")
        return kept

    def questions(self, relation: str) -> list[tuple[str, str]]:
        """Source and text of what is asked of a relation's facts before anything is trained."""
        own = [] if self.own is None else [(ADAPTED, self.own.template)]
        return [*own, *(("wording", text) for text in self.wordings[relation])]

    def plan(self, relation: str) -> list[tuple[Method, str]]:
        """The methods to train for a relation, each with its template."""
        texts, study = self.wordings[relation], self.study
        return [prompt_method(text, texts[0] if texts else None, study.from_wording) for text in study.methods]

    def task(self, relation: str, template: str) -> FactCompletion:
        """The task of a wording of a relation."""
        opened, study = self.opened, self.study
        words = opened.everything.objects(relation) if study.candidates == OBJECTS else self.words
        columns, config = opened.scored.columns, self.host.model.config
        task = fact_task(
            template, config, self.host.sites.facts.vocabulary, self.tokenizer, words,  # type: ignore[arg-type]
            text=(columns.subject,), label=columns.object, top=max(study.top), over=study.over,
        )  # fmt: skip
        self.one_token[relation] = len(task.candidates)
        return task

    def candidates(self) -> dict[str, Any] | None:
        """Where the candidates are from, and how many of them are one token; None for all words."""
        if self.words is None:
            return None if self.study.candidates is None else {"source": OBJECTS, "one_token": self.one_token}
        most = max(self.one_token.values(), default=0)
        return {"source": self.study.candidates, "words": len(self.words), "one_token": most}

    def ranks(self, relation: str, source: str, text: str) -> WordingRanks:
        """Ranks of a relation's objects in one wording."""
        rows, task = self.opened.scored.relations[relation], self.task(relation, as_template(text))
        return rank_objects(self.host, self.tokenizer, task, rows, name=self.name, wording=text, source=source)

    def trained(self, relation: str, method: Method, template: str, number: int) -> WordingRanks | None:
        """Ranks of a relation's objects by one method, after its training on the rows for that; None without rows."""
        study, opened = self.study, self.opened
        assert opened.training is not None
        rows = opened.training.relations.get(relation, [])
        validation = opened.validation.relations.get(relation, []) if opened.validation else []
        task = self.task(relation, template)
        problems = task.encode_scorable(rows, self.tokenizer)[1]
        if len(problems) == len(rows):
            why = f": of {len(rows)} none has an object that is one token" if rows else ""
            candidate = " and a candidate" if rows and task.candidates else ""
            self.untrained.append(f"no rows {f'of {relation} ' if relation else ''}to train on{why}{candidate}")
            return None
        folder = prompts_folder(study) / folder_name(relation)
        if len(study.methods) > 1:
            folder = folder.with_name(f"{folder.name}-{number + 1}")
        try:
            session, facts = train_prompt(
                self.host, self.tokenizer, self.model, task, method, rows, validation, study.settings, folder,
                study.force, self.quantize,
            )  # fmt: skip
            ranks = rank_objects(
                self.host, self.tokenizer, task, opened.scored.relations[relation], name=session.name,
                wording=study.methods[number], source=TRAINED,
            )  # fmt: skip
            return replace(ranks, training={"template": template, "method": repr(method), **facts})
        finally:
            if NAME in self.host.adapters:
                self.host.detach(NAME)


def read_words(path: str) -> list[str]:
    """The words of a file, one a line, each once. Raises DeltatuneError for a file without words."""
    words = list(dict.fromkeys(line.strip() for line in read_text(expanded(path)).splitlines() if line.strip()))
    if not words:
        raise DeltatuneError(f"--candidates {path} has no words; it needs one a line")
    return words


def folder_name(relation: str) -> str:
    """The name of a relation's folder: its own, or where that is no plain name one that only this relation has."""
    if not relation:
        return "all"
    name = re.sub(r"[^\w-]+", "-", relation)[:MAX_NAME].strip("-")
    digest = hashlib.sha256(relation.encode()).hexdigest()[:8]
    return name if name == relation else f"{name}-{digest}".lstrip("-")


def _virtual_tokens(wording: str) -> list[str]:
    """Why a wording with virtual tokens cannot be asked as it is."""
    if all(part.kind != "virtual" for part in Template(as_template(wording)).parts):
        return []
    return [f'the wording {wording!r} has virtual tokens, which are trained first: --optimise "Prompt(template=...)"']


def prompts_folder(study: FactStudy) -> Path:
    """Where trained prompts are kept."""
    if study.prompts is not None:
        return expanded(study.prompts)
    place = expanded(study.data)
    return Path("runs") / f"facts-{place.name if place.is_dir() else place.resolve().parent.name}"
