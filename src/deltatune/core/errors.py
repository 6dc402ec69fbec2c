"""Errors that users meet: each names the thing, what exists, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeltatuneError(ValueError):
    """A mistake that the user can fix. The command line prints the message and exits with code 2."""


class CannotMerge(DeltatuneError):
    """An adapter cannot be merged into the base's weights, or merging it would change the outputs."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the option closest to `word`, or an empty string."""
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if not close:
        lowered = {option.lower(): option for option in options}
        close = [lowered[match] for match in difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)]
    return f", did you mean {close[0]!r}?" if close else ""


def raise_all(problems: list[str], about: str = "", error: type[DeltatuneError] = DeltatuneError) -> None:
    """Raise one error listing every problem; do nothing when there is none."""
    if problems:
        head = [about] if about else []
        lines = problems if len(problems) == 1 and not about else [f"- {problem}" for problem in problems]
        raise error("\n".join(head + lines))
