"""The Self-Instruct loop: rounds until there are enough instructions, each saved before the next one starts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import expanded
from deltatune.core.input_validation.strict_json import dumps
from deltatune.prompting.endpoints.endpoint import Endpoint, GenerateFunction, name_of
from deltatune.prompting.self_instruct.generation_round import RoundGenerator
from deltatune.prompting.self_instruct.quality_filters import OVER_TOTAL, InstructionPool
from deltatune.prompting.self_instruct.saved_state import SavedState
from deltatune.prompting.self_instruct.seed_tasks import Row, seed_tasks, task_of
from deltatune.prompting.self_instruct.self_instruct_settings import SelfInstruct

STOPPING = {"total", "rounds", "patience"}
"""Settings that decide when a run stops; a resumed run may change them."""


@dataclass(frozen=True)
class GenerationProgress:
    """The state of a run after a round."""

    round: int
    """Finished rounds."""
    kept: int
    """Kept instructions."""
    total: int
    """Number of instructions to generate."""
    rows: int
    """Rows of the kept instructions."""
    rejected: Mapping[str, int]
    """Number of rejected texts by reason."""
    prompts: int
    """Prompts sent since this start."""


def generate_instructions(
    seeds: Sequence[Mapping[str, Any]],
    endpoint: GenerateFunction | Endpoint,
    settings: SelfInstruct | None = None,
    out: str | Path | None = None,
    on_round: Callable[[GenerationProgress], None] | None = None,
) -> list[Row]:
    """Generate new instructions with inputs and outputs, each dissimilar to the seeds and to each other.

    `endpoint` takes prompts and returns continuations: `LocalModel`, `OpenAICompatible` or any function. Rows have
    `instruction`, `input`, `output`, `similarity` (ROUGE-L with the most similar earlier instruction),
    `most_similar` and `round`; with mode "steps" also `is_classification`. With `out`, a .jsonl file, every round is
    saved when it ends, rejected texts go into `NAME.rejected.jsonl`, and the same call resumes after the last
    finished round.

    Raises DeltatuneError for invalid seeds, for an `out` of another run, and after `patience` rounds without a new
    instruction; earlier ones are then in `out`.
    """
    settings = settings or SelfInstruct()
    tasks = seed_tasks(seeds)
    if len(tasks) < settings.seed_tasks:
        raise DeltatuneError(
            f"a prompt shows {settings.seed_tasks} seed tasks, there are {len(tasks)}: give more, or set "
            f"seed_tasks={len(tasks)}"
        )
    with ExitStack() as stack:
        identity = identity_of(seeds, endpoint, settings)
        state = stack.enter_context(SavedState(expanded(out), identity)) if out is not None else None
        rounds = RoundGenerator(endpoint, tasks, settings)
        return _Loop(rounds, state, on_round or (lambda progress: None)).run()


def identity_of(
    seeds: Sequence[Mapping[str, Any]], endpoint: GenerateFunction | Endpoint, settings: SelfInstruct
) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed."""
    text = dumps(list(seeds), "the seed tasks", sort_keys=True, default=str)
    rest = {name: value for name, value in dataclasses.asdict(settings).items() if name not in STOPPING}
    return {"endpoint": name_of(endpoint), "seeds": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), **rest}


class _Loop:
    """A run: kept rows, rejected texts, and the instructions that new ones are compared with."""

    def __init__(
        self, rounds: RoundGenerator, state: SavedState | None, on_round: Callable[[GenerationProgress], None]
    ) -> None:
        self.rounds, self.state, self.on_round = rounds, state, on_round
        self.rows = state.rows("kept") if state else []
        self.rejected = Counter(row["reason"] for row in state.rows("rejected")) if state else Counter[str]()
        self.number = state.round if state else 0
        first_rows: dict[str, Row] = {}
        for row in self.rows:
            first_rows.setdefault(row["instruction"], row)
        self.generated = [task_of(row) for row in first_rows.values()]
        self.pool = InstructionPool(task.instruction for task in (*rounds.seeds, *self.generated))
        self.prompts = 0

    def run(self) -> list[Row]:
        """Generate rounds until the total, the round limit or the patience is reached."""
        settings, without_new = self.rounds.settings, 0
        self.on_round(self._progress())
        while len(self.generated) < settings.total and self.number < (settings.rounds or self.number + 1):
            before = len(self.generated)
            self._run_round()
            without_new = 0 if len(self.generated) > before else without_new + 1
            if without_new >= settings.patience:
                raise DeltatuneError(self._patience_error(without_new))
        return self.rows

    def _run_round(self) -> None:
        result = self.rounds.generate(self.number + 1, self.generated, self.pool)
        room = self.rounds.settings.total - len(self.generated)
        kept = result.kept[:room]
        for rows in result.kept[room:]:
            result.reject_(OVER_TOTAL, instruction=rows[0]["instruction"])
        new_rows = [row for rows in kept for row in rows]
        if self.state:
            self.state.add_(result.number, new_rows, result.rejected)
        self.number = result.number
        self.rows += new_rows
        self.rejected.update(row["reason"] for row in result.rejected)
        self.prompts += result.prompts
        for rows in kept:
            self.generated.append(task_of(rows[0]))
            self.pool.add_(rows[0]["instruction"])
        self.on_round(self._progress())

    def _progress(self) -> GenerationProgress:
        total = self.rounds.settings.total
        counts = dict(self.rejected.most_common())
        return GenerationProgress(self.number, len(self.generated), total, len(self.rows), counts, self.prompts)

    def _patience_error(self, rounds: int) -> str:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common(5))
        where = f" {len(self.generated)} are in {self.state.out}." if self.state and self.generated else ""
        return (
            f"{name_of(self.rounds.endpoint)} generated no new instruction in {rounds} rounds ({counts}).{where} "
            "Use a stronger model, other seeds, a larger similarity or a higher temperature"
        )
