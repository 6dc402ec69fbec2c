"""`FileFormat`: what a module of this folder declares, and what the readers share.

Nothing is stripped or skipped silently: a malformed file is an error with line numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_regular
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


def read_text(path: Path) -> str:
    """The file as text: UTF-8, with or without a byte-order mark.

    Raises DeltatuneError for what is no regular file, and for other encodings, with the line.
    """
    check_regular(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DeltatuneError(
            f"{path} line {line}: not UTF-8 (it looks like {_likely_encoding(data)}). Save the file as UTF-8, "
            "or convert it: iconv -f OLD -t UTF-8."
        ) from None
    encoding = _likely_encoding(data)
    if "\0" in text and encoding != OTHER:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DeltatuneError(
            f"{path} line {line}: there are null characters: it looks like {encoding}. Save the file as UTF-8, "
            "or convert it: iconv -f OLD -t UTF-8."
        )
    return text


OTHER = "some other encoding"
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte-order mark -> encoding; the longer marks come first."""


def _likely_encoding(data: bytes) -> str:
    """The encoding by a byte-order mark, or by the null bytes of the first characters."""
    by_mark = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    nulls = data[:1000].count(0) / max(1, len(data[:1000]))
    return by_mark or ("UTF-32" if nulls > 0.6 else "UTF-16" if nulls > 0.3 else OTHER)


def lines_of(text: str, problems: list[str]) -> list[str]:
    """The lines of a text without their ends; a line that holds the ends of old Macs, CR alone, is a problem."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if "\r" in text:
        problems += [
            f"line {number} has a carriage return inside it, the line end of old Macs: convert it, tr '\\r' '\\n'"
            for number, line in enumerate(lines, start=1)
            if "\r" in line
        ]
    return lines


def rows_and_problems(read: Iterable[Row | str]) -> tuple[list[Row], list[str]]:
    """The rows of a reader, and what it says of the places without one."""
    rows: list[Row] = []
    problems: list[str] = []
    for row in read:
        if isinstance(row, str):
            problems.append(row)
        else:
            rows.append(row)
    return rows, problems


def until_malformed(read: Iterable[Row | str], name: str, fix: str) -> Iterator[Row]:
    """The rows of a reader. Raises DeltatuneError at the first place without one."""
    for row in read:
        if isinstance(row, str):
            raise_malformed(name, [row], fix)
        else:
            yield row


def raise_malformed(path: str | Path, problems: Sequence[str], fix: str) -> None:
    """Raise one DeltatuneError with the first problems of a file; do nothing where there are none."""
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DeltatuneError(f"{path} is malformed:{shown}{more}\n{fix}")


def first_few(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first items of a list, and how many more there are."""
    more = f", and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
