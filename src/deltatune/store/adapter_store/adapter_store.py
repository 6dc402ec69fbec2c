"""A store of thousands of adapters: added, listed, searched and read by name, by several processes at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.regular_files import expanded
from deltatune.store.adapter_store.adapter_names import likely_names, name_problem
from deltatune.store.adapter_store.add_adapters import Added, add_chunk, finish
from deltatune.store.adapter_store.add_sources import AddedFolder, source, sources_in
from deltatune.store.adapter_store.current_index import CurrentIndex
from deltatune.store.adapter_store.list_conditions import conditions
from deltatune.store.adapter_store.object_files import READ, check_values, content_digest, read_object
from deltatune.store.adapter_store.remote_folder import remote_folder
from deltatune.store.adapter_store.store_entry import Entry, given_facts
from deltatune.store.adapter_store.store_folder import StoreFolder
from deltatune.store.adapter_store.store_index import SORTS, StorageTotals, StoreIndex
from deltatune.store.atomic_files import check_outside, listed_files, write_folder
from deltatune.store.stored_adapter import StoredAdapter

CHUNK = 1000
"""Adapters that are added under one lock and in one transaction."""
CACHE_BYTES = 20 * 10**9
"""Bytes of a remote store's objects that are kept on this machine."""


class AdapterStore:
    """Adapters by name in a folder, or behind a URL that fsspec opens (`s3://bucket/adapters`, `memory://adapters`).

    Any number of processes and threads may read while others add and remove. Every object is an ordinary adapter
    folder. Raises DeltatuneError for a folder that is something else.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cache: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        refresh: float = 30.0,
    ) -> None:
        """Open a store; adding to one that does not exist makes it.

        Of stores behind URLs: `cache` is the folder for what was fetched, `cache_bytes` the most that objects take in
        it, `refresh` the seconds after which changes by others are seen.
        """
        text = os.fspath(path)
        text = text.removeprefix("file://") if text.startswith("file://") else text
        if "://" in text:
            folder = None if cache is None else expanded(cache)
            self._place: StoreFolder = remote_folder(text, folder, cache_bytes, refresh)
        else:
            self._place = StoreFolder(expanded(text))
        self._place.check()
        self._index = CurrentIndex(self._place)

    @property
    def exists(self) -> bool:
        """Whether the store has been made; one without adapters may exist too."""
        return self._place.is_made

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL."""
        return self._place.is_remote

    @property
    def notes(self) -> list[str]:
        """What was wrong with the index and has been put right, and the entries that cannot be read, in sentences."""
        return [*self._index.notes, *self._index.ask(self._index.damaged).values()]

    def __str__(self) -> str:
        return self._place.shown

    def __repr__(self) -> str:
        return f"AdapterStore({self._place.shown!r})"

    def __len__(self) -> int:
        return self._index.ask(StoreIndex.count)

    def __contains__(self, name: object) -> bool:
        return self._find(name) is not None

    def names(self) -> Sequence[str]:
        """The names of all adapters, sorted."""
        return self._index.ask(StoreIndex.names)

    def close(self) -> None:
        """Close the index's file; it is opened again when it is needed."""
        self._index.close()

    # ---- looking

    def entry(self, name: str) -> Entry:
        """What is known of an adapter. Raises DeltatuneError with the nearest name if there is none."""
        found = self._find(name)
        if found is None:
            raise DeltatuneError(self._missing(name))
        return found

    def revision(self, name: str) -> str:
        """The digest of an adapter's content: another one after it was replaced."""
        return self.entry(name).digest

    def list(
        self,
        *,
        task: str | None = None,
        method: str | None = None,
        base: str | None = None,
        tags: Sequence[str] = (),
        text: str | None = None,
        sort: str = "name",
        reverse: bool = False,
        limit: int | None = None,
    ) -> Sequence[Entry]:
        """The entries that meet every condition.

        `task` is the kind; `method` and `base` are parts of their texts, `base` also the start of a fingerprint; `tags`
        must all be there; every word of `text` occurs in name, task, method, base, data, tags or labels. `sort` is
        name, task, method, base, score, size, parameters or date; the best scores and the latest dates come first.
        """
        if sort not in SORTS:
            raise DeltatuneError(f"sort={sort!r}: must be one of {', '.join(SORTS)}{nearest(str(sort), SORTS)}")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise DeltatuneError(f"limit={shortened(limit)}: must be a whole number, at least 0")
        where = conditions(task, method, base, tags, text)
        if where is None:
            return []
        down = reverse != (sort in ("score", "date"))
        column = SORTS[sort]
        order = f"{column} IS NULL, {column} {'DESC' if down else 'ASC'}, name"
        most = None if limit is None else min(limit, sys.maxsize)
        return self._index.ask(lambda index: index.find(where, order, most))

    def search(self, text: str, limit: int | None = None) -> Sequence[Entry]:
        """The entries in whose name, task, method, base, data, tags or labels every word of `text` occurs."""
        return self.list(text=text, limit=limit)

    def values(self, field: str) -> Sequence[str]:
        """The values that occur: of `task`, `method`, `base` or `tag`."""
        if field not in ("task", "method", "base", "tag"):
            raise DeltatuneError(f"values({field!r}): must be one of task, method, base, tag")
        return self._index.ask(lambda index: index.values(field))

    def storage(self) -> StorageTotals:
        """What the store takes."""
        return self._index.ask(StoreIndex.storage)

    # ---- reading

    def read(self, name: str) -> StoredAdapter:
        """An adapter, to be attached to a host or put into a bank; `host.load(store.folder(name))` does the former.

        Its files are checked against their hashes once, and again when they have changed. Raises DeltatuneError for a
        name that is not there, and for files that are damaged.
        """
        for _ in range(3):
            entry = self.entry(name)
            try:
                return self._read(entry)
            except DeltatuneError:
                if self._place.objects.folder(entry.digest).is_dir() or self.entry(name).digest == entry.digest:
                    raise  # else it was replaced or removed in this moment
        raise DeltatuneError(f"the adapter {name!r} of {self} is replaced again and again; try later")

    def folder(self, name: str) -> Path:
        """The folder of an adapter on this machine, verified, for `host.load`; it is not to be changed."""
        return self.read(name).folder

    def object_folder(self, name: str) -> Path:
        """Where the folder of an adapter is, or will be once it was fetched; nothing is checked."""
        return self._place.objects.folder(self.revision(name))

    def export(self, name: str, folder: str | Path) -> Path:
        """Copy an adapter into a folder of its own, such as `deltatune predict --adapter` takes. Returns the folder."""
        target = expanded(folder)
        if not self._place.is_remote:
            check_outside(target, [self._place.root], "")
        entry = self.entry(name)
        source_folder = self.folder(name)
        files = listed_files(source_folder)

        def fill(work: Path) -> None:
            for each in files:
                (work / each).parent.mkdir(parents=True, exist_ok=True)
                (work / each).write_bytes((source_folder / each).read_bytes())

        write_folder(target, fill, entry.bytes)
        if content_digest(listed_files(target)) != entry.digest:
            raise DeltatuneError(self._damaged(name, "its files are not those that were added"))
        return target

    def _read(self, entry: Entry) -> StoredAdapter:
        objects, kind = self._place.objects, entry.format
        folder = self._index.ask(lambda index: self._place.fetched(entry, index))
        stamps = objects.stamps(entry.digest, kind)
        if stamps and stamps == self._index.ask(lambda index: index.verified(entry.digest)):
            return read_object(folder, kind)
        problems = objects.problems(entry.digest, READ[kind])
        if problems and self._place.is_remote:
            folder = self._index.ask(lambda index: self._place.fetched(entry, index, again=True))
            stamps, problems = objects.stamps(entry.digest, kind), objects.problems(entry.digest, READ[kind])
        if problems:
            raise DeltatuneError(self._damaged(entry.name, "; ".join(problems)))
        stored = read_object(folder, kind)
        check_values(stored, folder)
        self._index.ask(lambda index: index.set_verified({entry.digest: stamps}))
        return stored

    # ---- changing

    def add(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        task: str | None = None,
        tags: Sequence[str] = (),
        scores: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Entry:
        """Copy an adapter's folder, or that of its run, into the store, under its folder's name unless one is given.

        `task`, and `scores` by split, are known from the folder where `deltatune train` wrote it. Adding the same
        content again changes nothing. Raises DeltatuneError for a name that is taken by other content, unless
        `replace`, and for a folder that is damaged or cannot be stored.
        """
        outcome = self.add_many([source(folder, name)], task=task, tags=tags, scores=scores, replace=replace)
        raise_all(outcome.problems)
        return outcome.entries[0]

    def add_all(self, folder: str | Path, *, tags: Sequence[str] = (), replace: bool = False) -> Sequence[Entry]:
        """Add the adapters, or runs, that are folders in a folder.

        Raises one DeltatuneError that lists those that cannot be added, after all others were.
        """
        outcome = self.add_many(sources_in(folder), tags=tags, replace=replace)
        about = f"{len(outcome.problems)} of {len(outcome.problems) + len(outcome.entries)} adapters were not added:"
        raise_all(outcome.problems, about if outcome.problems else "")
        return outcome.entries

    def add_many(
        self,
        sources: Sequence[AddedFolder],
        *,
        task: str | None = None,
        tags: Sequence[str] = (),
        scores: Mapping[str, Any] | None = None,
        replace: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> Added:
        """Add adapters, a thousand under one lock; `on_progress` gets the number that was begun.

        What is wrong with single adapters is told in the result, and the others are added.
        """
        given, added = given_facts(task, tags, scores), Added()

        def counted(begin: int) -> Iterator[AddedFolder]:
            for i, each in enumerate(sources[begin : begin + CHUNK], begin + 1):
                yield each
                if on_progress is not None:
                    on_progress(i)

        for begin in range(0, len(sources), CHUNK):
            with self._index.writing() as index:
                add_chunk(self._place, index, counted(begin), given, replace, added)
        return added

    def remove(self, *names: str) -> Sequence[Entry]:
        """Remove adapters, and the objects that no other one refers to; who has them open keeps them.

        Raises DeltatuneError that lists the names that are not there, before anything is removed.
        """
        with self._index.writing() as index:
            raise_all([self._missing(name) for name in names if self._find(name) is None])
            entries = [self.entry(name) for name in dict.fromkeys(names)]
            self._place.remove_entries([entry.name for entry in entries])
            index.update([], [entry.name for entry in entries], "")
            finish(self._place, index, {entry.digest for entry in entries})
        return entries

    def _find(self, name: object) -> Entry | None:
        if not isinstance(name, str) or name_problem(name):
            return None
        return self._index.ask(lambda index: index.entry(name))

    def _missing(self, name: object) -> str:
        """What to say of a name that is not there."""
        problem = name_problem(name)
        if problem or not isinstance(name, str):
            return f"the store {self} has no such adapter: {problem}"
        damaged = self._index.ask(self._index.damaged).get(name)
        if damaged:
            return damaged
        names = self._index.ask(StoreIndex.names)
        likely = likely_names(name, names)
        have = f"it has {len(names):,} (deltatune store list --store {self})" if names else "it is empty"
        return f"no adapter of the store {self} is called {name!r}{nearest(name, likely)}; {have}"

    def _damaged(self, name: str, problem: str) -> str:
        return (
            f"the adapter {name!r} of the store {self} is damaged: {problem}; add it again: "
            f"deltatune store add FOLDER --name {name} --replace --store {self}"
        )
