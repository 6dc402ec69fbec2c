"""Hashes of rows: what identifies a row of the user's data, its texts and its label, in 64 bits."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from deltatune.core.trained_rows import Hashes
from deltatune.data.columns.column_names import REJECTED
from deltatune.data.dataset import as_text
from deltatune.data.media.media_files import MediaFile
from deltatune.data.mixture_data import PART
from deltatune.tasks.mixture import Mixture
from deltatune.tasks.task import Row, Task

TEXT_BYTES, LABEL_BYTES = 6, 2
"""Bytes of a hash that are the texts' and the label's."""


def row_hashes(task: Task, rows: Sequence[Row]) -> Hashes:
    """The hash of each row (N,): 48 bits of its texts, 16 bits of its texts and label.

    Blanks and the Unicode form do not count, so that a row is recognised in another file format.
    """
    return np.asarray([_hash(*_identity(task, row)) for row in rows], np.uint64)


def _identity(task: Task, row: Row) -> tuple[list[str], Any]:
    """The texts and the label of a row; a generated answer may have several references."""
    if isinstance(task, Mixture):
        return _identity(task.parts[row[PART]], row)
    marked = [name.partition(":")[0] for name in getattr(task, "mark", ())]  # another entity is another input
    texts = [_content(row.get(name, "")) for name in (*task.text, *marked)]
    label = row.get(task.label) if task.label else None
    if task.label_kind == "image":  # many pictures share a caption: the picture says which row it is
        return [_content(row.get(task.label, ""))], texts
    if task.label_kind == "pairs":
        return texts, [label, row.get(REJECTED)]
    return texts, row.get("references") or label if task.answers == "text" else label


def _content(value: Any) -> str:
    """A text in its normal form; of a media file a hash of its bytes, wherever it lies and however it is called."""
    return value.digest if isinstance(value, MediaFile) else _normalised(as_text(value))


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _hash(texts: list[str], label: Any) -> int:
    content = json.dumps(texts).encode()
    text = hashlib.blake2b(content, digest_size=TEXT_BYTES).digest()
    value = json.dumps(label, sort_keys=True, default=str).encode()
    return int.from_bytes(text + hashlib.blake2b(value, key=text, digest_size=LABEL_BYTES).digest())
