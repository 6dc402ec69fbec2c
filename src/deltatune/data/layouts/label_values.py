"""Label values -> class names, lists of class names (multilabel) or numbers; and a column for each class -> lists."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.data.columns.column_names import SCORES, is_id, normalised
from deltatune.data.columns.column_values import MAX_WHOLE_CLASSES, NUMERIC, are_continuous, are_real, is_numeric
from deltatune.data.dataset import LabelKind, Row, Splits, columns_of
from deltatune.data.formats.file_format import first_few

NUMBER_FIX = "Numbers are needed for regression; without them leave the kind out or say classes."
CLASS_FIX = "A label must be a string, a whole number, a float or a bool."
MULTILABEL_FIX = 'Several classes are a list of strings, or names with "|" between them.'
INDICATOR_FIX = "A column for a class holds 1 or 0, true or false, yes or no."


def infer_kind(values: Sequence[object], column: str, forced: LabelKind | None = None) -> tuple[LabelKind, str | None]:
    """Whether labels are classes, several classes each or numbers, and a note where the user may see it otherwise.

    Lists of strings hold several classes, as do strings with a separator whose parts occur in several of them. Other
    strings that are not numbers, and bools, are classes. Real numbers are numbers, unless they are few and whole. Whole
    numbers are classes, unless they look like continuous values (many, widely spaced).
    """
    if forced is not None:
        return forced, None
    if values and all(isinstance(value, (list, tuple)) for value in values):
        return "many", None
    separator = infer_separator(values)
    if separator:
        how = "JSON lists" if separator == "[" else f"class names with {separator!r} between them"
        return "many", f"the label {column!r} holds {how}: a row may have several classes"
    if not all(map(is_numeric, values)) or not (are_real(values) or are_continuous(values)):
        return "classes", _unknown_note(values, column)
    numbers = {float(str(value)) for value in values}
    whole = all(number.is_integer() for number in numbers)
    if whole and normalised(column) not in SCORES and len(numbers) <= MAX_WHOLE_CLASSES:
        return "classes", f"the label {column!r} has {len(numbers)} whole values: they are classes, not numbers"
    low, high = min(numbers), max(numbers)
    what = "real numbers" if are_real(values) else f"{len(numbers)} different numbers"
    return "number", f"the label {column!r} holds {what} from {low:.6g} to {high:.6g}: this is regression"


def _unknown_note(values: Sequence[object], column: str) -> str | None:
    """A note on -1 beside class numbers from 0 on: data sets of the hub mark labels so that nobody knows."""
    names = Counter(map(str, values))
    unknown = names.pop("-1", 0)
    if not unknown or len(names) < 2 or set(names) != {str(number) for number in range(len(names))}:
        return None
    return (
        f"the label {column!r} is -1 in {unknown} rows, beside 0 to {len(names) - 1}: it is taken as a class; "
        "where it means that the label is not known, remove these rows"
    )


def convert_labels(
    values: Sequence[object], column: str, kind: LabelKind, separator: str | None = None
) -> list[str] | list[float] | list[list[str]]:
    """All labels as class names, lists of class names or numbers. Raises DeltatuneError naming those that are not.

    `separator`: that of names in strings; None for the one that `values` have.
    """
    if kind == "many":
        lists = as_name_lists(values, separator)
        _refuse([value for value, names in zip(values, lists, strict=True) if names is None], column, MULTILABEL_FIX)
        return [names for names in lists if names is not None]
    if kind == "number":
        _refuse([value for value in values if not _is_finite_number(value)], column, NUMBER_FIX)
        return [float(value) for value in values]  # type: ignore[arg-type]
    _refuse([value for value in values if not isinstance(value, (str, int, float))], column, CLASS_FIX)
    return [as_class(value) for value in values]


SPELLED = re.compile(r"\s*[-+]?(nan|inf|infinity)\s*", re.IGNORECASE)
"""What programs write where a number is missing or infinite."""
FEW = 0.1
"""Share of words among real numbers up to which the column is one of numbers."""
LARGEST = 1e38
"""Training computes in float32, which ends at 3.4e38; differences of two numbers must fit as well."""


def not_finite(values: Sequence[object], forced: bool = False) -> set[int]:
    """The positions of labels that are no finite number, where all others are numbers or (`forced`) must be.

    Words count among real numbers alone, and where they are few.
    """
    if forced:
        wrong = {i for i, value in enumerate(values) if not _is_finite_number(value)}
        return wrong if len(wrong) < len(values) else set()  # else it is the wrong column
    distinct = {value for value in values if isinstance(value, (str, int, float))}
    words = {value for value in distinct if not is_numeric(value) or _is_not_finite(value)}
    if not words or len(words) == len(distinct):
        return set()
    wrong = {i for i, value in enumerate(values) if not isinstance(value, (str, int, float)) or value in words}
    others = [value for i, value in enumerate(values) if i not in wrong]
    few = len(wrong) <= FEW * len(values) and (are_real(others) or are_continuous(others))
    return wrong if few or all(_is_not_finite(values[i]) for i in wrong) else set()


def _is_not_finite(value: object) -> bool:
    if isinstance(value, str):
        return SPELLED.fullmatch(value) is not None or (is_numeric(value) and math.isinf(float(value)))
    return isinstance(value, float) and not math.isfinite(value)


def as_class(value: object) -> str:
    """The name of a class: strings unchanged, 1.0 and 1 both "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """Class names sorted: by value where all are numbers ("2" before "10"), else by character."""
    if all(NUMERIC.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _refuse(values: Sequence[object], column: str, fix: str) -> None:
    if values:
        distinct = list(dict.fromkeys(repr(value)[:60] for value in values))
        raise DeltatuneError(
            f"the label column {column!r} has values that cannot be used: {first_few(distinct)}. {fix}"
        )


# --- several classes in one cell ---

SEPARATORS = ("|", ";", ",")
MAX_NAMES = 1000
"""More different parts than this are not class names."""


def infer_separator(values: Sequence[object]) -> str:
    """The separator of the names in strings, "[" for JSON lists, "" where each string is one name.

    A separator counts where every string that has one shares a name with a different string, since "a, b" may be one
    class; and where the names are few.
    """
    strings = [value for value in values if isinstance(value, str)]
    if not strings or len(strings) < len(values):
        return ""
    if all(_json_list(value) is not None for value in strings):
        return "["
    distinct = set(strings)
    for separator in SEPARATORS:
        with_separator = [value for value in distinct if separator in value]
        if with_separator:
            return separator if _share_names(distinct, with_separator, separator, len(strings)) else ""
    return ""


def _share_names(distinct: set[str], with_separator: list[str], separator: str, rows: int) -> bool:
    occurrences = Counter(name for value in distinct for name in set(_split(value, separator)))
    few = len(occurrences) <= min(MAX_NAMES, rows // 2)
    return few and all(any(occurrences[name] > 1 for name in _split(value, separator)) for value in with_separator)


def name_separator(values: Iterable[object]) -> str:
    """The separator of names in strings that are no JSON lists, or ""."""
    strings = {value for value in values if isinstance(value, str) and _json_list(value) is None}
    return next((separator for separator in SEPARATORS if any(separator in value for value in strings)), "")


def as_name_lists(values: Sequence[object], separator: str | None = None) -> list[list[str] | None]:
    """The names of each label, each once and in their order; None where a value holds no names."""
    chosen = name_separator(values) if separator is None else separator
    return [_as_names(value, chosen) for value in values]


def _as_names(value: object, separator: str) -> list[str] | None:
    items = value
    if isinstance(value, str):
        parsed = _json_list(value)
        items = _split(value, separator) if parsed is None else parsed
    if not isinstance(items, (list, tuple)):
        return None
    if any(not isinstance(item, (str, int)) or (isinstance(item, str) and not item.strip()) for item in items):
        return None
    return list(dict.fromkeys(str(item) for item in items))


def _split(value: str, separator: str) -> list[str]:
    return [part.strip() for part in value.split(separator) if part.strip()] if separator else [value.strip()]


def _json_list(value: str) -> list[object] | None:
    if not value.lstrip().startswith("["):
        return None
    try:
        parsed = json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return None
    return parsed if isinstance(parsed, list) else None


LIST = re.compile(r"\s*\[\s*(['\"].*|[-+\d][-+\d\s.,]*)?\]\s*", re.DOTALL)
"""A list in a string, also as Python and numpy write it."""
DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+(,\d+)?\s*")
"""A number with a comma in place of the point, or without one."""


def list_faults(values: Iterable[object], kind: LabelKind, forced: bool) -> list[str]:
    """Why labels that look like classes, or like several of them, are read as something else, with the fix."""
    if kind not in ("classes", "many"):
        return []
    values = list(values)
    strings = {value for value in values if isinstance(value, str)}
    lists = sorted(value for value in strings if value.lstrip()[:1] == "[")
    unread = [value for value in lists if LIST.fullmatch(value) and _json_list(value) is None]
    if unread:
        return [f'holds lists that are not JSON, such as {unread[0][:60]!r}. Write ["a", "b"], or a|b.']
    if kind == "many" and _are_indicators([_json_list(v) if isinstance(v, str) else v for v in values]):
        return ['holds lists with 1 or 0 for each class. Write the names of the classes: ["a", "b"].']
    commas = sorted(value for value in strings if "," in value)
    if kind == "many" and commas and not forced and all(map(DECIMAL_COMMA.fullmatch, strings)):
        one, other = commas[0].strip().split(",")
        return [f"holds {commas[0]!r}: one number or two classes? Write {one}.{other}, or {one}|{other}."]
    return []


def _are_indicators(values: Sequence[object]) -> bool:
    """Whether the values are lists of 0 and 1 of one length, with one of them twice in some list."""
    length = len(values[0]) if values and isinstance(values[0], (list, tuple)) else 0
    return (
        length > 1
        and all(isinstance(v, (list, tuple)) and len(v) == length for v in values)
        and all(isinstance(item, int) and item in (0, 1) for v in values for item in v)  # type: ignore[attr-defined]
        and any(len(set(v)) < length for v in values)  # type: ignore[call-overload]
    )


# --- a column for each class ---

INDICATORS = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
MAX_INDICATORS = 40
"""Columns that the hint names."""
BETWEEN = ","
"""What separates the columns in the name of the label."""


def indicator_columns(rows: Sequence[Row], label: str | None) -> list[str]:
    """The columns of a label that is several column names with commas between them; else none.

    Raises DeltatuneError where some of the names are columns and others are not.
    """
    names = columns_of(rows)
    if label is None or BETWEEN not in label or label in names:
        return []
    wanted = [name.strip() for name in label.split(BETWEEN) if name.strip()]
    missing = [name for name in wanted if name not in names]
    if len(missing) == len(wanted):
        return []
    raise_all([f"--label {label}: there is no column {name!r}{nearest(name, names) or '.'}" for name in missing])
    return list(dict.fromkeys(wanted))


def join_indicators(splits: Splits, label: str | None) -> Splits:
    """The splits with one list of class names under `label` in place of a column for each class.

    Splits without such columns are unchanged. Raises DeltatuneError for values other than 0 and 1, true and false, yes
    and no.
    """
    return {
        split: _join_indicators(rows, indicator_columns(rows, label), str(label), split)
        for split, rows in splits.items()
    }


def _join_indicators(rows: list[Row], columns: Sequence[str], label: str, split: str) -> list[Row]:
    if not columns:
        return rows
    joined, problems = [], []
    for i, row in enumerate(rows, start=1):
        values = {name: _indicator(row.get(name)) for name in columns}
        problems += [f"row {i}: {name} is {row.get(name)!r}" for name, value in values.items() if value is None]
        others = {name: value for name, value in row.items() if name not in values}
        joined.append({**others, label: [name for name, value in values.items() if value]})
    if problems:
        raise DeltatuneError(f"{split}: {first_few(problems)}. {INDICATOR_FIX}")
    return joined


def _indicator(value: object) -> bool | None:
    return INDICATORS.get(str(value).strip().lower())


def indicator_hint(rows: Sequence[Row], text: Sequence[str]) -> str:
    """What to add to an error on an unclear label where several columns hold 0 and 1; else ""."""
    names = [name for name in columns_of(rows) if name not in text and not is_id(name)]
    indicators = [name for name in names if all(_indicator(row.get(name)) is not None for row in rows)]
    shown = [*indicators[:MAX_INDICATORS], *(["..."] if len(indicators) > MAX_INDICATORS else [])]
    return f"A column for each class, several a row: --label {BETWEEN.join(shown)}" if len(indicators) > 1 else ""
