"""Everything a training run needs, loaded, attached, encoded and checked before the long part begins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltatune.cli.adapters import NAME
from deltatune.cli.exporting import check_export
from deltatune.core.budget import fit_budget
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.text import parse
from deltatune.data import Data
from deltatune.tasks import Encoded, Task, longest_input
from deltatune.tasks.backbone import best_device, load_backbone
from deltatune.tasks.choosing import KINDS, check_known, shorter, task_for
from deltatune.tasks.words import worded
from deltatune.training import Settings, encode_for
from deltatune.training.predict import room


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked."""

    host: Host
    tokenizer: PreTrainedTokenizerBase
    task: Task
    settings: Settings
    data: Data
    encoded: dict[str, Encoded]
    """Tokens of each split."""
    notes: list[str]
    """What is to be said of the export."""


def prepare(
    model_name: str,
    data: Data,
    over: dict[str, Any],
    method: str,
    budget: str | None,
    head: dict[str, Any],
    settings: Settings,
    export_for: str | None = None,
) -> Prepared:
    """Load, attach and encode, the cheap things first; every mistake of the user shows here, before training."""
    wanted = parse(method)
    answers = KINDS[data.kind].answers
    check_head(answers, head)
    given = {name: value for name, value in over.items() if value is not None}
    check_known(KINDS[data.kind], given)
    model, tokenizer = load_backbone(model_name, pooler=head.get("pooling") == "pooler", answers=answers)
    host = Host(model.to(best_device()))  # type: ignore[arg-type]
    chosen = task_for(data, model.config, tokenizer, given)
    task = chosen.task
    wanted = worded(wanted, tokenizer, task)
    if budget is not None:
        wanted = fit_budget(wanted, host.sites, budget)
    own = task.make_head(model.config, settings.seed, **(head if answers == "row" else {}))
    notes = [*chosen.notes, *check_export(export_for, wanted, host, own)]
    host.attach(NAME, wanted, seed=settings.seed, head=False if own is None else own)
    if "max_length" not in given:
        task = shorter(task, free_positions(host))
    if settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=wanted.learning_rate)
    encoded = {split: encode_for(host, NAME, task, rows, tokenizer) for split, rows in data.splits().items()}
    return Prepared(host, tokenizer, task, settings, data, encoded, notes)


def check_head(answers: str, head: dict[str, Any]) -> None:
    """Raise DeltatuneError for a head that the options ask for and the task cannot have."""
    if answers == "row":
        return
    asked = [f"--{name}" for name, value in head.items() if value]
    why = "reads every token" if answers == "token" else "is answered by the model's own words"
    raise_all([f"{name}: this task {why}, so there is no such head to choose" for name in asked])


def free_positions(host: Host) -> int | None:
    """Positions of the model that its adapter leaves to the text; None where there is no limit."""
    positions = longest_input(host.model)
    return None if positions is None else positions - room(host, NAME)
