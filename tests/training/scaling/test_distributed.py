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
from deltatune.core.errors import DeltatuneError
from deltatune.training import predict
from deltatune.training.scaling.distributed import Processes, check_devices, check_launch
from support import models
from support.command_line import QUICK, ran, reviews, write_csv
from support.processes import CASES, host_for, train_case
from support.runs import QUIET, ROWS, TASK, assert_same, tensors

slow = pytest.mark.slow
"""Each start of two processes takes some ten seconds, most of it imports: one is for the quick tests."""

QUICK_CASES = ["lora", "prefix", "full", "drop", "llama-packed", "pieces", "t5", "few"]
"""Those of the quick tests: a method of each kind, a step of several pieces, rows that are left over."""


def marked(cases):
    """Cases as parameters; the others of them are slow."""
    return [pytest.param(case, marks=[] if case in QUICK_CASES else slow) for case in cases]


EQUAL = [case for case in CASES if case != "drop"]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "{count}"]
COMMAND = ["--no-python", Path(sys.executable).parent / "deltatune"]
LAUNCH = ["accelerate.commands.launch", "--num_processes", "{count}", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def processes(folder, count=2, command=TORCHRUN, environment=None, **options):
    """Run tests/processes.py in some processes."""
    script = str(Path(__file__).parents[2] / "support/processes.py")
    return started(command, [script, str(folder), json.dumps(options)], count, environment)


def started(command, words, count=2, environment=None):
    """What came of some processes that `command` has started."""
    return subprocess.run(
        [sys.executable, "-m", *(part.format(count=count) for part in command), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )


def found(folder, case, rank=0):
    return load_file(folder / f"{case}.{rank}.safetensors"), json.loads((folder / f"{case}.{rank}.json").read_text())


@pytest.fixture(scope="module")
def together(tmp_path_factory, request):
    """The cases in two processes: all of them where a slow test is among those that run."""
    slow_too = any(item.get_closest_marker("slow") for item in request.session.items)
    folder = tmp_path_factory.mktemp("together")
    run = processes(folder, cases=list(CASES) if slow_too else QUICK_CASES)
    assert run.returncode == 0, run.stderr
    return folder


def learned(values):
    """Without the biases of keys, which softmax cancels: their gradients are noise, which Adam makes large."""
    return {name: value for name, value in values.items() if not name.endswith("key.bias.value")}


@pytest.mark.slow
@pytest.mark.parametrize("case", marked(EQUAL))
def test_two_processes_train_what_one_does(case, together):
    host, outcome = train_case(case)
    for rank in range(2):
        theirs, said = found(together, case, rank)
        assert [step for step, _ in said["history"]] == [step for step, _ in outcome.history]
        np.testing.assert_allclose(
            [loss for _, loss in said["history"]], [loss for _, loss in outcome.history], atol=1e-5
        )
        assert_same(learned(tensors(host)), learned(theirs), rtol=0, atol=1e-5)
        assert len(said["evaluations"]) == len(outcome.evaluations)
        for (step, ours), (other, scores) in zip(outcome.evaluations, said["evaluations"], strict=True):
            assert step == other
            assert scores == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("case", marked(CASES))
def test_the_processes_agree_to_the_last_bit(case, together):
    (one, said), (other, heard) = (found(together, case, rank) for rank in range(2))
    assert_same(one, other)
    assert said == heard


@slow
def test_three_processes(tmp_path):
    run = processes(tmp_path, 3, cases=["lora", "few"])
    assert run.returncode == 0, run.stderr
    for case in ("lora", "few"):
        host, outcome = train_case(case)
        theirs, said = found(tmp_path, case, 2)
        assert_same(tensors(host), theirs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(said["history"], outcome.history, atol=1e-5)


@slow
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


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SPREAD = [case for case in EQUAL if "full" not in case and case != "nf4"]


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """Every case that can be on a base spread over two processes."""
    folder = tmp_path_factory.mktemp("spread")
    run = processes(folder, cases=[*SPREAD, "drop"], environment=SHARDED)
    assert run.returncode == 0, run.stderr
    return folder


@slow
@pytest.mark.parametrize("case", SPREAD)
def test_a_spread_base_trains_the_same_adapter(case, spread):
    host, outcome = train_case(case)
    for rank in range(2):
        theirs, said = found(spread, case, rank)
        assert said["spread"] > 10
        assert [scores for _, scores in said["evaluations"]] == [
            pytest.approx(scores, rel=1e-4) for _, scores in outcome.evaluations
        ]
        np.testing.assert_allclose(said["history"], outcome.history, atol=1e-5)
        assert_same(tensors(host), theirs, rtol=0, atol=1e-5)
    other = host_for(None, CASES[case][1])
    other.load(spread / case, name="a")
    assert_same(tensors(host), tensors(other), rtol=0, atol=1e-5)


@slow
def test_a_spread_run_goes_on_bit_for_bit(spread, tmp_path):
    out = tmp_path / "out"
    stopped = processes(tmp_path, cases=["drop"], out=str(out), stop=7, environment=SHARDED)
    assert "Stopped" in stopped.stderr
    again = processes(tmp_path, cases=["drop"], out=str(out), environment=SHARDED)
    assert again.returncode == 0, again.stderr
    for rank in range(2):
        assert_same(found(spread, "drop", rank)[0], found(tmp_path, "drop", rank)[0])


@slow
def test_a_spread_base_is_neither_merged_into_nor_read(tmp_path):
    run = processes(tmp_path, environment=SHARDED)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("merging 'a' reads the base's weights, which are sharded") == 2
    assert run.stdout.count("attaching LoRA(r=2) reads the base's weights, which are sharded") == 2


@slow
@pytest.mark.parametrize("more", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["whole", "spread"])
def test_accelerate_launch(more, tmp_path):
    run = processes(tmp_path, command=[*LAUNCH, *more], cases=["lora"])
    assert run.returncode == 0, run.stderr
    host, _ = train_case("lora")
    theirs, said = found(tmp_path, "lora", 1)
    assert_same(tensors(host), theirs, rtol=0, atol=1e-5)
    assert bool(said["spread"]) == ("--use_fsdp" in more)


@slow
@pytest.mark.parametrize(
    ("case", "environment", "message"),
    [
        ("full", SHARDED, "lives in the base's own weights"),
        ("nf4", SHARDED, "weights of the base are stored in nf4, and FSDP shards no codes"),
        ("lora", {**SHARDED, "FSDP_VERSION": "1"}, "start with --fsdp_version 2"),
        ("lora", {**SHARDED, "FSDP_OFFLOAD_PARAMS": "true"}, "(--fsdp_offload_params)"),
        ("lora", {"ACCELERATE_MIXED_PRECISION": "fp16"}, "--mixed_precision fp16, but Settings"),
    ],
)
def test_what_cannot_be_is_refused(case, environment, message, tmp_path):
    run = processes(tmp_path, cases=[case], environment=environment)
    assert run.returncode != 0
    assert "DeltatuneError" in run.stderr
    assert message in run.stderr


@slow
def test_the_command_line(tmp_path):
    model, data = tmp_path / "model", write_csv(tmp_path / "rows.csv", reviews())
    models.tiny("bert", **QUIET).save_pretrained(model)
    models.tiny_tokenizer().save_pretrained(model)
    words = ["--model", model, "--data", data, *QUICK, "--method", "LoRA(r=4)"]
    alone = ran("train", *words, "--out", tmp_path / "alone")
    assert alone.code == 0, alone.err
    run = started(TORCHRUN, [*COMMAND, "train", *words, "--out", tmp_path / "together"])
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Use it: deltatune predict") == 1
    assert [path.name for path in (tmp_path / "together").iterdir() if path.name.startswith(".")] == []
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "together")]
    assert scores[0]["test"] == pytest.approx(scores[1]["test"], rel=1e-4)
    again = started(TORCHRUN, [*COMMAND, "train", *words, "--out", tmp_path / "together"])
    assert again.returncode == 0, again.stderr
    assert "This run was finished before" in again.stdout
    other = started(TORCHRUN, [*COMMAND, "methods"])
    assert other.returncode != 0
    assert "`deltatune methods` runs in one process" in other.stderr


@slow
def test_processes_on_different_runs_are_refused(tmp_path):
    run = processes(tmp_path, cases=["lora"], odd=True)
    assert run.returncode != 0
    assert "DeltatuneError: the processes of this run differ" in run.stderr
    assert "settings.seed: process 0 has 0, process 1 1" in run.stderr


def test_what_accelerate_is_told_and_training_does_not_do_is_refused(monkeypatch):
    check_launch(bfloat16=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launch(bfloat16=True)
    with pytest.raises(DeltatuneError, match=r"--mixed_precision bf16, but .* not in bfloat16"):
        check_launch(bfloat16=False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(DeltatuneError, match="told to use DeepSpeed"):
        check_launch(bfloat16=True)


def test_two_processes_on_one_gpu_are_refused():
    check_devices([("a", "cpu", 0), ("a", "cpu", 0)])
    check_devices([("a", "cuda:0", 1), ("b", "cuda:0", 1)])
    with pytest.raises(DeltatuneError, match="processes 0 and 1 both have the model on cuda:0 of a, which has 2 GPUs"):
        check_devices([("a", "cuda:0", 2), ("a", "cuda:0", 2)])


def test_alone_nothing_is_sent():
    alone = Processes()
    assert alone.is_main
    assert alone.sum_counts(3, 4) == [3, 4]
    assert alone.broadcast("x") == "x"
    assert alone.all_gather("x") == ["x"]
    alone.check_equal({"seed": 0})
    parameter = torch.nn.Parameter(torch.zeros(2))
    alone.sum_gradients_([parameter])
    assert parameter.grad is None
