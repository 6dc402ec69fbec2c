"""`--json` and `--quiet`: what a command may write to its standard streams, decided once for all commands.

With `--json` the standard output is that of `result_stream` alone, and whatever else is printed goes to the standard
error. With `--quiet` nothing but the result and errors is printed.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

QUIET_HELP = "Print nothing but the result and errors."


class Nowhere(io.TextIOBase):
    """A stream that forgets what is written. It holds no file, so that a logger may keep it."""

    encoding = "utf-8"

    def writable(self) -> bool:
        """It takes everything."""
        return True

    def write(self, text: str) -> int:
        """Forget a text."""
        return len(text)


@dataclass
class OutputMode:
    """What the running command may print."""

    json: bool = False
    """Whether the standard output holds JSON alone."""
    quiet: bool = False
    """Whether nothing but the result is printed."""
    results: TextIO | None = None
    """The standard output for results; None: that of the process."""
    answered: bool = False
    """Whether the result was printed as one JSON value, after which stdout takes no other."""


CURRENT = OutputMode()


def result_stream() -> TextIO:
    """The stream for the result that was asked for: the process's standard output, also where --json moves it."""
    return CURRENT.results or sys.stdout


def aside_stream() -> TextIO:
    """The stream for what is said beside the result: the standard output, with --json the standard error."""
    return Nowhere() if CURRENT.quiet else sys.stdout  # type: ignore[return-value]


@contextmanager
def output_mode(json: bool, quiet: bool) -> Iterator[None]:
    """While it lasts, only results reach the standard output with `json`, and nothing else any stream with `quiet`."""
    before = CURRENT.json, CURRENT.quiet, CURRENT.results
    stdout, stderr = sys.stdout, sys.stderr
    CURRENT.json, CURRENT.quiet, CURRENT.results = json, quiet, stdout
    if quiet:
        sys.stderr = Nowhere()
    if json:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        CURRENT.json, CURRENT.quiet, CURRENT.results = before
