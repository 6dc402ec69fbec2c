"""Demonstrations of texts with answers as texts: which rows are shown, in which order, and how much room they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError
from deltatune.models.architecture import family
from deltatune.prompting.choose_prompts import PromptOptions
from deltatune.prompting.in_context.demonstrations import draw_demonstrations, tokens_of, with_room
from deltatune.prompting.in_context.order_trials import Trial, best_trial, random_orders, some_rows, spread_note
from deltatune.prompting.prompt_method import Fitted
from deltatune.prompting.text_prompts import shown_prompt, text_prompt
from deltatune.tasks.in_context_generation import Demonstration, GenerateInContext
from deltatune.tasks.label_words.nearest_demonstrations import compared_text
from deltatune.tasks.metrics.metric_facts import lower_is_better
from deltatune.tasks.prompts.prompt_encoding import CHAT_COLUMN
from deltatune.tasks.task import Row, Task
from deltatune.training.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deltatune.prompting.in_context.in_context_learning import ICL

FOR_CLASSES = {"words": "", "scoring": "likelihood", "labels": "gold", "sets": 1}
"""Fields of `ICL` that are for classes, with the value that leaves them out."""


def demonstrated_prompt(method: ICL, task: Task, options: PromptOptions) -> GenerateInContext:
    """The task of this prompt before any demonstration. Raises DeltatuneError for fields that texts do not have."""
    left_out: dict[str, Any] = dict(FOR_CLASSES)
    left_out |= {"select": "auto"} if method.select == "balanced" else {}
    left_out |= {"order": "auto"} if method.order == "by-class" else {}
    left_out |= {"calibration": "auto"} if method.calibration == "content-free" else {}
    if CHAT_COLUMN in task.text:
        raise DeltatuneError(
            f"{method!r} shows rows in front of a text, and these rows are conversations; name columns of texts"
        )
    prompt = text_prompt(method, task, options, method.template, left_out, separator=method.separator)
    chat = prompt.prompt == "chat"
    if not chat and not method.separator.strip(" "):
        raise DeltatuneError(
            f'{method!r}: the separator is where a written answer ends; it cannot be empty or blank, as "\\n\\n" is not'
        )
    demonstrated_format(method, prompt)
    return prompt if chat else replace(prompt, stop=method.separator)


def demonstrated_format(method: ICL, prompt: GenerateInContext) -> GenerateInContext:
    """The task whose prompt the demonstrations have. Raises DeltatuneError for one with other columns than the data."""
    return prompt if method.format == "same" else replace(prompt, prompt=method.format)


def usable_text_rows(task: GenerateInContext, rows: Sequence[Row]) -> list[Row]:
    """The rows that can be shown: those with an answer and a text. Raises DeltatuneError where there are none."""

    def has_text(row: Row, names: Sequence[str]) -> bool:
        return any(isinstance(row.get(name), str) and row[name].strip() for name in names)

    complete = [row for row in rows if all(isinstance(row.get(name), str) for name in task.text)]
    usable = [row for row in complete if has_text(row, task.text) and has_text(row, [task.label])]
    if not usable:
        raise DeltatuneError(
            f"none of the {len(rows)} training rows can be shown as a demonstration: each needs a text in "
            f"{', '.join(task.text)} and an answer in {task.label!r}"
        )
    return usable


def drawn_rows(method: ICL, task: GenerateInContext, rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows that every row is shown. Raises DeltatuneError where there are fewer than `shots`."""
    numbers = draw_demonstrations(task, rows, method.shots, False, seed)
    return [rows[i] for i in (sorted(numbers) if method.order == "given" else numbers)]


def shown_pairs(
    method: ICL, task: GenerateInContext, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Demonstration]:
    """The rows as demonstrations, their texts cut to the `length` of the method in tokens."""
    form = demonstrated_format(method, task)
    if method.length and tokenizer is not None:
        rows = [_shorter(row, form, tokenizer, method.length) for row in rows]
    return [form.demonstration(row) for row in rows]


def _shorter(row: Row, form: GenerateInContext, tokenizer: PreTrainedTokenizerBase, length: int) -> Row:
    """The row, its longest text cut until its demonstration has at most `length` tokens; its answer stays whole."""
    row = dict(row)
    while (tokens := tokens_of(form.in_front([form.demonstration(row)]), tokenizer)) > length:
        name = max(form.text, key=lambda each: len(row[each]))
        text = row[name].rstrip()
        if len(text) <= 1:
            raise DeltatuneError(
                f"a demonstration has {tokens} tokens without its texts, more than length={length}; raise length, or "
                "show rows with shorter answers"
            )
        kept = text[: min(len(text) - 1, max(1, len(text) - (tokens - length)))]
        row[name] = kept.rsplit(" ", 1)[0].rstrip() or kept
    return row


def fit_shared(
    method: ICL, found: Session, rows: Sequence[Row], validation: Sequence[Row], seed: int
) -> tuple[Fitted, list[Row]]:
    """The session with the demonstrations that every row is shown, and the rows that they are of."""
    task = _form(found)
    known = drawn_rows(method, task, rows, seed)
    shown = tuple(shown_pairs(method, task, known, found.tokenizer))
    roomy = _with_room(found, shown, known[0])
    trials: list[Trial] = []
    if method.order == "search":
        scored = some_rows(validation, method.scored, seed)
        for number, order in enumerate(random_orders(shown, method.orders, seed, 0), 1):
            trials.append(_trial(roomy, f"order {number}", order, scored))
        sign = -1 if lower_is_better(task.metric) else 1
        shown = best_trial([each._replace(score=sign * each.score) for each in trials]).shown
    final = replace(_form(roomy), demonstrations=shown)
    notes = (spread_note(trials, len(scored), task.metric),) if trials else ()
    scores = tuple((each.name, each.score) for each in trials)
    return Fitted(replace(roomy, task=final), prompts=(shown_prompt(final),), trials=scores, notes=notes), known


def _trial(session: Session, name: str, shown: tuple[Demonstration, ...], rows: Sequence[Row]) -> Trial:
    """The score of demonstrations in one order on these labelled rows."""
    own = replace(session, task=replace(_form(session), demonstrations=shown))
    encoded = own.encode(rows)
    answers = own.predict(encoded)
    score = own.task.primary_score(answers, encoded.references).score()
    return Trial(name, shown, score, -sum(answer["nll"] for answer in answers) / len(answers))


def fit_nearest(method: ICL, found: Session, chosen: Sequence[Row], of: int, seed: int) -> tuple[Fitted, list[Row]]:
    """The session with the pool out of which each row is shown the nearest; `of`: rows that the pool was drawn from."""
    task = _form(found)
    pairs = shown_pairs(method, task, chosen, found.tokenizer)
    longest = sorted(pairs, key=lambda pair: tokens_of(" ".join(pair), found.tokenizer))[-method.shots :]
    roomy = _with_room(found, longest, chosen[0])
    final = replace(
        _form(roomy),
        pool=tuple((*pair, compared_text(row, task.text)) for pair, row in zip(pairs, chosen, strict=True)),
        shots=method.shots,
        order="nearest-last" if method.order == "auto" else method.order,  # type: ignore[arg-type]
        encoder=method.encoder,
        seed=seed,
    )
    notes = []
    if of > len(chosen):
        notes.append(f"the nearest are chosen from {len(chosen)} of {of} training rows; pool= sets how many")
    prompt = f"after the {method.shots} nearest of {len(chosen)} training rows:\n{shown_prompt(task)}"
    return Fitted(replace(roomy, task=final), prompts=(prompt,), notes=tuple(notes)), list(chosen)


def _with_room(session: Session, shown: Sequence[Demonstration], row: Row) -> Session:
    """The session whose texts may be longer by these demonstrations, as far as the model has positions."""
    task = _form(session)
    encoder = task.prompt_encoder(session.tokenizer, family(session.host.model.config) == "decoder")  # type: ignore[arg-type]
    (example,) = encoder.examples([row], False)
    with_them, without = (
        len(encoder.ids(encoder.prompt_text(example._replace(demonstrations=each)), True)) for each in (shown, ())
    )
    return replace(session, task=with_room(task, session, max(0, with_them - without) + 2 * len(shown)))


def _form(session: Session) -> GenerateInContext:
    assert isinstance(session.task, GenerateInContext)
    return session.task
