"""Media files: images and sounds that a column or a folder names. They are read when a batch needs them.

A row holds only the path. 100,000 images are 100,000 short strings.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import expanded
from deltatune.data.media.images import image_size, is_image, read_image
from deltatune.data.media.sounds import is_sound, read_sound, sound_seconds

Inputs = Literal["text", "image", "audio"]
"""What a model reads of a row."""
TESTS: dict[Inputs, Callable[[str | Path], bool]] = {"image": is_image, "audio": is_sound}
"""Whether a name is that of a file of this kind."""
RATE = 16_000
"""Rate in Hz at which a sound is read only to see whether it can be read."""
DIGEST_BYTES = 16


class MediaFile(str):
    """The path of an image or a sound: a string that can be opened from anywhere, which knows how the data name it."""

    given: str
    """The path as it is in the data, such as `cat/001.png`: it tells rows apart wherever the data lie."""

    def __new__(cls, path: str | Path, given: str | None = None) -> Self:
        """`path` is made absolute; `given` is by default the path as it is."""
        file = super().__new__(cls, os.path.abspath(expanded(path)))
        file.given = str(path) if given is None else given
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.given)

    @property
    def kind(self) -> Inputs:
        """What the file holds, by its suffix."""
        return kind_of_name(self)

    @property
    def digest(self) -> str:
        """A hash of the file's bytes."""
        try:
            facts = os.stat(self)
        except OSError as error:
            raise DeltatuneError(f"cannot read the file {self}: {error.strerror or error}") from None
        return _digest(str(self), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1 << 18)
def _digest(path: str, size: int, changed: int) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DeltatuneError(f"cannot read the file {path}: {error.strerror or error}") from None
    return digest.hexdigest()


def kind_of_name(name: object) -> Inputs:
    """What a file of this name holds: text where it is neither an image nor a sound, or no name at all."""
    if not isinstance(name, str):
        return "text"
    return next((kind for kind, test in TESTS.items() if test(name)), "text")


def kind_of(values: Iterable[object]) -> Inputs:
    """What the files in a column hold; text where a cell that is not blank is no media file, or another kind of one."""
    return _shared(
        value.kind if isinstance(value, MediaFile) else "text" for value in values if value not in (None, "")
    )


def with_media_files(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The rows of a file in `folder`, with media files in the columns whose cells are all names of such files.

    All cells end in the suffix of an image, or of a sound, and one of the files exists; names are relative to the
    folder, as in a CSV beside its images.
    """
    columns = [name for name, value in rows[0].items() if kind_of_name(value) != "text"] if rows else []
    files = {name: cells for name in columns if (cells := _files([row.get(name) for row in rows], folder))}
    if not files:
        return rows
    return [{**row, **{name: cells[i] for name, cells in files.items()}} for i, row in enumerate(rows)]


def names_of_media(values: Sequence[object]) -> Inputs:
    """What the files that cells name hold; text where a cell that is not blank is no such name, or of another kind."""
    return _shared(kind_of_name(value) for value in values if value not in (None, ""))


def _shared(kinds: Iterator[Inputs]) -> Inputs:
    """The kind that all are of, else text. The first text decides: columns of texts are not read through."""
    first: Inputs = next(kinds, "text")
    return first if first != "text" and all(kind == first for kind in kinds) else "text"


def _files(names: Sequence[Any], folder: Path) -> list[Any]:
    """A column's cells as media files, blank ones as they are; nothing where it is no such column."""
    if names_of_media(names) == "text":
        return []
    cells = [_file(name, folder) if name else name for name in names]
    return cells if any(isinstance(cell, MediaFile) and os.path.exists(cell) for cell in cells) else []


def _file(name: str, folder: Path) -> MediaFile:
    path = expanded(name.strip())
    return MediaFile(path if path.is_absolute() else folder / path, name)


# --- faults ---


def header_fault(file: MediaFile) -> str | None:
    """What is wrong with a file, by its first bytes; None where nothing is."""
    try:
        if file.kind == "image":
            image_size(file)
        elif sound_seconds(file) == 0:
            return f"the sound {file} has no samples: it is 0 seconds long"
    except DeltatuneError as error:
        return str(error)
    return None


def fault(file: MediaFile) -> str | None:
    """What is wrong with a file, all of which is read; None where nothing is."""
    try:
        if file.kind == "image":
            read_image(file)
        else:
            read_sound(file, RATE)
    except DeltatuneError as error:
        return str(error)
    return None
