"""Regular files: checked before a file of the user is opened, so that no pipe blocks and a dangling link is named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from deltatune.core.errors import DeltatuneError


def expanded(path: str | Path) -> Path:
    """The path with the home folder for ~; as it is where there is no such home, for a file may be called so."""
    return Path(os.path.expanduser(path))


def check_regular(path: Path, what: str = "file") -> None:
    """Raise DeltatuneError unless `path` is a regular file that can be read; `what` says in the error what it is.

    A FIFO is refused before it is opened: reading it would wait for a writer without end.
    """
    problem = file_problem(path)
    if problem:
        raise DeltatuneError(f"cannot read the {what} {path}: {problem}")


def check_directory(path: Path, what: str = "folder") -> None:
    """Raise DeltatuneError unless `path` is a folder that can be listed; `what` says in the error what it is."""
    problem = folder_problem(path)
    if problem:
        raise DeltatuneError(f"cannot read the {what} {path}: {problem}")


def read_text(path: Path, what: str = "file") -> str:
    """The text of a regular file in UTF-8. Raises DeltatuneError for other files and other encodings."""
    check_regular(path, what)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DeltatuneError(f"cannot read the {what} {path}: {not_utf8(error)}") from None
    except OSError as error:
        raise DeltatuneError(f"cannot read the {what} {path}: {error.strerror or error}") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are not UTF-8, and where."""
    return f"it is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start})"


def folder_problem(path: Path) -> str | None:
    """Why `path` is no folder that can be listed, or None."""
    if not os.path.isdir(path):
        return file_problem(path) or "it is a file, not a folder"
    return None if os.access(path, os.R_OK | os.X_OK) else "permission denied"


def file_problem(path: Path) -> str | None:
    """Why `path` is no regular file that can be read, or None."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"it is a link to {os.readlink(path)}, which does not exist"
        return "it does not exist"
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a null character
        return str(getattr(error, "strerror", None) or error)
    if stat.S_ISREG(mode):
        return None if os.access(path, os.R_OK) else "permission denied"
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe (FIFO)",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return f"it is {kinds.get(stat.S_IFMT(mode), 'a special file')}, not a regular file"
