"""The interface of an endpoint: prompts and sampling parameters in, generated texts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from deltatune.core.errors import DeltatuneError

SAMPLE_STEP = 100_003
"""Difference between the seeds of two samples, so that those of neighbouring seeds are not the same ones."""
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


@dataclass(frozen=True)
class Request:
    """One prompt and how it is continued."""

    prompt: str
    params: SamplingParams = SamplingParams()

    def sample(self, number: int) -> Request:
        """The same request with another seed: sample `number` of the prompt, from 0."""
        return replace(self, params=replace(self.params, seed=self.params.seed + number * SAMPLE_STEP))


@dataclass(frozen=True)
class Completion:
    """One generated text, and what it cost as far as the endpoint says."""

    text: str
    truncated: bool = False
    """Whether it reached `max_tokens`, or was cut by the server."""
    prompt_tokens: int | None = None
    """Tokens of the prompt; None where the endpoint does not say."""
    completion_tokens: int | None = None
    """Generated tokens; None where the endpoint does not say."""
    retries: int = 0
    """Requests that failed before this one succeeded."""

    @property
    def marked(self) -> str:
        """The text, as a `Truncated` one if it is."""
        return Truncated(self.text) if self.truncated else self.text


OnCompletion = Callable[[int, Completion], None]
"""Called with the number of a request and its completion as soon as it is there, maybe from another thread."""


@runtime_checkable
class CountingEndpoint(Endpoint, Protocol):
    """An endpoint that says what its texts cost."""

    def completions(self, requests: Sequence[Request], done: OnCompletion) -> None:
        """Complete every request, in any order. Raises DeltatuneError where one fails; the others may be done."""


def completions(endpoint: GenerateFunction | Endpoint, requests: Sequence[Request], done: OnCompletion) -> None:
    """Complete every request; an endpoint that counts nothing gets those with the same parameters together."""
    if isinstance(endpoint, CountingEndpoint):
        endpoint.completions(requests, done)
        return
    for params, numbers in by_params(requests).items():
        texts = complete(endpoint, [requests[number].prompt for number in numbers], params)
        for number, text in zip(numbers, texts, strict=True):
            done(number, Completion(str(text), isinstance(text, Truncated)))


def by_params(requests: Sequence[Request]) -> dict[SamplingParams, list[int]]:
    """The numbers of the requests that have the same parameters."""
    groups: dict[SamplingParams, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(request.params, []).append(number)
    return groups


def texts_of(endpoint: CountingEndpoint, prompts: Sequence[str], params: SamplingParams) -> list[str]:
    """One text per prompt, in the same order."""
    texts = [""] * len(prompts)

    def done(number: int, completion: Completion) -> None:
        texts[number] = completion.marked

    endpoint.completions([Request(prompt, params) for prompt in prompts], done)
    return texts


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
    return [valid_unicode(text) for text in texts]


def valid_unicode(text: str) -> str:
    """Replace lone surrogates, which no file can hold."""
    return text if text.isascii() else type(text)(text.encode("utf-8", "replace").decode())


def name_of(endpoint: GenerateFunction | Endpoint) -> str:
    """Return the name of an endpoint or a function."""
    if isinstance(endpoint, Endpoint):
        return endpoint.name
    return str(getattr(endpoint, "__qualname__", type(endpoint).__name__))
