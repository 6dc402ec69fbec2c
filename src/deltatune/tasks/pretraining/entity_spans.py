"""Entities of a text: where they stand, and what a text says with others in their place.

Masking them whole: ERNIE, Sun et al. 2019, https://arxiv.org/abs/1904.09223. Replacing some by others of their kind
and asking which were: WKLM, Xiong et al. 2020, https://arxiv.org/abs/1912.09637
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.pretraining.random_draws import fraction, integer


class Entity(NamedTuple):
    """A place [start, end) in characters of the text, and the kind of what stands there ("" where none is told)."""

    start: int
    end: int
    kind: str = ""


Tagger = Callable[[str], Iterable[Sequence[Any]]]
"""Finds the entities of a text: [start, end] or [start, end, kind] each, in characters."""


class Replaced(NamedTuple):
    """A text in which some entities are replaced, where they stand in it, and which are (True) and are not."""

    text: str
    entities: list[Entity]
    replaced: list[bool]


def entities_of(text: str, spans: Iterable[Sequence[Any]], where: str = "the text") -> list[Entity]:
    """Spans as entities in the order of the text. Raises DeltatuneError for what lies outside it or overlaps."""
    found = []
    for span in spans:
        good = not isinstance(span, (str, Mapping)) and 2 <= len(span) <= 3 and all(type(n) is int for n in span[:2])
        if not good:
            raise DeltatuneError(f"{where}: {span!r} is no entity; one is [start, end] or [start, end, kind]")
        entity = Entity(span[0], span[1], str(span[2]) if len(span) > 2 else "")
        if not 0 <= entity.start < entity.end <= len(text):
            raise DeltatuneError(
                f"{where}: an entity at {entity.start} to {entity.end} does not lie in its {len(text)} characters; "
                "places are counted in characters from 0, and the end is the first one after it"
            )
        found.append(entity)
    found.sort()
    for one, other in pairwise(found):
        if other.start < one.end:
            raise DeltatuneError(f"{where}: the entities at {one.start} and {other.start} overlap; give one of them")
    return found


def names_by_kind(texts: Iterable[tuple[str, Sequence[Entity]]]) -> dict[str, tuple[str, ...]]:
    """The different names of each kind in a corpus, sorted; what replacements are drawn from."""
    names: dict[str, set[str]] = {}
    for text, entities in texts:
        for entity in entities:
            names.setdefault(entity.kind, set()).add(text[entity.start : entity.end])
    return {kind: tuple(sorted(found)) for kind, found in sorted(names.items())}


def replace_entities(
    text: str,
    entities: Sequence[Entity],
    names: Mapping[str, Sequence[str]],
    generator: torch.Generator,
    rate: float = 0.5,
) -> Replaced:
    """Replace entities, each with probability `rate`, by another name of their kind.

    As in WKLM the one after a replaced entity stays, so that a replaced one has true ones around it. One whose kind has
    no other name stays too. Places are those in the new text.
    """
    pieces: list[str] = []
    moved: list[Entity] = []
    replaced: list[bool] = []
    at = length = 0
    for entity in entities:
        name = text[entity.start : entity.end]
        others = [other for other in names.get(entity.kind, ()) if other != name]
        changes = fraction(generator) < rate and bool(others) and not (replaced and replaced[-1])
        if changes:
            name = others[integer(0, len(others) - 1, generator)]
        before = text[at : entity.start]
        pieces += [before, name]
        length += len(before)
        moved.append(Entity(length, length + len(name), entity.kind))
        length += len(name)
        at = entity.end
        replaced.append(changes)
    return Replaced("".join(pieces) + text[at:], moved, replaced)
