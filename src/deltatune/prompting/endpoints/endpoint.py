"""The interface of an endpoint: prompts and sampling parameters in, generated texts out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from deltatune.core.errors import DeltatuneError

GenerateFunction = Callable[[list[str]], list[str]]
"""Takes prompts and returns one continuation per prompt, in the same order."""
PromptForm = Literal["plain", "chat"]
"""How a prompt is sent: as text to continue, or as a user message of a conversation."""


@dataclass(frozen=True)
class SamplingParams:
    """How an endpoint generates. The names are those of OpenAI's API."""

    max_tokens: int = 256
    """Maximum number of generated tokens per prompt."""
    temperature: float = 0.0
    """Sampling temperature; 0 decodes greedily."""
    top_p: float = 1.0
    """Nucleus sampling: the most likely tokens with this total probability."""
    stop: tuple[str, ...] = ()
    """Generation ends before any of these strings."""
    seed: int = 0
    """Random seed for sampling."""


class Truncated(str):
    """A text that reached `max_tokens`, or that the server cut, so its last part may be incomplete."""

    __slots__ = ()


@runtime_checkable
class Endpoint(Protocol):
    """A text generator that takes sampling parameters. A plain function uses its own."""

    @property
    def name(self) -> str:
        """Name of the model; a resumed run must use the same one."""

    def generate(self, prompts: list[str], params: SamplingParams) -> list[str]:
        """Generate one text per prompt, in the same order."""


def complete(endpoint: GenerateFunction | Endpoint, prompts: list[str], params: SamplingParams) -> list[str]:
    """Generate one text per prompt. Raises DeltatuneError if the endpoint returns anything else."""
    if not prompts:
        return []
    texts = endpoint.generate(prompts, params) if isinstance(endpoint, Endpoint) else endpoint(prompts)
    if not isinstance(texts, list) or len(texts) != len(prompts):
        returned = f"{len(texts)} texts" if isinstance(texts, list) else f"a {type(texts).__name__}"
        raise DeltatuneError(
            f"{name_of(endpoint)} was given {len(prompts)} prompts and returned {returned}: return a list"
        )
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None or None in texts:
        raise DeltatuneError(
            f"{name_of(endpoint)} returned a {type(wrong).__name__} among its texts: every prompt needs a string, "
            "an empty one if nothing was generated"
        )
    return [_valid_unicode(text) for text in texts]


def _valid_unicode(text: str) -> str:
    """Replace lone surrogates, which no file can hold."""
    return text if text.isascii() else type(text)(text.encode("utf-8", "replace").decode())


def name_of(endpoint: GenerateFunction | Endpoint) -> str:
    """Return the name of an endpoint or a function."""
    if isinstance(endpoint, Endpoint):
        return endpoint.name
    return str(getattr(endpoint, "__qualname__", type(endpoint).__name__))
