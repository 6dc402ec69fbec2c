"""Residency: which adapters of a store are in memory.

Files are read and checked in the background; only writing an adapter into its slot of the host's bank, or attaching it
where the bank has no form for its method, happens in the engine's worker. An adapter that is replaced in the store is
another one from then on: requests that have begun finish with the old one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Literal

import torch

from deltatune.core.errors import DeltatuneError, OutOfMemory, nearest
from deltatune.core.host import Host
from deltatune.core.host_parts.bank import Bank
from deltatune.models.hardware import uses_bfloat16
from deltatune.serving.resident import AdapterReading, AdapterSource, ResidencyOrder, Resident
from deltatune.serving.serving_errors import AdapterUnavailable, CannotServe, EngineStopped, UnknownAdapter
from deltatune.store.stored_adapter import StoredAdapter

READERS = 4
"""Threads that read adapters from their files."""


class Residency:
    """Adapters in memory: those attached by hand for good, those of a store as they are needed.

    Any thread may call its public methods; the engine's worker alone changes the host.
    """

    def __init__(
        self, host: Host, store: AdapterSource | None = None, *, adapters: int = 64, other_base: bool = False
    ) -> None:
        """`adapters`: how many of the store are in memory at once; those used longest ago make room for others.

        `other_base` accepts adapters of a base with other weights of the same shapes.
        """
        if isinstance(adapters, bool) or not isinstance(adapters, int) or adapters < 1:
            raise DeltatuneError(f"adapters must be a whole number of at least 1, not {adapters!r}")
        self.host, self.store, self.most, self.other_base = host, store, adapters, other_base
        self.wake: Callable[[], None] = lambda: None
        """Called when the worker has something to do; the engine sets it."""
        self.precision = "auto"
        """Precision of the passes; the engine sets it."""
        self.changes = 0
        """How often an adapter came or went."""
        self.loads, self.evictions = 0, 0
        self.loading_seconds, self.attaching_seconds = 0.0, 0.0
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._current = {name: Resident(name, name, "", next(self._numbers), fixed=True) for name in host.adapters}
        self._replaced: list[Resident] = []
        """Those that no new request gets, still in use."""
        self._readings: dict[str, AdapterReading] = {}
        self._orders: list[ResidencyOrder] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="deltatune-read")
        self._closed = False

    # ---- for any thread

    def load(self, name: str) -> Future[None]:
        """Bring an adapter into memory ahead of requests. The future raises DeltatuneError if that fails."""
        self.wish([name])
        return self._order("load", name)

    def reload(self, name: str) -> Future[None]:
        """Read an adapter anew; requests that have begun finish with what they started with."""
        self._refuse_fixed(name, "reload")
        self.wish([name], anew=True)
        return self._order("load", name)

    def unload(self, name: str) -> Future[None]:
        """Let no new request use the adapter that is in memory, which goes with the last one that does.

        It is loaded again for the next request that names it.
        """
        self._refuse_fixed(name, "unload")
        with self._lock:
            if name not in self._current and name not in self._readings:
                raise UnknownAdapter(f"no adapter in memory is called {name!r}{nearest(name, self._current)}")
        return self._order("unload", name)

    @property
    def resident(self) -> tuple[str, ...]:
        """Names in memory, the one used last at the end."""
        with self._lock:
            return tuple(r.name for r in sorted(self._current.values(), key=lambda r: r.last_used))

    def find(self, name: str) -> Resident | None:
        """An adapter in memory with its counts; None if it is not there."""
        with self._lock:
            return self._current.get(name)

    def pins(self, name: str) -> int:
        """Requests that use an adapter at present, also one that was replaced since."""
        with self._lock:
            return sum(r.pins for r in [*self._current.values(), *self._replaced] if r.name == name)

    def wish(self, names: Sequence[str], anew: bool = False) -> None:
        """Have the adapters as they are in the store now read, unless they are in memory or being read.

        Raises UnknownAdapter for names that are in neither, and CannotServe for more than fit at once.
        """
        if len(names) > self.most:
            raise CannotServe(f"a request with {len(names)} adapters: at most {self.most} are in memory at once")
        for name in names:
            with self._lock:
                resident = self._current.get(name)
            if resident is not None and resident.fixed:
                continue
            try:
                revision = self._revision(name)
            except UnknownAdapter:
                if resident is not None:  # removed from the store
                    self._order("unload", name)
                raise
            with self._lock:
                resident, reading = self._current.get(name), self._readings.get(name)
                if not anew and resident is not None and resident.revision == revision and reading is None:
                    continue
                failed = reading is not None and reading.stored.done() and reading.stored.exception() is not None
                if reading is None or failed or reading.revision != revision or anew:
                    self._read(name, revision)

    # ---- for the engine's worker

    def pin(self, names: Sequence[str]) -> list[Resident] | Literal["loading", "full"]:
        """Hold adapters in memory for one request, all or none.

        "loading" while files are read, "full" while all room is taken by adapters in use. Raises DeltatuneError for an
        adapter that could not be loaded.
        """
        for name in names:
            reading = self._reading(name)
            if reading is None and name not in self._current:
                self.wish([name])  # evicted since it was wished
                return "loading"
            if reading is not None and not reading.stored.done():
                return "loading"
        for name in names:
            if not self._bring(name, keep=names):
                return "full"
        with self._lock:
            pinned = [self._current[name] for name in names]
            for resident in pinned:
                resident.pins += 1
                resident.requests += 1
                resident.last_used = time.time()
        return pinned

    def holds(self, names: Sequence[str]) -> bool:
        """Whether all are in memory and none is being read anew, so that `pin` brings nothing."""
        return all(name in self._current and self._reading(name) is None for name in names)

    def unpin(self, pinned: Sequence[Resident]) -> None:
        """Let go of what `pin` returned."""
        for resident in pinned:
            resident.pins -= 1
            if resident.pins == 0 and resident in self._replaced:
                with self._lock:
                    self._replaced.remove(resident)
                self._drop(resident)

    def follow_orders(self) -> None:
        """Load and unload what was asked for, as far as files are read and room is free."""
        with self._lock:
            orders, self._orders = self._orders, []
        for order in orders:
            try:
                if not self._followed(order):
                    with self._lock:
                        self._orders.append(order)
                elif not order.done.done():
                    order.done.set_result(None)
            except Exception as error:
                if not order.done.done():
                    order.done.set_exception(error)

    def close(self) -> None:
        """End the readers; orders that are open fail."""
        with self._lock:
            self._closed = True
            orders, self._orders = self._orders, []
        for order in orders:
            order.done.set_exception(EngineStopped("the engine has been closed"))
        self._readers.shutdown(wait=False, cancel_futures=True)

    # ---- inside

    def _order(self, verb: Literal["load", "unload"], name: str) -> Future[None]:
        order = ResidencyOrder(verb, name, Future())
        order.done.set_running_or_notify_cancel()  # whoever no longer waits for it cannot take it back
        with self._lock:
            if self._closed:
                raise EngineStopped("the engine has been closed")
            self._orders.append(order)
        self.wake()
        return order.done

    def _refuse_fixed(self, name: str, verb: str) -> None:
        with self._lock:
            resident = self._current.get(name)
        if resident is not None and resident.fixed:
            raise CannotServe(f"adapter {name!r} was attached by hand, not from a store; it cannot {verb}")

    def _revision(self, name: str) -> str:
        if self.store is None:
            with self._lock:
                known = list(self._current)
            raise UnknownAdapter(f"no adapter is called {name!r}{nearest(name, known)}")
        try:
            return self.store.revision(name)
        except DeltatuneError as error:
            if name not in self.store:
                raise UnknownAdapter(str(error)) from None
            raise

    def _read(self, name: str, revision: str) -> None:
        if self._closed:
            raise EngineStopped("the engine has been closed")
        assert self.store is not None
        stored = self._readers.submit(self.store.read, name)
        self._readings[name] = AdapterReading(revision, stored, time.monotonic())
        stored.add_done_callback(lambda _: self.wake())

    def _reading(self, name: str) -> AdapterReading | None:
        with self._lock:
            return self._readings.get(name)

    def _followed(self, order: ResidencyOrder) -> bool:
        """Whether an order is done."""
        reading = self._reading(order.name)
        if order.verb == "load":
            return reading is None or (reading.stored.done() and self._bring(order.name, keep=[order.name]))
        with self._lock:
            self._readings.pop(order.name, None)
            resident = self._current.pop(order.name, None)
        if resident is not None:
            self._retire(resident)
        return True

    def _bring(self, name: str, keep: Sequence[str]) -> bool:
        """Bring an adapter into memory if it was read since. False where all room is taken by adapters in use."""
        reading = self._reading(name)
        if reading is None:
            return True
        try:
            stored = reading.stored.result()
        except DeltatuneError as error:
            raise unavailable(error) from error
        old = self._current.get(name)
        while self._count() - (old is not None and not old.pins) >= self.most:
            if not self._evict(keep):
                return False
        begun = time.monotonic()
        host_name = self._free_name(name)
        try:
            self._put(stored, host_name)
        except Exception as raised:
            failure = unavailable(raised) if isinstance(raised, DeltatuneError) else raised
            failed: Future[StoredAdapter] = Future()  # so that all who wait for it are told, and the next wish reads
            failed.set_exception(failure)
            reading.stored = failed
            raise failure from raised
        with self._lock:
            if self._readings.get(name) is reading:
                del self._readings[name]
            self._current[name] = Resident(name, host_name, reading.revision, next(self._numbers))
        now = time.monotonic()
        self.loads, self.changes = self.loads + 1, self.changes + 1
        self.loading_seconds += now - reading.wished
        self.attaching_seconds += now - begun
        if old is not None:
            self._retire(old)
        return True

    def _put(self, stored: StoredAdapter, host_name: str) -> None:
        stored = stored.fitted(self.host)
        bank = self.bank
        if stored.can_go_into(bank):
            self.host.bank(slots=max(len(bank.names) + 1, bank.slots))
            stored.put_into(bank, host_name, self.other_base)
        else:
            stored.attach_to(self.host, host_name, self.other_base)

    @cached_property
    def bank(self) -> Bank:
        """The host's bank, in the type in which its passes compute."""
        bfloat16 = uses_bfloat16(self.host.model, self.precision)
        try:
            return self.host.bank(dtype=torch.bfloat16 if bfloat16 else None)
        except DeltatuneError:  # there is one already, of another type
            return self.host.bank()

    def _count(self) -> int:
        """Adapters of the store that take room."""
        with self._lock:
            return sum(not r.fixed for r in self._current.values()) + len(self._replaced)

    def _evict(self, keep: Sequence[str]) -> bool:
        unused = [r for r in self._current.values() if not (r.fixed or r.pins or r.name in keep)]
        if not unused:
            return False
        oldest = min(unused, key=lambda r: r.last_used)
        with self._lock:
            del self._current[oldest.name]
        self._drop(oldest)
        self.evictions += 1
        return True

    def _retire(self, resident: Resident) -> None:
        """Take an adapter out that no new request gets: now, or with the last request that uses it."""
        if resident.pins:
            with self._lock:
                self._replaced.append(resident)
        else:
            self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        with suppress(DeltatuneError):  # detached by hand
            self.host.detach(resident.host_name)
        self.changes += 1

    def _free_name(self, name: str) -> str:
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(each for each in names if each not in self.host.adapters)


def unavailable(error: DeltatuneError) -> DeltatuneError:
    """The error of an adapter that cannot be brought into memory, unless memory itself is short."""
    kept = isinstance(error, (AdapterUnavailable, OutOfMemory))
    return error if kept else AdapterUnavailable(str(error))
