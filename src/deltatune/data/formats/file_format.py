"""`FileFormat`: what a module of this folder declares, and what the readers share.

Nothing is stripped or skipped silently: a malformed file is an error with line numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row

SHOWN = 5
"""Problems of one kind that an error lists before it counts the rest."""
LineReader = Callable[[Iterable[str], str], Iterator[Row]]
"""Lines and the name of their file -> rows, one at a time. Raises DeltatuneError at the first malformed line."""


@dataclass(frozen=True)
class FileFormat:
    """A file format, or with no suffixes the layout of a folder."""

    read: Callable[[Path], list[Row] | None]
    """The rows of a file or folder, or None where it turns out to have another format.

    Raises DeltatuneError with line numbers where it has this format and is malformed.
    """
    suffixes: tuple[str, ...] = ()
    """File suffixes in lower case, with the dot; none for a format that is a whole folder."""
    by_content: bool = False
    """Whether `read` recognises its files by their content; such formats are tried before others of the suffix."""
    header: bool = False
    """Whether the first line of a file holds the names of its columns."""
    document: bool = False
    """Whether a file is one row, so that a folder of such files is a corpus."""
    text: tuple[str, ...] = ()
    """The text columns, where the format fixes them."""
    label: str | None = None
    """The label column, where the format fixes it."""
    read_lines: LineReader | None = None
    """Reads rows from a stream, where the format allows it."""


def read_text(path: Path) -> str:
    """The file as text: UTF-8, with or without a byte-order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "some other encoding"
        raise DeltatuneError(
            f"{path} line {line}: not UTF-8 (it looks like {encoding}). Save the file as UTF-8, "
            "or convert it: iconv -f OLD -t UTF-8."
        ) from None


def raise_malformed(path: Path, problems: Sequence[str], fix: str) -> None:
    """Raise one DeltatuneError with the first problems of a file; do nothing where there are none."""
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DeltatuneError(f"{path} is malformed:{shown}{more}\n{fix}")


def first_few(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first items of a list, and how many more there are."""
    more = f", and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
