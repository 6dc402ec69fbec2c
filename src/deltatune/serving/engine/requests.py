"""Requests to the engine and the events that answer them: token ids and arrays, no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deltatune.core.errors import raise_all
from deltatune.core.input_validation.field_validation import LARGEST_FLOAT32
from deltatune.tasks.task import Encoded, Row, Task, TokenRow

DoneReason = Literal["stop", "length", "cancelled", "timeout", "error"]
RowsKind = Literal["logits", "embedding", "task"]


@dataclass(frozen=True)
class Sampling:
    """How the next token of a row is chosen.

    In this order: the bias is added to the logits, then the penalties act, then the temperature; of what is left,
    `min_p`, `top_k` and `top_p` keep the likeliest tokens, one of which is drawn. A row's draws depend on its seed and
    its prompt alone, never on the rows beside it.
    """

    max_tokens: int = 16
    """Tokens that are generated at most."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token, without a draw."""
    top_p: float = 1.0
    """Keeps the likeliest tokens that together have this probability: Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751"""
    top_k: int = 0
    """Keeps this many tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keeps tokens with at least this share of the likeliest one's probability: Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082"""
    seed: int | None = None
    """Of the draws; None draws a seed."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the row, beside the model's own; they are not part of the answer."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it was generated."""
    presence_penalty: float = 0.0
    """Taken from a token's logit once it was generated."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens of the prompt and the answer: Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858"""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""
    logprobs: int | None = None
    """With how many likeliest tokens each token is reported, 0 for its own log-probability alone; None for neither.

    These are of the model's own distribution, before bias, penalties and temperature, as vLLM reports them."""
    ignore_eos: bool = False
    """Whether the model's own end tokens end nothing, and are generated like any other."""

    def problems(self) -> list[str]:
        """What is wrong with the values, a sentence each."""
        numbers = {
            "temperature": (self.temperature, 0.0, 1e4),
            "top_p": (self.top_p, 0.0, 1.0),
            "min_p": (self.min_p, 0.0, 1.0),
            "frequency_penalty": (self.frequency_penalty, -100.0, 100.0),
            "presence_penalty": (self.presence_penalty, -100.0, 100.0),
            "repetition_penalty": (self.repetition_penalty, 1e-3, 1e3),
        }
        found = [
            f"{name} must be a number from {least:g} to {most:g}, not {value!r}"
            for name, (value, least, most) in numbers.items()
            if not _number(value) or not least <= value <= most
        ]
        counts = {"max_tokens": (self.max_tokens, 1), "top_k": (self.top_k, 0), "logprobs": (self.logprobs or 0, 0)}
        found += [
            f"{name} must be a whole number of at least {least}, not {value!r}"
            for name, (value, least) in counts.items()
            if not _whole(value) or value < least
        ]
        if self.seed is not None and not _whole(self.seed):
            found.append(f"seed must be a whole number, not {self.seed!r}")
        if not all(_whole(token) and token >= 0 for token in self.stop_ids):
            found.append("stop_ids must be token ids")
        wrong = [t for t, bias in self.logit_bias.items() if not (_whole(t) and t >= 0 and _number(bias))]
        return found + ([f"logit_bias must give numbers to token ids, not {wrong[0]!r}"] if wrong else [])


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to continue."""

    prompt: tuple[int, ...]
    """Token ids, without virtual tokens."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    """Adapters that act on it, with their weights; none for the bare base."""
    sampling: Sampling = Sampling()
    timeout: float | None = None
    """Seconds from submission until it ends, whatever has been generated; None waits for as long as it takes."""
    cache_key: str = ""
    """Requests with different keys share nothing of the prompt cache, so that no time tells what others asked."""

    def check(self) -> None:
        """Raise DeltatuneError listing what is wrong."""
        problems = [*self.sampling.problems(), *_common_problems(self.adapters, self.timeout)]
        if not self.prompt or not all(_whole(token) and token >= 0 for token in self.prompt):
            problems.append("the prompt must be one token id or more")
        raise_all(problems, "the request has wrong values:" if len(problems) > 1 else "")


@dataclass(frozen=True)
class RowsRequest:
    """Rows to classify, to tag, to find answers in or to embed."""

    rows: Encoded | Sequence[TokenRow] | Sequence[Row]
    """N rows: token rows, or the user's own rows if `task` is given, which encodes them for the adapter."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    """Adapters that act on them, with their weights; of their heads the weighted mean of the logits is taken."""
    kind: RowsKind = "logits"
    """`logits`: of the adapters' heads. `embedding`: means of the last hidden states. `task`: what
    `deltatune.training.predict` gives for the task, for answers that need more than a head: label words, likelihoods,
    generation as its task prescribes."""
    timeout: float | None = None
    """Seconds from submission; None waits for as long as it takes."""
    task: Task | None = None
    """The task that encodes rows which are not encoded; needed for kind `task`."""
    part: str | None = None
    """The part of a mixture whose rows these are."""
    encoded: Sequence[Encoded] = ()
    """For kind `task`: the same rows encoded, in parts that have a turn each; () where the engine encodes them."""

    @property
    def count(self) -> int:
        """N; pieces of one long row count once."""
        return self.rows.examples if isinstance(self.rows, Encoded) else len(self.rows)

    def check(self) -> None:
        """Raise DeltatuneError listing what is wrong."""
        problems = _common_problems(self.adapters, self.timeout)
        if not len(self.rows):
            problems.append("the request has no rows")
        if self.kind == "task" and self.task is None:
            problems.append("rows of kind 'task' need the task")
        if self.kind == "task" and len(self.adapters) != 1:
            problems.append(f"rows of kind 'task' take one adapter, not {len(self.adapters)}")
        if self.kind == "logits" and not self.adapters:
            problems.append("rows of kind 'logits' need an adapter: the bare base has no head")
        encoded = isinstance(self.rows, Encoded) or all("input_ids" in row for row in self.rows)
        if self.task is None and not encoded:
            problems.append("rows that are not encoded need the task that encodes them")
        if encoded and any(not row["input_ids"] for row in self.rows):
            problems.append("a row has no tokens")
        parts = sum(part.examples for part in self.encoded)
        if self.encoded and (self.kind != "task" or parts != self.count):
            problems.append(f"encoded must be the {self.count} rows of kind 'task', not {parts} of kind {self.kind!r}")
        raise_all(problems, "the request has wrong values:" if len(problems) > 1 else "")


Request = GenerateRequest | RowsRequest


@dataclass(frozen=True)
class Timings:
    """Seconds of a request since it was submitted."""

    started: float | None
    """Until its first pass; None if it never started."""
    first: float | None
    """Until its first token or its rows; None if it had none."""
    total: float
    """Until its end."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values came from the prompt cache."""


@dataclass(frozen=True)
class TokenEvent:
    """A generated token. The token that ends a row is not reported."""

    token: int
    logprob: float | None = None
    """Its log-probability, if asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs, the likeliest first."""


@dataclass(frozen=True)
class RowsEvent:
    """The answers of a RowsRequest."""

    values: Any
    """`logits`: an array (C,) or (T, C) in float32 for each encoded row. `embedding`: vectors (D,) of length 1. `task`:
    what `deltatune.training.predict` returns."""
    encoded: Encoded | None = None
    """The rows as the task encoded them, if the engine did: `task.collect(values, encoded)` makes answers of logits."""


@dataclass(frozen=True)
class DoneEvent:
    """The end of a request; always its last event."""

    reason: DoneReason
    timings: Timings
    error: Exception | None = None
    """Why it failed, for reason `error`."""
    stop_id: int | None = None
    """The token that ended it, for reason `stop`."""


Event = TokenEvent | RowsEvent | DoneEvent


@dataclass(frozen=True)
class RequestResult:
    """All events of a request together."""

    tokens: tuple[TokenEvent, ...]
    rows: RowsEvent | None
    done: DoneEvent

    @property
    def ids(self) -> list[int]:
        """The generated token ids."""
        return [event.token for event in self.tokens]


def _common_problems(adapters: Mapping[str, float], timeout: float | None) -> list[str]:
    problems = [f"an adapter's name is a text, not {name!r}" for name in adapters if not isinstance(name, str)]
    problems += [
        f"the weight of adapter {name!r} must be a finite number, not {weight!r}"
        for name, weight in adapters.items()
        if not _number(weight)
    ]
    if timeout is not None and (not _number(timeout) or timeout <= 0):
        problems.append(f"timeout must be a positive number of seconds, not {timeout!r}")
    return problems


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT32


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
