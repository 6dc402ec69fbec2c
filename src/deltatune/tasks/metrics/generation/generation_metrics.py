"""Every metric of written text by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltatune.core.errors import nearest, raise_all
from deltatune.tasks.metrics.additive import Tally, check_pairs, mean_of
from deltatune.tasks.metrics.generation.bleu_chrf_ter import bleu, chrf, ter
from deltatune.tasks.metrics.generation.cider import cider
from deltatune.tasks.metrics.generation.meteor import meteor
from deltatune.tasks.metrics.generation.nist import nist
from deltatune.tasks.metrics.generation.rouge import ROUGES, rouge

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def em(predictions: Texts, references: References, characters: bool = False) -> Tally:
    """Share of texts that are one of their references, white space aside."""
    known = [{" ".join(one.split()) for one in own} for own in references]
    return mean_of([" ".join(text.split()) in own for text, own in zip(predictions, known, strict=True)])


ONE_BY_ONE: dict[str, Callable[[Texts, References, bool], Tally]] = {
    "bleu": bleu,
    "nist": nist,
    "meteor": meteor,
    "cider": cider,
    "ter": ter,
    "chrf": chrf,
    "em": em,
}

ALL = ("bleu", "nist", "meteor", *ROUGES, "cider", "ter", "chrf", "em")
TEXT_LOWER = frozenset({"ter"})
"""Metrics where less is better."""


def text_tallies(
    predictions: Texts, references: References, names: Sequence[str] = ALL, characters: bool = False
) -> dict[str, Tally]:
    """The named metrics of predictions (N) with one or more references each.

    bleu, meteor, rouge1, rouge2, rougeL, rougeLsum, chrf and em lie between 0 and 1, cider between 0 and 10; nist has
    no upper bound; ter is a share of the words and may exceed 1, lower is better. What n-grams tell (nist) and how rare
    they are (cider) is learnt from all references once: a resample does not change it.
    characters: count each Chinese or Japanese character as a word.
    Raises DeltatuneError for unknown names, rows without references and packages that are missing.
    """
    check_pairs(predictions, references)
    raise_all(
        [f"{name!r} is no metric of written text{nearest(name, ALL)}" for name in names if name not in ALL],
        f"metrics: {', '.join(ALL)}" if set(names) - set(ALL) else "",
    )
    _check_texts(predictions, references)
    rouges = [name for name in names if name in ROUGES]
    found = rouge(predictions, references, rouges, characters) if rouges else {}
    found |= {name: ONE_BY_ONE[name](predictions, references, characters) for name in names if name in ONE_BY_ONE}
    return {name: found[name] for name in names}


def _check_texts(predictions: Texts, references: References) -> None:
    problems = []
    for i, (text, own) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(own, str):
            problems.append(f"row {i}: its references are a text; give a list of texts, of one if there is no other")
        elif not own:
            problems.append(f"row {i}: it has no reference")
        if not all(isinstance(one, str) for one in (text, *own)):
            problems.append(f"row {i}: predictions and references must be texts")
    if len(problems) > 10:
        problems = [*problems[:10], f"and {len(problems) - 10} more rows"]
    raise_all(problems)
