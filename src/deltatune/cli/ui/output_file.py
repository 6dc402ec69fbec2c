"""Output files of commands: checked before anything is computed, then written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.regular_files import check_regular, expanded


def checked_output(out: Path, inputs: Iterable[str | Path]) -> Path:
    """The file that is to be written, links followed.

    Raises DeltatuneError for a folder, pipe or device, for a link to nothing, for a folder that is not there or cannot
    be written, and for one of the inputs, or a file in one that is a folder.
    """
    path = expanded(out)
    if path.is_symlink() or path.exists():
        if path.is_dir():
            raise DeltatuneError(f"--out {out} is a folder; name a file in it")
        try:
            check_regular(path)
        except DeltatuneError as error:
            reason = str(error).removeprefix(f"cannot read the file {path}: ")
            raise DeltatuneError(f"--out {out}: {reason}; leave --out out to print the rows") from None
        if not os.access(path, os.W_OK):
            raise DeltatuneError(f"--out {out}: the file is write-protected")
    target = path.resolve()
    raise_all([f"--out {out} would overwrite the input {source}" for source in inputs if _holds(source, target)])
    if not target.parent.is_dir():
        raise DeltatuneError(f"--out {out}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DeltatuneError(f"--out {out}: the folder {target.parent} cannot be written")
    return target


def _holds(source: str | Path, target: Path) -> bool:
    """Whether an input is the target, by any of its names, or the folder of an existing target."""
    place = expanded(source)
    if not target.exists() or not place.exists():
        return False
    return place.samefile(target) or (place.is_dir() and place.resolve() in target.parents)


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file beside `path` that replaces it when the context ends, and is removed after an exception."""
    from deltatune.store.atomic_files import plain_write_errors

    draft = path.with_name(f".{path.name[:50]}.{os.getpid()}.draft")
    try:
        with plain_write_errors(path):
            draft.touch()
            if path.exists():
                shutil.copymode(path, draft)
            yield draft
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
