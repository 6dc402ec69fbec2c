"""`MixtureData`: the data of several tasks that one adapter learns together; each row knows its part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.data.dataset import Data, Row

PART = "mixture.part"
"""The key of a row that names its part."""
PART_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Names that a part may have."""


@dataclass(frozen=True)
class MixtureData(Data):
    """Several data sets as one: the rows of a split are those of all parts, each with its part's name."""

    parts: Mapping[str, Data] = field(default_factory=dict)
    """The data sets by name."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each was read, as the user named it."""

    @property
    def task(self) -> Any:
        """Not one of the tasks of a single data set."""
        return "mixture"


def mix(parts: Mapping[str, Data]) -> MixtureData:
    """The data sets of several tasks as one. Raises DeltatuneError for names that a part cannot have."""
    problems = [
        f"{name!r} cannot name a part of a mixture: use letters, digits, _ and -"
        for name in parts
        if not PART_NAME.fullmatch(name)
    ]
    if len(parts) < 2:
        problems.append(f"a mixture needs at least two tasks, this has {len(parts)}")
    problems += [f"{name}: a mixture cannot be a part of another" for name, d in parts.items() if d.kind == "mixture"]
    raise_all(problems)
    splits = {split: split_rows(parts, split) for part in parts.values() for split in part.splits()}
    return MixtureData(
        name="-".join(parts),
        origin=", ".join(f"{name}={data.origin}" for name, data in parts.items()),
        text=(),
        label="",
        kind="mixture",
        labels=(),
        train=splits.pop("train"),
        validation=splits.pop("validation"),
        test=splits.pop("test"),
        more_tests=splits,
        notes=tuple(f"{name}: {note}" for name, data in parts.items() for note in data.notes),
        problems=tuple(f"{name}: {problem}" for name, data in parts.items() for problem in data.problems),
        parts=dict(parts),
    )


def split_rows(parts: Mapping[str, Data], split: str) -> list[Row]:
    """The rows of one split of all parts that have it."""
    return [row for name, data in parts.items() for row in marked(data.splits().get(split, []), name)]


def marked(rows: Sequence[Mapping[str, Any]], part: str) -> list[Row]:
    """Rows that know their part."""
    return [{**row, PART: part} for row in rows]


def named_sources(sources: Sequence[str]) -> dict[str, str] | None:
    """The sources of a mixture's parts, given as NAME=SOURCE; None for a single source, which is no mixture.

    Raises DeltatuneError for several sources without names, and for a name that is given twice.
    """
    pairs = [source.partition("=") for source in sources]
    if len(sources) == 1 and not (PART_NAME.fullmatch(pairs[0][0]) and pairs[0][1] and not Path(sources[0]).exists()):
        return None
    problems = [
        f"--data {source}: several data sets are a mixture, and each needs a name, such as --data topic={source}"
        for source, (name, sign, rest) in zip(sources, pairs, strict=True)
        if not (sign and rest and PART_NAME.fullmatch(name))
    ]
    names = [name for name, _, _ in pairs]
    problems += [f"--data names the part {name} twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if len(sources) == 1:
        problems.append(f"--data {sources[0]}: a mixture needs at least two parts, NAME=SOURCE each")
    raise_all(problems)
    return {name: rest for name, _, rest in pairs}


def read_parts(sources: Mapping[str, Any], read_one: Callable[[str, Any], Data]) -> MixtureData:
    """Read every part with `read_one(name, source)`; one error has the problems of all of them."""
    parts, problems = {}, []
    for name, source in sources.items():
        try:
            parts[name] = read_one(name, source)
        except DeltatuneError as error:
            problems.append(f"{name}: {error}")
    raise_all(problems)
    return replace(
        mix(parts), sources={name: str(getattr(source, "source", source)) for name, source in sources.items()}
    )
