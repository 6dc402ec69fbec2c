"""Formatting of numbers and method names for readers: short, rounded, with units."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

MISSING = "–"
"""Shown in place of a missing number."""


def number(row: Mapping[str, Any], key: str) -> float | None:
    """`row[key]` as a finite float, or None if it is absent, null or not finite."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def score(value: float | None) -> str:
    """0.71234 -> "0.712"."""
    return MISSING if value is None else f"{value:.3f}".replace("-", "−")


def count(value: float | None) -> str:
    """110592 -> "110,592"."""
    return MISSING if value is None else f"{value:,.0f}"


def short_count(value: float) -> str:
    """110592 -> "111 k", 22713216 -> "22.7 M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes: 448213 -> "448 kB", 1.04e9 -> "1.04 GB"."""
    if value is None:
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    """0.81 -> "0.81 s", 192 -> "3 min 12 s", 5000 -> "1 h 23 min"."""
    if value is None:
        return MISSING
    if value < 99.5:
        return f"{_three_digits(value) if value < 10 else round(value)} s"
    if value < 3570:
        return f"{round(value) // 60} min {round(value) % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def ratio(value: float | None) -> str:
    """1.0834 -> "1.08×"."""
    return MISSING if value is None else f"{value:.2f}×"


def rate(value: float | None) -> str:
    """A learning rate: 0.0005 -> "5e-4"."""
    if value is None:
        return MISSING
    if value <= 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def times(value: float) -> str:
    """1 -> "once", 2 -> "twice", 3 -> "3 times"."""
    return {1: "once", 2: "twice"}.get(round(value), f"{value:,.0f} times")


def short_labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Map each method to its shortest label that is unique in the comparison.

    "LoRA(r=8)" becomes "LoRA" if it is the only LoRA; two bottlenecks become "Bottleneck houlsby" and "Bottleneck
    pfeiffer".
    """
    candidates = [_label_candidates(str(row.get("name") or row["method"]), str(row["method"])) for row in rows]
    labels = {}
    for row, names in zip(rows, candidates, strict=True):
        others = [other for other in candidates if other is not names]
        unique = [name for i, name in enumerate(names) if all(name != other[i] for other in others)]
        labels[str(row["method"])] = unique[0] if unique else names[-1]
    return labels


def model_labels(models: Iterable[str]) -> dict[str, str]:
    """Map each model's folder or hub name to the shortest end of it that is unique: `a/model` and `b/model`."""
    parts = {model: [part for part in re.split(r"[/\\]+", model) if part] or [model] for model in models}

    def end(model: str, count: int) -> str:
        return "/".join(parts[model][-count:])

    labels = {}
    for model in parts:
        counts = range(1, len(parts[model]) + 1)
        unique = (n for n in counts if all(end(other, n) != end(model, n) for other in parts if other != model))
        labels[model] = end(model, next(unique, len(parts[model])))
    return labels


def clip(text: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis if the text was longer."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def html(text: object) -> str:
    """Escape a value for use between tags and inside quoted attributes."""
    return escape(str(text), quote=True)


def _label_candidates(name: str, method: str) -> tuple[str, ...]:
    """Labels from short to long: the name, the name with its strings, the method without sites, the whole method."""
    strings = [match[0] or match[1] for match in re.findall(r"'([^']*)'|\"([^\"]*)\"", method)]
    names = [string for string in strings if not re.search(r"[*{}\[\]]", string)]  # without site globs
    without_sites = re.sub(r",?\s*\w+=(['\"])[^'\"]*[*{\[][^'\"]*\1", "", method)
    return name, " ".join([name, *names]), without_sites.replace("(, ", "("), method


def _three_digits(value: float) -> str:
    """At most three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text
