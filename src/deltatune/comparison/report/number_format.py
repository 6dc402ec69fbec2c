"""Numbers and method names as a reader wants them: short, rounded to what matters, with units."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MISSING = "–"
"""Stands where there is no number."""


def number(row: Mapping[str, Any], key: str) -> float | None:
    """`row[key]` as a finite float, or None where it is absent, null or NaN."""
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
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes: 448213 -> "448 kB", 1.04e9 -> "1.04 GB"."""
    if value is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{_three(value / scale)} {unit}"
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    """0.81 -> "0.81 s", 192 -> "3 min 12 s", 5000 -> "1 h 23 min"."""
    if value is None:
        return MISSING
    if value < 99.5:
        return f"{_three(value) if value < 10 else round(value)} s"
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


def short_labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Method text -> the shortest label that no other method of the comparison has.

    "LoRA(r=8)" is "LoRA" where there is one LoRA; two bottlenecks are "Bottleneck houlsby" and "Bottleneck pfeiffer".
    """
    levels = [_levels(str(row.get("name") or row["method"]), str(row["method"])) for row in rows]
    labels = {}
    for row, mine in zip(rows, levels, strict=True):
        others = [other for other in levels if other is not mine]
        free = [name for i, name in enumerate(mine) if all(name != other[i] for other in others)]
        labels[str(row["method"])] = free[0] if free else mine[-1]
    return labels


def clip(text: str, length: int) -> str:
    """At most `length` characters, the last an ellipsis where something was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def html(text: object) -> str:
    """Any value as text that is safe between tags and inside quoted attributes."""
    return escape(str(text), quote=True)


def _levels(name: str, method: str) -> tuple[str, ...]:
    """Ever longer labels: the name, with its words, all but the sites, everything."""
    words = [found[0] or found[1] for found in re.findall(r"'([^']*)'|\"([^\"]*)\"", method)]
    plain = [word for word in words if not re.search(r"[*{}\[\]]", word)]  # site globs are no names
    brief = re.sub(r",?\s*\w+=(['\"])[^'\"]*[*{\[][^'\"]*\1", "", method)
    return name, " ".join([name, *plain]), brief.replace("(, ", "("), method


def _three(value: float) -> str:
    """At most three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    written = f"{value:.{digits}f}"
    return written.rstrip("0").rstrip(".") if digits else written
