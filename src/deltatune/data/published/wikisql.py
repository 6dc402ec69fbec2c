"""WikiSQL's queries as text and back (Zhong et al. 2017, https://arxiv.org/abs/1709.00103).

The text is the `human_readable` form of the hub: `SELECT COUNT Player FROM table WHERE No. = 23 AND Position = guard`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AGGREGATIONS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
"""Aggregation by its number in the data."""
OPERATORS = ("=", ">", "<", "OP")
"""Operator of a condition by its number in the data."""
SELECT, FROM, WHERE, AND = "SELECT ", " FROM table", " WHERE ", " AND "
AND_ANYWHERE = re.compile(r" AND(?= )", re.IGNORECASE)


@dataclass(frozen=True)
class Query:
    """One query: an aggregation of a column, over the rows that meet all conditions."""

    column: str
    """The selected column."""
    aggregation: str = ""
    """One of AGGREGATIONS."""
    conditions: tuple[tuple[str, str, str], ...] = ()
    """(column, operator, value) each; their order has no meaning."""

    def logical_form(self) -> tuple[str, str, frozenset[tuple[str, str, str]]]:
        """What two queries share that mean the same: case, white space and the order of conditions left out."""
        conditions = frozenset((_plain(column), op, _plain(value)) for column, op, value in self.conditions)
        return _plain(self.column), self.aggregation, conditions


def write_query(sql: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The text of a query given as `sel`, `agg` and `conds`, all of them numbers of columns and operators.

    `conds` is a list of [column, operator, value], or the object of lists that the hub has. Raises ValueError where it
    has another form, and for numbers that nothing has.
    """
    return text_of(from_numbers(sql, columns))


def from_numbers(sql: Mapping[str, Any], columns: Sequence[str]) -> Query:
    """The query given by numbers; see `write_query`."""
    try:
        conditions = sql["conds"]
        if isinstance(conditions, Mapping):
            names = ("column_index", "operator_index", "condition")
            conditions = list(zip(*(conditions[name] for name in names), strict=True))
        numbers = [sql["sel"], sql["agg"], *(number for column, op, _ in conditions for number in (column, op))]
        if any(not isinstance(number, int) or number < 0 for number in numbers):
            raise TypeError("a number of a column or an operator is missing")
        conditions = tuple((columns[column], OPERATORS[op], str(value)) for column, op, value in conditions)
        return Query(columns[sql["sel"]], AGGREGATIONS[sql["agg"]], conditions)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"no query of WikiSQL: {type(error).__name__} {error}") from None


def to_numbers(query: Query, columns: Sequence[str]) -> dict[str, Any]:
    """`sel`, `agg` and `conds` of a query. Raises ValueError for a column that the table does not have."""
    number = {_plain(column): i for i, column in reversed(list(enumerate(columns)))}
    wanted = [query.column, *(column for column, _, _ in query.conditions)]
    missing = [column for column in wanted if _plain(column) not in number]
    if missing:
        raise ValueError(f"the table has no column {missing[0]!r}; it has {', '.join(columns)}")
    return {
        "sel": number[_plain(query.column)],
        "agg": AGGREGATIONS.index(query.aggregation),
        "conds": [[number[_plain(column)], OPERATORS.index(op), value] for column, op, value in query.conditions],
    }


def text_of(query: Query) -> str:
    """The text of a query, on one line with single blanks."""
    conditions = AND.join(f"{column} {op} {value}" for column, op, value in query.conditions)
    text = f"{SELECT}{query.aggregation} {query.column}{FROM}" + (WHERE + conditions if conditions else "")
    return " ".join(text.split())


def parse_query(text: str, columns: Sequence[str] = ()) -> Query | None:
    """The query of a text, keywords in any case; None where it is none.

    With the names of the table's columns, names and values that contain keywords or operators are told apart.
    """
    text = " ".join(text.split())
    lower = text.lower()
    end = lower.find(FROM.lower())
    if not lower.startswith(SELECT.lower()) or end < len(SELECT):
        return None
    selected, rest = text[len(SELECT) : end], text[end + len(FROM) :]
    known = sorted({" ".join(column.split()) for column in columns}, key=len, reverse=True)
    aggregation, column = _split_aggregation(selected.strip(), known)
    if not rest.strip():
        return Query(column, aggregation) if column else None
    if not rest.lower().startswith(WHERE.lower()):
        return None
    conditions = _conditions(rest[len(WHERE) :], known)
    return Query(column, aggregation, conditions) if column and conditions else None


def _split_aggregation(selected: str, known: Sequence[str]) -> tuple[str, str]:
    """The aggregation and the column; a column whose whole name begins with the word of one stays whole."""
    first, _, column = selected.partition(" ")
    whole = selected.lower() in {name.lower() for name in known}
    return ("", selected) if whole or first.upper() not in AGGREGATIONS[1:] or not column else (first.upper(), column)


def _conditions(text: str, known: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """The conditions joined by AND; none where the text does not begin with one."""
    begins = [0, *(match.end() + 1 for match in AND_ANYWHERE.finditer(text))]
    heads = {begin: head for begin in begins if (head := _head(text[begin:], known))}
    if 0 not in heads:
        return ()
    ends = [*(begin - len(AND) for begin in list(heads)[1:]), len(text)]
    conditions = []
    for (begin, (column, op)), end in zip(heads.items(), ends, strict=True):
        value = text[begin:end][len(f"{column} {op} ") :]
        conditions.append((column, op, value))
    return tuple(conditions)


def _head(text: str, known: Sequence[str]) -> tuple[str, str] | None:
    """The column and the operator with which a text begins; of unknown columns, what is before the first operator."""
    for name in known:
        for op in OPERATORS:
            if text.lower().startswith(f"{name} {op} ".lower()):
                return name, op
    if known:
        return None
    places = [(place, op) for op in OPERATORS if (place := text.find(f" {op} ")) > 0]
    if not places or AND_ANYWHERE.search(text[: min(places)[0] + 1]):
        return None
    place, op = min(places)
    return text[:place], op


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
