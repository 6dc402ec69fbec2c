"""A folder for each class with a text file for each row, as in the IMDB reviews."""

from __future__ import annotations

from pathlib import Path

from deltatune.data.dataset import Row
from deltatune.data.formats import read_rows
from deltatune.data.formats.file_format import FileFormat

TEXTS = "*.txt"
UNLABELLED = {"unsup", "unlabeled", "unlabelled"}
"""Names of folders whose texts have no class."""


def read_class_folders(folder: Path) -> list[Row] | None:
    """Rows {"text", "label", "name"}; None where the folder has no two folders of texts.

    Raises DeltatuneError for files that are empty or not UTF-8.
    """
    classes = {path.name: sorted(path.glob(TEXTS)) for path in sorted(folder.iterdir()) if path.is_dir()}
    classes = {name: files for name, files in classes.items() if files and name not in UNLABELLED}
    if len(classes) < 2:
        return None
    return [
        {**row, "label": label, "name": file.name}
        for label, files in classes.items()
        for file in files
        for row in read_rows(file)
    ]


FORMATS = (FileFormat(read_class_folders, text=("text",), label="label"),)
