"""A folder for each class with an image file, or a sound file, for each row."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats.file_format import FileFormat, first_few, raise_malformed
from deltatune.data.media.images import IMAGE_SUFFIXES
from deltatune.data.media.media_files import TESTS, Inputs, MediaFile
from deltatune.data.media.sounds import SOUND_SUFFIXES

SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": SOUND_SUFFIXES}
LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}
"""Files that a file manager leaves beside images, in lower case."""


def read_media_folders(folder: Path, kind: Inputs) -> list[Row] | None:
    """Rows {kind, "label", "name"}, none of them opened; None where the folder has no two folders of such files.

    Raises DeltatuneError for what else lies beside the files of a class, and for a folder without any beside the
    classes: none of it is left out silently.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    contents = {path: [f for f in sorted(path.iterdir()) if not _is_ignored(f)] for path in folders}
    is_media = TESTS[kind]
    files = {path: [f for f in inside if is_media(f) and not f.is_dir()] for path, inside in contents.items()}
    if sum(map(bool, files.values())) < 2:
        return None
    suffixes = ", ".join(SUFFIXES[kind])
    problems = [f"{path} has no {kind} file ({suffixes}): is it a class?" for path in files if not files[path]]
    for path, inside in contents.items():
        others = [f.name for f in inside if f not in set(files[path])]
        if others and files[path]:
            problems.append(f"{path} has {first_few(others)} beside its {kind} files, which end in {suffixes}")
    problems += [f"{str(f).encode('utf-8', 'replace').decode()}: the name is not UTF-8" for f in _not_utf8(files)]
    if problems:
        fix = (
            f"A folder of classes has a folder of {kind} files for each class and nothing else: move other things away."
        )
        raise_malformed(folder, problems, fix)
    return [
        {kind: MediaFile(file, f"{path.name}/{file.name}"), "label": path.name, "name": file.name}
        for path, inside in files.items()
        for file in inside
    ]


def _is_ignored(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower() in LEFT_BY_SYSTEMS


def _not_utf8(files: dict[Path, list[Path]]) -> list[Path]:
    """Names that hold other bytes, which become surrogates that nothing can write."""
    return [path for path in [*files, *(f for inside in files.values() for f in inside)] if not _encodes(path)]


def _encodes(path: Path) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


FORMATS = tuple(
    FileFormat(partial(read_media_folders, kind=kind), text=(kind,), label="label") for kind in ("image", "audio")
)
