"""Axes of a study, the folders of its comparisons, and the names of its data sets."""

from __future__ import annotations

import dataclasses

import pytest

from deltatune.comparison.study import Axes, Point, make_study_plan, name_data_sets
from deltatune.comparison.study.study_plan import folder_names, study_name
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from support.command_line import reviews, write_csv


def never(point, folder, more):
    raise AssertionError("nothing is read while a study is planned")


def test_a_study_is_the_product_of_its_axes_and_a_model_comes_once():
    axes = Axes(("a", "b"), ("m", "n"), (10, None), ("1%",), (None,))
    points = axes.points()
    assert len(points) == len(set(points)) == 8
    assert [point.model for point in points] == ["m"] * 4 + ["n"] * 4
    assert [(point.data, point.limit) for point in points[:4]] == [("a", 10), ("a", None), ("b", 10), ("b", None)]
    assert axes.varied == ("data", "model", "limit")
    assert axes.to_json() == [
        {"name": "data", "values": ["a", "b"]},
        {"name": "model", "values": ["m", "n"]},
        {"name": "limit", "values": [10, None]},
    ]
    assert Axes(("a",)).to_json() == [{"name": "data", "values": ["a"]}]
    assert points[0].describe(axes.varied) == "a, m, 10 rows"


def test_values_that_no_study_can_have_are_named_together():
    with pytest.raises(DeltatuneError) as caught:
        Axes(("a", "a"), ("m",), (0, 5, 5), shots=(-1,))
    for part in ("--data a is given twice", "--limit 5 is given twice", "--limit 0", "--shots -1"):
        assert part in str(caught.value)
    with pytest.raises(DeltatuneError, match="8,000 comparisons; a study has at most 1,000"):
        Axes(tuple("abcdefgh"), limit=tuple(range(1, 1001)))
    with pytest.raises(DeltatuneError, match="--minutes 0"):
        make_study_plan(Axes(("a",)), never, minutes=0)
    with pytest.raises(DeltatuneError, match="--tasks 0"):
        make_study_plan(Axes(("a",)), never, tasks=0)


def test_folders_are_readable_and_do_not_depend_on_the_other_values():
    point = Point("sst2", "models/bert-base", 200, "0.5%", 16)
    assert folder_names([point]) == {point: "bert-base-sst2-limit200-budget0.5percent-shots16"}
    assert folder_names([Point("sst2")])[Point("sst2")] == "sst2"
    more = [point, Point("sst2"), Point("trec6", limit=200)]
    assert folder_names(more)[point] == folder_names([point])[point]


def test_folders_of_different_points_are_different_on_any_file_system():
    points = [
        Point("a b"), Point("a-b"), Point("A-B"), Point("x", "one/bert"), Point("x", "two/bert"), Point("study.json"),
        Point("a", limit=1), Point("a-limit1"), Point("x", budget="1%"), Point("x", budget="1percent"), Point("../.."),
        Point("é" * 200), Point("é" * 199 + "e"), Point("..."), Point("x/y"),
    ]  # fmt: skip
    names = list(folder_names(points).values())
    assert len({name.casefold() for name in names}) == len(points)
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)
    assert not {"study.json", "study.html"} & {name.casefold() for name in names}


def test_the_name_of_a_study_is_short():
    assert study_name(Axes(("sst2", "trec6"), limit=(1, 2))) == "sst2, trec6 by limit"
    assert study_name(Axes(tuple("abcdefg"))) == "a, b, c, 4 more"
    glue = name_data_sets("glue")
    assert study_name(Axes(tuple(glue.sources)), glue.suites) == "glue"
    plan = make_study_plan(Axes(("a",), limit=(1, 2), budget=("1%", "2%")), never)
    assert str(plan.out) == "runs/a-by-limit-and-budget"


def test_data_sets_are_named_after_what_tells_them_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_csv(tmp_path / folder / "train.csv", reviews(4))
    files = [str(tmp_path / folder / "train.csv") for folder in ("one", "two")]
    assert list(name_data_sets(files).sources) == ["one-train", "two-train"]
    assert list(name_data_sets([files[0], "nyu-mll/glue:cola", "owner/set"]).sources) == ["train", "cola", "set"]
    assert name_data_sets({"mine": files[0]}).sources == {"mine": files[0]}
    with pytest.raises(DeltatuneError, match="is given 2 times"):
        name_data_sets([files[0], str(tmp_path / "one" / ".." / "one" / "train.csv")])
    with pytest.raises(DeltatuneError, match="at least one data set"):
        name_data_sets([])


def test_data_in_memory_are_named_too(tmp_path):
    data = read(write_csv(tmp_path / "films.csv", reviews(40)))
    other = dataclasses.replace(data, train=data.train[:10])
    assert list(name_data_sets([data, other]).sources) == ["films", "films-2"]
