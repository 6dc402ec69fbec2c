"""The one error users meet: it names the thing, what exists, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeltatuneError(ValueError):
    """A mistake that the user can mend. The command line prints the message and exits with code 2."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the option closest to `word`, or an empty string."""
    options = list(options)
    found = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if not found:
        merged = {option.lower(): option for option in options}
        found = [merged[match] for match in difflib.get_close_matches(word.lower(), merged, n=1, cutoff=0.6)]
    return f", did you mean {found[0]!r}?" if found else ""


def raise_all(problems: list[str], about: str = "") -> None:
    """Raise one error listing every problem; do nothing when there is none."""
    if problems:
        head = [about] if about else []
        lines = problems if len(problems) == 1 and not about else [f"- {problem}" for problem in problems]
        raise DeltatuneError("\n".join(head + lines))
