"""The index of a store, kept at what its files say: opened, read again after a change, rebuilt where it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.store.adapter_store.store_entry import Entry, entry_from_json
from deltatune.store.adapter_store.store_folder import LOCK_WAIT, StoreFolder
from deltatune.store.adapter_store.store_index import IndexDamaged, StoreIndex
from deltatune.store.atomic_files import CannotWrite
from deltatune.store.folder_lock import FolderInUse

Answer = TypeVar("Answer")
STAMP, COMPLETE, WRITING, DAMAGED = "stamp", "complete", "writing", "damaged"
"""Facts in an index: the state of the entries when they were read, whether they were ever read as a whole, whether a
writer is at work or was killed, and entries that cannot be read."""
_ENDINGS = ("", "-wal", "-shm", "-journal")
"""Files of an index in SQLite."""


class CurrentIndex:
    """The index of one store for all threads of this process."""

    def __init__(self, place: StoreFolder) -> None:
        self.place = place
        self.notes: list[str] = []
        """What was found wrong with the index and put right."""
        self._turn = threading.RLock()
        self._index: StoreIndex | None = None
        self._process = os.getpid()
        self._writer: int | None = None
        """The thread that writes."""
        self._unwritable = False

    def ask(self, question: Callable[[StoreIndex], Answer]) -> Answer:
        """What the index says; where it turns out to be damaged, the rebuilt one."""
        for _ in range(3):
            index = None
            try:
                index = self._current()
                return question(index)
            except (IndexDamaged, sqlite3.Error) as error:
                self._discard(index, error)
        raise DeltatuneError(f"the index {self.place.index} is damaged each time that it is read; remove the file")

    @contextlib.contextmanager
    def writing(self) -> Iterator[StoreIndex]:
        """The index under the writers' lock. Whoever is killed in it, or raises, leaves it to be read again."""
        self.place.make()
        with self.place.lock():
            self._writer = threading.get_ident()
            try:
                self.ask(lambda index: index.count())  # so that a damaged one is rebuilt before anything is written
                index = self._opened()
                self._recover(index)
                index.set_fact(WRITING, "1")
                index.set_fact(STAMP, "")
                yield index
                # entries that cannot be read are looked at again: what was changed may have put them right
                index.set_fact(STAMP, "" if self.damaged(index) else self.place.stamp())
                index.set_fact(WRITING, "")
            except sqlite3.Error as error:
                raise CannotWrite(f"cannot write {self.place.index}: {error}") from None
            finally:
                self._writer = None

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._turn:
            if self._index is not None:
                self._index.close()
            self._index = None

    # ---- opening

    def _current(self) -> StoreIndex:
        index = self._opened()
        if self._writer == threading.get_ident():
            return index
        if index.fact(STAMP) == self.place.stamp():
            return index
        return self._reconciled(index)

    def _opened(self) -> StoreIndex:
        with self._turn:
            if self._index is None or not self._is_current_file(self._index):
                if self._index is not None and self._process == os.getpid():
                    self._index.close()
                self._index, self._process = self._open(), os.getpid()
            return self._index

    def _is_current_file(self, index: StoreIndex) -> bool:
        """Whether the file is still the one that was opened, by this process: another one may have replaced it."""
        if self._process != os.getpid():
            return False
        if index.path is None:
            return self._unwritable or not self.place.exists
        try:
            return os.stat(index.path).st_ino == index.inode
        except OSError:
            return False

    def _open(self) -> StoreIndex:
        if self._unwritable or not self.place.exists:
            return StoreIndex(None)
        try:
            return StoreIndex(self.place.index)
        except IndexDamaged as error:
            return self._replaced(str(error))
        except (sqlite3.Error, OSError) as error:
            return self._in_memory(str(error))

    def _in_memory(self, reason: str) -> StoreIndex:
        self.notes.append(f"the index {self.place.index} cannot be used ({reason}); it is kept in memory")
        self._unwritable = True
        return StoreIndex(None)

    def _replaced(self, reason: str) -> StoreIndex:
        """A new index in the place of one that is damaged, if no other process has made one."""
        try:
            with contextlib.nullcontext() if self._writer == threading.get_ident() else self.place.lock():
                with contextlib.suppress(IndexDamaged, sqlite3.Error):
                    return StoreIndex(self.place.index)
                for ending in _ENDINGS:
                    self.place.index.with_name(self.place.index.name + ending).unlink(missing_ok=True)
                self.notes.append(f"the index {self.place.index} was damaged ({reason}); it is rebuilt")
                return StoreIndex(self.place.index)
        except FolderInUse:
            raise
        except (DeltatuneError, sqlite3.Error, OSError) as error:
            return self._in_memory(str(error))

    def _discard(self, index: StoreIndex | None, error: Exception) -> None:
        """After an error of SQLite: have the index rebuilt, unless another process keeps it locked."""
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise DeltatuneError(
                f"the index {self.place.index} is locked by another process; wait for it or stop it"
            ) from None
        if isinstance(error, sqlite3.ProgrammingError):  # closed by another thread, which has opened it again
            time.sleep(0.01)
            return
        with self._turn:
            if index is None or index is not self._index:
                return
            index.close()
            self._index = None
            if index.path is None:
                return
            is_damage = isinstance(error, IndexDamaged) or not isinstance(error, sqlite3.OperationalError)
            self._index = self._damaged(index, error) if is_damage else self._in_memory(str(error))

    def _damaged(self, index: StoreIndex, error: Exception) -> StoreIndex:
        assert index.path is not None
        with contextlib.suppress(OSError):  # so that it is not taken for a whole one
            if os.stat(index.path).st_ino == index.inode:
                index.path.write_bytes(b"damaged")
        return self._replaced(str(error))

    # ---- reading the files again

    def _reconciled(self, index: StoreIndex) -> StoreIndex:
        """The index after the entries that have changed were read; as it is while another process writes."""
        if index.path is None:
            with self._turn:
                self._read_again(index)
            return index
        complete = index.fact(COMPLETE) == "1"
        try:
            with self.place.lock(0.0 if complete else LOCK_WAIT):
                self._read_again(index)
        except FolderInUse:
            if not complete:
                raise
        except DeltatuneError as error:  # the lock cannot be made: the store must not be written
            with self._turn:
                self._index = index = self._in_memory(str(error))
                self._read_again(index)
        return index

    def _read_again(self, index: StoreIndex) -> None:
        start = time.monotonic()
        stamp, listing, known = self.place.stamp(), self.place.listing(), index.tokens()
        changed = {name: token for name, token in listing.items() if known.get(name) != token}
        read: list[tuple[Entry, str]] = []
        damaged = {}
        for name, content in self.place.read_entries(changed).items():
            try:
                read.append((_checked(name, content, f"{self.place.shown}: {name}"), changed[name]))
            except DeltatuneError as error:
                again = f"deltatune store add FOLDER --name {name} --replace --store {self.place.shown}"
                damaged[name] = f"{error}; add it again: {again}"
        same = {name for name in known.keys() & listing.keys() if name not in changed}
        twins = _twins([*same, *(entry.name for entry, _ in read)])
        for name, other in twins.items():
            damaged[name] = (
                f"the entry {self.place.shown}: {name} differs from that of {other!r} in case alone, which was read; "
                f"remove that one: deltatune store remove {other} --store {self.place.shown}"
            )
        if index.path is None and self.place.is_settling:
            stamp = ""  # looked at again next time: no writer tells an index in memory what it changes
        read = [(entry, token) for entry, token in read if entry.name not in twins]
        gone = known.keys() - listing.keys() | known.keys() & damaged.keys()
        index.update(read, gone, stamp)
        index.set_fact(DAMAGED, dumps(damaged))
        if index.path is not None and not known and read and index.fact(COMPLETE) != "1":
            seconds = time.monotonic() - start
            self.notes.append(f"the index of {self.place.shown} was made of {len(read):,} entries in {seconds:.1f} s")
        index.set_fact(COMPLETE, "1")

    def _recover(self, index: StoreIndex) -> None:
        """Under the lock: take in what others changed, and remove what killed writers left."""
        was_killed = index.fact(WRITING) == "1"
        left = self.place.remove_drafts()
        if index.fact(STAMP) != self.place.stamp():
            self._read_again(index)
        if (was_killed or left) and not self.damaged(index):  # an entry that cannot be read may name any object
            self.place.remove_objects(self.place.unused_objects(index.digests()), index)

    def damaged(self, index: StoreIndex) -> dict[str, str]:
        """Entries that cannot be read: why, and what to do."""
        text = index.fact(DAMAGED)
        return dict(loads(text, self.place.index)) if text else {}


def _twins(names: Iterable[str]) -> dict[str, str]:
    """Names that differ from another one in case alone, each with that one, the first in order.

    Two writers at a URL can make them, for there is no lock there.
    """
    first: dict[str, str] = {}
    order = sorted(names)
    return {name: other for name in order if (other := first.setdefault(name.lower(), name)) != name}


def _checked(name: str, content: bytes, where: str) -> Entry:
    entry = entry_from_json(content, where)
    if entry.name != name:
        raise DeltatuneError(f"the entry {where} is damaged: it is of {entry.name!r}")
    return entry
