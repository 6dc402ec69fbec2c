"""Where figures go: every step and evaluation once, however often the run was stopped; trackers only if asked for."""

import dataclasses
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from deltatune.core.errors import DeltatuneError
from deltatune.store import run_folder
from deltatune.training import Settings, train
from deltatune.training.reporting import FILE, TRACKERS, read
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors

EACH = dataclasses.replace(PLAIN, epochs=3, checkpoint_every=4, evaluate="epoch")


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


class Stopped(Exception):
    pass


def stop_after(last):
    def on_step(step, *_):
        if step == last:
            raise Stopped

    return on_step


def run(tokenizer, out, settings=EACH, **options):
    return train(host_with(), "a", TASK, ROWS, ROWS[:20], tokenizer, settings, out, **options)


def steps(lines):
    return [line["step"] for line in lines if "loss" in line]


def test_every_step_and_evaluation_has_a_line(tokenizer, tmp_path):
    outcome = run(tokenizer, tmp_path)
    lines = read(tmp_path / FILE)
    figures = [line for line in lines if "loss" in line]
    assert [(line["step"], line["loss"]) for line in figures] == outcome.history
    assert [(line["step"], line["scores"]) for line in lines if "scores" in line] == outcome.evaluations
    assert set(figures[0]) == {"step", "epoch", "loss", "learning_rate", "rows_per_second", "seconds"}
    assert [line["epoch"] for line in figures[4:6]] == [1.0, 1.2]
    seconds = [line["seconds"] for line in figures]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= outcome.seconds
    assert all(line["rows_per_second"] > 0 for line in figures)


def test_a_resumed_run_doubles_no_line(tokenizer, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(tokenizer, whole)
    for last in (6, 11):
        with pytest.raises(Stopped):
            run(tokenizer, parts, on_step=stop_after(last))
        with (parts / FILE).open("a") as file:
            file.write('{"step": 12, "lo')  # killed while writing
    run(tokenizer, parts)
    run(tokenizer, parts)  # finished already
    ours, theirs = read(parts / FILE), read(whole / FILE)
    assert steps(ours) == list(range(1, 16))
    same = "step", "epoch", "loss", "learning_rate", "scores"
    pick = [[{name: line[name] for name in same if name in line} for line in lines] for lines in (ours, theirs)]
    assert pick[0] == pick[1]


@pytest.mark.parametrize("evaluate", ["end", "epoch"])
def test_a_finished_run_has_its_scores_once(evaluate, tokenizer, tmp_path):
    settings = dataclasses.replace(PLAIN, evaluate=evaluate)
    for _ in range(2):
        run(tokenizer, tmp_path, settings)
    scored = [line["step"] for line in read(tmp_path / FILE) if "scores" in line]
    assert scored == ([10] if evaluate == "end" else [5, 10])


def test_reports_can_be_elsewhere(tokenizer, tmp_path):
    run(tokenizer, tmp_path / "out", reports=tmp_path / "here")
    assert (tmp_path / "here" / FILE).is_file()
    assert not (tmp_path / "out" / FILE).exists()


def test_tensorboard_has_the_same_figures(tokenizer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = dataclasses.replace(EACH, report_to=("tensorboard",))
    with pytest.raises(Stopped):
        run(tokenizer, tmp_path, settings, on_step=stop_after(6))
    outcome = run(tokenizer, tmp_path, settings)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 16))
    assert losses == pytest.approx(dict(outcome.history))
    scores = {event.step: event.value for event in events.Scalars("eval/accuracy")}
    assert scores == pytest.approx({step: found["accuracy"] for step, found in outcome.evaluations})


@pytest.mark.parametrize("name", [name for name in TRACKERS if find_spec(name) is None])
def test_a_tracker_that_is_not_installed(name, tokenizer, tmp_path):
    with pytest.raises(DeltatuneError, match=f"{name} is not installed: pip install {name}"):
        run(tokenizer, tmp_path, dataclasses.replace(PLAIN, report_to=(name,)))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_named_with_the_nearest():
    with pytest.raises(DeltatuneError, match=r"no 'tensorbord', did you mean 'tensorboard'\?; known: tensorboard, w"):
        Settings(report_to=("tensorbord",))


def test_trackers_can_change_between_two_parts_of_a_run(tokenizer, tmp_path):
    with pytest.raises(Stopped):
        run(tokenizer, tmp_path, on_step=stop_after(6))
    again = dataclasses.replace(EACH, report_to=("tensorboard",), checkpointing=True)
    assert run(tokenizer, tmp_path, again).resumed == 4


def test_lines_are_plain_json(tokenizer, tmp_path):
    run(tokenizer, tmp_path)
    assert all(isinstance(json.loads(line), dict) for line in (tmp_path / FILE).read_text().splitlines())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("method", ["LoRA(r=4)", "Prefix(length=3, mlp=8)", "Bottleneck(size=4)", "Full()", "MAM()"])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_recomputing_blocks_changes_nothing(method, kind, tokenizer):
    results = []
    for wanted in (False, True):
        host = host_with(method, kind)
        settings = dataclasses.replace(PLAIN, max_steps=3, checkpointing=wanted, learning_rate=1e-3)
        outcome = train(host, "a", TASK, ROWS[:40], None, tokenizer, settings)
        assert not host.model.is_activation_checkpointing
        results.append((outcome.history, tensors(host)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-6)
    assert_same(results[0][1], results[1][1], rtol=0, atol=1e-6)  # T5's blocks share position biases: sums in any order


def test_blocks_are_computed_twice(tokenizer):
    host, seen = host_with(), []
    host.model.encoder.layer[1].attention.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    settings = dataclasses.replace(PLAIN, max_steps=1)
    train(host, "a", TASK, ROWS, None, tokenizer, settings)
    once = len(seen)
    train(host, "a", TASK, ROWS, None, tokenizer, dataclasses.replace(settings, checkpointing=True))
    assert len(seen) - once == 2 * once


def test_a_model_that_cannot_recompute_is_named(tokenizer):
    host = host_with()
    host.model.supports_gradient_checkpointing = False
    with pytest.raises(DeltatuneError, match="BertModel does not support gradient checkpointing"):
        train(host, "a", TASK, ROWS, None, tokenizer, dataclasses.replace(PLAIN, checkpointing=True))


def test_a_run_in_its_folder_goes_on_with_another_tracker_and_takes_its_figures_with_it(tmp_path):
    record = {"method": "LoRA(r=4)", "settings": dataclasses.asdict(PLAIN)}
    assert run_folder.open_run(tmp_path, record, force=False) is None
    finished = {"methods": {}}  # of several trainings: one of a single training is read with its adapter
    run_folder.finish(tmp_path, finished)
    free = {"settings": record["settings"] | {"report_to": ("wandb",), "checkpointing": True}}
    assert run_folder.open_run(tmp_path, record | free, force=False) == finished
    with pytest.raises(DeltatuneError, match=r"method: it was 'LoRA\(r=4\)', now it is 'Full\(\)'"):
        run_folder.open_run(tmp_path, record | {"method": "Full()"}, force=False)
    (tmp_path / FILE).write_text("{}\n")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert run_folder.open_run(tmp_path, record | {"method": "Full()"}, force=True) is None
    assert {path.name for path in tmp_path.iterdir()} == {run_folder.RECORD, "notes.txt"}


def test_a_folder_in_which_a_run_was_killed_at_its_start_is_no_foreign_one(tmp_path):
    (tmp_path / f".{run_folder.RECORD}.77.draft").write_text("{")
    assert run_folder.open_run(tmp_path, {}, force=False) is None
    run_folder.finish(tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {run_folder.RECORD, run_folder.METRICS}
