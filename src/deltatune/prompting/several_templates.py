"""Several templates for one task: which are taken, and how far their scores lie apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.prompting.choose_prompts import ChosenPrompt, PromptOptions, choose_prompts, split_words
from deltatune.prompting.prompt_method import attach_prompt
from deltatune.prompting.zero_shot import ZeroShot
from deltatune.tasks.classification import Classify
from deltatune.tasks.label_words.label_words import LabelWords, Scoring, as_label_words
from deltatune.tasks.task import Row
from deltatune.training.session import Session

DEFAULT = "default"
"""Origin of templates for any data."""
FILLED_UP_TO = 4
"""Templates at least, where published ones are fewer and templates for any data can be added: PET has 4 to 6 a task."""


@dataclass(frozen=True)
class TemplateChoice:
    """What a user says of the templates of a method that takes several."""

    number: int = 0
    """How many: the first of those chosen for the data; 0 for all published ones, filled up to four."""
    templates: tuple[str, ...] = ()
    """The templates themselves."""
    words: str = ""
    """Words of the classes: "bad=terrible|awful, good=great"."""


def choose_templates(
    session: Session, task: Classify, rows: Sequence[Row], choice: TemplateChoice, options: PromptOptions,
    scoring: Scoring, same_words: bool = False,
) -> tuple[list[LabelWords], tuple[str, ...]]:  # fmt: skip
    """Prompts with one template each, the best guess first, and notes on those left out; `rows` has one to try.

    Templates that nobody named are left out where the model or its tokenizer cannot read them. `same_words`: all
    templates have the same words, those that most published ones have. Raises DeltatuneError where none is left, for a
    named template that cannot be read, and for more templates than there are.
    """
    words = split_words(choice.words) or options.words
    said = replace(options, words=words, describe="" if choice.words else options.describe)
    config, notes = session.host.model.config, list[str]()
    if choice.templates:
        texts = tuple(dict.fromkeys(choice.templates))
        chosen = [choose_prompts(task, config, replace(said, template=text))[0] for text in texts]
    else:
        chosen = choose_prompts(task, config, said)
    if same_words and len(chosen) > (kept := len(with_shared_words(chosen))):
        notes.append(f"published templates with other words for the classes are left out: {len(chosen) - kept}")
        chosen = with_shared_words(chosen)
    prompts = [as_label_words(task, template=each.template, words=each.words, scoring=scoring) for each in chosen]
    named = bool(choice.templates or options.template)
    problems = _problems(session, prompts, rows)
    if problems and (named or len(problems) == len(prompts)):
        raise DeltatuneError(next(iter(problems.values())))
    notes += [_left_out(template, why) for template, why in problems.items()]
    published = sum(each.origin != DEFAULT and each.template not in problems for each in chosen)
    usable = [prompt for prompt in prompts if prompt.template not in problems]
    if choice.number > len(usable):
        raise DeltatuneError(
            f"{choice.number} templates are asked for, and there are {len(usable)} for these data on this model; ask "
            "for fewer, or give more as templates=('...', '...')"
        )
    if named or choice.number:
        return usable[: choice.number or None], tuple(notes)
    return usable[: max(published, FILLED_UP_TO)], tuple(notes)


def with_shared_words(prompts: Sequence[ChosenPrompt]) -> list[ChosenPrompt]:
    """The prompts that can share their words: published ones with the most frequent words, and those for any data."""
    published = [prompt for prompt in prompts if prompt.origin != DEFAULT]
    (words, _), *_ = Counter(prompt.words for prompt in published or prompts).most_common(1)
    return [replace(prompt, words=words) for prompt in prompts if prompt.origin == DEFAULT or prompt.words == words]


def _problems(session: Session, prompts: Sequence[LabelWords], rows: Sequence[Row]) -> dict[str, str]:
    """Why templates cannot be read here, by template, found with the first row."""
    problems = {}
    for prompt in prompts:
        own = attach_prompt(session, ZeroShot(), prompt)
        try:
            own.encode(rows[:1], labelled=False)
        except DeltatuneError as error:
            problems[prompt.template] = str(error)
        finally:
            own.detach()
    return problems


def _left_out(template: str, why: str) -> str:
    return f"the template {shortened(template)} is left out: {why}"


# ---- how far scores lie apart


@dataclass(frozen=True)
class Spread:
    """Scores of several prompts: what the choice of one of them is worth."""

    count: int
    mean: float
    deviation: float
    """Standard deviation of these scores."""
    best: tuple[str, float]
    worst: tuple[str, float]


def spread_of(trials: Sequence[tuple[str, float]]) -> Spread:
    """The spread of (prompt, score) pairs, higher scores being better. Raises DeltatuneError where there are none."""
    if not trials:
        raise DeltatuneError("there are no scores to compare")
    scores = [score for _, score in trials]
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    best, worst = (choose(trials, key=lambda trial: trial[1]) for choose in (max, min))
    return Spread(len(scores), mean, deviation, best, worst)


def spread_note(trials: Sequence[tuple[str, float]], metric: str, rows: int) -> str:
    """The spread of templates in a sentence."""
    spread = spread_of(trials)
    if spread.count == 1:
        return f"{metric} of the one template on {rows} validation rows: {spread.mean:.3f}"
    (best, high), (worst, low) = spread.best, spread.worst
    return (
        f"{metric} of {spread.count} templates on {rows} validation rows: mean {spread.mean:.3f}, deviation "
        f"{spread.deviation:.3f}, best {high:.3f} ({shortened(best)}), worst {low:.3f} ({shortened(worst)})"
    )
