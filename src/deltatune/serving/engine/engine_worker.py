"""The engine's worker: what it does in which order, between the queue and the passes.

In each turn it admits requests in the order in which they came, reads one pass of prompts, generates one token for
every row, and reads one pass of rows to classify. So none of the three waits for more than the other two. Adapters that
cannot share a batch have lanes of their own, which take turns.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from deltatune.core.host import Host
from deltatune.core.route import read_route
from deltatune.core.seams.weight_override import check_exclusive
from deltatune.serving.engine.decoding_lane import DecodingLane
from deltatune.serving.engine.engine_jobs import Counts, EngineJob, GenerateJob, RowsJob, check_soft_weights
from deltatune.serving.engine.engine_limits import EngineLimits, check_positions
from deltatune.serving.engine.prompt_cache import PromptCache
from deltatune.serving.engine.routed_host import RoutedHost
from deltatune.serving.engine.row_passes import RowPasses
from deltatune.serving.engine.whole_batches import WholeBatchLane
from deltatune.serving.residency import Residency
from deltatune.serving.serving_errors import EngineStopped
from deltatune.tasks.tokenization import padding_id
from deltatune.training.inference.prediction import positions_taken

QUANTUM = 8
"""Turns that a lane has before another one gets its own: changing whole weights costs time."""
LOOK = 0.02
"""Seconds after which waiting requests are looked through again for deadlines."""

Lane = DecodingLane | WholeBatchLane
LaneKey = tuple[str | None, bool]
"""The adapter that shares no batch, None for all others; and whether rows are longer than `rope_switch`."""


class EngineWorker:
    """The loop of the one thread that touches the host."""

    def __init__(
        self,
        routed: RoutedHost,
        tokenizer: PreTrainedTokenizerBase,
        residency: Residency,
        limits: EngineLimits,
        end_ids: frozenset[int],
        token_bytes: int | None,
        precision: str,
    ) -> None:
        self.routed, self.residency, self.limits, self.end_ids = routed, residency, limits, end_ids
        self.token_bytes = token_bytes
        """Bytes of a token's keys and values; None where rows cannot join at any step."""
        self.padding = padding_id(tokenizer)
        self.counts = Counts()
        self.waiting: deque[EngineJob] = deque()
        self.active: list[EngineJob] = []
        """Jobs whose adapters are pinned."""
        self.calls: deque[tuple[Callable[[Host], Any], Future[Any]]] = deque()
        self.lanes: dict[LaneKey, Lane] = {}
        self.rows = RowPasses(routed, limits, tokenizer, precision)
        kept = limits.prompt_cache and token_bytes is not None
        self.prompts = PromptCache(limits.prompt_cache_bytes) if kept else None
        self.changed = threading.Condition()
        self.stopping = False
        self.ended = False
        self._woken = False
        self._current: LaneKey = (None, False)
        self._turns, self._turn = 0, 0
        self._last_turns: dict[LaneKey, int] = {}
        self._looked = 0.0
        self._changes = residency.changes

    # ---- for any thread

    def wake(self) -> None:
        """Tell the worker that there is something to do."""
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    def counted(self) -> dict[str, int]:
        """The counts, with the tokens of requests that run."""
        running = sum(len(job.generated) for job in self.active if isinstance(job, GenerateJob))
        return {**vars(self.counts), "tokens_out": self.counts.tokens_out + running}

    # ---- the loop

    def run(self) -> None:
        """Work until `stopping`; whatever ends the loop, every request gets an end."""
        error: BaseException | None = None
        try:
            while not self.stopping:
                if not self.turn():
                    self._wait()
        except BaseException as raised:
            error = raised
        finally:
            self._end_all(error)

    def turn(self) -> bool:
        """One turn; returns whether there was anything to do."""
        with self.changed:
            self._woken = False
        busy = self._call()
        self.residency.follow_orders()
        self._end_early()
        self._admit()
        if self._changes != self.residency.changes:
            self._changes = self.residency.changes
            self.routed.forget_route()
        with torch.inference_mode():
            for part in (self._lane_in_turn(), self.rows):
                if part is not None:
                    busy |= self._passes(part)
        return self._let_go() or busy

    def _passes(self, part: Lane | RowPasses) -> bool:
        """The passes of one turn; an error outside of them ends the requests there, and not the worker."""
        try:
            busy = part.read()
            if not isinstance(part, RowPasses):
                part.drop_ended()
                busy |= part.step()
                part.drop_ended()
            return busy
        except Exception as error:
            for job in part.jobs:
                job.end("error", error)
            part.clear()
            self.routed.forget_route()
            return True

    def _wait(self) -> None:
        deadlines = [job.deadline for job in (*self._queue(), *self.active) if job.deadline is not None]
        left = min(deadlines) - time.monotonic() if deadlines else None
        with self.changed:
            if not (self._woken or self.stopping):
                self.changed.wait(None if left is None else min(max(0.001, left), threading.TIMEOUT_MAX))

    def _call(self) -> bool:
        called = bool(self.calls)
        while self.calls:
            work, done = self.calls.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work(self.routed.host))
            except BaseException as error:
                done.set_exception(error)
            self.routed.forget_route()
            if self.prompts is not None:  # values of adapters or of the base may be others now
                self.prompts.clear()
        return called

    # ---- requests come

    def _admit(self) -> None:
        """Take up waiting requests whose adapters are in memory and for which there is room, the oldest first.

        Those whose adapters are being read let others pass. One whose adapters find no room lets requests for adapters
        in memory pass, as many as are being answered; after that they end, and it gets its room.
        """
        generating = True
        full: EngineJob | None = None
        for job in self._queue():
            if isinstance(job, GenerateJob):
                generating = generating and self._has_room(job)
                if not generating:
                    continue
            elif len(self.rows.jobs) >= self.limits.rows:
                continue
            try:
                names = list(job.ticket.request.adapters)
                pinned = "loading" if full and not self.residency.holds(names) else self.residency.pin(names)
                if pinned == "full":
                    full = job
                    if job.passed >= len(self.active):
                        break
                if isinstance(pinned, str):
                    continue
                if full:
                    full.passed += 1
                self._take_up(job)
                job.pinned = pinned
                self._prepare(job)
            except Exception as error:
                self._take_up(job)
                job.end("error", error)

    def _queue(self) -> list[EngineJob]:
        with self.changed:
            return list(self.waiting)

    def _take_up(self, job: EngineJob) -> None:
        with self.changed:
            if job not in self.active:
                self.waiting.remove(job)
                self.active.append(job)

    def _has_room(self, job: GenerateJob) -> bool:
        """Whether the keys and values of one more row fit beside those that are admitted."""
        running = [other for lane in self.lanes.values() for other in lane.jobs]
        if self.token_bytes is None:  # a batch that runs, and the next one
            return len(running) < 2 * self.limits.rows
        if not running:
            return True
        longest = max(job.need, *(other.need for other in running))
        within = (len(running) + 1) * longest * self.token_bytes <= self.limits.cache_bytes
        return within and len(running) < self.limits.rows

    def _prepare(self, job: EngineJob) -> None:
        host = self.routed.host
        weights = job.ticket.request.adapters
        job.route = {resident.host_name: float(weights[resident.name]) for resident in job.pinned}
        check_exclusive(read_route(job.route, host.adapters), host.adapters)
        mixes = all(host.adapters[name].mixes_rows for name in job.route)
        job.alone = None if mixes else str(sorted(job.route.items()))
        check_soft_weights(host, job)
        if isinstance(job, RowsJob):
            self.rows.add(job)
            self.counts.tokens_in += sum(len(row["input_ids"]) for row in job.rows)
            return
        assert isinstance(job, GenerateJob)
        job.route = {name: weight for name, weight in job.route.items() if weight}
        needs = [host.adapters[name].needs for name in job.route]
        virtual = max((need.virtual_tokens for need in needs), default=0)
        taken = max((positions_taken(host, name) for name in job.route), default=0)
        check_positions(host, len(job.request.prompt), job.request.sampling.max_tokens, taken)
        first = host.sites.facts.vocabulary
        front = [] if host.sites.facts.encoder_decoder else list(range(first, first + virtual))
        job.virtual = len(front)
        job.prompt.ids = [*front, *job.request.prompt]
        job.prompt.at_once = any(need.padding_mask or need.answer_offsets or need.prompt_ids for need in needs)
        self.counts.tokens_in += len(job.request.prompt)
        job.long = self.routed.rope_switch is not None and job.need + taken > self.routed.rope_switch
        self._lane((job.alone, job.long)).add(job)

    # ---- requests go

    def _end_early(self) -> None:
        """End what was cancelled or is too late."""
        for job in self.active:
            if not job.ended and (reason := job.ending) is not None:
                job.end(reason)
        now = time.monotonic()
        if now - self._looked >= LOOK or not self.active:
            self._looked = now
            for job in self._queue():
                if (reason := job.ending) is not None:
                    self._take_up(job)
                    job.end(reason)

    def _let_go(self) -> bool:
        """Release what ended requests held; returns whether there were any."""
        ended = [job for job in self.active if job.ended]
        if not ended:
            return False
        self.active = [job for job in self.active if not job.ended]
        for part in (*self.lanes.values(), self.rows):
            part.drop_ended()
        self.lanes = {key: lane for key, lane in self.lanes.items() if lane.jobs or key == (None, False)}
        for job in ended:
            self.residency.unpin(job.pinned)
            done = job.ticket.done
            reason = None if done is None else done.reason
            self.counts.failed += reason == "error"
            self.counts.cancelled += reason == "cancelled"
            self.counts.timed_out += reason == "timeout"
            if isinstance(job, GenerateJob):
                self.counts.tokens_out += len(job.generated)
        with self.changed:
            self.changed.notify_all()
        return True

    def _end_all(self, error: BaseException | None) -> None:
        """End every request that is left, and those that come until the engine knows."""
        with self.changed:
            self.ended = True
            jobs = [*self.active, *self.waiting]
            self.waiting.clear()
            self.active = []
            calls = list(self.calls)
            self.calls.clear()
            self.changed.notify_all()
        stopped = EngineStopped("the engine has been closed" if error is None else f"the engine has failed: {error!r}")
        for job in jobs:
            if error is None:
                job.end("cancelled")
            else:
                job.end("error", stopped)
        for _, done in calls:
            if done.set_running_or_notify_cancel():
                done.set_exception(stopped)
        self.lanes.clear()
        for job in jobs:
            self.residency.unpin(job.pinned)
        self.residency.close()

    # ---- lanes

    def _lane(self, key: LaneKey) -> Lane:
        if key not in self.lanes:
            own = (self.routed, self.limits, self.end_ids)
            whole = self.token_bytes is None or key[1]
            self.lanes[key] = WholeBatchLane(*own, self.padding) if whole else DecodingLane(*own, self.prompts)
        return self.lanes[key]

    def _lane_in_turn(self) -> Lane | None:
        """The lane that has passes now; of those with jobs the one that waited longest follows."""
        busy = [key for key, lane in self.lanes.items() if lane.jobs]
        if not busy:
            return None
        if self._current not in busy or (self._turns >= QUANTUM and len(busy) > 1):
            others = [key for key in busy if key != self._current]
            self._current = min(others or busy, key=lambda key: self._last_turns.get(key, 0))
            self._turns = 0
            self._last_turns = {key: turn for key, turn in self._last_turns.items() if key in busy}
        self._turns += 1
        self._last_turns[self._current] = self._turn = self._turn + 1
        return self.lanes[self._current]
