"""The form of a text without case, blanks and Unicode variants, in which nearly equal texts and labels are equal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

FORM = "case, blanks or Unicode form"
"""What texts of one form differ in, for sentences."""
INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
"""Characters that nobody sees: soft hyphen, zero-width space, word joiner, byte-order mark, marks of direction."""


def near_form(text: str) -> str:
    """The form of a text: NFKC (composed, half width, no ligatures) without case, single blanks between words."""
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text.translate(INVISIBLE)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def same_forms(names: Iterable[str]) -> list[list[str]]:
    """The groups of different names that have one near form."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(near_form(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
