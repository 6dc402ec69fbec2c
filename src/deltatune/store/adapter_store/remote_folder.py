"""The files of an adapter store behind a URL (s3://, gs://, memory:// and all else that fsspec opens).

The files lie there as in a folder. Here is a cache: the index, and objects that were read, the least used of which go
when they take too much. `index.jsonl` at the URL repeats all entries, so that a first listing is two requests and not
ten thousand; entries that it lacks, or that have changed since, are fetched one by one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.store.adapter_store.object_files import Draft
from deltatune.store.adapter_store.store_entry import Entry
from deltatune.store.adapter_store.store_folder import (
    ENTRIES,
    MARK,
    MARKED,
    OBJECTS,
    SCHEMA,
    StoreFolder,
    entry_text,
)
from deltatune.store.adapter_store.store_index import StoreIndex
from deltatune.store.atomic_files import MANIFEST, check_folder, listed_files, make_folder, plain_write_errors

Answer = TypeVar("Answer")
LISTED = "index.jsonl"
"""All entries in one file."""
FEW = 16
"""Entries that are fetched one by one; for more, the file with all of them is."""
TRIES = 3
"""How often a request is made until it succeeds."""
STATE = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5", "generation")
"""What file systems say about a file, which together tell one version of it from another."""


class RemoteFolder(StoreFolder):
    """The files of a store behind a URL, with a cache in a folder."""

    is_remote = True

    def __init__(self, url: str, cache: Path, cache_bytes: int, refresh: float) -> None:
        """`cache_bytes`: most bytes of objects here; `refresh`: seconds between two looks at the entries."""
        super().__init__(cache / hashlib.blake2b(url.encode(), digest_size=8).hexdigest(), shown=url)
        self.url, self.cache_bytes, self.refresh = url, cache_bytes, refresh
        self.files, self.path = _opened(url)
        self._listed: dict[str, str] | None = None
        self._listed_at = 0.0
        self._seen: dict[str, str] = {}
        self._marked = False

    is_settling = False

    @property
    def exists(self) -> bool:
        return self.root.is_dir()

    @property
    def is_made(self) -> bool:
        return self._marked or bool(self.listing())

    def check(self) -> None:
        """Make the cache. Raises DeltatuneError for a store of another version, and where the URL cannot be opened."""
        mark = self._get(MARK)
        schema = None if mark is None else loads(mark, f"{self.url}/{MARK}").get("schema")
        if mark is not None and schema != SCHEMA:
            raise DeltatuneError(
                f"the store {self.url} has schema {shortened(schema)}, this deltatune reads {SCHEMA}; update deltatune"
            )
        self._marked = mark is not None
        make_folder(self.objects.root)

    def make(self) -> None:
        if self._get(MARK) is None:
            self._put(MARK, (dumps(MARKED, indent=2) + "\n").encode())
        self._marked = True

    # ---- entries

    def stamp(self) -> str:
        """The state of all entries, as they were seen at most `refresh` seconds ago."""
        listing = self.listing()
        text = "\n".join(f"{name} {token}" for name, token in sorted(listing.items()))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def listing(self) -> dict[str, str]:
        if self._listed is None or time.monotonic() - self._listed_at > self.refresh:
            try:
                self._listed = self._list()
            except DeltatuneError:
                if self._listed is None and not self._seen:
                    raise  # else: what was seen last holds until the URL answers again
                self._listed = self._listed if self._listed is not None else dict(self._seen)
            self._listed_at, self._seen = time.monotonic(), self._listed
        return self._listed

    def read_entries(self, tokens: Mapping[str, str]) -> dict[str, bytes]:
        contents = self._from_list(tokens) if len(tokens) > FEW else {}
        wanted = [name for name in tokens if name not in contents]
        paths = {self._at(f"{ENTRIES}/{name}.json").strip("/"): name for name in wanted}

        def ask() -> dict[str, bytes]:
            answers = self.files.cat([self._at(f"{ENTRIES}/{name}.json") for name in wanted], on_error="return")
            for answer in answers.values():
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
            return {
                paths[path.strip("/")]: bytes(answer)
                for path, answer in answers.items()
                if not isinstance(answer, Exception)  # one that is gone since the listing
            }

        return contents | (self._request("read the entries", ask) if wanted else {})

    def write_entries(self, entries: Sequence[Entry]) -> dict[str, str]:
        for entry in entries:
            self._put(f"{ENTRIES}/{entry.name}.json", entry_text(entry).encode())
        self._listed = None
        listing = self.listing()
        return {entry.name: listing.get(entry.name, "") for entry in entries}

    def remove_entries(self, names: Iterable[str]) -> None:
        for name in names:
            self._delete(f"{ENTRIES}/{name}.json")
        self._listed = None

    def finish(self, index: StoreIndex) -> None:
        tokens, entries = index.tokens(), index.find([], "name", None)
        lines = [dumps({"token": tokens[entry.name], "entry": entry_text(entry)}, LISTED) for entry in entries]
        self._put(LISTED, "\n".join(lines).encode())

    # ---- objects

    def publish(self, drafts: Sequence[Draft], replace: bool) -> None:
        super().publish(drafts, replace)
        for draft in drafts:
            folder, remote = self.objects.folder(draft.digest), self._object(draft.digest)
            if not replace and self._get(f"{remote}/{MANIFEST}") == (folder / MANIFEST).read_bytes():
                continue
            for name in [*listed_files(folder), MANIFEST]:  # the manifest last: an object that has it is whole
                self._put(f"{remote}/{name}", (folder / name).read_bytes())

    def remove_objects(self, digests: Iterable[str], index: StoreIndex) -> None:
        digests = list(digests)
        for digest in digests:
            self._delete(f"{self._object(digest)}/{MANIFEST}")
            self._delete(self._object(digest))
        self.objects.remove(digests)
        index.forget(digests)

    def unused_objects(self, used: set[str]) -> list[str]:
        return []  # the objects here are a cache, and those at the URL may be those of another writer

    def fetched(self, entry: Entry, index: StoreIndex, again: bool = False) -> Path:
        folder = self.objects.folder(entry.digest)
        if again:
            self.objects.remove([entry.digest])
        if folder.is_dir():
            index.touch(entry.digest, time.time())
            return folder
        draft = self.objects.draft_folder()
        try:
            self._download(entry, draft)
            with plain_write_errors(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                if not folder.exists():  # another thread or process may have been faster
                    try:
                        os.rename(draft, folder)
                    except OSError:
                        if not folder.is_dir():
                            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        index.touch(entry.digest, time.time(), entry.bytes)
        self._evict(entry.digest, index)
        return folder

    def _download(self, entry: Entry, draft: Path) -> None:
        remote = self._object(entry.digest)
        manifest = self._get(f"{remote}/{MANIFEST}")
        if manifest is None:
            raise DeltatuneError(
                f"the adapter {entry.name!r} of {self.url} cannot be fetched: {remote} is not there; add it again with "
                "--replace"
            )
        (draft / MANIFEST).write_bytes(manifest)
        for name in listed_files(draft):
            if name.startswith("/") or ".." in Path(name).parts:
                raise DeltatuneError(f"the adapter {entry.name!r} of {self.url} is damaged: its manifest has a path")
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            path = self._at(f"{remote}/{name}")
            with plain_write_errors(draft / name, entry.bytes):
                self._request(f"fetch {name} of {entry.name!r}", lambda a=path, b=draft / name: self._copy(a, b))  # type: ignore[misc]
        try:
            check_folder(draft)
        except DeltatuneError as error:
            raise DeltatuneError(
                f"the adapter {entry.name!r} of {self.url} is damaged; add it again with --replace: "
                f"{str(error).replace(str(draft), remote)}"
            ) from None

    def _copy(self, remote: str, local: Path) -> None:
        with self.files.open(remote, "rb") as from_, local.open("wb") as to:
            shutil.copyfileobj(from_, to, 1 << 20)

    def _evict(self, kept: str, index: StoreIndex) -> None:
        """Remove the objects that were not used for longest, while all take more than they may."""
        objects = index.least_used()
        total, gone = sum(size for _, size in objects), []
        for digest, size in objects:
            if total <= self.cache_bytes:
                break
            if digest != kept:
                gone.append(digest)
                total -= size
        self.objects.remove(gone)
        if gone:
            index.forget(gone)

    # ---- requests

    def _object(self, digest: str) -> str:
        return f"{OBJECTS}/{digest[:2]}/{digest}"

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _list(self) -> dict[str, str]:
        def ask() -> list[dict[str, Any]]:
            self.files.invalidate_cache()
            try:
                return list(self.files.ls(self._at(ENTRIES), detail=True))
            except FileNotFoundError:
                return []

        found = {}
        for file in self._request("list the entries", ask):
            name = str(file["name"]).rstrip("/").rpartition("/")[2]
            if file.get("type") != "directory" and name.endswith(".json") and not name.startswith("."):
                found[name.removesuffix(".json")] = " ".join(str(file[key]) for key in STATE if key in file)
        return found

    def _from_list(self, tokens: Mapping[str, str]) -> dict[str, bytes]:
        """Entries of the file with all of them that are still as they were."""
        contents = {}
        for line in (self._get(LISTED) or b"").splitlines():
            try:
                one = loads(line, f"{self.url}/{LISTED}")
                entry = loads(one["entry"], LISTED)
                if tokens.get(entry["name"]) == one["token"]:
                    contents[entry["name"]] = one["entry"].encode()
            except (DeltatuneError, KeyError, TypeError, AttributeError):
                continue  # a line that is no entry: the entry itself is fetched
        return contents

    def _get(self, name: str) -> bytes | None:
        def ask() -> bytes | None:
            try:
                return bytes(self.files.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

        return self._request(f"read {name}", ask)

    def _put(self, name: str, content: bytes) -> None:
        self._request(f"write {name}", lambda: self.files.pipe_file(self._at(name), content))

    def _delete(self, name: str) -> None:
        def ask() -> None:
            try:
                self.files.rm(self._at(name), recursive=True)
            except FileNotFoundError:
                return

        self._request(f"remove {name}", ask)

    def _request(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """Ask, again after a failure. Raises DeltatuneError with what the file system said last."""
        for turn in range(TRIES):
            try:
                return ask()
            except DeltatuneError:
                raise
            except Exception as error:  # every file system of fsspec has errors of its own
                last = error
                if isinstance(error, PermissionError) or "redentials" in type(error).__name__:
                    break
                time.sleep(0.1 * 4**turn if turn + 1 < TRIES else 0)
        raise DeltatuneError(
            f"cannot {what} at {self.url}: {type(last).__name__}: {shortened(str(last), quoted=False)}"
        )


def remote_folder(url: str, cache: Path | None, cache_bytes: int, refresh: float) -> RemoteFolder:
    """The store at a URL; its cache is made under `~/.cache/deltatune/store` unless a folder is given."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return RemoteFolder(url.rstrip("/"), cache or home / "deltatune" / "store", cache_bytes, refresh)


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path there. Raises DeltatuneError with the line that installs what it needs."""
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    except ImportError:
        raise DeltatuneError(f"the store {url} needs fsspec: pip install fsspec") from None
    scheme = url.partition("://")[0]
    try:
        files, path = url_to_fs(url)
    except ImportError as error:
        packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
        package = packages.get(scheme)
        fix = f"pip install {package}" if package else str(error)
        raise DeltatuneError(f"the store {url} needs a package that is not installed: {fix}") from None
    except ValueError as error:
        raise DeltatuneError(f"the store {url} cannot be opened: {error}") from None
    return files, str(path).rstrip("/")
