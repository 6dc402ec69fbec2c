"""Errors that users meet: each names the thing, what exists, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeltatuneError(ValueError):
    """A mistake that the user can fix. The command line prints the message and exits with code 2."""


class CannotMerge(DeltatuneError):
    """An adapter cannot be merged into the base's weights, or merging it would change the outputs."""


class OutOfMemory(DeltatuneError):
    """The memory of the machine or of the device is used up."""


MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
)
"""Parts of messages, of torch, safetensors and the system, that say that there is no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: torch says so in RuntimeErrors, and each device in its own way."""
    if isinstance(error, DeltatuneError):
        return isinstance(error, OutOfMemory)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = isinstance(error, (RuntimeError, OSError)) or type(error).__name__ == "SafetensorError"
    return said and any(text in str(error) for text in MEMORY_TEXTS)


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the option closest to `word`, or an empty string."""
    options = list(options)
    lowered = {option.lower(): option for option in options}
    close = [lowered[word.lower()]] if word.lower() in lowered else difflib.get_close_matches(word, options, 1, 0.5)
    if not close:
        close = [lowered[match] for match in difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)]
    return f", did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def raise_all(problems: list[str], about: str = "", error: type[DeltatuneError] = DeltatuneError) -> None:
    """Raise one error listing every problem; do nothing when there is none."""
    if problems:
        head = [about] if about else []
        lines = problems if len(problems) == 1 and not about else [f"- {problem}" for problem in problems]
        raise error("\n".join(head + lines))
