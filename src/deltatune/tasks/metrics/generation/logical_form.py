"""Logical-form accuracy of WikiSQL's queries (Zhong et al. 2017, https://arxiv.org/abs/1709.00103)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deltatune.core.errors import raise_all
from deltatune.data.published.wikisql import OPERATORS
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score

LogicalForm = tuple[str, frozenset[str]]
"""The selection with its aggregation, and the parts of the conditions."""

QUERY = re.compile(r"select (.+?) from table(?: where (.+))?")
OPERATOR = re.compile("|".join(f" {re.escape(operator.lower())} " for operator in OPERATORS))
EXAMPLE = "SELECT COUNT Player FROM table WHERE No. = 23"
LISTED = 10


def logical_form(
    predictions: Sequence[str], references: Sequence[Sequence[str]], characters: bool = False
) -> CorpusScore:
    """Share of the queries with the column, the aggregation and the set of conditions of one of their references.

    As in WikiSQL's evaluation the order of the conditions, the case of the values and white space have no meaning, and
    a text that is no query is wrong. Raises DeltatuneError for references that are no query.
    """
    check_queries(references)
    forms = [{form_of(text) for text in row} for row in references]
    return mean_score([
        (form := form_of(text)) is not None and form in row for text, row in zip(predictions, forms, strict=True)
    ])  # fmt: skip


def form_of(text: str) -> LogicalForm | None:
    """The logical form of a query in its text form; None for a text that is none.

    Names of columns may hold "and" ("Date and time = 3 AND Rank = 1"), and without the table's columns no parser knows
    which one joins conditions. So the text is split at each of them: two queries have the same parts if and only if
    they have the same conditions, but for conditions that exchange parts.
    """
    match = QUERY.fullmatch(" ".join(text.lower().split()))
    if match is None:
        return None
    selection, conditions = match.groups()
    if conditions is None:
        return selection, frozenset()
    return (selection, frozenset(conditions.split(" and "))) if OPERATOR.search(conditions) else None


def check_queries(references: Sequence[Sequence[str]]) -> None:
    """Raise DeltatuneError listing references that are no query."""
    problems = [
        f"row {i}: the reference {text[:80]!r} is not a query of WikiSQL: {EXAMPLE}"
        for i, row in enumerate(references)
        for text in row
        if form_of(text) is None
    ]
    raise_all([*problems[:LISTED], *([f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else [])])
