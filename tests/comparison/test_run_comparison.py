"""A whole comparison on a tiny model: search, seeds, interruption, failures, files."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from deltatune.comparison.plans.candidates import rates_around
from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.plans.plan import Cell
from deltatune.comparison.run_comparison import run, slug
from deltatune.comparison.works.works import Work, Worker
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.training import Settings
from deltatune.training import session as session_module
from deltatune.training.job import Job, prepare

WORDS = {"sun": ["the", "cat", "sat"], "rain": ["a", "dog", "ran"]}
METHODS = ("LoRA()", "Prefix()", "BitFit()", "Probe()")


@pytest.fixture
def table(tmp_path):
    dice = random.Random(0)
    lines = ["text,label"]
    for i in range(120):
        label = ("sun", "rain")[i % 2]
        lines.append(f"{' '.join(dice.choices(WORDS[label] + ['on', 'mat', str(i)], k=6))},{label}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def plan_for(tiny_folder, table, out, methods=METHODS, **more):
    options = {"budget": "2k", "seeds": 2, "rates": 2, "max_length": 16, **more}
    settings = Settings(epochs=2, batch_size=8, precision="float32")
    return make_plan(read(table), model=str(tiny_folder), methods=methods, settings=settings, out=out, **options)


def test_rates_spread_around_the_middle():
    assert rates_around(1e-3, 3) == (3.3e-4, 1e-3, 3e-3)
    assert rates_around(1e-3, 1) == (1e-3,)


def test_a_whole_comparison(tiny_folder, table, tmp_path):
    plan = plan_for(tiny_folder, table, tmp_path / "run")
    events = []
    summary = run(plan, events.append)
    stored = json.loads((tmp_path / "run/summary.json").read_text())
    assert stored["methods"] == json.loads(json.dumps(summary["methods"]))
    assert [entry["method"] for entry in stored["methods"]] == [c.text for c in plan.candidates]
    for entry, candidate in zip(stored["methods"], plan.candidates, strict=True):
        assert entry["failed"] is None
        assert entry["params"] == candidate.params <= 2000 or entry["reference"]
        assert len(entry["seed_scores"]) == 2
        assert entry["ci95"][0] <= entry["score"] <= entry["ci95"][1]
        assert entry["train_seconds"] > 0
        assert entry["adapter_bytes"] > 0
        assert entry["latency_ratio"] > 0
        assert len(entry["search"]) == 2
        assert entry["learning_rate"] in [rate for rate, _ in entry["search"]]
        best = max(score for _, score in entry["search"])
        chosen = dict(map(tuple, entry["search"]))[entry["learning_rate"]]
        assert chosen >= best * (1 - plan.splits["validation"].examples ** -0.5)
    merges = {entry["name"]: entry["latency_ratio_merged"] is not None for entry in stored["methods"]}
    assert merges == {"LoRA": True, "Prefix": False, "BitFit": True, "Probe": True}
    assert any(entry["tied_with_best"] for entry in stored["methods"])
    report = (tmp_path / "run/report.html").read_text()
    assert "LoRA" in report
    lines = [json.loads(line) for line in (tmp_path / "run/results.jsonl").read_text().splitlines()]
    assert len({line["cell"] for line in lines}) == len(lines)
    stages = [line["stage"] for line in lines]
    # each rate to the rung, the better one to its end; then the other seed, two tests and the costs
    assert (stages.count("final"), stages.count("costs")) == (4 * 2, 4)
    assert stages.count("search") >= 4 * 3, "and where the first seed was lucky, the other rate too"
    assert stages.count("seed") >= 4
    assert all(line["versions"]["torch"] and line["config"]["settings"]["learning_rate"] for line in lines)
    kinds = [event.kind for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "done"
    assert kinds.count("cell_done") == len(stages) >= 4 * (3 + 1 + 2 + 1)
    assert events[-1].done == events[-1].total
    assert plan.session.host.adapters == {}


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(tiny_folder, table, tmp_path, monkeypatch):
    whole = run(plan_for(tiny_folder, table, tmp_path / "whole", methods=("LoRA()", "BitFit()")))
    trained = []
    original = session_module.train

    def counted(*args, **kwargs):
        trained.append(1)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(session_module, "train", counted)
    plan = plan_for(tiny_folder, table, tmp_path / "cut", methods=("LoRA()", "BitFit()"))
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    with (tmp_path / "cut/results.jsonl").open("a") as file:
        file.write('{"cell": "half a li')
    again = run(plan_for(tiny_folder, table, tmp_path / "cut", methods=("LoRA()", "BitFit()")))
    stages = [json.loads(line)["stage"] for line in (tmp_path / "whole/results.jsonl").read_text().splitlines()]
    needed = stages.count("search") + stages.count("seed")
    assert len(trained) == needed + 1, "only the training that was interrupted began twice"
    for one, other in zip(whole["methods"], again["methods"], strict=True):
        assert one["seed_scores"] == other["seed_scores"]
        assert one["ci95"] == other["ci95"]
    monkeypatch.setattr(session_module, "train", lambda *a, **k: pytest.fail("nothing is left to train"))
    last = run(plan_for(tiny_folder, table, tmp_path / "cut", methods=("LoRA()", "BitFit()")))
    records = [json.loads(line) for line in (tmp_path / "cut/results.jsonl").read_text().splitlines()]
    trainings = [one["work_seconds"] for one in records if one["stage"] in ("search", "seed")]
    assert last["elapsed_seconds"] > sum(trainings), "what earlier sessions took counts"


def test_a_failed_cell_is_reported_and_the_rest_goes_on(tiny_folder, table, tmp_path, monkeypatch):
    original = session_module.train

    def fragile(host, name, *args, **kwargs):
        if type(host.adapters[name].method).__name__ == "Prefix":
            raise RuntimeError("out of memory, say")
        return original(host, name, *args, **kwargs)

    monkeypatch.setattr(session_module, "train", fragile)
    summary = run(plan_for(tiny_folder, table, tmp_path / "run", methods=("Prefix()", "BitFit()")))
    prefix, bitfit = summary["methods"]
    assert prefix["score"] is None
    assert "out of memory" in prefix["failed"]
    assert bitfit["score"] is not None
    assert len(summary["failed"]) == 2
    assert summary["recommendation"]["method"] == "BitFit()"


def test_adapters_of_a_comparison_can_be_used(tiny_folder, table, tmp_path):
    plan = plan_for(tiny_folder, table, tmp_path / "run", methods=("LoRA()",), seeds=1, rates=1)
    summary = run(plan)
    folder = tmp_path / "run" / summary["methods"][0]["adapter"]
    plan.session.host.load(folder, name="again")
    logits = dataclasses.replace(plan.session, name="again").predict(plan.splits["test"])
    records = map(json.loads, (tmp_path / "run/results.jsonl").read_text().splitlines())
    record = next(record for record in records if record["stage"] == "final")
    np.testing.assert_array_equal(logits, np.load(tmp_path / f"run/predictions/{record['cell']}.npy"))


def test_what_cannot_run_is_said_before_training(tiny_folder, table, tmp_path):
    with pytest.raises(DeltatuneError, match="no method is called 'LoRa'") as caught:
        plan_for(tiny_folder, table, tmp_path, methods=("LoRa()", "LoRA(sites='*.attn.qq')", "BitFit()"))
    assert "*.attn.qq" in str(caught.value)
    with pytest.raises(DeltatuneError, match=r"it is LoRA.r=7. at the budget 2k"):
        plan_for(tiny_folder, table, tmp_path, methods=("LoRA(r=2)", "LoRA(r=4)"))
    with pytest.raises(DeltatuneError, match="budget"):
        plan_for(tiny_folder, table, tmp_path, budget="3")


def test_slugs_are_folder_names():
    assert slug("LoRA(r=8, sites=('*.attn.q',)) + BitFit()") == "LoRA-r-8-sites-.attn.q-BitFit"


def test_a_search_goes_on_beyond_its_edge(tiny_folder, table, tmp_path, monkeypatch):
    original = session_module.train

    def higher_is_better(host, name, task, train, validation, tokenizer, settings, **more):
        outcome = original(host, name, task, train, validation, tokenizer, settings, **more)
        step, scores = outcome.evaluations[-1]
        outcome.evaluations[-1] = (step, scores | {"accuracy": settings.learning_rate})
        return outcome

    monkeypatch.setattr(session_module, "train", higher_is_better)
    events = []
    plan = plan_for(tiny_folder, table, tmp_path / "run", methods=("LoRA()",), rates=3)
    entry = run(plan, events.append)["methods"][0]
    assert [rate for rate, _ in entry["search"]] == [2e-3, 6e-3, 1.8e-2, 5.4e-2, 0.16], "6e-3 for so few steps"
    assert entry["learning_rate"] == 0.16
    assert entry["rate_at_edge"], "the report says that the search ended at an edge"
    assert events[-1].done == events[-1].total == 3 + 2 + 1 + 1, (
        "two rates beyond the edge, one to its end, the other seed"
    )
    monkeypatch.setattr(session_module, "train", lambda *a, **k: pytest.fail("nothing is left to train"))
    again = run(plan_for(tiny_folder, table, tmp_path / "run", methods=("LoRA()",), rates=3))["methods"]
    assert json.loads(json.dumps(again)) == json.loads(json.dumps([entry]))


# ---- the length of texts


@pytest.fixture
def long_texts(tmp_path):
    """Texts that are longer than the tiny model's positions."""
    dice = random.Random(0)
    lines = ["text,label"]
    for i in range(60):
        label = ("sun", "rain")[i % 2]
        lines.append(f"{' '.join(dice.choices([*WORDS[label], 'on', 'mat'], k=dice.randint(5, 200)))},{label}")
    path = tmp_path / "long.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def retrained(plan, summary, entry):
    """What `train` would train on, with the settings of the comparison's report."""
    task = {"max_length": summary["settings"]["max_length"]}
    settings = dataclasses.replace(plan.settings, learning_rate=entry["learning_rate"])
    return prepare(Job(summary["model"], plan.data, entry["method"], task=task, settings=settings))


def test_the_winner_reads_the_same_tokens_when_it_is_trained_again(tiny_folder, long_texts, tmp_path):
    plan = plan_for(
        tiny_folder, long_texts, tmp_path / "run", methods=("LoRA()", "Prefix(length=9)"), max_length=None, budget=None,
        seeds=1, rates=1,
    )  # fmt: skip
    summary = run(plan)
    assert plan.splits["train"].truncated
    for entry in summary["methods"]:
        again = retrained(plan, summary, entry)
        for split, rows in plan.splits.items():
            assert list(again.encoded[split]) == list(rows)


def test_all_methods_read_the_most_that_each_of_them_leaves(tiny_folder, long_texts, tmp_path):
    plans = {
        method: plan_for(tiny_folder, long_texts, tmp_path, methods=(method,), max_length=None, budget=None)
        for method in ("LoRA()", "Prefix(length=9)")
    }
    lengths = {method: plan.session.task.max_length for method, plan in plans.items()}
    assert lengths["LoRA()"] == plans["LoRA()"].session.positions
    assert lengths["Prefix(length=9)"] == lengths["LoRA()"] - 9
    for method, plan in plans.items():  # the same rule as in a single training
        assert prepare(Job(str(tiny_folder), plan.data, method)).session.task.max_length == lengths[method]
    both = plan_for(tiny_folder, long_texts, tmp_path, methods=tuple(plans), max_length=None, budget=None)
    assert both.session.task.max_length == lengths["Prefix(length=9)"]
    assert any("Prefix(length=9" in note and "takes 9 of the model's" in note for note in both.data.notes)
    assert not any("takes" in note for note in plans["LoRA()"].data.notes)


def test_a_method_that_leaves_no_positions_is_refused(tiny_folder, long_texts, tmp_path):
    with pytest.raises(DeltatuneError, match=r"Prefix\(length=900.*: max_length=2 cannot be used"):
        plan_for(
            tiny_folder, long_texts, tmp_path, methods=("LoRA()", "Prefix(length=900)"), max_length=None, budget=None
        )


def test_results_of_another_configuration_are_kept_and_announced(tiny_folder, table, tmp_path):
    options = {"methods": ("BitFit()",), "seeds": 1, "rates": 1}
    first = run(plan_for(tiny_folder, table, tmp_path / "run", **options))
    same = plan_for(tiny_folder, table, tmp_path / "run", **options)
    assert not any("another configuration" in note for note in same.notes())
    other = plan_for(tiny_folder, table, tmp_path / "run", max_length=12, **options)
    assert any("another configuration (task.max_length was 16, now it is 12)" in note for note in other.notes())
    run(other)
    again = run(plan_for(tiny_folder, table, tmp_path / "run", **options))
    assert again["methods"][0]["seed_scores"] == first["methods"][0]["seed_scores"]
    assert not plan_for(tiny_folder, table, tmp_path / "new", **options).notes()[len(same.data.notes) :]
    assert not (tmp_path / "new").exists()


def test_results_of_any_method_of_the_plan_are_not_another_configuration(tiny_folder, table, tmp_path):
    """A training that leaves the lower layers alone has a version of its own in its records."""
    options = {"seeds": 1, "rates": 1, "budget": None}
    run(plan_for(tiny_folder, table, tmp_path / "run", methods=("TopLayers(layers=1)",), **options))
    both = plan_for(tiny_folder, table, tmp_path / "run", methods=("BitFit()", "TopLayers(layers=1)"), **options)
    assert not any("another configuration" in note for note in both.notes())


def test_the_cost_of_steps_that_are_taken_again_counts_once(tiny_folder, table, tmp_path):
    """With more rates the rungs are others, and the checkpoints of a finished comparison are gone."""
    plan = plan_for(tiny_folder, table, tmp_path / "run", methods=("LoRA()",))
    cell, worker = Cell("search", plan.candidates[0], 0.01, 0), Worker(plan)

    def trained(folder, until, earlier=None):
        work = Work("train", cell, folder, folder, until=until, resumable=True, earlier=earlier)
        return worker.perform(work).record | {"until": until}

    apart = trained("apart", 12, trained("apart", 8))
    assert apart["cost"]["passes"] == pytest.approx(12 * 8 + 2 * plan.splits["validation"].examples, abs=8)
    lost = trained("lost", 12)
    shutil.rmtree(plan.out / "lost")
    assert trained("lost", 12, lost)["cost"]["passes"] == lost["cost"]["passes"], "all steps were taken again"
    trained("early", 6)
    early = trained("early", 12, trained("later", 8))
    assert early["cost"]["passes"] == pytest.approx(apart["cost"]["passes"], abs=10), "only the steps from 6 on were"
