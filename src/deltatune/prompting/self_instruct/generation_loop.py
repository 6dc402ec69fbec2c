"""Rounds until there are enough instructions, each written down before the next begins."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.endpoints.endpoint import Endpoint, GenerateFunction, name_of
from deltatune.prompting.self_instruct.generation_round import RoundGenerator
from deltatune.prompting.self_instruct.quality_filters import OVER, Pool
from deltatune.prompting.self_instruct.saved_state import Journal
from deltatune.prompting.self_instruct.seed_tasks import Row, seed_tasks, task_of
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct

UNTIL = {"total", "rounds", "patience"}
"""Fields that say when it ends: a run may go on with others of them."""


@dataclass(frozen=True)
class Progress:
    """How far it is."""

    round: int
    """Finished rounds."""
    kept: int
    """Kept instructions."""
    total: int
    """Instructions to grow."""
    rows: int
    """Rows of the kept instructions."""
    rejected: Mapping[str, int]
    """How many were not kept, by reason."""
    asked: int
    """Prompts sent since this start."""


def generate_instructions(
    seeds: Sequence[Mapping[str, Any]],
    write: GenerateFunction | Endpoint,
    settings: SelfInstruct | None = None,
    out: str | Path | None = None,
    on_round: Callable[[Progress], None] | None = None,
) -> list[Row]:
    """New instructions with inputs and outputs, each unlike the seeds and the others.

    `write` gets prompts and returns what follows each: `LocalModel`, `OpenAICompatible` or any function. Rows have
    `instruction`, `input`, `output`, `similarity` (ROUGE-L with the most similar instruction there was),
    `most_similar` and `round`; with steps also `is_classification`. With `out`, a .jsonl file, every round is written
    when it ends, what is not kept goes beside it into `NAME.rejected.jsonl`, and the same call goes on where the last
    one ended.

    Raises DeltatuneError for seeds that are no tasks, for an `out` of another run, and after `patience` rounds in
    which nothing was kept; what was kept before is in `out`.
    """
    settings = settings or SelfInstruct()
    tasks = seed_tasks(seeds)
    if len(tasks) < settings.human:
        raise DeltatuneError(
            f"a prompt shows {settings.human} seed tasks, there are {len(tasks)}: give more, or set seed_tasks={len(tasks)}"
        )
    with ExitStack() as stack:
        identity = identity_of(seeds, write, settings)
        journal = stack.enter_context(Journal(Path(out).expanduser(), identity)) if out is not None else None
        return _Run(RoundGenerator(write, tasks, settings), journal, on_round or (lambda step: None)).rows()


def identity_of(seeds: Sequence[Mapping[str, Any]], write: GenerateFunction | Endpoint, settings: SelfInstruct) -> dict[str, Any]:
    """What two runs that are one must have in common."""
    text = json.dumps(list(seeds), sort_keys=True, ensure_ascii=False, default=str)
    rest = {name: value for name, value in dataclasses.asdict(settings).items() if name not in UNTIL}
    return {"writer": name_of(write), "seeds": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), **rest}


class _Run:
    """The state of a run: what was grown, and what was not kept."""

    def __init__(self, grower: RoundGenerator, journal: Journal | None, on_round: Callable[[Progress], None]) -> None:
        self.grower, self.journal, self.on_round = grower, journal, on_round
        self.kept = journal.rows("kept") if journal else []
        self.rejected = Counter(row["reason"] for row in journal.rows("rejected")) if journal else Counter[str]()
        self.number = journal.round if journal else 0
        firsts: dict[str, Row] = {}
        for row in self.kept:
            firsts.setdefault(row["instruction"], row)
        self.grown = [task_of(row) for row in firsts.values()]
        self.pool = Pool([*(task.instruction for task in grower.seeds), *(task.instruction for task in self.grown)])
        self.asked = 0

    def rows(self) -> list[Row]:
        """Grow to the end."""
        settings, barren = self.grower.settings, 0
        self.on_round(self._step())
        while len(self.grown) < settings.total and self.number < (settings.rounds or self.number + 1):
            before = len(self.grown)
            self._round_()
            barren = 0 if len(self.grown) > before else barren + 1
            if barren >= settings.patience:
                raise DeltatuneError(self._nothing(barren))
        return self.kept

    def _round_(self) -> None:
        found = self.grower.round(self.number + 1, self.grown, self.pool)
        room = self.grower.settings.total - len(self.grown)
        kept = found.kept[:room]
        for own in found.kept[room:]:
            found.reject_(OVER, instruction=own[0]["instruction"])
        rows = [row for own in kept for row in own]
        if self.journal:
            self.journal.add_(found.number, rows, found.rejected)
        self.number = found.number
        self.kept += rows
        self.rejected.update(row["reason"] for row in found.rejected)
        self.asked += found.asked
        for own in kept:
            self.grown.append(task_of(own[0]))
            self.pool.add_(own[0]["instruction"])
        self.on_round(self._step())

    def _step(self) -> Progress:
        total = self.grower.settings.total
        counts = dict(self.rejected.most_common())
        return Progress(self.number, len(self.grown), total, len(self.kept), counts, self.asked)

    def _nothing(self, rounds: int) -> str:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common(5))
        where = f" {len(self.grown)} are in {self.journal.out}." if self.journal and self.grown else ""
        return (
            f"{name_of(self.grower.write)} wrote no instruction to keep in {rounds} rounds ({counts}).{where} "
            "A stronger model, other seeds, a larger similarity or more temperature may help"
        )
