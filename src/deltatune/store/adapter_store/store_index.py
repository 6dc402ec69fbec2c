"""The index of an adapter store: its entries in SQLite, to be searched in milliseconds.

It repeats what the entries' files say, and the state of files that were verified. It can be thrown away: what is
missing in it, or older than the files, is read again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.store.adapter_store.object_files import Stamps
from deltatune.store.adapter_store.store_entry import BaseFacts, Entry

SCHEMA = 1
"""Written into the file; another one is rebuilt."""
WAIT = 60_000
"""Milliseconds that a process waits for another one that writes."""
SORTS = {
    "name": "name COLLATE NOCASE",
    "task": "task",
    "method": "method",
    "base": "base",
    "score": "score",
    "size": "bytes",
    "parameters": "parameters",
    "date": "added",
}
"""What a list can be sorted by, and its column."""
_TABLES = f"""
    PRAGMA user_version = {SCHEMA};
    CREATE TABLE IF NOT EXISTS entries (
        name TEXT PRIMARY KEY COLLATE NOCASE, digest TEXT NOT NULL, token TEXT NOT NULL, task TEXT NOT NULL,
        method TEXT NOT NULL, base TEXT NOT NULL, content TEXT NOT NULL, score REAL, bytes INTEGER NOT NULL,
        parameters INTEGER NOT NULL, added TEXT NOT NULL, text TEXT NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS by_digest ON entries (digest);
    CREATE INDEX IF NOT EXISTS by_task ON entries (task);
    CREATE INDEX IF NOT EXISTS by_score ON entries (score);
    CREATE INDEX IF NOT EXISTS by_added ON entries (added);
    CREATE TABLE IF NOT EXISTS tags (tag TEXT, name TEXT COLLATE NOCASE, PRIMARY KEY (tag, name)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS by_name ON tags (name);
    CREATE TABLE IF NOT EXISTS verified (digest TEXT PRIMARY KEY, stamps TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS used (digest TEXT PRIMARY KEY, at REAL NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class StorageTotals:
    """What a store takes, and what full copies of the bases would take."""

    adapters: int
    bytes: int
    """Of all objects; equal content is kept once."""
    bases: tuple[str, ...]
    """Names of the bases that the adapters were trained on."""
    base_bytes: int
    """Of these bases together."""
    full_copies: int
    """Bytes of a full copy of its base for each adapter."""


class IndexDamaged(Exception):
    """The file is no index, or one of another version."""


class StoreIndex:
    """One connection to an index; threads take turns. Raises IndexDamaged, or sqlite3.Error where it cannot be used."""

    def __init__(self, path: Path | None) -> None:
        """Open or make it; `None`: in memory alone."""
        self.path = path
        self._turn = threading.RLock()
        is_new = path is None or not path.exists()
        self._db = sqlite3.connect(
            ":memory:" if path is None else path, timeout=WAIT / 1000, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, self._db.close).atexit = False  # Python 3.13 warns of what is left open
        try:
            self._db.execute(f"PRAGMA busy_timeout = {WAIT}")
            if path is not None:
                self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != SCHEMA and not (version == 0 and tables == 0):
                raise IndexDamaged(f"it is of another version ({version})")
            if is_new or not tables:
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            self.inode = None if path is None else path.stat().st_ino
            self.fact("stamp")
            self._db.execute("SELECT body, text, content FROM entries LIMIT 1").fetchall()
        except sqlite3.OperationalError as error:
            self._db.close()
            if "no such" in str(error):
                raise IndexDamaged(str(error)) from None
            raise
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise IndexDamaged(str(error)) from None
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._db.close()

    # ---- facts

    def fact(self, name: str) -> str:
        """A fact about the store, such as the state of its entries when they were read; empty if there is none."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", [name])
        return str(rows[0][0]) if rows else ""

    def set_fact(self, name: str, value: str) -> None:
        """Write a fact."""
        self._rows("INSERT OR REPLACE INTO facts VALUES (?, ?)", [name, value])

    def verified(self, digest: str) -> Stamps:
        """State of the files of an object when they were verified; empty if they were not."""
        rows = self._rows("SELECT stamps FROM verified WHERE digest = ?", [digest])
        try:
            return {name: tuple(stamp) for name, stamp in json.loads(rows[0][0]).items()} if rows else {}
        except (ValueError, AttributeError, TypeError):
            return {}

    def set_verified(self, states: Mapping[str, Stamps]) -> None:
        """Remember the state of the files of objects that were verified."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO verified VALUES (?, ?)",
                [(digest, json.dumps(stamps)) for digest, stamps in states.items()],
            )

    # ---- entries

    def tokens(self) -> dict[str, str]:
        """The state of each entry's file when it was read, by name."""
        return dict(self._rows("SELECT name, token FROM entries"))

    def update(self, read: Iterable[tuple[Entry, str]], removed: Iterable[str], stamp: str) -> None:
        """Write entries with the tokens of their files, remove others, and set the stamp, all or nothing."""
        rows = [_row(entry, token) for entry, token in read]
        names = [(name,) for name in [*removed, *(row[0] for row in rows)]]
        tags = [(tag, row[0]) for row in rows for tag in json.loads(row[-1])["tags"]]
        with self._transaction():
            self._db.executemany("DELETE FROM entries WHERE name = ?", names)
            self._db.executemany("DELETE FROM tags WHERE name = ?", names)
            self._db.executemany(f"INSERT INTO entries VALUES ({','.join('?' * 13)})", rows)
            self._db.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('stamp', ?)", [stamp])

    def entry(self, name: str) -> Entry | None:
        """The entry of this name, or None."""
        rows = self._rows("SELECT body FROM entries WHERE name = ? AND name = ? COLLATE BINARY", [name, name])
        return _entry(rows[0][0]) if rows else None

    def alike(self, name: str) -> str | None:
        """The name in the store that differs from this one in case at most, or None."""
        rows = self._rows("SELECT name FROM entries WHERE name = ?", [name])
        return str(rows[0][0]) if rows else None

    def names(self) -> list[str]:
        """All names, sorted."""
        return [row[0] for row in self._rows("SELECT name FROM entries ORDER BY name")]

    def count(self) -> int:
        """Number of entries."""
        return int(self._rows("SELECT count(*) FROM entries")[0][0])

    def digests(self) -> set[str]:
        """All objects that entries refer to."""
        return {row[0] for row in self._rows("SELECT DISTINCT digest FROM entries")}

    def storage(self) -> StorageTotals:
        """What all objects take; adapters with the same fingerprint, or name, of the base have one base."""
        totals = self._rows(
            "SELECT base, max(base_bytes), count(*), sum(bytes * (first = name)) FROM (SELECT name, base, "
            "CASE WHEN content = '' AND base <> '' "  # PEFT's
            "THEN coalesce(nullif(max(content) OVER (PARTITION BY base), ''), base) ELSE content END AS key, "
            "json_extract(body, '$.base.bytes') AS base_bytes, "
            "bytes, min(name) OVER (PARTITION BY digest) AS first FROM entries) GROUP BY key ORDER BY count(*) DESC"
        )
        return StorageTotals(
            adapters=sum(count for _, _, count, _ in totals),
            bytes=sum(size for *_, size in totals),
            bases=tuple(name for name, *_ in totals if name),
            base_bytes=sum(base_bytes for _, base_bytes, _, _ in totals),
            full_copies=sum(base_bytes * count for _, base_bytes, count, _ in totals),
        )

    def values(self, column: str) -> list[str]:
        """The values that a column or the tags have, sorted."""
        source = "SELECT DISTINCT tag FROM tags" if column == "tag" else f"SELECT DISTINCT {column} FROM entries"
        return sorted(row[0] for row in self._rows(source) if row[0])

    def find(self, where: Sequence[tuple[str, Sequence[Any]]], order: str, limit: int | None) -> list[Entry]:
        """The entries that meet all conditions, in an order."""
        conditions = " AND ".join(text for text, _ in where) or "1"
        values = [value for _, each in where for value in each]
        rows = self._rows(
            f"SELECT body FROM entries WHERE {conditions} ORDER BY {order} LIMIT ?",
            [*values, -1 if limit is None else limit],
        )
        return [_entry(row[0]) for row in rows]

    # ---- use of cached objects

    def touch(self, digest: str, at: float, size: int | None = None) -> None:
        """Note that an object was used; `size` when it has come."""
        if size is None:
            self._rows("UPDATE used SET at = ? WHERE digest = ?", [at, digest])
        else:
            self._rows("INSERT OR REPLACE INTO used VALUES (?, ?, ?)", [digest, at, size])

    def least_used(self) -> list[tuple[str, int]]:
        """(digest, bytes) of all objects that have come, the one that was not used for longest first."""
        return self._rows("SELECT digest, bytes FROM used ORDER BY at")

    def forget(self, digests: Iterable[str]) -> None:
        """Forget objects that are gone."""
        gone = [(digest,) for digest in digests]
        with self._transaction():
            self._db.executemany("DELETE FROM used WHERE digest = ?", gone)
            self._db.executemany("DELETE FROM verified WHERE digest = ?", gone)

    # ---- inside

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._turn:
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._turn:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _row(entry: Entry, token: str) -> tuple[Any, ...]:
    score = entry.score
    words = [entry.name, entry.task, entry.method, entry.base.name, entry.data, *entry.tags, *entry.labels]
    return (
        entry.name,
        entry.digest,
        token,
        entry.task,
        entry.method,
        entry.base.name,
        entry.base.content,
        None if score is None else score[1],
        entry.bytes,
        entry.parameters,
        entry.added,
        "\n".join(words).lower(),
        json.dumps(entry.to_json(), ensure_ascii=False),
    )


def _entry(body: str) -> Entry:
    """An entry as it was written here, without the checks of a file that anybody may have written."""
    try:
        content = json.loads(body)
        lists = {name: tuple(content[name]) for name in ("labels", "tags")}
        return Entry(**{**content, **lists, "base": BaseFacts(**content["base"])})
    except (ValueError, TypeError, KeyError) as error:
        raise IndexDamaged(f"an entry cannot be read ({error})") from None
