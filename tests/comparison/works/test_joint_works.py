"""Trainings of a comparison that share passes of the base: the results of single ones, failures, interruptions."""

from __future__ import annotations

import dataclasses
import json
from collections import deque

import pytest

from deltatune.cli import main
from deltatune.comparison.executors import choose_executor
from deltatune.comparison.executors.executor import InProcess
from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.plans.plan import Cell
from deltatune.comparison.run_comparison import run
from deltatune.comparison.works import joint_works
from deltatune.comparison.works.joint_works import MOST_TOGETHER, JointWorker, may_share, take_together
from deltatune.comparison.works.works import Result, Work
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.training import Settings
from support import models
from support.command_line import review_folder


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A folder with a tiny BERT without dropout, its tokenizer, and data."""
    folder = tmp_path_factory.mktemp("still")
    models.tiny("bert", "lm", dropout=False).save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    review_folder(folder / "data")
    return folder


@pytest.fixture
def faster(monkeypatch):
    """Every measurement says that a shared pass is faster; holds the numbers of trainings that were asked about."""
    asked: list[int] = []
    monkeypatch.setattr(
        joint_works, "is_faster", lambda host, trainings, tokenizer: asked.append(len(trainings)) or True
    )
    return asked


@pytest.fixture
def passes(monkeypatch):
    """The numbers of adapters of every shared pass."""
    counts: list[int] = []
    original = joint_works.train_together

    def counting(host, trainings, tokenizer):
        counts.append(len(trainings))
        return original(host, trainings, tokenizer)

    monkeypatch.setattr(joint_works, "train_together", counting)
    return counts


def plan_for(still, out, methods=("LoRA()", "BitFit()"), together="auto", **more):
    settings = Settings(epochs=2, batch_size=8, precision="float32", **more.pop("settings", {}))
    options = {"budget": "2k", "seeds": 1, "rates": 2, "max_length": 16, "head": {"dropout": 0.0}, **more}
    model, data = str(still / "model"), read(still / "data")
    return make_plan(data, model=model, methods=methods, settings=settings, out=out, together=together, **options)


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def trainings(folder) -> dict[tuple, dict]:
    """Records of trainings by what they are, whatever their keys."""
    facts = ("method", "learning_rate", "seed", "until")
    return {tuple(one[fact] for fact in facts): one for one in records(folder) if one["stage"] in ("search", "seed")}


@pytest.fixture(scope="module")
def apart(still, tmp_path_factory):
    """The folder and the summary of a comparison whose trainings ran one after another."""
    folder = tmp_path_factory.mktemp("apart")
    return folder, run(plan_for(still, folder, together="off"))


def test_together_has_the_results_of_apart(still, tmp_path, apart, faster, passes):
    plan = plan_for(still, tmp_path)
    events = []
    summary = run(plan, events.append)
    assert passes == faster == [4, 2], "two rates of two methods, then one of each"
    folder, alone = apart
    for one, other in zip(summary["methods"], alone["methods"], strict=True):
        assert one["learning_rate"] == other["learning_rate"]
        assert one["seed_scores"] == pytest.approx(other["seed_scores"], abs=1e-6)
        assert one["params"] == other["params"]
        assert one["failed"] is None
        assert one["adapter_bytes"] == other["adapter_bytes"]
    single, shared = trainings(folder), trainings(tmp_path)
    assert single.keys() == shared.keys()
    together = [record for record in shared.values() if "together" in record]
    assert len(together) == sum(passes)
    for name, record in shared.items():
        assert [loss for _, loss in record["history"]] == pytest.approx(
            [loss for _, loss in single[name]["history"]], rel=1e-3, abs=1e-4
        )
        assert record["cost"]["passes"] == single[name]["cost"]["passes"], "a training's own rows"
        assert record["cost"]["tokens"] == pytest.approx(single[name]["cost"]["tokens"], rel=0.05)
        assert record["work_seconds"] > 0
    assert plan.session.host.adapters == {}
    started = [event.text for event in events if event.kind == "cell_start" and event.detail["kind"] == "train"]
    assert len(started) == len(set(started)) == len(shared)


def test_results_of_both_kinds_are_not_mixed(still, tmp_path, apart):
    folder, _ = apart
    off, auto = plan_for(still, folder, together="off"), plan_for(still, folder)
    cell = Cell("search", off.candidates[0], off.candidates[0].rates[0], 0)
    assert off.key(cell) in {record["cell"].partition("@")[0] for record in records(folder)}
    assert off.key(cell) != auto.key(cell)
    assert "together" not in off.identity(cell)
    assert not any("another configuration" in note for note in off.notes())
    assert any("together was" in note for note in auto.notes())


def test_a_failure_is_that_of_one_training(still, tmp_path, faster, passes, monkeypatch):
    def failing(host, trainings, tokenizer):
        outcomes = original(host, trainings, tokenizer)
        broken = [i for i, each in enumerate(trainings) if "BitFit" in repr(host.adapters[each.name].method)]
        return [DeltatuneError("the loss is nan") if i in broken else each for i, each in enumerate(outcomes)]

    original = joint_works.train_together
    monkeypatch.setattr(joint_works, "train_together", failing)
    plan = plan_for(still, tmp_path)
    summary = run(plan)
    lora, bitfit = summary["methods"]
    assert lora["failed"] is None
    assert len(lora["seed_scores"]) == 1
    assert bitfit["failed"]
    assert {one["error"] for one in records(tmp_path) if one["status"] != "ok"} >= {"DeltatuneError: the loss is nan"}
    assert plan.session.host.adapters == {}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("stage", ["is_faster", "train_together"])
def test_a_pass_that_cannot_be_shared_is_no_failure(still, tmp_path, apart, monkeypatch, stage):
    def refuse(*_):
        raise DeltatuneError("adapter 'x' cannot share a pass")

    monkeypatch.setattr(joint_works, "is_faster", lambda *_: True)
    monkeypatch.setattr(joint_works, stage, refuse)
    summary = run(plan_for(still, tmp_path))
    assert [one["seed_scores"] for one in summary["methods"]] == [one["seed_scores"] for one in apart[1]["methods"]]
    assert not summary["failed"]


@pytest.mark.slow
def test_one_after_another_where_that_is_as_fast(still, tmp_path, apart, passes, monkeypatch):
    measure, asked = joint_works.is_faster, []

    def slower(*args):
        asked.append(measure(*args))
        return False

    monkeypatch.setattr(joint_works, "is_faster", slower)
    plan = plan_for(still, tmp_path)
    summary = run(plan)
    assert asked
    assert not passes
    assert not any("together" in record for record in records(tmp_path))
    for one, other in zip(summary["methods"], apart[1]["methods"], strict=True):
        assert one["seed_scores"] == other["seed_scores"], "bit for bit: the measurement leaves no trace"
    assert plan.session.host.adapters == {}


@pytest.mark.slow
def test_other_methods_run_as_ever(still, tmp_path, faster, passes):
    methods = ("LoRA()", "Full()", "Probe()", "AdapterDrop(drop=1)", "Cloze(LoRA())")
    plan = plan_for(still, tmp_path, methods, seeds=1, budget=None)
    summary = run(plan)
    assert not summary["failed"]
    shared = {one["name"] for one in records(tmp_path) if "together" in one}
    assert passes
    assert shared == {"LoRA"}
    assert {entry["asked"] for entry in summary["methods"]} == set(methods)


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_comparison_goes_on(still, tmp_path, apart, faster, passes, monkeypatch, number):
    original = joint_works.train_together

    def interrupted(host, trainings, tokenizer):
        def stop(step, *_):
            if len(passes) == number and step > (trainings[0].until or 0) - 2:
                raise KeyboardInterrupt

        return original(host, [dataclasses.replace(each, on_step=stop) for each in trainings], tokenizer)

    monkeypatch.setattr(joint_works, "train_together", interrupted)
    plan = plan_for(still, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(plan)
    assert plan.session.host.adapters == {}
    before = len(records(tmp_path)) if (tmp_path / "results.jsonl").exists() else 0
    assert before == 4 * (number - 1), "those that paused are kept"
    monkeypatch.setattr(joint_works, "train_together", original)
    summary = run(plan_for(still, tmp_path))
    assert len({record["cell"] for record in records(tmp_path)}) == len(records(tmp_path)), "nothing runs twice"
    for one, other in zip(summary["methods"], apart[1]["methods"], strict=True):
        assert one["learning_rate"] == other["learning_rate"]
        assert one["seed_scores"] == pytest.approx(other["seed_scores"], abs=1e-6)


def test_a_measurement_is_remembered(still, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(joint_works, "is_faster", lambda *_: bool(asked.append(1)))
    monkeypatch.setattr(JointWorker, "perform", lambda self, work, on_step: Result({"of": work.key}))
    plan = plan_for(still, tmp_path)
    worker = JointWorker(plan)
    for texts, measured in (["LoRA", "BitFit"], 1), (["BitFit", "LoRA"], 1), (["LoRA"] * 2, 2), (["LoRA"] * 3, 3):
        works = list(works_of(plan, *texts))
        results = worker.perform_all(works, lambda work: None)
        assert [result.record["of"] for result in results] == [work.key for work in works]
        assert len(asked) == measured, texts
    assert plan.session.host.adapters == {}


def works_of(plan, *texts: str) -> deque[Work]:
    candidates = {candidate.method.label: candidate for candidate in plan.candidates}
    return deque(
        Work("train", Cell("search", candidates[name], 0.1, i), f"{name}-{i}", f"search/{name}-{i}")
        for i, name in enumerate(texts)
    )


def test_works_that_wait_are_taken_together(still, tmp_path):
    plan = plan_for(still, tmp_path, ("LoRA()", "Full()", "BitFit()"))
    queue = works_of(plan, "LoRA", "Full", "BitFit", "LoRA")
    test = dataclasses.replace(queue[0], kind="test", key="test")
    again = dataclasses.replace(queue[0], key="again")  # the same training, to another step
    queue.extend([test, again])
    assert [work.key for work in take_together(plan, queue)] == ["LoRA-0", "BitFit-2", "LoRA-3"]
    assert [[work.key for work in take_together(plan, queue)] for _ in range(3)] == [["Full-1"], ["test"], ["again"]]
    many = works_of(plan, *["LoRA"] * 11)
    assert len(take_together(plan, many)) == MOST_TOGETHER
    assert len(take_together(plan, many)) == 3
    off = dataclasses.replace(plan, together="off")
    assert len(take_together(off, works_of(plan, "LoRA", "LoRA"))) == 1
    compiled = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, compile="on"))
    assert not may_share(compiled, works_of(plan, "LoRA")[0])


def test_what_cannot_be_is_refused(still, tmp_path):
    with pytest.raises(DeltatuneError, match="together must be off or auto, not 'always'"):
        plan_for(still, tmp_path, together="always")
    with pytest.raises(DeltatuneError, match="one process, which workers=2 is not"):
        plan_for(still, tmp_path, workers=2)
    with pytest.raises(DeltatuneError, match="one process, which executor=ray is not"):
        plan_for(still, tmp_path, executor="ray")


def test_passes_are_shared_in_one_process(still, tmp_path, monkeypatch):
    monkeypatch.setattr(choose_executor, "is_long", lambda plan: True)
    monkeypatch.setattr(choose_executor, "worker_count", lambda plan: 4)
    assert choose_executor.choose_executor(plan_for(still, tmp_path)) == (InProcess, 1)
    assert choose_executor.choose_executor(plan_for(still, tmp_path, workers=1)) == (InProcess, 1)
    assert choose_executor.choose_executor(plan_for(still, tmp_path, together="off"))[1] == 4


def test_the_command_takes_it(still, tmp_path, monkeypatch):
    from deltatune.comparison.plans import make_plan as module

    seen = []

    def stop(*args, **more):
        seen.append(more["together"])
        raise DeltatuneError("enough")

    monkeypatch.setattr(module, "make_plan", stop)
    command = ["compare", "--model", str(still / "model"), "--data", str(still / "data"), "--method", "LoRA()"]
    assert main([*command, "--out", str(tmp_path / "a")]) != 0
    assert main([*command, "--out", str(tmp_path / "b"), "--together"]) != 0
    assert seen == ["off", "auto"]
