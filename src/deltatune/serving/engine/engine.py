"""The engine: requests of many clients on one host, in passes that rows of different adapters share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.sites.non_block_sites import output_embeddings
from deltatune.models.architecture import family
from deltatune.serving.engine.engine_jobs import Counts, GenerateJob, RowsJob
from deltatune.serving.engine.engine_limits import EngineLimits, check_positions
from deltatune.serving.engine.engine_worker import EngineWorker
from deltatune.serving.engine.joining_trial import bytes_per_token
from deltatune.serving.engine.requests import GenerateRequest, Request, RowsRequest
from deltatune.serving.engine.routed_host import RoutedHost
from deltatune.serving.engine.ticket import Ticket
from deltatune.serving.residency import Residency
from deltatune.serving.serving_errors import CannotServe, EngineStopped, QueueFull, RequestTooLong
from deltatune.tasks.tokenization import longest_input

T = TypeVar("T")


@dataclass
class EngineStatistics(Counts):
    """Counts of an engine since it started, and what is in it at present."""

    queued: int = 0
    """Requests that wait."""
    running: int = 0
    """Requests that are being answered."""
    resident: tuple[str, ...] = ()
    """Adapters in memory, the last used last."""
    cached_tokens: int = 0
    """Tokens of prompts that came from the prompt cache."""
    prompt_cache_hits: int = 0
    """Prompts of which some tokens came from the prompt cache."""
    prompt_cache_bytes: int = 0
    passes: int = 0
    """Passes of the base."""
    rows_read: int = 0
    """Rows of all passes."""
    loads: int = 0
    """Adapters that were loaded."""
    evictions: int = 0
    """Adapters that made room for others."""
    loading_seconds: float = 0.0
    """Seconds from the wish for an adapter until it was in memory, added up."""
    attaching_seconds: float = 0.0
    """Seconds of loading in which nothing else ran."""


class Engine:
    """One worker thread owns the host: every operation on it happens there.

    Rows that generate share decoding passes, whatever adapters and weights they have; they join and leave at any step.
    The model is in evaluation mode from now on.
    """

    def __init__(
        self,
        host: Host,
        tokenizer: PreTrainedTokenizerBase,
        residency: Residency | None = None,
        limits: EngineLimits | None = None,
        *,
        precision: str = "auto",
    ) -> None:
        """Without a residency, the adapters that are attached are served.

        precision: "auto", "float32" or "bfloat16", as in `deltatune.training.predict`.
        """
        if host.merged:
            raise DeltatuneError(f"{', '.join(host.merged)} is merged into the weights; unmerge it before serving")
        host.model.eval()
        routed = RoutedHost(host, precision)
        self.host, self.residency = host, residency or Residency(host)
        self.residency.precision = precision
        self.limits = (limits or EngineLimits()).of_machine(routed.device)
        self.positions = longest_input(host.model)
        """Tokens of a prompt and its answer at most; None where the model has no limit."""
        self.generates = output_embeddings(host.model) is not None and family(host.model.config) != "encoder"  # type: ignore[arg-type]
        """Whether the model continues prompts."""
        token_bytes = bytes_per_token(routed) if self.generates else None
        self.continuous = token_bytes is not None
        """Whether rows join and leave at any step; otherwise batches start together."""
        ends = end_tokens(host.model, tokenizer)
        self._worker = EngineWorker(routed, tokenizer, self.residency, self.limits, ends, token_bytes, precision)
        self.residency.wake = self._worker.wake
        self._draining = False
        self._thread = threading.Thread(target=self._worker.run, name="deltatune-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Queue a request, from any thread. Raises QueueFull, UnknownAdapter, RequestTooLong, CannotServe,
        EngineStopped, and DeltatuneError for wrong values."""
        request.check()
        self._check_tokens(request)
        if self._draining:
            raise EngineStopped("the engine is draining: it takes no new requests")
        worker = self._worker
        if len(worker.waiting) < self.limits.queue:
            self.residency.wish(list(request.adapters))
        ticket = Ticket(request, worker.wake)
        deadline = None if request.timeout is None else ticket.submitted + request.timeout
        job = (GenerateJob if isinstance(request, GenerateRequest) else RowsJob)(ticket, deadline)
        with worker.changed:
            if worker.ended or worker.stopping:
                raise EngineStopped("the engine has been closed, or its worker has failed")
            if len(worker.waiting) >= self.limits.queue:
                worker.counts.refused += 1
                raise QueueFull(
                    f"{len(worker.waiting)} requests wait, as many as this engine lets wait; try again later"
                )
            worker.counts.requests += 1
            worker.waiting.append(job)
        worker.wake()
        return ticket

    def _check_tokens(self, request: Request) -> None:
        """Raise for requests that this model can never answer."""
        vocabulary = self.host.sites.facts.vocabulary
        if isinstance(request, RowsRequest):
            if request.count > self.limits.request_rows:
                raise RequestTooLong(f"{request.count} rows; a request has at most {self.limits.request_rows}")
            ids = [token for row in request.rows for token in row.get("input_ids", ())]
            self._check_length(max(len(row.get("input_ids", ())) for row in request.rows))
        else:
            if not self.generates:
                raise CannotServe(
                    f"{type(self.host.model).__name__} cannot generate text; it has no language-model head"
                )
            ids = list(request.prompt)
            check_positions(self.host, len(ids), request.sampling.max_tokens, 0)
            self._check_length(len(ids) + request.sampling.max_tokens)
            need = (len(ids) + request.sampling.max_tokens) * (self._worker.token_bytes or 0)
            if need > self.limits.cache_bytes:
                raise RequestTooLong(
                    f"the request may need {need:,} bytes of keys and values, more than the "
                    f"{self.limits.cache_bytes:,} that this engine has for all; ask for fewer tokens"
                )
        wrong = [token for token in ids if not 0 <= token < vocabulary]
        if wrong:
            raise DeltatuneError(f"{wrong[0]} is no token of this model, which has {vocabulary:,}")

    def _check_length(self, tokens: int) -> None:
        if self.positions is None and tokens > self.limits.request_tokens:
            raise RequestTooLong(
                f"the request has {tokens:,} tokens; at most {self.limits.request_tokens:,} are served"
            )

    def call(self, work: Callable[[Host], T]) -> Future[T]:
        """Run something on the host, in the worker between two passes; from any thread. It may change values of
        adapters: the prompt cache is empty afterwards."""
        done: Future[T] = Future()
        with self._worker.changed:
            if self._worker.ended or self._worker.stopping:
                raise EngineStopped("the engine has been closed, or its worker has failed")
            self._worker.calls.append((work, done))
        self._worker.wake()
        return done

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive() and not self._worker.ended

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def statistics(self) -> EngineStatistics:
        """Counts, from any thread."""
        worker, residency, prompts = self._worker, self.residency, self._worker.prompts
        return EngineStatistics(
            queued=len(worker.waiting),
            running=len(worker.active),
            resident=residency.resident,
            **worker.counted(),
            cached_tokens=0 if prompts is None else prompts.tokens,
            prompt_cache_hits=0 if prompts is None else prompts.hits,
            prompt_cache_bytes=0 if prompts is None else prompts.bytes,
            passes=worker.routed.passes,
            rows_read=worker.routed.rows,
            loads=residency.loads,
            evictions=residency.evictions,
            loading_seconds=residency.loading_seconds,
            attaching_seconds=residency.attaching_seconds,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for those that there are. Returns whether all have ended in time."""
        self._draining = True
        worker = self._worker
        with worker.changed:
            return worker.changed.wait_for(lambda: worker.ended or not (worker.waiting or worker.active), timeout)

    def close(self) -> None:
        """End every request that is left, as cancelled, and the worker. Safe to call again."""
        self._draining = True
        self._worker.stopping = True
        self._worker.wake()
        self._thread.join()


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens with which the model ends a text, by its generation config, its config and its tokenizer."""
    of_generation = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    given = [of_generation, getattr(model.config, "eos_token_id", None), tokenizer.eos_token_id]
    lists = [ids if isinstance(ids, (list, tuple)) else [ids] for ids in given]
    return frozenset(token for ids in lists for token in ids if isinstance(token, int))
