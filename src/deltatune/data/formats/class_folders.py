"""Folders with a text a file and a folder a class, as the IMDB reviews have them."""

from __future__ import annotations

from pathlib import Path

from deltatune.data.formats.files import Row, read_rows

TEXTS = "*.txt"
UNLABELLED = {"unsup", "unlabeled", "unlabelled"}
"""Folders of texts without a class."""


def classes_of(folder: Path) -> dict[str, list[Path]]:
    """The texts of each class of a folder; empty where it has no two folders of texts."""
    found = {place.name: sorted(place.glob(TEXTS)) for place in sorted(folder.iterdir()) if place.is_dir()}
    found = {name: files for name, files in found.items() if files and name not in UNLABELLED}
    return found if len(found) > 1 else {}


def class_rows(classes: dict[str, list[Path]]) -> list[Row]:
    """A row a text: its words, its class and its file's name. Raises DeltatuneError for files that are no UTF-8."""
    return [
        {**row, "label": label, "name": file.name}
        for label, files in classes.items()
        for file in files
        for row in read_rows(file)
    ]
