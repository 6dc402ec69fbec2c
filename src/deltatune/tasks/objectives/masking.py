"""Masked tokens, and masked words, phrases or entities: what a masked language model is trained on.

BERT, Devlin et al. 2018, https://arxiv.org/abs/1810.04805; whole words for Chinese, Cui et al. 2019,
https://arxiv.org/abs/1906.08101; phrases and entities, ERNIE, Sun et al. 2019, https://arxiv.org/abs/1904.09223
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.tasks.objectives.drawing import fractions, integer, order
from deltatune.tasks.task import IGNORED

Unit = list[int]
"""Places (0 to T - 1) of the tokens that are chosen together: a word, a phrase, an entity."""

Choose = Literal["count", "each"]
"""How units are chosen: `count`, until round(rate * T) tokens are (BERT); `each`, every one with probability `rate`
(Hugging Face's collator and Baidu's ERNIE)."""

SHARES = (0.8, 0.1, 0.1)
"""Of the chosen tokens: how many become the mask token, how many a random token, how many stay."""


def mask_tokens(
    ids: Sequence[int],
    special: Sequence[bool | int],
    generator: torch.Generator,
    *,
    mask_id: int,
    vocabulary: int | Sequence[int],
    rate: float = 0.15,
    shares: tuple[float, ...] = SHARES,
    units: Sequence[Unit] | None = None,
    choose: Choose = "count",
    alike: bool = False,
) -> tuple[list[int], list[int]]:
    """Choose about `rate` of the tokens and hide most of them; returns the inputs (T,) and the labels (T,).

    Labels are the tokens that stood at the chosen places and IGNORED elsewhere. `special` (T,) marks tokens that are
    never chosen. By `count`, T includes them, as in BERT's code, and at least one token is chosen. Without `units`
    each token is one; with them tokens outside all units are not chosen, units are taken whole in random order, and one
    that exceeds what is left of the number is passed over. Where none fits (a short text of long words) the shortest
    is taken: BERT's code would leave such a text without labels.

    Of the chosen tokens `shares` become `mask_id`, a random token or stay, decided for each token on its own (as BERT
    and ERNIE do, for words and entities too) or, `alike`, once for a unit. `vocabulary` is what random tokens are drawn
    from: a size (ids 0 to size - 1, special ones included, as in BERT) or ids.
    """
    _check(ids, special, rate, shares, units)
    candidates = [[place] for place in range(len(ids))] if units is None else units
    candidates = [list(unit) for unit in candidates if unit and not any(special[place] for place in unit)]
    if choose == "each":
        drawn = fractions(len(candidates), generator)
        chosen = [unit for unit, at in zip(candidates, drawn, strict=True) if at < rate]
    else:
        chosen = within(candidates, max(1, round(rate * len(ids))), generator)
    inputs, labels = list(ids), [IGNORED] * len(ids)
    for unit in chosen:
        drawn = fractions(1, generator) * len(unit) if alike else fractions(len(unit), generator)
        for place, at in zip(unit, drawn, strict=True):
            labels[place] = ids[place]
            if at < shares[0]:
                inputs[place] = mask_id
            elif at < shares[0] + shares[1]:
                inputs[place] = random_token(vocabulary, generator)
    return inputs, labels


def within(units: Sequence[Unit], budget: int, generator: torch.Generator) -> list[Unit]:
    """Units in random order while they fit a budget of tokens; the shortest one where none fits."""
    if not units:
        return []
    left, chosen = budget, []
    for at in order(len(units), generator):
        if len(units[at]) <= left:
            chosen.append(units[at])
            left -= len(units[at])
        if left == 0:
            break
    return chosen or [min(units, key=len)]


def random_token(vocabulary: int | Sequence[int], generator: torch.Generator) -> int:
    """One id, uniformly."""
    if isinstance(vocabulary, int):
        return integer(0, vocabulary - 1, generator)
    return vocabulary[integer(0, len(vocabulary) - 1, generator)]


def _check(
    ids: Sequence[int],
    special: Sequence[bool | int],
    rate: float,
    shares: tuple[float, ...],
    units: Sequence[Unit] | None,
) -> None:
    if len(special) != len(ids):
        raise DeltatuneError(f"special says {len(special)} times whether a token is special, of {len(ids)} tokens")
    check_rate(rate, shares)
    places = [place for unit in units or () for place in unit]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise DeltatuneError(f"token {twice} belongs to two units; every token may belong to one")
    if places and not (min(places) >= 0 and max(places) < len(ids)):
        raise DeltatuneError(f"units name token {max(places)}; there are tokens 0 to {len(ids) - 1}")


def check_rate(rate: float, shares: tuple[float, ...]) -> None:
    """Raise DeltatuneError for a rate outside (0, 1] and shares that are no distribution."""
    if not 0 < rate <= 1:
        raise DeltatuneError(f"rate={rate} must be more than 0 and at most 1: it is the share of tokens that is chosen")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise DeltatuneError(f"shares={shares} must be three shares (masked, random, kept) that sum to 1")
