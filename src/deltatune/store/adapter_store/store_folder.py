"""The files of an adapter store in a folder.

store.json            marks the folder as a store
entries/<name>.json   what is known of an adapter, and which object it is
objects/              the adapters' folders by their content
index.sqlite          the entries again, to be searched; rebuilt where it is missing or damaged

A writer holds the lock, writes objects, then entries, then the index: killed in between, it leaves what was there, and
nothing that is half there. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.strict_json import dumps
from deltatune.store.adapter_store.object_files import Draft, ObjectFiles, sync, sync_path
from deltatune.store.adapter_store.store_entry import Entry
from deltatune.store.adapter_store.store_index import StoreIndex
from deltatune.store.atomic_files import make_folder, plain_write_errors, read_json, write_file
from deltatune.store.folder_lock import LOCK, FolderInUse, FolderLock

SCHEMA = 1
MARK, ENTRIES, OBJECTS, INDEX = "store.json", "entries", "objects", "index.sqlite"
MARKED = {"kind": "deltatune adapter store", "schema": SCHEMA}
"""Content of the file that marks a store."""
LOCK_WAIT = 120.0
"""Seconds that a writer waits for another one."""
SETTLED = 50_000_000
"""Nanoseconds after which file systems give a change another time than the one before it."""
_DRAFT = ".entries-"


class StoreFolder:
    """The files of a store in a folder of this machine."""

    is_remote = False
    """Whether its objects are a cache of those elsewhere."""

    def __init__(self, root: Path, shown: str = "") -> None:
        """`shown`: what the store is called in errors, if not by its folder."""
        self.root, self.shown = root, shown or str(root)
        self.objects = ObjectFiles(root / OBJECTS)
        self.entries = root / ENTRIES
        self.index = root / INDEX

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return (self.root / MARK).is_file()

    @property
    def is_made(self) -> bool:
        """Whether somebody has made the store; `exists` says whether its folder is on this machine."""
        return self.exists

    def check(self) -> None:
        """Raise DeltatuneError for a folder that is no store, or one of another version."""
        if self.root.exists() and not self.root.is_dir():
            raise DeltatuneError(f"{self.root} is a file, not an adapter store; choose another folder")
        if self.exists:
            mark = read_json(self.root / MARK)
            if mark.get("schema") != SCHEMA:
                raise DeltatuneError(
                    f"the store {self.shown} has schema {mark.get('schema')!r}, this deltatune reads {SCHEMA}; "
                    "update deltatune"
                )
        elif self.root.is_dir() and any(path.name != f".{INDEX}{LOCK}" for path in self.root.iterdir()):
            raise DeltatuneError(
                f"{self.root} is no adapter store (it has no {MARK}), but it holds files; choose another folder"
            )

    def make(self) -> None:
        """Make the store if there is none."""
        if not self.exists:
            self.check()
            for folder in (self.root, self.entries, self.objects.root):
                make_folder(folder)
            write_file(self.root / MARK, dumps(MARKED, indent=2) + "\n")

    @contextlib.contextmanager
    def lock(self, wait: float = LOCK_WAIT) -> Iterator[None]:
        """The right to write, waited for. Raises FolderInUse after `wait` seconds."""
        end = time.monotonic() + wait
        lock = FolderLock(self.root, option="the store ", file=self.index)
        while True:
            try:
                lock.__enter__()
                break
            except FolderInUse:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.01)
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    # ---- entries

    def stamp(self) -> str:
        """The state of all entries: another one after every change."""
        try:
            state = os.stat(self.entries)
        except OSError:
            return "none"
        return f"{state.st_mtime_ns} {state.st_ino}"

    @property
    def is_settling(self) -> bool:
        """Whether an entry changed so lately that a further change might leave the same stamp."""
        try:
            return abs(time.time_ns() - os.stat(self.entries).st_mtime_ns) < SETTLED
        except OSError:
            return False

    def listing(self) -> dict[str, str]:
        """The state of each entry's file, by name."""
        found = {}
        try:
            with os.scandir(self.entries) as opened:
                files = [file for file in opened if file.name.endswith(".json") and not file.name.startswith(".")]
        except FileNotFoundError:
            return {}
        for file in files:
            with contextlib.suppress(OSError):  # removed meanwhile, or a link to nothing
                state = file.stat()
                if stat.S_ISREG(state.st_mode):  # to open a pipe would wait for a writer
                    token = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
                    found[file.name.removesuffix(".json")] = token
        return found

    def read_entries(self, tokens: Mapping[str, str]) -> dict[str, bytes]:
        """The files of entries by name, of those that are still there."""
        contents = {}
        for name in tokens:
            with contextlib.suppress(OSError):
                contents[name] = (self.entries / f"{name}.json").read_bytes()
        return contents

    def write_entries(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Write entries' files, each as a whole. Returns their states."""
        drafts = self.root / f"{_DRAFT}{secrets.token_hex(8)}"
        with plain_write_errors(self.entries):
            drafts.mkdir()
            try:
                for entry in entries:
                    (drafts / f"{entry.name}.json").write_text(entry_text(entry), encoding="utf-8")
                sync([drafts])
                states = {}
                for entry in entries:
                    path = self.entries / f"{entry.name}.json"
                    os.replace(drafts / path.name, path)
                    state = path.stat()
                    states[entry.name] = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
                sync_path(self.entries)
            finally:
                shutil.rmtree(drafts, ignore_errors=True)
        return states

    def remove_entries(self, names: Iterable[str]) -> None:
        """Remove entries' files."""
        with plain_write_errors(self.entries):
            for name in names:
                (self.entries / f"{name}.json").unlink(missing_ok=True)
            sync_path(self.entries)

    def finish(self, index: StoreIndex) -> None:
        """Called at the end of every change."""

    # ---- objects

    def publish(self, drafts: Sequence[Draft], replace: bool) -> None:
        """Put the drafts of objects in their places. `replace`: also those that are thought to be there."""
        sync([draft.folder for draft in drafts])
        self.objects.publish(drafts)

    def remove_objects(self, digests: Iterable[str], index: StoreIndex) -> None:
        """Remove objects that no entry refers to."""
        digests = list(digests)
        self.objects.remove(digests)
        index.forget(digests)

    def remove_drafts(self) -> bool:
        """Remove what killed writers left, under the lock. Returns whether there was anything."""
        left = [path for path in self.root.glob(f"{_DRAFT}*") if path.is_dir()]
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return self.objects.remove_drafts() or bool(left)

    def unused_objects(self, used: set[str]) -> list[str]:
        """Objects that are there, but not used."""
        return [digest for digest in self.objects.digests() if digest not in used]

    def fetched(self, entry: Entry, index: StoreIndex, again: bool = False) -> Path:
        """The folder of an entry's object on this machine. `again`: even if it is there, for it is damaged."""
        return self.objects.folder(entry.digest)


def entry_text(entry: Entry) -> str:
    """The content of an entry's file."""
    return dumps(entry.to_json(), entry.name, indent=1, sort_keys=True) + "\n"
