"""A folder for each class with an image file, or a sound file, for each row."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat
from deltatune.data.formats.folders_of_classes import files_of_classes
from deltatune.data.media.images import IMAGE_SUFFIXES
from deltatune.data.media.media_files import TESTS, Inputs, MediaFile
from deltatune.data.media.sounds import SOUND_SUFFIXES

SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": SOUND_SUFFIXES}
LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}
"""Files that a file manager leaves beside images, in lower case."""


def read_media_folders(folder: Path, kind: Inputs) -> list[Row] | None:
    """Rows {kind, "label", "name"}, none of them opened; None where the folder has no two folders of such files.

    Raises DeltatuneError where `files_of_classes` does.
    """
    suffixes = ", ".join(SUFFIXES[kind])
    files = files_of_classes(
        folder,
        lambda file: TESTS[kind](file) and not file.is_dir(),
        f"{kind} files",
        f"{kind} file ({suffixes})",
        suffixes,
        ignored=LEFT_BY_SYSTEMS,
    )
    if files is None:
        return None
    return [
        {kind: MediaFile(file, f"{path.name}/{file.name}"), "label": path.name, "name": file.name}
        for path, inside in files.items()
        for file in inside
    ]


FORMATS = tuple(
    FileFormat(partial(read_media_folders, kind=kind), text=(kind,), label="label") for kind in ("image", "audio")
)
