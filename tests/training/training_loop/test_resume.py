"""Stopping a run and going on: bit for bit what one run gives, from the newest whole checkpoint of the same run."""

import dataclasses
import random

import numpy as np
import pytest
import torch

import deltatune
from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import MANIFEST, digest, read_json, write_json
from deltatune.training import predict, train
from support import models
from support.runs import PLAIN, ROWS, TASK, assert_same, host_with, tensors


@pytest.fixture
def tokenizer():
    return models.tiny_tokenizer()


class Stopped(Exception):
    pass


def stop_after(last):
    def on_step(step, total, loss, rate):
        if step == last:
            raise Stopped

    return on_step


RESUMED = [("LoRA(r=4)", 2), ("LoRA(r=4)", None), ("Prefix(length=3, mlp=8)", 3), ("Probe()", 1), ("Full()", 4)]


@pytest.mark.parametrize(("method", "every"), RESUMED)
def test_a_stopped_run_goes_on_bit_for_bit(method, every, tokenizer, tmp_path):
    settings = dataclasses.replace(PLAIN, epochs=3, checkpoint_every=every, accumulation=2, evaluate="epoch")
    whole = host_with(method)
    wanted = train(whole, "a", TASK, ROWS, ROWS[:9], tokenizer, settings)
    last = random.Random(f"{method}{every}").randint((every or 5) + 1, 14)
    with pytest.raises(Stopped):
        train(host_with(method), "a", TASK, ROWS, ROWS[:9], tokenizer, settings, tmp_path, stop_after(last))
    torch.manual_seed(99)
    again = host_with(method, head_seed=0)
    outcome = train(again, "a", TASK, ROWS, ROWS[:9], tokenizer, settings, tmp_path)
    assert 0 < outcome.resumed < last
    assert_same(tensors(whole), tensors(again))
    assert outcome.history == wanted.history
    assert outcome.evaluations == wanted.evaluations
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}


def test_a_finished_run_is_not_repeated(tokenizer, tmp_path):
    first = host_with()
    wanted = train(first, "a", TASK, ROWS, ROWS[:9], tokenizer, PLAIN, tmp_path)
    seen, second = [], host_with()
    outcome = train(second, "a", TASK, ROWS, ROWS[:9], tokenizer, PLAIN, tmp_path, lambda *step: seen.append(step))
    assert seen == []
    assert_same(tensors(first), tensors(second))
    assert outcome.history == wanted.history
    assert outcome.evaluations == wanted.evaluations


def test_a_run_that_ended_within_an_epoch_is_not_continued(tokenizer, tmp_path):
    settings = dataclasses.replace(PLAIN, max_steps=7)
    for resumed in (0, 7):
        host = host_with()
        outcome = train(host, "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
        assert outcome.resumed == resumed
        assert [step for step, _ in outcome.history] == list(range(1, 8))
    assert (tmp_path / "checkpoint-7").is_dir()
    assert not (tmp_path / "checkpoint-8").exists()


def test_a_broken_checkpoint_is_passed_over(tokenizer, tmp_path):
    settings = dataclasses.replace(PLAIN, checkpoint_every=2)
    train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]
    broken = tmp_path / "checkpoint-10" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    (tmp_path / "checkpoint-12").mkdir()  # a folder without a manifest
    whole, again = host_with(), host_with()
    train(whole, "a", TASK, ROWS, None, tokenizer, settings)
    outcome = train(again, "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    assert outcome.resumed == 8
    assert_same(tensors(whole), tensors(again))


def test_a_checkpoint_is_an_adapter_folder(tokenizer, tmp_path):
    host = host_with()
    train(host, "a", TASK, ROWS, None, tokenizer, PLAIN, tmp_path)
    other = deltatune.Host(models.tiny("bert"))
    other.load(tmp_path / "checkpoint-10" / "adapter", name="b")
    ours, theirs = predict(host, "a", TASK, ROWS, tokenizer), predict(other, "b", TASK, ROWS, tokenizer)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": dataclasses.replace(PLAIN, learning_rate=0.5)}, r"settings.learning_rate: .*this run has 0\.5"),
        ({"rows": ROWS[1:]}, "rows: "),
        ({"host": "LoRA(r=2)"}, r"(?s)method: .*r=4.*r=2"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tokenizer, tmp_path):
    train(host_with(), "a", TASK, ROWS, None, tokenizer, PLAIN, tmp_path)
    host = host_with(change.get("host", "LoRA(r=4)"))
    with pytest.raises(DeltatuneError, match=message):
        train(host, "a", TASK, change.get("rows", ROWS), None, tokenizer, change.get("settings", PLAIN), tmp_path)


@pytest.mark.parametrize("warmup", [0.06, 0.0])
def test_a_run_begun_with_the_earlier_warm_up_is_not_mixed_with_the_new_one(warmup, tokenizer, tmp_path):
    settings = dataclasses.replace(PLAIN, warmup=warmup, checkpoint_every=2)
    with pytest.raises(Stopped):
        train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path, stop_after(3))
    folder = tmp_path / "checkpoint-2"
    record = read_json(folder / "run.json")
    del record["identity"]["schedule_version"], record["progress"]["moved"]  # as earlier versions wrote it
    write_json(folder / "run.json", record)
    manifest = read_json(folder / MANIFEST)
    manifest["files"]["run.json"] = digest(folder / "run.json")
    write_json(folder / MANIFEST, manifest)
    if warmup:
        with pytest.raises(DeltatuneError, match="another version of deltatune began this run, with another warm-up"):
            train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    else:
        assert train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path).resumed == 2


def test_what_a_killed_run_left_is_removed(tokenizer, tmp_path):
    settings = dataclasses.replace(PLAIN, checkpoint_every=2)
    with pytest.raises(Stopped):
        train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path, stop_after(7))
    (tmp_path / ".checkpoint-8.x1y2" / "adapter").mkdir(parents=True)  # killed while writing
    (tmp_path / ".metrics.jsonl.1.draft").write_text("{")
    (tmp_path / "checkpoint-2").mkdir()  # killed while deleting
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "mine.txt").write_text("kept")
    whole, again = host_with(), host_with()
    train(whole, "a", TASK, ROWS, None, tokenizer, settings)
    outcome = train(again, "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    assert outcome.resumed == 6
    assert_same(tensors(whole), tensors(again))
    names = {path.name for path in tmp_path.iterdir()} - {"metrics.jsonl"}
    assert names == {"checkpoint-8", "checkpoint-10", "mine.txt"}
    train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path)  # a finished run is tidied too
    assert {path.name for path in tmp_path.iterdir()} - {"metrics.jsonl"} == names
