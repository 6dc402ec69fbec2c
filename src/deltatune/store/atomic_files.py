"""Atomic writes of files and folders: a temporary copy, fsync, rename; a folder gets a manifest with hashes last."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.regular_files import read_text
from deltatune.core.strict_json import dumps, loads

MANIFEST = "manifest.json"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder atomically: `fill` writes into a temporary folder beside it, which is then renamed.

    An existing folder is replaced only if it is empty or holds a manifest, that is, if it was written here.
    """
    folder = folder.absolute()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fill(work)
        files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
        write_json(work / MANIFEST, {"files": {name: digest(work / name) for name in files}})
        for path in [*(work / name for name in files), work / MANIFEST]:
            _sync(path)
        os.chmod(work, 0o755)
        _replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_file(path: Path, text: str) -> None:
    """Write a text file atomically: a draft beside it, fsync, rename."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raise DeltatuneError unless every file of the manifest exists with its hash."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DeltatuneError(
            f"{folder} is incomplete: it has no {MANIFEST}; the write was interrupted or files were removed"
        )
    problems = []
    for name, expected in read_json(path).get("files", {}).items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif digest(folder / name) != expected:
            problems.append(f"{name} was changed or damaged: its hash is not the one in {MANIFEST}")
    raise_all(problems, f"{folder} is damaged; save it again or restore a copy:" if problems else "")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with sorted keys, so that equal content gives equal bytes."""
    path.write_text(dumps(content, path, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DeltatuneError naming the file if it holds anything else."""
    content = loads(read_text(path), path)
    if not isinstance(content, dict):
        raise DeltatuneError(f"{path} does not hold a JSON object")
    return content


def digest(path: Path) -> str:
    """The BLAKE2b hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_replaceable(folder: Path) -> None:
    if folder.is_file():
        raise DeltatuneError(f"{folder} is a file; choose another folder")
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()
    if foreign:
        raise DeltatuneError(f"{folder} holds files that were not written here; choose another folder or empty it")


def _replace(work: Path, folder: Path) -> None:
    if folder.exists():  # rename cannot replace a folder with content: the old one is moved away first
        old = work.with_name(work.name + ".old")
        os.replace(folder, old)
        try:
            os.replace(work, folder)
        except BaseException:
            os.replace(old, folder)
            raise
        shutil.rmtree(old)
    else:
        os.replace(work, folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
