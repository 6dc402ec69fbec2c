"""Logical-form accuracy of WikiSQL's queries (Zhong et al. 2017, https://arxiv.org/abs/1709.00103)."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.core.errors import raise_all
from deltatune.data.published.wikisql import Query, parse_query
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score


def logical_form(
    predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False
) -> CorpusScore:
    """Share of the queries with the column, the aggregation and the set of conditions of one of their references.

    As in WikiSQL's evaluation the order of the conditions, the case of the values and white space have no meaning, and
    a text that is no query is wrong. Raises DeltatuneError for references that are no query.
    """
    parsed = check_queries(references)
    forms = [{query.logical_form() for query in row if query} for row in parsed]
    answers = [parse_query(text) for text in predictions]
    return mean_score([
        answer is not None and answer.logical_form() in row for answer, row in zip(answers, forms, strict=True)
    ])  # fmt: skip


def check_queries(references: Sequence[Sequence[str]]) -> list[list[Query | None]]:
    """The queries of the references. Raises DeltatuneError listing references that are none."""
    parsed = [[parse_query(text) for text in row] for row in references]
    raise_all([
        f"row {i}: the reference {text[:80]!r} is not a query of WikiSQL: SELECT COUNT Player FROM table WHERE No. = 23"
        for i, (row, texts) in enumerate(zip(parsed, references, strict=True))
        for query, text in zip(row, texts, strict=True)
        if query is None
    ][:10])  # fmt: skip
    return parsed
