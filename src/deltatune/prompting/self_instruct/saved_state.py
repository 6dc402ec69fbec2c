"""The state of a Self-Instruct run on disk: JSON lines per round, then a record of how far they are valid."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.regular_files import file_problem
from deltatune.core.input_validation.strict_json import dumps, loads
from deltatune.prompting.self_instruct.seed_tasks import Row
from deltatune.store.atomic_files import plain_write_errors, read_json, write_file
from deltatune.store.folder_lock import FolderLock

SCHEMA = 1
"""Version of the state file."""
OLD_NAMES = {
    "writer": "endpoint", "human": "seed_tasks", "own": "generated_tasks", "new": "new_tasks", "cases": "example_tasks",
    "shortest": "min_words", "longest": "max_words", "avoid": "blocked_words", "avoid_starts": "blocked_starts",
}  # fmt: skip
"""Settings under the names that earlier state files use."""


class SavedState:
    """Two files of JSON lines, kept and rejected, and a record of both after the last finished round.

    A run killed at any point resumes after that round: lines of an unfinished round are dropped.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        """Open or create. Raises DeltatuneError if the files belong to another run or were modified."""
        self.out, self.identity = out, loads(dumps(identity), "the settings")
        self.rejected = out.with_name(f"{out.stem}.rejected.jsonl")
        self.state = out.with_name(f"{out.stem}.state.json")
        self._check_names()
        self._files: dict[str, BufferedRandom] = {}
        self._lock = FolderLock(out.parent, file=out)
        self._lock.__enter__()
        try:
            state = self._read_state()
            for name in ("kept", "rejected"):
                self._files[name] = self._open(name)
            self.round = int(state.get("round", 0))
            self._hashes = {name: self._restored(name, state) for name in self._files}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SavedState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both files, and end the lock; without a finished round the files are removed."""
        for name, file in self._files.items():
            with contextlib.suppress(OSError):  # what a full disk did not take, which was raised when it was written
                file.close()
            path = self._path(name)
            if not self.state.is_file() and path.is_file() and not path.stat().st_size:
                path.unlink()
        self._lock.__exit__(None, None, None)

    def rows(self, name: str) -> list[Row]:
        """The rows of finished rounds: `kept` or `rejected`."""
        self._files[name].seek(0)
        return [loads(line, self._path(name)) for line in self._files[name].read().splitlines()]

    def add_(self, number: int, kept: Sequence[Row], rejected: Sequence[Row]) -> None:
        """Write a round: its lines first, then the record that makes them valid. Raises CannotWrite."""
        for name, rows in (("rejected", rejected), ("kept", kept)):
            file = self._files[name]
            lines = b"".join(dumps(row, self._path(name)).encode() + b"\n" for row in rows)
            with plain_write_errors(self._path(name), len(lines)):
                file.seek(0, os.SEEK_END)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            self._hashes[name].update(lines)
        self.round = number
        sizes = {name: {"bytes": file.tell(), "hash": self._hashes[name].hexdigest()} for name, file in self._ends()}
        state = {"form": SCHEMA, "round": number, "identity": self.identity, "files": sizes}
        write_file(self.state, dumps(state, self.state, indent=2) + "\n")

    def _ends(self) -> list[tuple[str, BufferedRandom]]:
        for file in self._files.values():
            file.seek(0, os.SEEK_END)
        return list(self._files.items())

    def _path(self, name: str) -> Path:
        return self.out if name == "kept" else self.rejected

    def _open(self, name: str) -> BufferedRandom:
        path = self._path(name)
        path.touch()
        return path.open("r+b")

    def _check_names(self) -> None:
        if self.out.suffix.lower() != ".jsonl":
            raise DeltatuneError(f"{self.out}: the output is JSON lines, so the name of the file must end in .jsonl")
        if self.out.is_dir():
            raise DeltatuneError(f"{self.out} is a folder; name a file")
        for path in (self.out, self.rejected, self.state):
            problem = file_problem(path) if os.path.lexists(path) else None
            if problem:
                raise DeltatuneError(f"cannot write {path}: {problem}; choose another file")

    def _read_state(self) -> dict[str, Any]:
        if not self.state.is_file():
            full = [path for path in (self.out, self.rejected) if path.is_file() and path.stat().st_size]
            if full and not self._first_round(full):
                raise DeltatuneError(
                    f"{full[0]} exists and was not generated here ({self.state.name} is missing); "
                    "choose another file, or move it away"
                )
            return {}
        state = read_json(self.state)
        if state.get("form") != SCHEMA:
            raise DeltatuneError(f"{self.state} has schema {_short(state.get('form'))}, this version reads {SCHEMA}")
        damage = _damage(state)
        raise_all(damage, f"{self.state} is damaged; restore it, or choose another file:" if damage else "")
        old = {OLD_NAMES.get(name, name): value for name, value in state["identity"].items()}
        names = [*self.identity, *(name for name in old if name not in self.identity)]
        raise_all(
            [
                f"{name} was {_short(old.get(name))}, now it is {_short(self.identity.get(name))}"
                for name in names
                if old.get(name) != self.identity.get(name)
            ],
            f"{self.out} was started with other settings; choose another file, or resume with the same settings:"
            if old != self.identity
            else "",
        )
        return state

    def _first_round(self, files: list[Path]) -> bool:
        """Whether the files only hold lines of an unfinished first round."""
        return all(_unfinished(path.read_bytes(), 0) for path in files)

    def _restored(self, name: str, state: Mapping[str, Any]) -> Any:
        """Truncate a file after its last valid line, and return the hash of its content."""
        path, file = self._path(name), self._files[name]
        recorded = (state.get("files") or {}).get(name) or {"bytes": 0, "hash": hashlib.blake2b().hexdigest()}
        content = file.read()
        content_hash = hashlib.blake2b(content[: recorded["bytes"]])
        if len(content) < recorded["bytes"] or content_hash.hexdigest() != recorded["hash"]:
            raise DeltatuneError(f"{path} was modified since the last round; restore it, or choose another file")
        if not _unfinished(content[recorded["bytes"] :], self.round):
            raise DeltatuneError(f"{path} has lines that were not generated here; remove them, or choose another file")
        file.truncate(recorded["bytes"])
        return content_hash


def _damage(state: Mapping[str, Any]) -> list[str]:
    """What is wrong with the record of a run."""
    problems = [
        f"{name} is {_short(state.get(name))}, it must be {words}"
        for name, kind, words in (
            ("identity", dict, "an object"),
            ("files", dict, "an object"),
            ("round", int, "a number"),
        )
        if type(state.get(name)) is not kind
    ]
    files: Any = state.get("files")
    for name in ("kept", "rejected") if isinstance(files, dict) else ():
        entry: Any = files.get(name)
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if type(size) is not int or size < 0 or not isinstance(entry.get("hash"), str):
            problems.append(f"files.{name} is {_short(entry)}, it must have bytes and a hash")
    if type(state.get("round")) is int and not 0 < state["round"] < 2**31:
        problems.append(f"round is {_short(state['round'])}, it must be a number from 1")
    return problems


def _unfinished(rest: bytes, finished: int) -> bool:
    """Whether all lines belong to the round after the last finished one; the last line may be incomplete."""
    lines = rest.split(b"\n")
    for line in lines[:-1]:
        row: Any = None
        with contextlib.suppress(ValueError):
            row = loads(line, "a line")
        if not isinstance(row, dict) or row.get("round") != finished + 1:
            return False
    return not lines[-1] or lines[-1].startswith(b"{")


def _short(value: Any) -> str:
    text = dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
