"""Several wordings of a prompt for texts as answers: each is scored on the validation rows, and the best one kept."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.prompt_method import Fitted, OnProgress, PromptRows, attach_prompt
from deltatune.prompting.prompt_search.chosen_by_score import choosing_rows
from deltatune.prompting.text_prompts import shown_prompt, text_prompt
from deltatune.tasks.in_context_generation import GenerateInContext
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.tasks.task import Task
from deltatune.training.session import Session

if TYPE_CHECKING:
    from deltatune.prompting.prompt_search.template_search import TemplateSearch

FOR_CLASSES = {
    "words": "", "scoring": "likelihood", "source": "rules", "corpus": "", "generator": "", "translators": (),
    "paraphrases": 0,
}  # fmt: skip
"""Fields of `TemplateSearch` that are for classes, with the value that leaves them out."""


def wordings(method: TemplateSearch, task: Task, options: PromptOptions) -> list[GenerateInContext]:
    """The task in each wording. Raises DeltatuneError where none is given, and for one that does not fit."""
    given = tuple(dict.fromkeys(method.templates or ((options.template,) if options.template else ())))
    if not given:
        raise DeltatuneError(
            f"{method!r}: wordings for texts as answers are not made up; give them, as in "
            "TemplateSearch(templates=('{input}\\nIn short:', 'Summarise: {input}\\n'))"
        )
    return [text_prompt(method, task, options, each, FOR_CLASSES, stop=method.stop) for each in given]


def fit_wordings(
    method: TemplateSearch,
    session: Session,
    rows: PromptRows,
    seed: int,
    options: PromptOptions,
    on_step: OnProgress | None,
) -> Fitted:
    """The best wording by the task's metric, then by the likelihood of the right texts; equal ones by their order."""
    tasks = wordings(method, session.task, options)
    choosing, notes = choosing_rows(rows, "the template")
    own = attach_prompt(session, method, tasks[0], seed)
    trials: list[tuple[GenerateInContext, float, float]] = []
    try:
        for number, task in enumerate(tasks, 1):
            tried = replace(own, task=task)
            encoded = tried.encode(choosing)
            answers = tried.predict(encoded)
            loss = sum(float(answer["nll"]) for answer in answers) / len(answers)
            trials.append((task, float(task.primary_score(answers, encoded.references).score()), loss))
            if on_step is not None:
                on_step(number, len(tasks), loss, 0.0)
    except BaseException:
        own.detach()
        raise
    sign = 1 if lower_is_better(tasks[0].metric) else -1
    trials.sort(key=lambda trial: (sign * trial[1], trial[2]))
    best, scores = trials[0][0], [score for _, score, _ in trials]
    spread = (
        f"{len(scores)} wordings were tried: {best.metric} {min(scores):.3f} to {max(scores):.3f} "
        f"(mean {sum(scores) / len(scores):.3f}) on the rows they were chosen by."
    )
    found = tuple((task.prompt, score) for task, score, _ in trials)
    return Fitted(replace(own, task=best), prompts=(shown_prompt(best),), trials=found, notes=(*notes, spread))
