"""Draws of few rows for each class."""

from __future__ import annotations

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data.dataset import Row
from deltatune.data.splits import draw_shots

ROWS: list[Row] = [{"text": f"text {i}", "label": "abc"[i % 3 if i % 5 else 0], "n": float(i)} for i in range(200)]


def test_shots_are_drawn_from_each_class_in_the_order_of_the_rows() -> None:
    drawn = draw_shots(ROWS, "label", "classes", 4, seed=0)
    assert [sum(row["label"] == name for row in drawn) for name in "abc"] == [4, 4, 4]
    assert drawn == [row for row in ROWS if row in drawn]


def test_equal_seeds_draw_equal_rows_and_other_seeds_others() -> None:
    draws = [draw_shots(ROWS, "label", "classes", 8, seed) for seed in range(5)]
    assert draw_shots(ROWS, "label", "classes", 8, 3) == draws[3]
    assert len({tuple(row["text"] for row in draw) for draw in draws}) == 5


def test_more_shots_contain_fewer_shots() -> None:
    few, more = (draw_shots(ROWS, "label", "classes", shots, seed=1) for shots in (2, 16))
    assert all(row in more for row in few)


def test_a_class_with_too_few_rows_is_an_error_that_names_it() -> None:
    rows = [*ROWS, {"text": "one", "label": "rare", "n": 0.0}]
    with pytest.raises(DeltatuneError, match="'rare' has only 1 rows"):
        draw_shots(rows, "label", "classes", 2, seed=0)


def test_without_classes_shots_are_rows_in_all() -> None:
    assert len(draw_shots(ROWS, "n", "number", 16, seed=0)) == 16
    with pytest.raises(DeltatuneError, match="only 200 rows"):
        draw_shots(ROWS, "n", "number", 201, seed=0)
    with pytest.raises(DeltatuneError, match="at least 1"):
        draw_shots(ROWS, "n", "number", 0, seed=0)


def test_with_several_classes_a_row_each_class_gets_its_shots() -> None:
    rows: list[Row] = [
        {"text": str(i), "label": [name for j, name in enumerate("xyz") if i >> j & 1]} for i in range(80)
    ]
    drawn = draw_shots(rows, "label", "many", 5, seed=2)
    assert all(sum(name in row["label"] for row in drawn) >= 5 for name in "xyz")
    assert sum(not row["label"] for row in drawn) >= 5, "rows of no class are learned from as well"
    assert len(drawn) <= 20
