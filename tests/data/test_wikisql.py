"""WikiSQL: queries given by numbers become text, and the text becomes the same query again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.data.published.wikisql import Query, from_numbers, parse_query, to_numbers, write_query

COLUMNS = ["State/territory", "Max speed", "Current slogan", "No.", "Won and lost", "Text/background colour"]


def test_the_text_is_that_of_the_hub() -> None:
    sql = {
        "sel": 5,
        "agg": 0,
        "conds": {"column_index": [2], "operator_index": [0], "condition": ["SOUTH AUSTRALIA"]},
    }
    assert (
        write_query(sql, COLUMNS) == "SELECT Text/background colour FROM table WHERE Current slogan = SOUTH AUSTRALIA"
    )
    assert write_query({"sel": 3, "agg": 3, "conds": []}, COLUMNS) == "SELECT COUNT No. FROM table"


WORD = st.text("abc=<>x1", min_size=1, max_size=5)
VALUE = st.lists(st.one_of(WORD, st.sampled_from(["AND", "from", "OP"])), min_size=1, max_size=4).map(" ".join)


@given(
    sel=st.integers(0, 5),
    agg=st.integers(0, 5),
    conds=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), VALUE), max_size=4),
)
def test_round_trip(sel: int, agg: int, conds: list[tuple[int, int, str]]) -> None:
    sql = {"sel": sel, "agg": agg, "conds": [list(cond) for cond in conds]}
    query = parse_query(write_query(sql, COLUMNS), COLUMNS)
    assert query is not None
    assert query.logical_form() == from_numbers(sql, COLUMNS).logical_form()
    assert from_numbers(to_numbers(query, COLUMNS), COLUMNS) == query


def test_case_blanks_and_order_do_not_matter() -> None:
    first = parse_query("SELECT  max No. FROM table WHERE a b = X y AND c > 3")
    second = parse_query("select MAX no. from table where C > 3 and A b = x Y")
    assert first is not None
    assert second is not None
    assert first.logical_form() == second.logical_form()
    assert first.aggregation == "MAX"


def test_a_column_that_begins_with_an_aggregation_stays_whole() -> None:
    assert parse_query("SELECT Max speed FROM table", COLUMNS) == Query("Max speed")
    assert parse_query("SELECT Max speed FROM table") == Query("speed", "MAX")


@pytest.mark.parametrize(
    "text", ["", "SELECT", "SELECT FROM table", "a film", "SELECT a FROM table WHERE", "SELECT a FROM table WHERE b"]
)
def test_what_is_no_query(text: str) -> None:
    assert parse_query(text) is None


@pytest.mark.parametrize(
    "sql",
    [
        {"sel": 9, "agg": 0, "conds": []},
        {"sel": 0, "agg": 9, "conds": []},
        {"sel": -1, "agg": 0, "conds": []},
        {"sel": 0, "agg": 0, "conds": [[0, 0]]},
        {"sel": 0, "conds": []},
        {"sel": None, "agg": 0, "conds": []},
    ],
)
def test_a_query_of_another_form_is_an_error(sql: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no query of WikiSQL"):
        write_query(sql, COLUMNS)


def test_a_column_that_the_table_does_not_have() -> None:
    with pytest.raises(ValueError, match="no column 'size'; it has State/territory"):
        to_numbers(Query("size"), COLUMNS)
