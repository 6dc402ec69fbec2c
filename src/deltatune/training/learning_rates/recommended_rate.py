"""Recommended learning rates: a method's own for long runs, a higher one for short runs, and the rates around it."""

from __future__ import annotations

import math

from deltatune.core.method import Method
from deltatune.training.settings import Settings

RATE_STEP = 3.0
"""Neighbouring learning rates of a search differ by this factor."""
LONG = 400
"""Optimizer steps from which on a method's own rate is recommended."""
MOST = 3.0
"""The largest factor on a method's own rate, for runs of LONG / MOST² = 44 steps and fewer."""
EXTENSIONS = 2
"""How often a search of three or more rates is extended beyond its edge while the edge is best."""


def neighbour(rate: float, steps: int) -> float:
    """The learning rate some steps of the search away, rounded to two digits."""
    return float(f"{rate * RATE_STEP**steps:.2g}")


def rates_around(middle: float, count: int) -> tuple[float, ...]:
    """`count` ascending rates around a recommended one, a step apart; an even count has one more below it."""
    first = -(count // 2)
    return tuple(neighbour(middle, first + i) for i in range(count))


def steps_of(settings: Settings, rows: int) -> int:
    """Optimizer steps that settings mean for so many encoded rows."""
    return settings.max_steps or math.ceil(settings.epochs * math.ceil(rows / settings.batch_size))


def recommended_rate(method: Method, steps: int) -> float:
    """The peak rate for a run of so many optimizer steps: the method's own, times √(LONG / steps) for fewer than LONG.

    Short runs need higher rates, at most MOST times the method's own (measured: docs/comparison.md).
    """
    return float(f"{method.learning_rate * min(max(math.sqrt(LONG / steps), 1.0), MOST):.2g}")
