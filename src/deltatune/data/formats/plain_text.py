"""Plain text files: one document each. Blank lines separate its paragraphs."""

from __future__ import annotations

from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row
from deltatune.data.formats.conll import looks_like_conll
from deltatune.data.formats.file_format import FileFormat, read_text


def read_document(path: Path) -> list[Row]:
    """One row, `{"text"}`. Raises DeltatuneError for a CoNLL file that is named .txt."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    if looks_like_conll(text):
        raise DeltatuneError(f"{path} has a word and a tag in each line, as CoNLL files have it: name it .conll.")
    return [{"text": text}]


FORMATS = (FileFormat(read_document, (".txt",), document=True),)
