"""TemplateSearch: many wordings of one question, made by rules, mined or reworded; the best on the validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_regular, expanded
from deltatune.core.method import at_least, at_most
from deltatune.models.architecture import family
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions, choose_prompts, label_words_task, split_words
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptMethod, PromptRows, attach_prompt
from deltatune.prompting.prompt_search.chosen_by_score import ScoredPrompt, choosing_rows, try_all
from deltatune.prompting.prompt_search.paraphrases import replaced_words, round_trips
from deltatune.prompting.prompt_search.template_generation import check_config, load_generator, write_templates
from deltatune.prompting.prompt_search.template_mining import mined_templates
from deltatune.prompting.prompt_search.template_rules import rule_templates
from deltatune.prompting.prompt_search.text_template_search import fit_wordings, wordings
from deltatune.prompting.text_prompts import writes_texts
from deltatune.prompting.zero_shot import check_label_task, check_prompt, prompt_text
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords, as_label_words
from deltatune.tasks.prompts.templates import Template
from deltatune.tasks.task import Row, Task
from deltatune.training.session import Session
from deltatune.training.settings import Settings


@dataclass(frozen=True)
class TemplateSearch(PromptMethod):
    """argmax over templates of their zero-shot score on the validation rows; nothing is trained

    Jiang et al. 2020, https://arxiv.org/abs/1911.12543 (mined and reworded templates)
    """

    templates: tuple[str, ...] = ()
    """Wordings to try; default: those of `source`. For texts as answers they are given, and end where answers begin."""
    source: Literal["rules", "published", "mined", "written", "all"] = "rules"
    """Where wordings come from: `published` ones and plain ones; these and those made by `rules`; these and those
    `mined` from the corpus or `written` by the generator; `all`, what there is."""
    corpus: str = ""
    """Text file in which templates are mined, by the words of the training texts and the label words."""
    generator: str = ""
    """Folder of an encoder-decoder such as T5 that writes templates."""
    translators: tuple[str, ...] = ()
    """Folders of two encoder-decoders that translate the best templates, there and back."""
    paraphrases: int = 0
    """Words that a masked model tries in place of each word of the best template, and again of what is then best."""
    most: int = 60
    """Wordings of each source that are tried."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"; default: published ones, else the class names."""
    scoring: Literal["likelihood", "probability", "logit"] = "likelihood"
    """Score of a class with several words, or words of several tokens; see LabelWords."""
    stop: str = ""
    """For texts as answers: text before which an answer ends, such as a line break; default: where the model ends."""

    draws: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "Template search"

    def check(self) -> None:
        at_least(self, most=1, paraphrases=0)
        at_most(self, most=1000, paraphrases=1000)
        if self.source == "mined" and not self.corpus:
            raise DeltatuneError("TemplateSearch(source='mined') needs a text file: corpus='FILE'")
        if self.source == "written" and not self.generator:
            raise DeltatuneError("TemplateSearch(source='written') needs a model such as T5: generator='FOLDER'")
        if len(self.translators) not in (0, 2):
            raise DeltatuneError("TemplateSearch(translators=...) takes two folders: one there, one back")

    def check_task(self, task: Task) -> None:
        if not writes_texts(task):
            check_label_task(self, task, self.stop)

    def check_session(self, session: Session, rows: PromptRows, options: PromptOptions = NO_OPTIONS) -> None:
        if writes_texts(session.task):
            for each in wordings(self, session.task, options):
                check_prompt(session, self, each, rows)
            return
        task = check_label_task(self, session.task, self.stop)
        first = given_tasks(session, task, options, self.words, self.templates, self.scoring)[0]
        attach_prompt(session, self, first).detach()
        if self.corpus:
            check_regular(expanded(self.corpus), "corpus")
        for what, folder in (("generator", self.generator), *(("translator", each) for each in self.translators)):
            if folder:
                check_config(folder, what)

    def fit(
        self,
        session: Session,
        rows: PromptRows,
        settings: Settings,
        options: PromptOptions = NO_OPTIONS,
        on_step: OnProgress | None = None,
    ) -> Fitted:
        if writes_texts(session.task):
            return fit_wordings(self, session, rows, settings.seed, options, on_step)
        task = check_label_task(self, session.task, self.stop)
        choosing, notes = choosing_rows(rows, "the template")
        given = given_tasks(session, task, options, self.words, self.templates, self.scoring)
        own = attach_prompt(session, self, given[0], settings.seed)
        try:
            tasks = given if self.templates else self.candidates(own, given, rows.train)

            def progress(number: int, total: int, loss: float) -> None:
                if on_step is not None:
                    on_step(number, total, loss, 0.0)

            trials, problems = try_all(own, tasks, choosing, bool(self.templates), progress)
            trials = self.reworded(own, trials, rows.train, choosing)
        except BaseException:
            own.detach()
            raise
        if problems:
            notes = (*notes, f"{len(problems)} templates were left out; the first: {problems[0]}")
        best, notes = trials[0].task, (*notes, spread_note(trials))
        return Fitted(replace(own, task=best), None, (prompt_text(best),), trial_texts(trials), notes)

    def candidates(self, session: Session, given: Sequence[LabelWords], train: Sequence[Row]) -> list[LabelWords]:
        """The prompts of the sources, each template once."""
        first = given[0]
        left_to_right = family(session.host.model.config) == "decoder"  # type: ignore[arg-type]
        templates: list[str] = []
        if self.source in ("rules", "all"):
            templates += rule_templates(first.text, left_to_right)[: self.most]
        if self.source == "mined" or (self.source == "all" and self.corpus):
            found = mined_templates(first, train, self.corpus, self.most, left_to_right)
            templates += [template for template, _ in found]
        if self.source == "written" or (self.source == "all" and self.generator):
            written = write_templates(load_generator(self.generator), first, train, self.most, left_to_right)
            templates += [each.template for each in written[: self.most]]
        return with_templates(given, templates)

    def reworded(
        self, session: Session, trials: list[ScoredPrompt], train: Sequence[Row], choosing: Sequence[Row]
    ) -> list[ScoredPrompt]:
        """The trials with other wordings of the best, the best first."""
        tried = {trial.task.template for trial in trials}
        if self.translators:
            there, back = self.translators
            trials = self._with(session, trials, round_trips(trials[0].task.template, (there, back)), tried, choosing)
        while self.paraphrases:
            best = trials[0]
            others = replaced_words(session, best.task, train, self.paraphrases)
            trials = self._with(session, trials, others, tried, choosing)
            if trials[0] is best:
                break
        return trials

    def _with(
        self,
        session: Session,
        trials: list[ScoredPrompt],
        templates: Sequence[str],
        tried: set[str],
        choosing: Sequence[Row],
    ) -> list[ScoredPrompt]:
        new = [template for template in templates if template not in tried and is_template(template, trials[0].task)]
        tried.update(new)
        if not new:
            return trials
        more, _ = try_all(session, [replace(trials[0].task, template=template) for template in new], choosing)
        return sorted([*trials, *more], key=lambda trial: trial.score, reverse=True)


def given_tasks(
    session: Session,
    task: Classify,
    options: PromptOptions,
    words: str,
    templates: Sequence[str],
    scoring: Literal["likelihood", "probability", "logit"],
) -> list[LabelWords]:
    """The prompts with these templates, or published and default ones; each with its words."""
    config = session.host.model.config
    wanted = templates or ((options.template,) if options.template else ())
    if wanted:
        return [label_words_task(task, config, options, each, words, scoring=scoring) for each in wanted]
    chosen = choose_prompts(task, config, replace(options, words=split_words(words) or options.words))
    return [as_label_words(task, template=each.template, words=each.words, scoring=scoring) for each in chosen]


def with_templates(given: Sequence[LabelWords], templates: Sequence[str]) -> list[LabelWords]:
    """The prompts, and those with further templates and the words of the first; each template once."""
    known = {task.template for task in given}
    more = [template for template in dict.fromkeys(templates) if template not in known]
    return [*given, *(replace(given[0], template=template) for template in more if is_template(template, given[0]))]


def is_template(text: str, task: LabelWords) -> bool:
    """Whether a text that was found is a template for the task's columns."""
    try:
        return set(Template(text).columns) <= set(task.text)
    except DeltatuneError:
        return False


def trial_texts(trials: Sequence[ScoredPrompt]) -> tuple[tuple[str, float], ...]:
    """The prompts with their metrics, the best first; without the words where all have the same."""
    same = len({trial.task.words for trial in trials}) == 1
    return tuple((trial.task.template if same else prompt_text(trial.task), trial.score.metric) for trial in trials)


def spread_note(trials: Sequence[ScoredPrompt]) -> str:
    """The spread over the wordings in a sentence."""
    values = [trial.score.metric for trial in trials]
    mean = sum(values) / len(values)
    return (
        f"{len(values)} wordings were tried: {trials[0].task.metric} {min(values):.3f} to {max(values):.3f} "
        f"(mean {mean:.3f}) on the rows they were chosen by."
    )
