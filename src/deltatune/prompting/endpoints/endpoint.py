"""What writes: a function from prompts to continuations, and how an endpoint is told in which way to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from deltatune.core.errors import DeltatuneError

GenerateFunction = Callable[[list[str]], list[str]]
"""Prompts in, what follows each of them out, in the same order."""
PromptForm = Literal["plain", "chat"]
"""How a prompt is put: as a text to go on with, or as a user's message of a conversation."""


@dataclass(frozen=True)
class SamplingParams:
    """How texts are to be written."""

    max_tokens: int = 256
    """Most tokens of a text."""
    temperature: float = 0.0
    """Above 0, words are drawn by chance; 0 takes the likeliest."""
    top_p: float = 1.0
    """Of sampling: the likeliest words that have this probability together."""
    stop: tuple[str, ...] = ()
    """A text ends before any of these."""
    seed: int = 0
    """Of sampling."""


class Truncated(str):
    """A text that ended because it had its most tokens, so that its last part may be half of one."""

    __slots__ = ()


@runtime_checkable
class Endpoint(Protocol):
    """A writer that can be told how to write. A plain function writes in its own way."""

    @property
    def name(self) -> str:
        """What writes; a run that goes on must have the same."""

    def generate(self, prompts: list[str], ask: SamplingParams) -> list[str]:
        """One text a prompt, in the same order."""


def complete(write: GenerateFunction | Endpoint, prompts: list[str], ask: SamplingParams) -> list[str]:
    """One text a prompt. Raises DeltatuneError where what came back is something else."""
    if not prompts:
        return []
    texts = write.generate(prompts, ask) if isinstance(write, Endpoint) else write(prompts)
    if not isinstance(texts, list) or len(texts) != len(prompts):
        found = f"{len(texts)} texts" if isinstance(texts, list) else f"a {type(texts).__name__}"
        raise DeltatuneError(f"{name_of(write)} was given {len(prompts)} prompts and returned {found}: return a list")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None or None in texts:
        raise DeltatuneError(
            f"{name_of(write)} returned a {type(wrong).__name__} among its texts: every prompt needs a string, "
            "an empty one where nothing was written"
        )
    return [_clean(text) for text in texts]


def _clean(text: str) -> str:
    """The text without halves of characters, which no file can hold."""
    return text if text.isascii() else type(text)(text.encode("utf-8", "replace").decode())


def name_of(write: GenerateFunction | Endpoint) -> str:
    """What to call an endpoint or a function."""
    return write.name if isinstance(write, Endpoint) else str(getattr(write, "__qualname__", type(write).__name__))
