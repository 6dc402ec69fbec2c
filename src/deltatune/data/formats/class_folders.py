"""A folder for each class with a text file for each row, as in the IMDB reviews."""

from __future__ import annotations

from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats import read_rows
from deltatune.data.formats.file_format import FileFormat, first_few, raise_malformed

TEXT = ".txt"
UNLABELLED = {"unsup", "unlabeled", "unlabelled"}
"""Names of folders whose texts have no class."""


def read_class_folders(folder: Path) -> list[Row] | None:
    """Rows {"text", "label", "name"}; None where the folder has no two folders of texts.

    Raises DeltatuneError for files that are empty or not UTF-8, for what is no text beside texts, and for a folder
    without texts beside the classes: none of it is left out silently.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    contents = {path: sorted(f for f in path.iterdir() if not f.name.startswith(".")) for path in folders}
    contents = {path: files for path, files in contents.items() if path.name not in UNLABELLED}
    texts = {path: [file for file in files if _is_text(file)] for path, files in contents.items()}
    if sum(map(bool, texts.values())) < 2:
        return None
    problems = [f"{path} has no {TEXT} file: is it a class?" for path in texts if not texts[path]]
    for path, files in contents.items():
        others = [file.name for file in files if not _is_text(file)]
        if others and texts[path]:
            problems.append(f"{path} has {first_few(others)} beside its texts, which end in {TEXT}")
    problems += [f"{_shown(path)}: the name is not UTF-8; rename it" for path in _paths(texts) if not _is_utf8(path)]
    if problems:
        fix = "A folder of classes has a folder of texts for each class and nothing else: move other things away."
        raise_malformed(folder, problems, fix)
    return [
        {**row, "label": path.name, "name": file.name}
        for path, files in texts.items()
        for file in files
        for row in read_rows(file)
    ]


def _is_text(file: Path) -> bool:
    return file.suffix.lower() == TEXT


def _paths(texts: dict[Path, list[Path]]) -> list[Path]:
    return [*texts, *(file for files in texts.values() for file in files)]


def _is_utf8(path: Path) -> bool:
    """Whether a name is text; other bytes become surrogates, which nothing can write."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: Path) -> str:
    return str(path).encode("utf-8", "replace").decode()


FORMATS = (FileFormat(read_class_folders, text=("text",), label="label"),)
