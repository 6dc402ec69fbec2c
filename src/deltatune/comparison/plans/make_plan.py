"""A plan from what the user says: methods at their sizes, learning rates, seeds; checked before anything is trained."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deltatune.comparison.plans.candidates import choices, make_candidates, with_rates
from deltatune.comparison.plans.check_candidates import (
    check_candidates,
    check_methods,
    encode_splits,
    length_note,
)
from deltatune.comparison.plans.plan import Plan
from deltatune.core.budget import read_budget, split_budget
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method
from deltatune.data import Data, Row
from deltatune.data.few_shot import few_shot
from deltatune.models.loading import BUILTIN
from deltatune.prompting.choose_prompts import NO_OPTIONS, PromptOptions
from deltatune.prompting.prompt_method import PromptMethod
from deltatune.prompting.zero_shot import as_prompt_method
from deltatune.tasks.metrics.metric_facts import bounds
from deltatune.training import Settings
from deltatune.training.learning_rates.recommended_rate import steps_of
from deltatune.training.open_session import OpenBase, open_host, open_session

DEFAULT_METHODS = (
    "LoRA()",
    "Bottleneck(form='houlsby')",
    "Bottleneck(form='pfeiffer')",
    "Prefix()",
    "BitFit()",
    "Probe()",
    "Full()",
)
"""Compared if no methods are named: the families with a size, and three references."""
PROMPTING_METHODS = (
    "ZeroShot()",
    "TemplateEnsemble()",
    "ICL(shots=8)",
    "Cloze(LoRA())",
    "Cloze(Full())",
    "LoRA()",
    "Full()",
)
"""Compared with `--prompting`: from no trained number to all of them."""
DEFAULT_BUDGET = "0.5%"
START_SEEDS = 2
"""Seeds of every method, where the user names no number."""
MOST_SEEDS = 6
"""The same for methods that are not told apart."""
START_DRAWS = 3
"""Draws of few rows of every method, where the user names no number."""
MOST_DRAWS = 8
"""The same for methods that are not told apart."""
DEFAULT_MARGIN = 0.02
"""Difference within which two methods count as equal, for scores between 0 and 1."""
TOGETHER = ("off", "auto")
"""Whether trainings share passes of the base."""
MOST = {"seeds": 1000, "rates": 50, "draws": 1000, "workers": 1000}
"""Most of what is repeated; learning rates are a factor of about 3 apart, so that 50 are more than floats hold."""


def make_plan(
    data: Data,
    *,
    model: str = "builtin",
    methods: Sequence[str | Method] = DEFAULT_METHODS,
    budget: str | int | None = DEFAULT_BUDGET,
    seeds: int | None = None,
    rates: int = 3,
    shots: int | None = None,
    draws: int | None = None,
    margin: float | None = None,
    minutes: float | None = None,
    timed: bool = False,
    executor: str = "local",
    workers: int | None = None,
    together: Literal["off", "auto"] = "off",
    settings: Settings | None = None,
    max_length: int | None = None,
    metric: str = "",
    task: Mapping[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    out: str | Path | None = None,
    prompts: PromptOptions = NO_OPTIONS,
    unlabelled: Sequence[Row] = (),
    open_base: OpenBase = open_host,
    quantize: str | None = None,
) -> Plan:
    """Load the model, fit every method to the budget, encode the data, and check that all of it can run.

    `task` sets fields of the task, `max_length` and `metric` among them; the others are inferred from the data. Without
    `max_length` all methods get the same one: the task's default, or the most that each of them leaves of the model's
    positions. `methods` are text forms or methods. With a `budget` ("0.5%", "300k") every method with a size gets the
    largest that fits, whatever size it was given; None keeps the sizes as given. `rates` is the number of learning
    rates to try for each method. `seeds` runs of each method at its best rate, or, where no number is given,
    START_SEEDS, and up to MOST_SEEDS for methods that are not told apart: until they differ or are equal within
    `margin`, or the `minutes` are over. With `shots` every method is trained on `draws` draws of so many rows a class,
    with every seed on each (of draws too more are made for methods that are not told apart, if no number is given);
    validation rows are drawn too, as Gao et al. 2021 do (https://arxiv.org/abs/2012.15723), and all are scored on the
    same test rows. `prompts` and `unlabelled` are for prompting methods: the model is then loaded with its
    language-model head, for all methods. `timed` keeps all rows whatever the minutes. `executor` (local, ray, or the
    address of a Ray cluster) and `workers` say where trainings run and how many at once; with `together="auto"` several
    share each pass of the base where that is measured to be faster, all in this process. `open_base` opens the model,
    `quantize` (such as "nf4") stores its linear maps in fewer bits, for all methods.
    Raises DeltatuneError listing every method that cannot run on this model, before anything is trained; of the default
    methods those are left out, and a note says so.
    """
    raise_all(
        count_problems(seeds=seeds, rates=rates, draws=draws, workers=workers)
        + amount_problems(margin=margin, minutes=minutes)
        + together_problems(together, executor, workers)
    )
    if shots is None and draws is not None and draws > 1:
        raise DeltatuneError(
            f"draws={draws}: draws are of `shots` rows for each class; set shots too, such as shots=16"
        )
    if data.kind == "image":
        raise DeltatuneError(
            "methods are compared by their predictions, and text to image has a loss alone: train each method with "
            "`deltatune train --task image`, and look at what `deltatune draw` draws"
        )
    settings = settings or Settings()
    start, seeds, draws = _repeats(seeds, draws, shots)
    whole, drawn = data, [few_shot(data, shots, draw) for draw in range(draws)] if shots is not None else []
    data = drawn[0] if drawn else data
    fields = dict(task or {})
    fields |= {name: value for name, value in (("max_length", max_length), ("metric", metric)) if value}
    prompting = [method for method in map(_prompting_method, methods) if method is not None]
    if not prompting and (prompts.template or prompts.words or prompts.describe):
        raise DeltatuneError(
            "a template, words or a description of the classes are for prompting methods: name one, such as "
            "ZeroShot(), or Cloze(LoRA()) to train through label words"
        )
    if unlabelled and not any(method.reads_unlabelled for method in prompting):
        raise DeltatuneError(
            f"{len(unlabelled):,} unlabelled rows are given, and none of the methods learns from them; add one that "
            "does, such as PET(), or leave the rows out"
        )
    loads = "words" if prompting and data.kind == "classes" else ""
    session = open_session(
        model, data, fields, head, precision=settings.precision, loads=loads, open_base=open_base, quantize=quantize
    )
    prompts = dataclasses.replace(prompts, data=prompts.data or data.name)
    limit = None if budget is None else read_budget(budget, session.host.sites)
    candidates, problems = make_candidates(session, methods, limit, rates)
    free, unusable = check_candidates(session, data, candidates, limited="max_length" not in fields, prompts=prompts)
    candidates = [candidate for candidate in candidates if candidate.text not in unusable]
    left_out = check_methods({**problems, **unusable}, tuple(methods) == DEFAULT_METHODS, len(candidates))
    notes = [*session.notes, *left_out]
    if "max_length" not in fields and free:
        shortest = min(free, key=lambda text: free[text])
        limited = session.limited(free[shortest])
        notes += length_note(session, limited, shortest)
        session = limited
    splits = encode_splits(session, data.splits())
    return Plan(
        name=f"{data.name} on {Path(model).name}{'' if session.quantize is None else f' in {session.quantize}'}",
        out=Path(out) if out is not None else folder_for(model, data, session.quantize),
        session=session,
        data=dataclasses.replace(whole, notes=(*data.notes, *notes)),
        splits=splits,
        candidates=with_rates(candidates, steps_of(settings, len(splits["train"]))),
        seeds=tuple(range(seeds)),
        settings=settings,
        budget=limit,
        start=start,
        margin=margin if margin is not None else default_margin(session.task.metric),
        minutes=minutes,
        timed=timed,
        executor=executor,
        workers=workers,
        together=together,
        shots=shots,
        draws=tuple(encode_splits(session, {"train": each.train, "validation": each.validation}) for each in drawn),
        drawn=tuple(drawn),
        options=prompts,
        more_unlabelled=tuple(unlabelled),
    )


def _prompting_method(text: str | Method) -> PromptMethod | None:
    """The prompting method of a text; None for others, and for one that cannot be read: it is told of later."""
    try:
        method = as_prompt_method(choices(split_budget(text)[0])[0] if isinstance(text, str) else text)
    except DeltatuneError:
        return None
    return method if isinstance(method, PromptMethod) else None


def _repeats(seeds: int | None, draws: int | None, shots: int | None) -> tuple[int, int, int]:
    """Repeats that every method gets, and the most seeds and draws: numbers that the user gives are for all methods."""
    if shots is None:
        return (seeds, seeds, 1) if seeds is not None else (START_SEEDS, MOST_SEEDS, 1)
    seeds = seeds or 1
    return (draws * seeds, seeds, draws) if draws is not None else (START_DRAWS * seeds, seeds, MOST_DRAWS)


def default_margin(metric: str) -> float | None:
    """DEFAULT_MARGIN for scores that are at most 1; None for others, of which the user says what counts as equal."""
    return DEFAULT_MARGIN if bounds(metric)[1] == 1 else None


def count_problems(**counts: int | None) -> list[str]:
    """What is wrong with numbers of seeds, learning rates, draws and workers."""
    given = {name: number for name, number in counts.items() if number is not None}
    problems = [f"{name} must be at least 1, not {number}" for name, number in given.items() if number < 1]
    return problems + [f"{name} must be at most {MOST[name]}, not {n}" for name, n in given.items() if n > MOST[name]]


def amount_problems(**amounts: float | None) -> list[str]:
    """What is wrong with a margin and a number of minutes."""
    return [
        f"{name} must be above 0, not {amount:g}"
        for name, amount in amounts.items()
        if amount is not None and not 0 < amount < math.inf
    ]


def together_problems(together: str, executor: str, workers: int | None) -> list[str]:
    """What is wrong with a choice of shared passes: they are within one process."""
    if together not in TOGETHER:
        return [f"together must be {' or '.join(TOGETHER)}, not {together!r}"]
    others = {"executor": executor} if executor != "local" else {"workers": workers} if workers not in (None, 1) else {}
    return [
        f"together={together!r} shares the passes of one process, which {name}={value} is not; leave one of the two out"
        for name, value in others.items()
        if together != "off"
    ]


def folder_for(model: str, data: Data, quantize: str | None = None) -> Path:
    """`runs/<data>` for the built-in model, `runs/<model>-<data>` for others; `-nf4` for one that is quantised."""
    parts = [] if model == BUILTIN else [Path(model).name]
    parts += [data.name, *([] if quantize is None else [re.sub(r"[^a-z0-9]+", "-", quantize.lower()).strip("-")])]
    return Path("runs") / "-".join(parts)
