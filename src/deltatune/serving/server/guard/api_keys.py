"""API keys: a file of named keys with their limits, of which only SHA-256 digests are stored.

A key has 256 random bits, so that its digest says nothing about it and needs no salt: there is nothing to guess. The
file is read again whenever it changes; while it cannot be read, the keys that were read last stay in force.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.input_validation.regular_files import read_text
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.store.atomic_files import write_file
from deltatune.store.folder_lock import FolderInUse, FolderLock

PREFIX = "dt-"
"""How every key begins, so that a scanner for leaked secrets can know it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SETTLED = 0.1
"""Seconds after which a file's times tell a later change: file systems count time in steps."""


@dataclass(frozen=True)
class ApiKey:
    """Who may call the server, and how much."""

    name: str = ""
    """What logs and lists call it."""
    sha256: str = ""
    """The key's digest in hexadecimal digits."""
    requests_per_minute: int | None = None
    """Requests in any 60 seconds; null for no limit."""
    tokens_per_minute: int | None = None
    """Tokens, read and written, in any 60 seconds; null for no limit."""
    requests_at_once: int | None = None
    """Requests that run at the same time; null for no limit."""
    adapters: tuple[str, ...] = ("*",)
    """Patterns of the adapters that it may use: german, legal-*. The bare model is called base."""
    admin: bool = False
    """Whether it may load, unload and reload adapters, and read the metrics."""
    metrics: bool = False
    """Whether it may read the metrics."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def cache_key(self) -> str:
        """What the prompt cache keeps apart: it goes with the key itself, not with its name."""
        return self.sha256[:32]

    def may_use(self, adapter: str) -> bool:
        """Whether it may use an adapter, or the bare model as "base"."""
        return any(fnmatchcase(adapter, pattern) for pattern in self.adapters)


def anonymous(admin: bool) -> ApiKey:
    """Who calls a server that has no keys."""
    return ApiKey(name="anonymous", admin=admin, metrics=True)


def key_problems(key: ApiKey) -> list[str]:
    """What is wrong with a key."""
    problems = []
    if not NAME.fullmatch(key.name):
        problems.append(
            f"name {key.name!r}: use at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
        problems.append(f"sha256 of {key.name!r} must be the 64 hexadecimal digits of a SHA-256")
    for field in ("requests_per_minute", "tokens_per_minute", "requests_at_once"):
        limit = getattr(key, field)
        if limit is not None and limit < 1:
            problems.append(f"{field} of {key.name!r} must be above 0, or null for no limit, not {limit}")
    if not key.adapters:
        problems.append(f"adapters of {key.name!r} is empty: it could use nothing; write ['*'] for all")
    return problems


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises DeltatuneError that lists every problem; it shows no digest."""
    content = loads(read_text(path, "file of keys"), path)
    if not isinstance(content, dict) or list(content) != ["keys"] or not isinstance(content["keys"], list):
        raise DeltatuneError(f'{path} is no file of keys: it must hold {{"keys": [...]}}')
    keys, problems = [], []
    for place, entry in enumerate(content["keys"]):
        try:
            keys.append(_key(entry, f"keys[{place}]"))
        except DeltatuneError as error:
            problems.append(str(error))
        else:
            problems += key_problems(keys[-1])
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        twice = sorted({key.name for key in keys if values.count(getattr(key, field)) > 1})
        problems += [f"the same {field} stands there more than once: {', '.join(map(repr, twice))}"] if twice else []
    raise_all(problems, f"{path}:" if problems else "")
    return keys


def _key(entry: Any, where: str) -> ApiKey:
    if not isinstance(entry, Mapping):
        raise DeltatuneError(f"{where} must be an object")
    known = [field.name for field in fields(ApiKey)]
    unknown = [f"{where} has an unknown field {name!r}{nearest(name, known)}" for name in entry if name not in known]
    raise_all([*unknown, *(f"{where} has no {name}" for name in ("name", "sha256") if name not in entry)])
    try:
        return ApiKey(**entry)
    except DeltatuneError as error:
        raise DeltatuneError(f"{where}: {error}") from None


def add_key(path: Path, key: ApiKey) -> str:
    """Put a new key into a file, which is made where there is none, and return its secret: it is stored nowhere.

    `key.sha256` is ignored. Raises DeltatuneError for a name that is taken and for limits that make no sense.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    added = ApiKey(**{**asdict(key), "sha256": digest_of(secret.encode())})
    raise_all(key_problems(added))
    with _changing(path):
        keys = read_keys(path) if path.exists() or path.is_symlink() else []
        if any(other.name == key.name for other in keys):
            raise DeltatuneError(f"{path} has a key {key.name!r} already; remove it first, or choose another name")
        write_keys(path, [*keys, added])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Take a key out of a file. Raises DeltatuneError where there is none of that name."""
    with _changing(path):
        keys = read_keys(path)
        names = [key.name for key in keys]
        if name not in names:
            near = nearest(name, names) or f"; it has {', '.join(names) or 'none'}"
            raise DeltatuneError(f"{path} has no key {name!r}{near}")
        write_keys(path, [key for key in keys if key.name != name])


@contextmanager
def _changing(path: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold a file of keys against other processes that change it; wait for them a while."""
    until = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(FolderLock(path.absolute().parent, "", path.absolute()))
                break
            except FolderInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield


def write_keys(path: Path, keys: list[ApiKey]) -> None:
    """Write a file of keys, atomically, readable by its owner alone."""
    content = {"keys": [{name: value for name, value in asdict(key).items()} for key in keys]}
    write_file(path, dumps(content, path, indent=2) + "\n")
    os.chmod(path, 0o600)


def digest_of(secret: bytes) -> str:
    """What is stored of a key."""
    return hashlib.sha256(secret).hexdigest()


class KeyFile:
    """The keys of a file as they are now."""

    def __init__(self, path: Path, report: Callable[[str], None] = lambda problem: None) -> None:
        """Read it. `report` is told, once a change, why a changed file cannot be read. Raises DeltatuneError now."""
        self.path, self.report = path, report
        self.problem: str | None = None
        self._state = self._look()
        self._keys = read_keys(path)

    @property
    def keys(self) -> list[ApiKey]:
        """The keys, read again if the file has changed."""
        state = self._look()
        if state != self._state:
            self._state = state
            try:
                self._keys, self.problem = read_keys(self.path), None
            except DeltatuneError as error:
                if str(error) != self.problem:
                    self.report(f"the keys that were read before stay in force: {error}")
                self.problem = str(error)
        return self._keys

    def identify(self, secret: bytes) -> ApiKey | None:
        """The key with this secret. Every digest is compared, each in constant time."""
        digest, match = digest_of(secret).encode(), None
        for key in self.keys:
            if hmac.compare_digest(key.sha256.encode(), digest):
                match = key
        return match

    def _look(self) -> tuple[float, ...] | None:
        """What tells one state of the file from another; a file just written is looked at again a moment later."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        changing = time.time() - max(found.st_mtime, found.st_ctime) < SETTLED
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, time.monotonic() if changing else 0)
