"""Metrics of generated text, by name. To add one, write its function in a file of its own and name it in METRICS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from deltatune.core.errors import nearest, raise_all
from deltatune.tasks.metrics.corpus_score import UNBOUNDED_ERROR, CorpusScore, MetricFacts, check_pairs, mean_score
from deltatune.tasks.metrics.generation.bleu_chrf_ter import bleu, chrf, ter
from deltatune.tasks.metrics.generation.cider import cider
from deltatune.tasks.metrics.generation.final_answer import check_answers, final_answer
from deltatune.tasks.metrics.generation.logical_form import check_queries, logical_form
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

READ_METRICS: dict[str, MetricFunction] = {"logical_form": logical_form, "final_answer": final_answer}
"""Metrics that read something in the texts: a query, or the answer at the end of a chain of thought."""

EncoderMetric = Callable[[Texts, References, str, int], CorpusScore]
"""(predictions, references, encoder, layer) -> the score of the corpus."""

ENCODER_METRICS = ("bertscore", "mover", "bleurt")
"""Metrics that need a model; `embedding_scores` and `bleurt` have them."""

ON_REQUEST = ("rougeLsum", *READ_METRICS, *ENCODER_METRICS)
"""Metrics that the generation task reports only where they are its primary metric."""

FACTS = {
    "bertscore": MetricFacts(lowest=-1.0),
    "bleurt": MetricFacts(lowest=-math.inf, highest=math.inf),
    "cider": MetricFacts(highest=10.0),
    "mover": MetricFacts(lowest=-1.0),
    "nist": MetricFacts(highest=math.inf),
    "ter": UNBOUNDED_ERROR,
}
"""Metrics whose direction or range is not the usual one."""


ALL = (*METRICS, *READ_METRICS, *ENCODER_METRICS)


def check_metric(name: str, encoder: str, layer: int) -> None:
    """Raise DeltatuneError where a metric lacks its encoder or a package. It loads nothing."""
    if name == "bleurt":
        from deltatune.tasks.metrics.generation.bleurt import check_bleurt

        check_bleurt(encoder)
    elif name in ENCODER_METRICS:
        from deltatune.tasks.metrics.generation.embedding_scores import check_encoder

        check_encoder(name, encoder, layer)


def encoder_metric(name: str) -> EncoderMetric:
    """A metric of `ENCODER_METRICS` by its name."""
    from deltatune.tasks.metrics.generation.bleurt import bleurt
    from deltatune.tasks.metrics.generation.embedding_scores import bertscore, mover

    return {"bertscore": bertscore, "mover": mover, "bleurt": bleurt}[name]


def check_references(name: str, references: References) -> None:
    """Raise DeltatuneError for references that a metric cannot read."""
    if name == "logical_form":
        check_queries(references)
    elif name == "final_answer":
        check_answers(references)


def text_scores(
    predictions: Texts,
    references: References,
    names: Sequence[str] = tuple(METRICS),
    characters: bool = False,
    encoder: str = "",
    layer: int = 0,
) -> dict[str, CorpusScore]:
    """The named metrics of predictions (N) with one or more references each.

    bleu, meteor, rouge1, rouge2, rougeL, rougeLsum, chrf, em, logical_form and final_answer lie between 0 and 1,
    bertscore and mover below 1, cider between 0 and 10; nist has no upper bound and bleurt no bounds; ter is a share of
    the words and may exceed 1, lower is better. The n-gram weights of nist and cider are computed from all references
    once: a resample does not change them.
    characters: count each Chinese or Japanese character as a word.
    encoder, layer: the model of bertscore, mover and bleurt, a folder or a hub name, and its layer; 0 is the usual one.
    Raises DeltatuneError for unknown names, rows without references and missing packages.
    """
    check_pairs(predictions, references)
    raise_all(
        [f"{name!r} is not a metric of generated text{nearest(name, ALL)}" for name in names if name not in ALL],
        f"metrics: {', '.join(ALL)}" if set(names) - set(ALL) else "",
    )
    _check_texts(predictions, references)
    rouge_names = [name for name in names if name in ROUGES]
    scores: dict[str, CorpusScore] = {}
    if rouge_names:
        scores |= rouge(predictions, references, rouge_names, characters)
    for name in names:
        metric = {**METRICS, **READ_METRICS}.get(name)
        if metric is not None:
            scores[name] = metric(predictions, references, characters)
        elif name in ENCODER_METRICS:
            check_metric(name, encoder, layer)
            scores[name] = encoder_metric(name)(predictions, references, encoder, layer)
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
