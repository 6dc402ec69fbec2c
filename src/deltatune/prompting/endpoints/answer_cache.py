"""Answers of an endpoint, kept on disk: no request is paid twice, and a run that was interrupted goes on.

A file of JSON lines, one for each answer, which is only appended to. Each line is written under a lock, so that several
processes may share a file; a line that a killed process left unfinished is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_regular
from deltatune.core.input_validation.strict_json import loads
from deltatune.prompting.endpoints.endpoint import Completion, Request, SamplingParams

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HEADER = {"format": "deltatune answers", "version": 1}
"""The first line of a file."""
NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What `flock` fails with on file systems that have no locks."""
CHUNK = 1 << 16


@dataclass(frozen=True)
class AnswerSource:
    """What an answer depends on besides the request."""

    name: str
    """Name of the model."""
    url: str = ""
    """Address of the server; "" for a model on this machine."""
    form: str = "plain"
    """plain or chat."""


class AnswerCache:
    """The answers of a file, which is made if it does not exist.

    Raises DeltatuneError for a file that is none of these, naming the line, and where nothing can be written.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.notes: list[str] = []
        """What was found to be damaged and dropped."""
        self._answers: dict[bytes, Completion] = {}
        self._read = self._line = 0
        self._guard = threading.Lock()
        with self._locked() as handle:
            self._mend(handle)
            self._read_on(handle)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, source: AnswerSource, request: Request) -> Completion | None:
        """The answer to a request; None where there is none."""
        return self._answers.get(_key(source, request))

    def put(self, source: AnswerSource, request: Request, completion: Completion) -> None:
        """Keep an answer; when this returns it is on the disk."""
        entry = {**asdict(source), "prompt": request.prompt, **asdict(request.params), **asdict(completion)}
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        with self._guard, self._locked() as handle:
            self._mend(handle)
            self._read_on(handle)
            if _key(source, request) not in self._answers:  # another process may have it by now
                self._append(handle, line)
                self._read_on(handle)

    def refresh(self) -> None:
        """Read what other processes have added."""
        with self._guard, self._locked() as handle:
            self._mend(handle)
            self._read_on(handle)

    # ---- the file

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The open file, with its lock: nobody else writes it now."""
        if os.path.lexists(self.file):
            check_regular(self.file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                except OSError as error:
                    if error.errno not in NO_FLOCK:
                        raise self._unwritable(error) from None
            yield handle
        finally:
            os.close(handle)

    def _mend(self, handle: int) -> None:
        """Write the header of a new file; drop a last line that its writer, who is gone, did not finish."""
        size = os.fstat(handle).st_size
        if size < self._read:
            raise DeltatuneError(f"{self.file} became shorter while it was in use; start again")
        whole = _end_of_lines(handle, size)
        if whole < size:
            self._check_header(handle, size)
            os.ftruncate(handle, whole)
            self.notes.append(f"{self.file}: the last line was not finished ({size - whole} bytes) and is dropped")
        if not whole:
            self._append(handle, json.dumps(HEADER).encode() + b"\n")

    def _check_header(self, handle: int, size: int) -> None:
        """Raise DeltatuneError unless the file begins as its header does: nothing of another file is changed."""
        header = json.dumps(HEADER).encode() + b"\n"
        os.lseek(handle, 0, os.SEEK_SET)
        if os.read(handle, min(size, len(header))) != header[:size]:
            raise self._other_file()

    def _append(self, handle: int, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        except OSError as error:
            raise self._unwritable(error) from None

    def _read_on(self, handle: int) -> None:
        """Read the lines that were added since the last reading."""
        os.lseek(handle, self._read, os.SEEK_SET)
        with os.fdopen(os.dup(handle), "rb") as file:
            for line in file:
                self._line += 1
                self._read += len(line)
                where = f"{self.file} line {self._line}"
                if self._line == 1:
                    if line != json.dumps(HEADER).encode() + b"\n":
                        raise self._other_file()
                    continue
                key, completion = _entry(line, where)
                self._answers.setdefault(key, completion)

    def _other_file(self) -> DeltatuneError:
        return DeltatuneError(f"{self.file} is no file of answers that deltatune wrote; choose another name for them")

    def _unwritable(self, error: OSError) -> DeltatuneError:
        return DeltatuneError(f"cannot write {self.file}: {error.strerror}; choose another file for the answers")


def _end_of_lines(handle: int, size: int) -> int:
    """Where the last whole line of a file ends, in bytes."""
    end = size
    while end > 0:
        start = max(0, end - CHUNK)
        os.lseek(handle, start, os.SEEK_SET)
        position = os.read(handle, end - start).rfind(b"\n")
        if position >= 0:
            return start + position + 1
        end = start
    return 0


def _key(source: AnswerSource, request: Request) -> bytes:
    """What identifies a request to a source."""
    content = [*asdict(source).values(), request.prompt, *asdict(request.params).values()]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()


def _entry(line: bytes, where: str) -> tuple[bytes, Completion]:
    """The key and the answer of a line. Raises DeltatuneError where it is none."""
    fix = "delete the line, and its request is sent again"
    try:
        data: Any = loads(line, where)
    except DeltatuneError as error:
        raise DeltatuneError(f"{error}; {fix}") from None
    types: dict[str, tuple[type, ...]] = {
        "name": (str,), "url": (str,), "form": (str,), "prompt": (str,), "max_tokens": (int,), "seed": (int,),
        "temperature": (float, int), "top_p": (float, int), "stop": (list,), "text": (str,), "truncated": (bool,),
        "prompt_tokens": (int, type(None)), "completion_tokens": (int, type(None)), "retries": (int,),
    }  # fmt: skip
    wrong = "it is no object"
    if isinstance(data, dict):
        names = [name for name in types if name not in data] + [name for name in data if name not in types]
        names += [name for name in types if name in data and type(data[name]) not in types[name]]
        stop = data.get("stop")
        if isinstance(stop, list) and not all(isinstance(text, str) for text in stop):
            names.append("stop")
        if not names:
            part = {each: {f.name: data[f.name] for f in fields(each)} for each in (AnswerSource, Completion)}
            params = {f.name: data[f.name] for f in fields(SamplingParams)}
            params |= {name: float(params[name]) for name in ("temperature", "top_p")}
            request = Request(data["prompt"], SamplingParams(**{**params, "stop": tuple(data["stop"])}))
            return _key(AnswerSource(**part[AnswerSource]), request), Completion(**part[Completion])
        wrong = f"{', '.join(map(repr, dict.fromkeys(names)))} is missing, unknown or of another type"
    raise DeltatuneError(f"{where} is no answer: {wrong}; {fix}")
