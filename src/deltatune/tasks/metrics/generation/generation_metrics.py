"""Metrics of generated text, by name. To add one, write its function in a file of its own and name it in METRICS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from deltatune.core.errors import nearest, raise_all
from deltatune.tasks.metrics.corpus_score import UNBOUNDED_ERROR, CorpusScore, MetricFacts, check_pairs, mean_score
from deltatune.tasks.metrics.generation.bleu_chrf_ter import bleu, chrf, ter
from deltatune.tasks.metrics.generation.cider import cider
from deltatune.tasks.metrics.generation.meteor import meteor
from deltatune.tasks.metrics.generation.nist import nist
from deltatune.tasks.metrics.generation.rouge import ROUGES, rouge

Texts = Sequence[str]
References = Sequence[Sequence[str]]
MetricFunction = Callable[[Texts, References, bool], CorpusScore]
"""(predictions, references, characters) -> the score of the corpus."""


def em(predictions: Texts, references: References, characters: bool = False) -> CorpusScore:
    """Exact match: share of the texts that equal one of their references, apart from white space."""
    normalised = [{" ".join(reference.split()) for reference in row} for row in references]
    return mean_score([" ".join(text.split()) in row for text, row in zip(predictions, normalised, strict=True)])


METRICS: dict[str, MetricFunction | None] = {
    "rougeL": None,
    "bleu": bleu,
    "rouge1": None,
    "rouge2": None,
    "meteor": meteor,
    "chrf": chrf,
    "nist": nist,
    "cider": cider,
    "ter": ter,
    "em": em,
    "rougeLsum": None,
}
"""In the order of tables; None for the ROUGE metrics, which `rouge` computes together."""

ON_REQUEST = ("rougeLsum",)
"""Metrics that the generation task does not report."""

FACTS = {
    "cider": MetricFacts(highest=10.0),
    "nist": MetricFacts(highest=math.inf),
    "ter": UNBOUNDED_ERROR,
}
"""Metrics whose direction or range is not the usual one."""


def text_scores(
    predictions: Texts, references: References, names: Sequence[str] = tuple(METRICS), characters: bool = False
) -> dict[str, CorpusScore]:
    """The named metrics of predictions (N) with one or more references each.

    bleu, meteor, rouge1, rouge2, rougeL, rougeLsum, chrf and em lie between 0 and 1, cider between 0 and 10; nist has
    no upper bound; ter is a share of the words and may exceed 1, lower is better. The n-gram weights of nist and cider
    are computed from all references once: a resample does not change them.
    characters: count each Chinese or Japanese character as a word.
    Raises DeltatuneError for unknown names, rows without references and missing packages.
    """
    check_pairs(predictions, references)
    raise_all(
        [
            f"{name!r} is not a metric of generated text{nearest(name, METRICS)}"
            for name in names
            if name not in METRICS
        ],
        f"metrics: {', '.join(METRICS)}" if set(names) - set(METRICS) else "",
    )
    _check_texts(predictions, references)
    rouge_names = [name for name in names if name in ROUGES]
    scores: dict[str, CorpusScore] = {}
    if rouge_names:
        scores |= rouge(predictions, references, rouge_names, characters)
    for name in names:
        metric = METRICS[name]
        if metric is not None:
            scores[name] = metric(predictions, references, characters)
    return {name: scores[name] for name in names}


def _check_texts(predictions: Texts, references: References) -> None:
    problems = []
    for i, (text, row) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(row, str):
            problems.append(f"row {i}: its references are a text; give a list of texts, of one if there is no other")
        elif not row:
            problems.append(f"row {i}: it has no reference")
        if not all(isinstance(value, str) for value in (text, *row)):
            problems.append(f"row {i}: predictions and references must be texts")
    if len(problems) > 10:
        problems = [*problems[:10], f"and {len(problems) - 10} more rows"]
    raise_all(problems)
