"""Several processes: the same losses and the same adapter as in one, whatever the method, the task and the split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deltatune
import models
from deltatune.core.errors import DeltatuneError
from deltatune.training import predict
from deltatune.training.distributed import World, check_places
from processes import CASES, train_case
from runs import ROWS, TASK, assert_same, tensors

pytestmark = pytest.mark.slow
"""Each start of two processes takes some ten seconds, most of it imports."""

EQUAL = [case for case in CASES if case != "drop"]


def processes(folder, count=2, environment=None, **options):
    """Run tests/processes.py in some processes, as `torchrun` does."""
    script = str(Path(__file__).parent / "processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return subprocess.run(
        [*command, script, str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )


def found(folder, case, rank=0):
    return load_file(folder / f"{case}.{rank}.safetensors"), json.loads((folder / f"{case}.{rank}.json").read_text())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Every case in two processes."""
    folder = tmp_path_factory.mktemp("together")
    run = processes(folder, cases=list(CASES))
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize("case", EQUAL)
def test_two_processes_train_what_one_does(case, together):
    host, outcome = train_case(case)
    for rank in range(2):
        theirs, said = found(together, case, rank)
        assert [step for step, _ in said["history"]] == [step for step, _ in outcome.history]
        np.testing.assert_allclose(
            [loss for _, loss in said["history"]], [loss for _, loss in outcome.history], atol=1e-5
        )
        assert_same(tensors(host), theirs, rtol=0, atol=1e-5)
        assert len(said["evaluations"]) == len(outcome.evaluations)
        for (step, ours), (other, scores) in zip(outcome.evaluations, said["evaluations"], strict=True):
            assert step == other
            assert scores == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_processes_agree_to_the_last_bit(case, together):
    (one, said), (other, heard) = (found(together, case, rank) for rank in range(2))
    assert_same(one, other)
    assert said == heard


def test_three_processes(tmp_path):
    run = processes(tmp_path, 3, cases=["lora", "few"])
    assert run.returncode == 0, run.stderr
    for case in ("lora", "few"):
        host, outcome = train_case(case)
        theirs, said = found(tmp_path, case, 2)
        assert_same(tensors(host), theirs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(said["history"], outcome.history, atol=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(together, tmp_path):
    out = tmp_path / "out"
    stopped = processes(tmp_path, cases=["drop"], out=str(out), stop=7)
    assert stopped.returncode != 0
    assert "Stopped" in stopped.stderr
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    again = processes(tmp_path, cases=["drop"], out=str(out))
    assert again.returncode == 0, again.stderr
    for rank in range(2):
        whole, wanted = found(together, "drop", rank)
        resumed, said = found(tmp_path, "drop", rank)
        assert_same(whole, resumed)
        assert said == wanted
    host = deltatune.Host(models.tiny("bert"))  # what is written is whole, and one process reads it
    host.load(out / "checkpoint-10" / "adapter", name="a")
    assert_same(tensors(host), whole)
    assert np.isfinite(predict(host, "a", TASK, ROWS[:5], models.tiny_tokenizer())).all()


def test_processes_on_different_runs_are_refused(tmp_path):
    run = processes(tmp_path, cases=["lora"], odd=True)
    assert run.returncode != 0
    assert "DeltatuneError: the processes of this run differ" in run.stderr
    assert "settings.seed: process 0 has 0, process 1 1" in run.stderr


def test_two_processes_on_one_gpu_are_refused():
    check_places([("a", "cpu", 0), ("a", "cpu", 0)])
    check_places([("a", "cuda:0", 1), ("b", "cuda:0", 1)])
    with pytest.raises(DeltatuneError, match="processes 0 and 1 both have the model on cuda:0 of a, which has 2 GPUs"):
        check_places([("a", "cuda:0", 2), ("a", "cuda:0", 2)])


def test_alone_nothing_is_sent():
    alone = World()
    assert alone.first
    assert alone.sums(3, 4) == [3, 4]
    assert alone.told("x") == "x"
    assert alone.gathered("x") == ["x"]
    alone.check_agree({"seed": 0})
    parameter = torch.nn.Parameter(torch.zeros(2))
    alone.average_gradients_([parameter])
    assert parameter.grad is None
