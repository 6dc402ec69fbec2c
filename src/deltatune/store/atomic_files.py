"""Atomic writes of files and folders: a temporary copy, fsync, rename; a folder gets a manifest with hashes last."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.regular_files import check_regular, file_problem, read_text
from deltatune.core.input_validation.strict_json import dumps, loads

MANIFEST = "manifest.json"


class CannotWrite(DeltatuneError):
    """Files cannot be written: the disk is full, or the folder must not be changed."""

    def __init__(self, message: str, needed: int = 0, code: int = 0) -> None:
        """`needed`: bytes that could not be written, if the disk is full; `code`: the system's error number."""
        super().__init__(message)
        self.needed, self.code = needed, code


def write_folder(folder: Path, fill: Callable[[Path], None], size: int = 0) -> None:
    """Write a folder atomically: `fill` writes into a temporary folder beside it, which is then renamed.

    An existing folder is replaced only if it is empty or holds a manifest, that is, if it was written here. Raises
    CannotWrite where nothing can be written or the disk is full; then nothing has changed. `size`: bytes that will be
    written, as far as the caller knows, for that error.
    """
    if folder.is_symlink():  # a link stays, and the folder that it names is written
        folder = Path(os.path.realpath(folder))
    folder = folder.absolute()
    make_folder(folder.parent)
    with plain_write_errors(folder):
        _restore(folder)
    _check_replaceable(folder)
    work = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    with plain_write_errors(folder):
        work.mkdir()
    try:
        with plain_write_errors(folder):
            fill(work)
            files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
            write_json(work / MANIFEST, {"files": {name: digest(work / name) for name in files}})
            mode = (work / MANIFEST).stat().st_mode & 0o777
            for path in [*(work / name for name in files), work / MANIFEST]:
                path.chmod(mode)  # safetensors gives its files another one
                _sync(path)
            _check_same_kind(folder, work)
            _replace(work, folder)
    except CannotWrite as error:
        written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        shutil.rmtree(work, ignore_errors=True)
        if not error.needed:
            raise
        # now that the draft is gone, the bytes that are free are free for it
        raise _full(folder, max(size, written + error.needed), error.code) from None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def put_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder that was written elsewhere, with its manifests, in place of the one here. Raises CannotWrite."""
    make_folder(folder.parent)
    work = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        with plain_write_errors(folder, sum(map(len, files.values()))):
            work.mkdir()
            for name, content in files.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(content)
                _sync(work / name)
            _replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8: a draft beside it, fsync, rename. Raises CannotWrite."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    data = content.encode() if isinstance(content, str) else content
    with plain_write_errors(path, len(data)):
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:  # before the error is made: the bytes that are free then are free for it
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what writers that were killed left in a folder. Only where no other process writes."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if _DRAFT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Add a line to a file; with `sync` it is on the disk when this returns.

    Raises CannotWrite; the line may then be incomplete.
    """
    data = f"{line}\n".encode()
    with plain_write_errors(path, len(data)), path.open("ab") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises CannotWrite."""
    with plain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


# --- disks that are full, folders that must not be written ---

FULL_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f)",
}
_DRAFT = re.compile(r"\..+(\.[0-9a-f]{8}(\.old)?|\.[0-9]+\.draft)")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def plain_write_errors(path: Path, needed: int = 1) -> Iterator[None]:
    """Within this context what the system says against writing `path` becomes CannotWrite.

    needed: bytes that are written, for a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, SafetensorError):
            match = _OS_ERROR.search(str(error))
            code = int(match.group(1)) if match else None
        if code is None:
            raise
        if code in FULL_DISK:
            raise _full(path, needed, code) from None
        raise CannotWrite(f"cannot write {path}: {os.strerror(code)}") from None


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write where `path` is, or is to be made."""
    place = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), Path())
    return shutil.disk_usage(place).free


def _full(path: Path, needed: int, code: int) -> CannotWrite:
    place = path.absolute().parent
    return CannotWrite(
        f"cannot write {path}: {FULL_DISK[code]}; it needs at least {needed:,} bytes, and {free_bytes(place):,} are "
        f"free in {place}. What was there before is unchanged; free some space and run the same again",
        needed,
        code,
    )


# --- reading ---


def check_folder(folder: Path, required: Sequence[str] = ()) -> None:
    """Raise DeltatuneError unless every file of the manifest exists with its hash, the `required` ones among them."""
    if not os.path.lexists(folder / MANIFEST):
        raise DeltatuneError(
            f"{folder} is incomplete: it has no {MANIFEST}; the write was interrupted or files were removed"
        )
    files = listed_files(folder)
    problems = [f"{name} is not listed in {MANIFEST}" for name in required if name not in files]
    for name, expected in files.items():
        if name.startswith("/") or ".." in Path(name).parts:
            problems.append(f"{shortened(name, quoted=False)} is not inside the folder")
        elif obstacle := file_problem(folder / name):
            problems.append(f"{shortened(name, quoted=False)} is missing: {obstacle}")
        elif _leaves(folder, name):
            problems.append(f"{name} is a link to {(folder / name).resolve()}, which is not inside the folder")
        elif digest(folder / name) != expected:
            problems.append(f"{name} was changed or damaged: its hash is not the one in {MANIFEST}")
    raise_all(problems, f"{folder} is damaged; save it again or restore a copy:" if problems else "")


def listed_files(folder: Path) -> dict[str, str]:
    """The hash of each file by its name, from the manifest. Raises DeltatuneError for one that lists none."""
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise DeltatuneError(f"{folder / MANIFEST} lists no files; save {folder} again or restore a copy")
    return files


def _leaves(folder: Path, name: str) -> bool:
    """Whether a file is a link to somewhere else than the folder, or the files that the hub's cache keeps beside it."""
    target = (folder / name).resolve()
    beside = folder.resolve().parent.parent / "blobs"  # snapshots/<revision>/<file> is a link to blobs/<hash>
    return not target.is_relative_to(folder.resolve()) and target.parent != beside


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
    """The BLAKE2b hash of a file. Raises DeltatuneError for one that cannot be read."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DeltatuneError(f"cannot read {path}: {error.strerror}") from None


KINDS = {"adapter.json": "an adapter", "adapter_config.json": "an adapter", "config.json": "a model"}
"""What a folder holds, by the first of these files in it."""


def _kind(folder: Path) -> str | None:
    return next((kind for name, kind in KINDS.items() if (folder / name).is_file()), None)


def check_outside(out: Path, inputs: Iterable[str | Path], option: str = "--out ") -> None:
    """Raise DeltatuneError if `out` is one of the folders that are read, or lies inside one: it would replace them."""
    for path in map(Path, inputs):
        if path.exists() and (place := path.resolve()) and (out.resolve() == place or place in out.resolve().parents):
            raise DeltatuneError(f"{option}{out} would overwrite {path}, which is read; choose another folder")


def _check_same_kind(folder: Path, work: Path) -> None:
    there, new = _kind(folder), _kind(work)
    if there is not None and there != new:
        raise DeltatuneError(
            f"{folder} holds {there}, which {new or 'something else'} would replace; choose another folder"
        )


def _check_replaceable(folder: Path) -> None:
    if folder.is_file():
        raise DeltatuneError(f"{folder} is a file; choose another folder")
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise CannotWrite(f"cannot write {folder}: it is write-protected; choose another folder")
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()
    if foreign:
        raise DeltatuneError(f"{folder} holds files that were not written here; choose another folder or empty it")


def _replace(work: Path, folder: Path) -> None:
    """Put a finished draft in the place of a folder; a process killed here leaves the old one or the new one there."""
    if not folder.exists():
        os.replace(work, folder)
    elif _exchange(work, folder):
        shutil.rmtree(work, ignore_errors=True)  # the old one: it stays there if it is write-protected
    else:  # the old one is moved away first
        old = work.with_name(work.name + ".old")
        os.replace(folder, old)
        try:
            os.replace(work, folder)
        except BaseException:
            os.replace(old, folder)
            raise
        shutil.rmtree(old)
    _sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step, which Linux can on most file systems; False where that is not possible."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _restore(folder: Path) -> None:
    """Give a folder that is gone its old content back: a process was killed while it replaced it without exchange."""
    old = [p for p in folder.parent.glob(f".{glob.escape(folder.name)}.*.old") if _DRAFT.fullmatch(p.name)]
    if len(old) == 1 and not os.path.lexists(folder) and (old[0] / MANIFEST).is_file():
        os.replace(old[0], folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
