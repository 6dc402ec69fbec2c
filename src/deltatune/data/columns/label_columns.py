"""Which columns are text and label: as told, else by well-known names, else only where there is no doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.data.columns.numeric_values import NUMERIC, are_amounts, are_real
from deltatune.data.formats.files import Row, some

PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("sentence_1", "sentence_2"),
    ("text", "text_pair"),
)
"""Names of two text columns, the likeliest first."""

SINGLES: tuple[str, ...] = (
    "text",
    "sentence",
    "content",
    "review",
    "review_text",
    "document",
    "body",
    "comment",
    "message",
    "tweet",
)
SINGLES += ("utterance", "question", "query", "passage", "abstract", "description", "title", "input")
"""Names of one text column, the likeliest first."""

LABELS: tuple[str, ...] = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "score",
    "similarity",
    "gold_label",
    "label_text",
    "intent",
)
LABELS += (
    "sentiment",
    "emotion",
    "topic",
    "polarity",
    "rating",
    "stars",
    "fine",
    "fine_label",
    "coarse",
    "coarse_label",
)
"""Names of the label column, the likeliest first."""

IDS = {"", "id", "idx", "index", "guid", "uid", "uuid", "pairid", "promptid", "row", "unnamed: 0", "__index_level_0__"}
"""Names of columns that only number the rows."""


@dataclass(frozen=True)
class Columns:
    """The chosen columns, and a sentence for each that was guessed."""

    text: tuple[str, ...]
    label: str
    notes: tuple[str, ...]


def choose(rows: Sequence[Row], text: Sequence[str] = (), label: str | None = None, header: bool = False) -> Columns:
    """The text columns and the label column of `rows`; `header` tells that the names come from a file's first line.

    Raises DeltatuneError listing what is wrong, the columns there are with an example each, and the flag to give.
    """
    names = names_of(rows)
    problems = _told_problems(names, text, label)
    notes: list[str] = []
    chosen_label = label if label is not None else guess_label(rows, names, text)
    chosen_text = tuple(text) or _guess_text(rows, names, chosen_label)
    if not chosen_label:
        problems.append("which column is the label is not clear: name it with --label NAME.")
    if not chosen_text:
        problems.append("which column is the text is not clear: name it with --text NAME, twice for a pair of texts.")
    if problems:
        hint = (
            " If the first line of the file is data already, put a line with column names above it." if header else ""
        )
        raise DeltatuneError("\n".join([*problems, f"The columns are: {column_examples(rows, names)}.{hint}"]))
    if not text:
        notes.append(f"the text is {' + '.join(map(repr, chosen_text))}, a guess from the columns {', '.join(names)}")
    if label is None:
        notes.append(f"the label is {chosen_label!r}, a guess from the columns {', '.join(names)}")
    return Columns(chosen_text, chosen_label, tuple(notes))


def names_of(rows: Iterable[Row]) -> list[str]:
    """Every column that occurs, in order of first appearance; JSON rows need not have the same ones."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _told_problems(names: list[str], text: Sequence[str], label: str | None) -> list[str]:
    """What is wrong with the columns that the user named."""
    wanted = [("--text", name) for name in text] + ([("--label", label)] if label is not None else [])
    problems = [
        f"{flag} {name}: there is no column {name!r}{nearest(name, names) or '.'}"
        for flag, name in wanted
        if name not in names
    ]
    if len(text) > 2:
        problems.append(f"{len(text)} text columns were given ({', '.join(text)}); a task has one text or a pair.")
    if len(set(text)) < len(text):
        problems.append(f"--text names a column twice: {', '.join(text)}.")
    if label in text:
        problems.append(f"column {label!r} cannot be both text and label.")
    return problems


def guess_label(rows: Sequence[Row], names: list[str], text: Sequence[str]) -> str:
    """A well-known name, else the only column with few distinct values or with quantities, else ""."""
    free = [name for name in names if name not in text]
    merged = {name.strip().lower(): name for name in reversed(free)}
    for known in LABELS:
        if known in merged:
            return merged[known]
    likely = [name for name in free if not is_id(name) and _looks_like_label([row.get(name) for row in rows])]
    return likely[0] if len(likely) == 1 else ""


def _guess_text(rows: Sequence[Row], names: list[str], label: str) -> tuple[str, ...]:
    """Well-known names, else the only column of strings that mostly differ, else ()."""
    merged = {name.strip().lower(): name for name in reversed(names) if name != label}
    for known in (*PAIRS, *((single,) for single in SINGLES)):
        if all(part in merged for part in known):
            return tuple(merged[part] for part in known)
    free = [name for name in merged.values() if not is_id(name)]
    likely = [name for name in free if looks_like_text([row.get(name) for row in rows])]
    return (likely[0],) if len(likely) == 1 else ()


def is_id(name: str) -> bool:
    """Whether a column only numbers the rows or who they are of, by its name."""
    merged = name.strip().lower()
    return merged in IDS or merged.endswith("_id")


def looks_like_text(values: list[object]) -> bool:
    """Strings, not all of them numbers, more than half of them different."""
    strings = [value for value in values if isinstance(value, str)]
    return (
        len(strings) == len(values)
        and not all(NUMERIC.fullmatch(value) for value in strings)
        and len(set(strings)) * 2 > len(strings)
    )


def _looks_like_label(values: list[object]) -> bool:
    """At least two values, each twice on average and at most 100 in all; or quantities."""
    if any(isinstance(value, (list, dict)) for value in values):
        return False
    if are_real(values) or are_amounts(values):
        return True
    return 2 <= len(set(values)) <= min(100, len(values) // 2)


def column_examples(rows: Sequence[Row], names: list[str]) -> str:
    """Each column with the first value it has."""
    return some([f"{name} (e.g. {_short(_first(rows, name))})" for name in names], 12) if names else "none"


def _first(rows: Sequence[Row], name: str) -> object:
    return next((row[name] for row in rows if row.get(name) not in (None, "")), None)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:36] + "...'"
