"""A folder for each class with a text file for each row, as in the IMDB reviews."""

from __future__ import annotations

from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats import read_rows
from deltatune.data.formats.file_format import FileFormat
from deltatune.data.formats.folders_of_classes import files_of_classes

TEXT = ".txt"
UNLABELLED = {"unsup", "unlabeled", "unlabelled"}
"""Names of folders whose texts have no class."""


def read_class_folders(folder: Path) -> list[Row] | None:
    """Rows {"text", "label", "name"}; None where the folder has no two folders of texts.

    Raises DeltatuneError for files that are empty or not UTF-8, and where `files_of_classes` does.
    """
    texts = files_of_classes(folder, _is_text, "texts", f"{TEXT} file", TEXT, unlabelled=UNLABELLED)
    if texts is None:
        return None
    return [
        {**row, "label": path.name, "name": file.name}
        for path, files in texts.items()
        for file in files
        for row in read_rows(file)
    ]


def _is_text(file: Path) -> bool:
    return file.suffix.lower() == TEXT


FORMATS = (FileFormat(read_class_folders, text=("text",), label="label"),)
