"""Whole studies on a tiny model: every combination an ordinary comparison, checked first, resumed, loaded once."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from deltatune.comparison import run_comparison
from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.study import Axes, make_study_plan, run, run_study, study_run
from deltatune.comparison.works.cells import Event
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.store.atomic_files import CannotWrite
from deltatune.training import Settings
from support.command_line import reviews, write_csv

METHODS = ("LoRA(r=2)", "BitFit()")
QUICK = {
    "methods": METHODS, "budget": None, "seeds": 1, "rates": 1, "max_length": 16,
    "settings": Settings(epochs=1, batch_size=16, precision="float32"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return [str(write_csv(folder / f"{name}.csv", reviews(80, seed))) for seed, name in enumerate(("films", "books"))]


def quick_study(sets, tiny_folder, out, **more):
    return run_study(sets, model=str(tiny_folder), out=out, **{**QUICK, **more})


@pytest.fixture
def instant(whole, monkeypatch):
    """Comparisons end at once, with a summary of an earlier one; the plans that were run."""
    plans, summary = [], whole[1]["comparisons"][0]["summary"]

    def finish(plan, on_event=None):
        plans.append(plan)
        return summary

    monkeypatch.setattr(run_comparison, "run", finish)
    return plans


def without_times(summary):
    keep = ("method", "score", "ci95", "seed_scores", "scores", "search", "params", "adapter_bytes", "learning_rate")
    return [{name: entry.get(name) for name in keep} for entry in summary["methods"]]


@pytest.fixture(scope="module")
def whole(sets, tiny_folder, tmp_path_factory):
    """A study of two data sets and two limits, in its folder."""
    out = tmp_path_factory.mktemp("study") / "out"
    stages = []

    @contextmanager
    def follow(stage):
        events = []
        yield events.append
        stages.append((stage.number, stage.total, stage.point.data, stage.point.limit, events))

    return out, quick_study(sets, tiny_folder, out, limit=[20, 40], tasks=1000, on_stage=follow), stages


def test_every_combination_is_an_ordinary_comparison(whole, sets, tiny_folder, tmp_path):
    out, study, stages = whole
    assert json.loads((out / "study.json").read_text()) == json.loads(json.dumps(study))
    assert "films" in (out / "study.html").read_text()
    places = [(each["at"]["data"], each["at"]["limit"]) for each in study["comparisons"]]
    assert places == [("films", 20), ("films", 40), ("books", 20), ("books", 40)]
    assert [stage[:4] for stage in stages] == [(i + 1, 4, *place) for i, place in enumerate(places)]
    assert all(isinstance(event, Event) for *_, events in stages for event in events)
    assert all(events for *_, events in stages)
    for each in study["comparisons"]:
        assert (out / each["report"]).is_file()
        assert json.loads((out / each["folder"] / "summary.json").read_text()) == json.loads(
            json.dumps(each["summary"])
        )
        assert each["summary"]["data"]["rows"]["train"] == each["train_rows"] == each["at"]["limit"]
    third = study["comparisons"][2]
    alone = run_comparison.run(
        make_plan(read(sets[1], limit=20), model=str(tiny_folder), out=tmp_path / "alone", **QUICK)
    )
    assert without_times(alone) == without_times(third["summary"])


def test_what_a_study_holds(whole):
    _, study, _ = whole
    assert study["axes"] == [{"name": "data", "values": ["films", "books"]}, {"name": "limit", "values": [20, 40]}]
    assert study["methods"] == list(METHODS)
    assert (study["schema"], study["kind"], study["name"]) == (1, "study", "films, books by limit")
    for row in study["averages"]:
        entries = [
            next(entry for entry in each["summary"]["methods"] if entry["method"] == row["method"])
            for each in study["comparisons"]
        ]
        assert list(row["scores"].values()) == [entry["score"] for entry in entries]
        assert row["mean"] == pytest.approx(sum(entry["score"] for entry in entries) / 4)
        assert 1 <= row["rank"] <= 2
    assert {(line["axis"], line["method"]) for line in study["series"]} == {("limit", name) for name in METHODS}
    assert {row["tasks"] for row in study["totals"]} == {2, 1000}
    base = study["comparisons"][0]["base_bytes"]
    assert base == 4 * study["comparisons"][0]["summary"]["base_params"]
    assert study["ranks"] is None, "two data sets are too few for a test of ranks"
    assert study["failed"] == study["notes"] == study["suites"] == []
    assert study["recommendation"]["method"] in METHODS


def test_a_finished_study_is_read_again_and_grows(whole, sets, tiny_folder, monkeypatch):
    out, study, _ = whole
    monkeypatch.setattr("deltatune.training.session.train", lambda *a, **k: pytest.fail("nothing is left to train"))
    again = quick_study(sets, tiny_folder, out, limit=[20, 40], tasks=1000)
    for one, other in zip(study["comparisons"], again["comparisons"], strict=True):
        assert without_times(one["summary"]) == without_times(other["summary"])
    assert again["recommendation"] == study["recommendation"]
    fewer = quick_study(sets[1:], tiny_folder, out, limit=20)
    assert [each["folder"] for each in fewer["comparisons"]] == [study["comparisons"][2]["folder"]]


def test_an_interrupted_study_keeps_what_is_finished(sets, tiny_folder, tmp_path, monkeypatch, instant):
    finish = run_comparison.run

    def cut(plan, on_event=None):
        if instant:
            raise KeyboardInterrupt
        return finish(plan, on_event)

    monkeypatch.setattr(run_comparison, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        quick_study(sets, tiny_folder, tmp_path)
    stored = json.loads((tmp_path / "study.json").read_text())
    assert [each["summary"] is not None for each in stored["comparisons"]] == [True, False]
    assert "1 of 2 comparisons have no result yet" in stored["recommendation"]["sentence"]
    monkeypatch.setattr(run_comparison, "run", finish)
    assert quick_study(sets, tiny_folder, tmp_path)["comparisons"][1]["summary"] is not None


def test_the_problems_of_all_combinations_are_raised_before_the_first_training(
    sets, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("deltatune.training.session.train", lambda *a, **k: pytest.fail("trained before the checks"))
    with pytest.raises(DeltatuneError) as caught:
        run_study(
            [*sets, str(tmp_path / "gone.csv")],
            model=[str(tiny_folder), str(tmp_path / "nowhere")],
            out=tmp_path / "out",
            **{**QUICK, "budget": ["10%", "2 pounds"]},
        )
    said = str(caught.value)
    assert f"gone.csv, {tiny_folder.name}, budget 10%" in said
    assert f"films, {tiny_folder.name}, budget 2 pounds; books" in said
    assert "cannot read the budget '2 pounds'" in said
    assert "films, nowhere, budget 10%" in said
    assert len(said.splitlines()) == 3, "equal problems are said once"
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(sets, tiny_folder, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results.jsonl").write_text("")
    with pytest.raises(DeltatuneError, match="holds a single comparison"):
        quick_study(sets, tiny_folder, tmp_path / "one")
    inner = tmp_path / "two" / f"{tiny_folder.name}-films"
    inner.mkdir(parents=True)
    (inner / "adapter.json").write_text("{}")
    with pytest.raises(DeltatuneError, match=r"films: .*holds an adapter"):
        quick_study(sets, tiny_folder, tmp_path / "two")
    study = tmp_path / "three"
    study.mkdir()
    (study / "study.json").write_text("{}")
    with pytest.raises(DeltatuneError, match="holds a study"):
        run_comparison.run(make_plan(read(sets[0]), model=str(tiny_folder), out=study, **QUICK))


def test_a_comparison_that_fails_does_not_end_the_study(sets, tiny_folder, tmp_path, monkeypatch, instant):
    finish = run_comparison.run

    def fragile(plan, on_event=None):
        if plan.data.name == "films":
            raise RuntimeError("the disk is on fire")
        return finish(plan, on_event)

    monkeypatch.setattr(run_comparison, "run", fragile)
    study = quick_study(sets, tiny_folder, tmp_path)
    assert [each["error"] for each in study["comparisons"]] == ["RuntimeError: the disk is on fire", None]
    assert study["failed"] == [{"at": study["comparisons"][0]["at"], "error": "RuntimeError: the disk is on fire"}]
    assert study["recommendation"]["method"] in METHODS
    assert "the disk is on fire" in (tmp_path / "study.html").read_text()

    def full(plan, on_event=None):
        raise CannotWrite("the disk is full")

    monkeypatch.setattr(run_comparison, "run", full)
    with pytest.raises(CannotWrite):
        quick_study(sets, tiny_folder, tmp_path)


def test_a_model_is_loaded_once_for_the_comparisons_that_share_it(sets, tiny_folder, tmp_path, monkeypatch, instant):
    original, opened = study_run.open_host, []

    def counted(*args):
        opened.append(args[0])
        return original(*args)

    monkeypatch.setattr(study_run, "open_host", counted)
    quick_study(sets, tiny_folder, tmp_path)
    assert opened == [str(tiny_folder)], "for the checks of both data sets, and for both comparisons"
    assert instant[0].session.host is instant[1].session.host


def test_the_time_of_a_study_is_shared(sets, tmp_path, monkeypatch):
    """Each comparison gets an equal share of what is left; those whose turn comes too late keep for the next time."""
    now, shares = [0.0], []
    monkeypatch.setattr(study_run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(study_run, "check", lambda study, hosts: None)
    points = Axes(("a", "b", "c", "d"))

    def make(point, folder, more):
        shares.append(more["minutes"])
        now[0] += 60 * (6 if point.data == "a" else 3)
        raise DeltatuneError("not today")

    study = run(make_study_plan(points, make, out=tmp_path, minutes=8))
    assert shares == [8 / 4, 2 / 3]
    assert [each["minutes"] for each in study["comparisons"]] == [2.0, 2 / 3, None, None]
    errors = [each["error"] for each in study["comparisons"]]
    assert errors[:2] == ["not today", "not today"]
    assert errors[2] == errors[3] == "not run: the 8 minutes were up; the same command goes on"
    assert json.loads((tmp_path / "study.json").read_text())["comparisons"][3]["error"] == errors[3]
    now[0], shares[:] = 0.0, []
    run(make_study_plan(points, make, out=tmp_path, minutes=8))
    assert shares == [2.0, 2 / 3], "what was begun goes on with its share, and so with the rows chosen for it"
    now[0], shares[:] = 0.0, []
    run(make_study_plan(points, make, out=tmp_path, minutes=40))
    assert shares == [10.0, 34 / 3, 31 / 2, 28.0]


def test_data_in_memory_have_limits_too(sets, tiny_folder, tmp_path, instant):
    data = read(sets[0])
    study = run_study({"mine": data}, model=str(tiny_folder), limit=[10, None], out=tmp_path, **QUICK)
    assert [len(plan.data.train) for plan in instant] == [10, len(data.train)]
    assert [each["folder"] for each in study["comparisons"]] == [
        f"{tiny_folder.name}-mine-limit10", f"{tiny_folder.name}-mine",
    ]  # fmt: skip
