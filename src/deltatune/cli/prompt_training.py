"""`deltatune train` with a prompting method: a prompt is found, or trained through label words, into a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.cli.options.prompt_options import given, prompt_options, read_unlabelled
from deltatune.cli.ui.prompt_screen import introduce_prompt, report_prompt, watched_prompt
from deltatune.cli.ui.screen import print_json, show
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.store import run_folder
from deltatune.store.folder_lock import FolderLock

if TYPE_CHECKING:
    from deltatune.data import Data
    from deltatune.prompting.prompt_method import PromptMethod
    from deltatune.training import Settings


def prompting_of(
    method: str, template: str | None, words: Sequence[str] | None, describe: str | None, unlabelled: Path | None
) -> PromptMethod | None:
    """The prompting method of these options; None for a tuning method that trains with a head of its own.

    A tuning method whose template places its virtual tokens, and one with options of prompts, trains through label
    words.
    """
    from deltatune.prompting.prompt_method import PromptMethod
    from deltatune.prompting.prompt_run import as_prompting
    from deltatune.prompting.zero_shot import as_prompt_method

    read = as_prompt_method(method)
    if isinstance(read, PromptMethod):
        return read
    if unlabelled is not None:
        raise DeltatuneError(
            f"--unlabelled {unlabelled}: {read!r} learns from labelled rows only; prompting methods such as PET() "
            "read unlabelled ones"
        )
    return as_prompting(read) if given(template, words, describe) else None


def train_prompt(
    method: PromptMethod,
    model: str,
    data: Data,
    drawn: Data,
    *,
    prompts: Mapping[str, Any],
    unlabelled: Path | None,
    budget: str | None,
    task: Mapping[str, Any],
    settings: Settings,
    source: str,
    out: Path | None,
    force: bool,
    refused: Mapping[str, Any],
    quantize: str | None = None,
    as_json: bool = False,
) -> None:
    """Find or train a prompt, score it and print it. `data` are all rows, `drawn` those of --shots.

    `refused` are options, by name, that no prompting method has.
    """
    from deltatune.data.few_shot import unlabelled_rows
    from deltatune.prompting.prompt_run import PromptJob, prepare, record_of

    problems = [f"{name}: {method!r} has no such option; leave it out" for name, value in refused.items() if value]
    if (os.environ.get("WORLD_SIZE") or "1") != "1":
        problems.append(f"{method!r} runs in one process; start it without torchrun and accelerate")
    if settings.learning_rate is not None and not method.trains:
        problems.append(f"--lr {settings.learning_rate}: {method!r} trains nothing; leave --lr out")
    if settings.learning_rate == "auto" and method.trains:
        problems.append(
            f"--lr auto: it is searched for methods that train with a head of their own, not for {method!r}; give a "
            "rate, or search with `deltatune compare`"
        )
    raise_all(problems)
    options = prompt_options(drawn, **prompts)
    more = read_unlabelled(unlabelled, drawn)
    if method.reads_unlabelled and drawn is not data:
        more += unlabelled_rows(data, drawn)
    ready = prepare(PromptJob(model, drawn, method, budget, options, more, task, settings, quantize))
    folder = out or run_folder.default_folder(drawn.name, repr(ready.method), ready.session.quantize)
    record = record_of(ready, source)
    with FolderLock(folder):
        before = run_folder.open_run(folder, record, force)
        introduce_prompt(ready, folder)
        if before is None:
            metrics = watched_prompt(ready, folder, record)
        else:
            metrics = before
            show("This run was finished before; --force runs it again.\n", aside=True)
    if as_json:
        print_json({"folder": str(folder), "adapter": str(folder / run_folder.ADAPTER), "metrics": metrics})
    else:
        report_prompt(metrics, folder)
