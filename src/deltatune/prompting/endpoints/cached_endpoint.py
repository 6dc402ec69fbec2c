"""An endpoint whose answers are counted and kept: what a run over a server asks of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.prompting.endpoints.answer_cache import AnswerCache, AnswerSource
from deltatune.prompting.endpoints.endpoint import (
    Completion,
    Endpoint,
    GenerateFunction,
    OnCompletion,
    Request,
    SamplingParams,
    completions,
    name_of,
    texts_of,
)


@dataclass
class EndpointCost:
    """What a run asked of an endpoint."""

    calls: int = 0
    """Requests that were answered."""
    cached: int = 0
    """Answers that were on the disk already."""
    retries: int = 0
    """Requests that failed and were sent again."""
    prompt_tokens: int = 0
    """Tokens of prompts in the answered requests that say so."""
    completion_tokens: int = 0
    """Generated tokens in the answered requests that say so."""
    uncounted: int = 0
    """Answered requests for which the endpoint gave no tokens."""
    truncated: int = 0
    """Texts, cached ones too, that reached their limit of tokens or were cut."""

    def add(self, completion: Completion) -> None:
        """Count an answered request."""
        self.calls += 1
        self.retries += completion.retries
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0
        self.uncounted += completion.prompt_tokens is None or completion.completion_tokens is None

    def to_json(self) -> dict[str, int | None]:
        """Plain data; tokens are None where no request says any."""
        known = self.calls > self.uncounted
        tokens = {name: getattr(self, name) if known else None for name in ("prompt_tokens", "completion_tokens")}
        return {**asdict(self), **tokens}

    def describe(self) -> str:
        """One line."""
        kept = f", {self.cached} answers were there already" if self.cached else ""
        again = f", {self.retries} retries" if self.retries else ""
        if self.calls == self.uncounted:
            tokens = ", tokens unknown (the endpoint does not count them)" if self.calls else ""
        else:
            tokens = f", {self.prompt_tokens:,} tokens read and {self.completion_tokens:,} generated"
            tokens += f" ({self.uncounted} calls without a count)" if self.uncounted else ""
        cut = f", {self.truncated} texts reached their limit of tokens" if self.truncated else ""
        return f"{self.calls} calls{kept}{again}{tokens}{cut}"


class CachedEndpoint:
    """An endpoint whose answers are counted and, with a file, kept on disk. It is an endpoint itself."""

    def __init__(self, endpoint: GenerateFunction | Endpoint, file: str | Path | None = None) -> None:
        self.endpoint = endpoint
        self.cache = AnswerCache(file) if file is not None else None
        self.cost = EndpointCost()
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        """Name of the model."""
        return name_of(self.endpoint)

    @property
    def form(self) -> str:
        """plain or chat."""
        return str(getattr(self.endpoint, "form", "plain"))

    def __call__(self, prompts: list[str]) -> list[str]:
        return self.generate(prompts, SamplingParams())

    def generate(self, prompts: list[str], params: SamplingParams) -> list[str]:
        """One text per prompt, in the same order."""
        return texts_of(self, prompts, params)

    def completions(self, requests: Sequence[Request], done: OnCompletion) -> None:
        """Complete every request, those on the disk without a call; equal ones are asked once.

        Raises DeltatuneError where a request fails; everything that was answered is kept.
        """
        source = AnswerSource(self.name, str(getattr(self.endpoint, "url", "")), self.form)
        if self.cache is not None:
            self.cache.refresh()
        numbers: dict[Request, list[int]] = {}
        for number, request in enumerate(requests):
            numbers.setdefault(request, []).append(number)
        missing: list[Request] = []
        for request in numbers:
            kept = self.cache.get(source, request) if self.cache is not None else None
            if kept is None:
                missing.append(request)
                continue
            self.cost.cached += 1
            self._pass_on(numbers[request], kept, done)

        def answered(number: int, completion: Completion) -> None:
            with self._guard:
                self.cost.add(completion)
                if self.cache is not None:
                    self.cache.put(source, missing[number], completion)
                self._pass_on(numbers[missing[number]], completion, done)

        if not missing:
            return
        before = self.cost.calls
        try:
            completions(self.endpoint, missing, answered)
        except DeltatuneError as error:
            if self.cache is None:
                raise
            kept_now = len(numbers) - len(missing) + self.cost.calls - before
            raise DeltatuneError(
                f"{error}\n{kept_now} of {len(numbers)} answers are kept in {self.cache.file}; the same command goes "
                "on from there"
            ) from None

    def _pass_on(self, numbers: Sequence[int], completion: Completion, done: OnCompletion) -> None:
        self.cost.truncated += completion.truncated
        for number in numbers:
            done(number, completion)
