"""Locks of run folders: one process writes a run; a second one is refused with the first one's id, host and start.

The lock is a file with the owner's facts, held with `flock`, which ends with the process however it ends. Where a file
system has no `flock`, the file alone is the lock, and it counts as long as the process that it names is alive.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from deltatune.core.errors import DeltatuneError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What `flock` fails with on file systems that have no locks."""
SAME_START = 10
"""Seconds by which two readings of a process's start may differ: clocks are set."""
_held: dict[Path, FolderLock] = {}
"""Outermost locks of this process by their file."""
_guard = threading.Lock()


class FolderInUse(DeltatuneError):
    """Another process or thread has the lock of a folder."""


class FolderLock:
    """The right to write a run: a context manager. The thread that has a folder may take it again, no other one may.

    Entering makes the folder if need be. Raises FolderInUse if another process or thread has the lock, and
    DeltatuneError if nothing can be written there.
    """

    def __init__(self, folder: Path, option: str = "--out ", file: Path | None = None) -> None:
        """`option` names the folder in errors. With `file` the run writes that file of the folder, not all of it."""
        self.folder, self.option, self.subject = folder, option, file or folder
        self.name, self.nests = (LOCK, True) if file is None else (f".{file.name}{LOCK}", False)

    def __enter__(self) -> FolderLock:
        self.made = _missing_folders(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise DeltatuneError(f"{self.option}{self.folder} is a file; choose another folder") from None
        except OSError as error:
            raise self._unwritable(error) from None
        self.file, self.thread = self.folder.resolve() / self.name, threading.get_ident()
        with _guard:
            outer = _held.get(self.file)
            if outer is not None and (outer.thread != self.thread or not self.nests):
                raise self._refused({"thread": os.getpid()})
            if outer is None:
                try:
                    self.handle = self._acquired()
                except OSError as error:
                    raise self._unwritable(error) from None
                _held[self.file] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _guard:
            if _held.get(self.file) is not self:  # an inner one, or the child of a fork
                return
            del _held[self.file]
            with contextlib.suppress(OSError):  # the folder may be gone
                if os.path.samestat(os.fstat(self.handle), os.stat(self.file)):
                    self.file.unlink()
            os.close(self.handle)
            for folder in self.made:  # if nothing was written, nothing is left
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _acquired(self) -> int:
        """The open file, locked. It is removed when the lock ends, so a locked one may be gone: then once more."""
        while True:
            handle = os.open(self.file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                has_flock = self._flock(handle)
                if has_flock and os.path.samestat(os.fstat(handle), os.stat(self.file)):
                    _write_owner(handle)
                    return handle
            except FileNotFoundError:
                has_flock = True
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
            if not has_flock:
                return self._claimed()

    def _flock(self, handle: int) -> bool:
        """Lock an open file; False where the file system has no locks. Raises if another process has it."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise self._refused(_read_owner(handle)) from None
        return True

    def _claimed(self) -> int:
        """Without `flock`: a file that this process alone could make, after one whose process has ended is removed."""
        while True:
            try:
                handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                with self.file.open("rb") as file:
                    owner = _read_owner(file.fileno())
                if _is_alive(owner):
                    raise self._refused(owner) from None
                stale = self.file.with_name(f"{self.file.name}.{os.getpid()}")
                with contextlib.suppress(FileNotFoundError):  # only one process can move it away
                    self.file.rename(stale)
                    stale.unlink()
            else:
                _write_owner(handle)
                return handle

    def _refused(self, owner: dict[str, Any]) -> DeltatuneError:
        if "thread" in owner:
            who = f"another {'thread' if self.nests else 'run'} of this process ({owner['thread']})"
        elif "pid" in owner:
            begun = f", which began at {_local_time(owner['start'])}" if isinstance(owner.get("start"), int) else ""
            who = f"process {owner['pid']} on {owner.get('host')}{begun}"
        else:
            who = "another process"
        return FolderInUse(
            f"{self.option}{self.subject} is in use by {who}; wait for it, stop it, or choose another name"
        )

    def _unwritable(self, error: OSError) -> DeltatuneError:
        return DeltatuneError(f"cannot write in {self.option}{self.folder}: {error.strerror}; choose another folder")


def owner_of(folder: Path) -> dict[str, Any] | None:
    """The living process that writes a run folder (`pid`, `host`, `start`), or None. Takes no lock, changes nothing."""
    file = folder.resolve() / LOCK
    if file in _held:
        return {"pid": os.getpid(), "host": socket.gethostname(), "start": _start_of(os.getpid())}
    try:
        with file.open("rb") as handle:
            owner = _read_owner(handle.fileno())
    except OSError:
        return None
    return owner if _is_alive(owner) else None


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, the innermost first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def _write_owner(handle: int) -> None:
    """Write into a lock who has it. On a full disk it stays without a name, and the lock holds all the same."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": _start_of(os.getpid())}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(owner).encode())


def _read_owner(handle: int) -> dict[str, Any]:
    """What a lock says about its owner, who may be just about to write it."""
    for _ in range(10):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            os.lseek(handle, 0, os.SEEK_SET)
            owner = json.loads(os.read(handle, 4096))
            if isinstance(owner, dict) and type(owner.get("pid")) is int and owner["pid"] > 0:
                return owner
        time.sleep(0.02)
    return {}


def _start_of(process: int) -> int:
    """When a process of this machine began, in seconds of the epoch; 0 if there is none, now where no one can say."""
    if not Path("/proc/uptime").is_file():
        return round(time.time())
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return round(time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK"))


def _local_time(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (OSError, ValueError, OverflowError):
        return "an unknown time"


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the process that a lock names exists; one on another machine counts as alive."""
    if "pid" not in owner or owner["pid"] == os.getpid():  # this process's threads are told apart before
        return False
    if owner.get("host") != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it exists and is another user's
        pass
    began = _start_of(owner["pid"])
    is_later_process = Path("/proc/uptime").is_file() and abs(began - int(owner.get("start") or began)) > SAME_START
    return not is_later_process


def _forget() -> None:
    """After a fork: the child has no locks, and an open file of its own would outlive the parent's lock."""
    global _guard
    _guard = threading.Lock()
    for lock in _held.values():
        os.close(lock.handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
