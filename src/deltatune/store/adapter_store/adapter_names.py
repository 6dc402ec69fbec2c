"""Names of stored adapters: they are file names, model names of a server and names of attached adapters at once."""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.regular_files import expanded
from deltatune.store.run_folder import ADAPTER

MAX_NAME = 128
"""Characters of a name."""
RESERVED = ("base",)
"""Names that mean something else to a server: `base` is the model without adapters."""
LIKELY = 100
"""Names that are compared with one that is not there."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_RULE = f"a name has ASCII letters, digits, _ and -, begins with a letter or _, and has at most {MAX_NAME} characters"


def name_problem(name: object) -> str | None:
    """Why a stored adapter cannot have this name, or None."""
    if not isinstance(name, str):
        return f"{shortened(name)} is not a name for an adapter: it is no text"
    if name in RESERVED:
        return f"{name!r} is not a name for an adapter: it means the model without adapters; choose another one"
    if len(name) <= MAX_NAME and _NAME.fullmatch(name):
        return None
    return f"{_shown(name)} is not a name for an adapter: {_reason(name)}; {_RULE}"


def checked_name(name: str) -> str:
    """The name. Raises DeltatuneError for one that no stored adapter can have."""
    problem = name_problem(name)
    if problem:
        raise DeltatuneError(problem)
    return name


def name_of(folder: Path) -> str:
    """The name of an adapter's folder, or of its run's: what a name cannot have becomes `-`."""
    path = expanded(folder).absolute()
    path = path.resolve() if path.name in ("", ".", "..") else path
    path = path.parent if path.name == ADAPTER else path
    plain = unicodedata.normalize("NFKD", path.name).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-") or ADAPTER
    if not _NAME.match(name) or name in RESERVED:
        name = f"a-{name}"
    return name[:MAX_NAME]


def likely_names(name: str, names: Iterable[str]) -> list[str]:
    """The names that begin and end most alike, among which the nearest is: of ten thousand, few can be compared."""
    return heapq.nlargest(LIKELY, names, key=lambda other: _common(name.lower(), other.lower()))


def _common(name: str, other: str) -> int:
    """Characters that two texts have in common at their beginnings and at their ends."""
    total = 0
    for one, two in ((name, other), (reversed(name), reversed(other))):
        for a, b in zip(one, two, strict=False):
            if a != b:
                break
            total += 1
    return total


def _reason(name: str) -> str:
    if not name:
        return "it is empty"
    if len(name) > MAX_NAME:
        return f"it has {len(name):,} characters"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "it is a path"
    other = next((sign for sign in name if not sign.isascii()), None)
    if other is not None:
        what = unicodedata.name(other, "a character without a name")
        twin = unicodedata.normalize("NFKC", name) != name or other.isalpha()
        why = ", which can look like other letters" if twin else ""
        return f"it has {other!a} ({what.lower()}){why}"
    wrong = next((sign for sign in name if not re.match(r"[A-Za-z0-9_-]", sign)), None)
    return f"it begins with {name[0]!r}" if wrong is None else f"it has {wrong!r}"


def _shown(name: str) -> str:
    return shortened(name) if name.isascii() else shortened(ascii(name), quoted=False)
