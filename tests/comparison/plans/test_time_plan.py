"""Minutes of a comparison: rows that fit, the same ones when it goes on, and an error where nothing fits."""

import json
import re

import pytest

from deltatune.comparison import run_comparison
from deltatune.comparison.plans import time_plan
from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.plans.time_plan import TIMES, Times, fit_minutes, measure, seconds_of
from deltatune.comparison.run_comparison import run
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.training import Settings
from support import models


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-bert")
    models.tiny("bert").save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """2,000 rows: 1,600 or so for training."""
    path = tmp_path_factory.mktemp("rows") / "table.csv"
    lines = [f"{'the cat' if i % 2 else 'a dog'} sat on mat {i},{('sun', 'rain')[i % 2]}" for i in range(2000)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def plan_for(tiny_folder, table, out, **options):
    options = {"methods": ("LoRA(r=2)", "BitFit()"), "rates": 3, "minutes": 1.0, "workers": 1, **options}
    settings = Settings(epochs=1, batch_size=16, precision="float32")
    return make_plan(
        read(str(table)), model=str(tiny_folder), budget=None, settings=settings, max_length=16, out=out, **options
    )


def timed(monkeypatch, step, row=1e-5):
    """Replace what is measured by these seconds."""
    monkeypatch.setattr(time_plan, "measure", lambda plan: Times(dict.fromkeys(plan.contestants, step), row))


def rows_of(plan):
    return {name: plan.splits[name].examples for name in ("train", "validation", "test")}


def test_all_rows_are_used_where_there_is_time(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=1e-4)
    plan = plan_for(tiny_folder, table, tmp_path / "out")
    assert rows_of(fit_minutes(plan)) == rows_of(plan)
    assert fit_minutes(plan).data.notes == plan.data.notes


def test_training_rows_are_left_out_first_and_only_as_many_as_needed(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.1)
    plan = plan_for(tiny_folder, table, tmp_path / "out", minutes=1.5)
    fitted, times = fit_minutes(plan), Times(dict.fromkeys(plan.contestants, 0.1), 1e-5)
    rows, limit = rows_of(fitted), time_plan.SHARE * 90
    assert 100 < rows["train"] < rows_of(plan)["train"]
    assert (rows["validation"], rows["test"]) == (rows_of(plan)["validation"], rows_of(plan)["test"])
    assert seconds_of(plan, times, rows, 1) <= limit < seconds_of(plan, times, rows | {"train": rows["train"] + 32}, 1)
    assert len(fitted.data.train) == rows["train"]
    assert {row["text"] for row in fitted.data.train} <= {row["text"] for row in plan.data.train}
    assert f"{rows['train']:,} of {rows_of(plan)['train']:,} train rows" in fitted.data.notes[-1]
    assert "1.5 minutes" in fitted.data.notes[-1]


def test_validation_and_test_rows_go_only_where_that_is_not_enough(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.01, row=0.05)
    rows = rows_of(fit_minutes(plan_for(tiny_folder, table, tmp_path / "out", minutes=2.0)))
    assert rows["train"] == 100
    assert 100 <= rows["test"] < 200


@pytest.mark.slow
def test_the_rows_are_chosen_once(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.1)
    first = fit_minutes(plan_for(tiny_folder, table, tmp_path / "out"))
    timed(monkeypatch, step=0.01)
    again = fit_minutes(plan_for(tiny_folder, table, tmp_path / "out"))
    assert rows_of(again) == rows_of(first)
    assert fit_minutes(again) is again
    other = fit_minutes(plan_for(tiny_folder, table, tmp_path / "out", minutes=2.0))
    assert rows_of(other)["train"] > rows_of(first)["train"]
    stored = json.loads((tmp_path / "out" / TIMES).read_text())
    assert (stored["minutes"], stored["rows"]) == (2.0, rows_of(other))


@pytest.mark.slow
def test_the_rows_are_chosen_anew_for_more_methods_rates_or_runs(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.2)
    few = rows_of(fit_minutes(plan_for(tiny_folder, table, tmp_path / "out", methods=("LoRA(r=2)",))))
    for more in ({"methods": ("LoRA(r=2)", "BitFit()")}, {"rates": 5}, {"seeds": 4}):
        options = {"methods": ("LoRA(r=2)",), **more}
        many = rows_of(fit_minutes(plan_for(tiny_folder, table, tmp_path / "out", **options)))
        assert many["train"] < few["train"], more


def test_the_note_names_a_time_below_a_minute(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.01)
    plan = fit_minutes(plan_for(tiny_folder, table, tmp_path / "out", minutes=0.25))
    assert re.search(r"what 0\.25 minutes have time for; all rows take about \d\d s$", plan.data.notes[-1])


def test_minutes_that_are_too_few_say_how_many_are_needed(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=10.0)
    with pytest.raises(DeltatuneError, match=r"1 minutes are too few.*take about \d+\.\d minutes here"):
        fit_minutes(plan_for(tiny_folder, table, tmp_path / "out"))
    with pytest.raises(DeltatuneError, match="minutes must be above 0, not -1"):
        plan_for(tiny_folder, table, tmp_path / "out", minutes=-1.0)


def test_methods_are_timed_without_leaving_anything(tiny_folder, table, tmp_path):
    plan = plan_for(tiny_folder, table, tmp_path / "out")
    times = measure(plan)
    assert set(times.steps) == {"LoRA(r=2)", "BitFit()"}
    assert all(seconds > 0 for seconds in times.steps.values())
    assert times.row > 0
    assert not plan.session.host.adapters
    assert not (tmp_path / "out").exists()


def test_runs_are_added_while_there_is_time(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.5)
    options = {"minutes": 1.0, "rates": 1, "margin": 1e-6}
    plan = plan_for(tiny_folder, table, tmp_path / "out", **options)
    monkeypatch.setattr(run_comparison, "_seconds", lambda finals: 100.0)  # another run would take longer than is left
    summary = run(plan)
    assert [len(entry["seed_scores"]) for entry in summary["methods"]] == [2, 2]
    assert summary["decision"]["stopped"] in ("time", "decided")


@pytest.mark.slow
def test_runs_of_an_earlier_session_are_kept_whatever_the_time(tiny_folder, table, tmp_path, monkeypatch):
    timed(monkeypatch, step=0.5)
    options = {"minutes": 1.0, "rates": 1, "margin": 1e-6}
    monkeypatch.setattr(run_comparison, "_seconds", lambda finals: 0.0 if len(finals) < 4 else 100.0)
    first = run(plan_for(tiny_folder, table, tmp_path / "out", **options))
    assert [len(entry["seed_scores"]) for entry in first["methods"]] == [4, 4]
    monkeypatch.setattr(run_comparison, "_seconds", lambda finals: 100.0)
    again = run(plan_for(tiny_folder, table, tmp_path / "out", **options))
    assert (again["pairs"], again["decision"]) == (first["pairs"], first["decision"])


def test_what_workers_did_at_once_is_no_longer_than_it_took(tiny_folder, table, tmp_path, monkeypatch):
    comparison = run_comparison.Comparison(plan_for(tiny_folder, table, tmp_path / "out"), slots=2)
    monkeypatch.setattr(comparison, "_has_next", lambda asked: False)
    comparison.finals = {"LoRA(r=2)": [{"train_seconds": 1.0, "work_seconds": 1.0}]}
    comparison.cells.earlier_seconds = 100.0
    assert comparison._in_time(["LoRA(r=2)"]), "50 of 60 seconds are used"
    comparison.cells.earlier_seconds = 120.0
    assert not comparison._in_time(["LoRA(r=2)"])
