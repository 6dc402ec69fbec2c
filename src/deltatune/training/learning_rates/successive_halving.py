"""Search of a learning rate and a size by successive halving: the better half of the runs goes on at each rung.

Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943. Every run has the schedule of a whole run and pauses at the
rungs, so that no step is taken twice and the chosen run is the one that a full search would have made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from deltatune.training.learning_rates.recommended_rate import EXTENSIONS, neighbour

Record = dict[str, Any]
C = TypeVar("C")
"""What is searched besides the rate: a method at one size."""
FEWEST_STEPS = 8
"""Steps before the first rung: a run of fewer says nothing of its rate."""


class Arm(NamedTuple, Generic[C]):
    """What a run tries: a method at one size, and a learning rate."""

    candidate: C
    rate: float


class Run(NamedTuple, Generic[C]):
    """A run that the search asks for."""

    arm: Arm[C]
    repeat: Any
    """Seed, and draw of rows."""
    until: int | None
    """The rung at which it pauses; None: it goes to its end."""


@dataclass(frozen=True)
class RungScore(Generic[C]):
    """What the search saw of an arm at a rung."""

    arm: Arm[C]
    step: int
    score: float | None
    """On the validation rows; None where the run failed."""
    kept: bool
    """Whether it went on."""


Runs = Generator[Sequence[Run[C]], Sequence[Record | None], None]


def rungs(arms: int, steps: int) -> list[int]:
    """Steps at which runs pause: after the last of them one of `arms` is left.

    The first of R rungs is at 1/2^R of the steps. Rungs of fewer than FEWEST_STEPS steps are left out.
    """
    halvings = math.ceil(math.log2(arms)) if arms > 1 else 0
    found = [math.ceil(steps / 2**left) for left in range(halvings, 0, -1)]
    return [step for step in found if FEWEST_STEPS <= step < steps]


class Search(Generic[C]):
    """The runs of one method, and the arm to choose by them. Only validation rows are used.

    Every arm is run at the first repeat, and the better half goes on at each rung; while the best of three or more
    rates is at an edge of those tried, the next rate beyond it is tried too, from the start. The arm that is left is
    run at the other first repeats. If that takes its mean clearly below another arm's last score, its first run was
    lucky, and the other arm is run to its end and at the other repeats.
    """

    def __init__(
        self,
        arms: Sequence[Arm[C]],
        repeats: Sequence[Any],
        steps: int | None,
        score: Callable[[Record], float],
        slack: float = 0.0,
        pauses: Sequence[int] | None = None,
        extensions: int = EXTENSIONS,
    ) -> None:
        """`repeats`: those that the chosen arm gets here. `steps`: of a whole run; None: runs cannot pause.

        A higher `score` is better. `slack`: another arm is clearly better if it is better by more than this share.
        `pauses`: the rungs, if not those of `rungs`. `extensions`: most rates beyond the edges.
        """
        self.arms, self.repeats, self._score, self.slack = list(arms), list(repeats), score, slack
        self.rungs = list(pauses) if pauses is not None else rungs(len(self.arms), steps) if steps else []
        self.extensions = extensions
        self.steps = steps or 0
        self.last: dict[Arm[C], Record] = {}
        """The latest record of each arm's first run, paused or finished."""
        self.runs: dict[Arm[C], list[Record]] = {}
        """Finished runs of each arm, in the order of the repeats."""
        self.trials: list[RungScore[C]] = []
        """What was seen at each rung, in order."""
        self.arm = self.arms[0]
        """The arm that is chosen."""
        self._failed: set[Arm[C]] = set()

    def program(self) -> Runs[C]:
        """Ask for runs, and be sent a record of each; None for one that failed."""
        alive, planned = list(self.arms), len(self.arms)
        for i, step in enumerate(self.rungs):
            yield from self._advance(alive, step)
            if i == 0:
                yield from self._extend(step)
                alive = list(self.arms)
            most = math.ceil(planned / 2 ** (i + 1)) if i + 1 < len(self.rungs) else 1
            alive = self._best(alive, most, step)
        yield from self._advance(alive, None)
        if not self.rungs:
            yield from self._extend(None)
        while self.last:
            self.arm = self.best
            yield from self._advance([self.arm], None)
            if self.arm in self._failed:
                if self._failed >= self.last.keys():
                    break
                continue
            if (left := self.repeats[len(self.runs[self.arm]) :]) and not self._is_beaten():
                records = yield [Run(self.arm, repeat, None) for repeat in left]
                self.runs[self.arm] += [record for record in records if record is not None]
                if None in records:
                    self._failed.add(self.arm)
            if not self._is_beaten():
                break

    def run(self, record: Callable[[Run[C]], Record | None], finals: bool = True) -> Sequence[Run[C]]:
        """Have `record` make one run after another until nothing more is asked for; None is a run that failed.

        Without `finals` this ends before the runs that go to their end, and returns them; none if all have failed.
        """
        program = self.program()
        records: list[Record | None] | None = None
        while True:
            try:
                runs = next(program) if records is None else program.send(records)
            except StopIteration:
                return ()
            if not finals and runs[0].until is None:
                return runs
            records = [record(run) for run in runs]

    @property
    def planned(self) -> int:
        """Runs to ask for, pieces between pauses each, if no edge is left and the first choice is confirmed."""
        count, pieces = len(self.arms), 0
        for i in range(len(self.rungs)):
            pieces += math.ceil(count / 2**i)
        return pieces + (1 if self.rungs else count) + len(self.repeats) - 1

    @property
    def best(self) -> Arm[C]:
        """The arm with the best mean so far, the first of equal ones. Arms of which a run failed come last."""
        return max(self.last, key=lambda arm: (arm not in self._failed, self.mean(arm)))

    @property
    def chosen(self) -> list[Record]:
        """The finished runs of the chosen arm; none if all failed."""
        return self.runs.get(self.arm, [])

    def mean(self, arm: Arm[C]) -> float:
        """The mean score of an arm's finished runs, or the score at the rung where it pauses."""
        return statistics.mean(map(self._score, self.runs.get(arm) or [self.last[arm]]))

    def tried(self, candidate: C) -> list[float]:
        """The rates tried of one size, ascending."""
        return sorted(arm.rate for arm in self.last if arm.candidate == candidate)

    def _advance(self, arms: Sequence[Arm[C]], until: int | None) -> Runs[C]:
        """Run arms at the first repeat to a rung, or to their end."""
        left = [arm for arm in arms if arm not in self.runs and arm not in self._failed]
        if not left:
            return
        records = yield [Run(arm, self.repeats[0], until) for arm in left]
        for arm, record in zip(left, records, strict=True):
            if record is None:
                self._failed.add(arm)
                self.trials.append(RungScore(arm, until or self.steps, None, False))
                continue
            self.last[arm] = record
            if until is None:
                self.runs[arm] = [record]

    def _extend(self, until: int | None) -> Runs[C]:
        """While the best rate of its size is at an edge of three or more, try the next rate beyond it."""
        for _ in range(self.extensions):
            if not self.last:
                return
            candidate, rate = self.best
            rates = self.tried(candidate)
            if len(rates) < 3 or rates[0] < rate < rates[-1]:
                return
            arm = Arm(candidate, neighbour(rate, 1 if rate == rates[-1] else -1))
            yield from self._advance([arm], until)
            if arm in self._failed:
                return
            self.arms.append(arm)

    def _best(self, arms: Sequence[Arm[C]], most: int, step: int) -> list[Arm[C]]:
        """The arms that go on from a rung: the best scores, of equal ones the lowest training losses."""
        left = [arm for arm in arms if arm in self.last and arm not in self._failed]
        ranked = sorted(left, key=lambda arm: (-self._score(self.last[arm]), _loss(self.last[arm])))
        kept = ranked[:most]
        self.trials += [RungScore(arm, step, self._score(self.last[arm]), arm in kept) for arm in left]
        return kept

    def _is_beaten(self) -> bool:
        best = self.mean(self.best)
        return self.arm in self._failed or best - self.mean(self.arm) > self.slack * abs(best)


def _loss(record: Record) -> float:
    """The mean loss of the latest quarter of a run's steps."""
    losses = [float(loss) for _, loss in record.get("history") or ()]
    latest = losses[-max(1, len(losses) // 4) :]
    return statistics.mean(latest) if latest else math.inf
