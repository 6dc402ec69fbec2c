"""Names of splits: which file, folder or hub split is train, validation or test, which is a further part of these."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from deltatune.data.dataset import SPLITS

SPLIT_NAMES = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "valid", "val", "dev", "devset", "development"),
    "test": ("test", "testset"),
}
"""Split -> the names that files, folders and hub splits have for it."""


@dataclass(frozen=True)
class SplitMatch:
    """Which names of a source are its splits."""

    splits: dict[str, str] = field(default_factory=dict)
    """train, validation, test, and further parts such as `validation_mismatched` -> the name in the source."""
    unused: list[str] = field(default_factory=list)
    """The other names."""
    problems: list[str] = field(default_factory=list)
    """Where two names mean the same split, one sentence each."""


def match_splits(names: Iterable[str], in_parts: bool = True) -> SplitMatch:
    """The splits among the names of files, folders or hub splits, in any case.

    A name may be a split's (`dev`), or begin with it (`dev_mismatched`, `test-w-refs`). Where no name is the split's
    own, the first of its parts stands for it. Parts of validation and test are kept, under `validation_` and `test_`
    and the rest of their name; parts of train beside a train split are not used. Several of them without one are a
    problem, as is one beside names of no split. With `in_parts=False` only a split's own names count.
    """
    names = list(names)
    match = SplitMatch()
    for split in SPLITS:
        whole = [name for synonym in SPLIT_NAMES[split] for name in names if name.lower() == synonym]
        others = [name for name in names if in_parts and name not in whole]
        parts = {name: part for name in others if (part := _part(name.lower(), split))}
        if len(whole) > 1:
            match.problems.append(f"both {whole[0]!r} and {whole[1]!r} can be the {split} split: keep one of them.")
        if split == "train" and not whole and len(parts) > 1:
            match.problems.append(f"which one is train: {', '.join(parts)}? Keep one, or name one of them train.")
        main = whole[0] if whole else next(iter(parts), None)
        if main is None:
            continue
        match.splits[split] = main
        first_with: dict[str, str] = {}
        for name, part in parts.items() if split != "train" else ():
            first = first_with.setdefault(part, name)
            if first != name:
                match.problems.append(f"both {first!r} and {name!r} can be {split}_{part}: keep one of them.")
            elif name != main:
                match.splits[f"{split}_{part}"] = name
    match.unused.extend(name for name in names if name not in match.splits.values())
    only = next(iter(match.splits.values())) if list(match.splits) == ["train"] else ""
    if match.unused and _part(only.lower(), "train") and not match.problems:
        match.problems.append(f"which one is train: {', '.join([only, *match.unused])}? Name one of them train.")
    return match


def _part(name: str, split: str) -> str:
    """What follows the split's name: `mismatched` of `dev_mismatched`; "" where the name does not begin with it."""
    for synonym in sorted(SPLIT_NAMES[split], key=len, reverse=True):
        found = re.fullmatch(rf"{synonym}[-_. ]+(.+)", name)
        if found:
            return re.sub(r"[^\w.]+", "_", found.group(1))
    return ""
