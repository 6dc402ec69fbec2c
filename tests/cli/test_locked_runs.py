"""Two processes in one run folder: the second is refused with the first one's name, and writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.training import train
from support import models
from support.command_line import QUICK, ran, review_folder
from support.holder import Holder
from support.runs import PLAIN, ROWS, TASK, host_with


@pytest.fixture
def data(tmp_path):
    return review_folder(tmp_path / "data")


def commands(model: Path, data: Path, out: Path) -> dict[str, list[str]]:
    """A command of every kind that writes a run folder."""
    recipe = out.parent / "recipe.yaml"
    recipe.write_text(f"model: {model}\ndata: {data}\nmethod: BitFit()\nout: {out}\nsettings:\n  max_steps: 1\n")
    stages = out.parent / "stages.yaml"
    stages.write_text(f"model: {model}\nout: {out}\nstages:\n  - name: one\n    data: {data}\n    method: BitFit()\n")
    common = ["--model", str(model), "--data", str(data), *QUICK, "--out", str(out)]
    return {
        "train": ["train", *common],
        "force": ["train", *common, "--force"],
        "compare": ["compare", *common, "--method", "BitFit()"],
        "dimension": ["dimension", *common],
        "run": ["run", str(recipe)],
        "stages": ["run", str(stages)],
        "pretrain": ["pretrain", *common[2:4], "--out", str(out), "--config", str(model / "config.json"),
                     "--tokenizer", str(model)],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["train", "force", "compare", "dimension", "run", "stages", "pretrain"])
def test_every_command_is_refused_where_another_process_runs(kind, tiny_folder, data, tmp_path):
    out = tmp_path / "run"
    holder = Holder(out)
    before = sorted(out.iterdir())
    done = ran(*commands(tiny_folder, data, out)[kind])
    assert done.code == 2
    assert f"run is in use by process {holder.process.pid} on" in done.err
    assert sorted(out.iterdir()) == before
    holder.end()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "compare"])
def test_of_runs_begun_at_once_one_is_let_in(kind, tiny_folder, data, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "deltatune", *commands(tiny_folder, data, out)[kind]]
    command[command.index("--epochs") + 1] = "3"
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | quiet)
        for _ in range(2)
    ]
    errors = {run.pid: run.communicate()[1] for run in runs}
    winners = [run for run in runs if run.returncode == 0]
    losers = [run for run in runs if run.returncode == 2]
    assert len(winners) + len(losers) == 2, errors
    assert winners, errors
    for loser in losers:
        assert "is in use by process" in errors[loser.pid]
    assert not (out / ".lock").exists()
    if kind == "train":
        steps = [
            json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line
        ]
        assert steps == list(range(1, max(steps) + 1))


def test_training_from_python_is_refused_as_well(tmp_path):
    holder = Holder(tmp_path)
    with pytest.raises(DeltatuneError, match=f"is in use by process {holder.process.pid} on "):
        train(host_with(), "a", TASK, ROWS, None, models.tiny_tokenizer(), PLAIN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    holder.end()
    train(host_with(), "a", TASK, ROWS, None, models.tiny_tokenizer(), PLAIN, tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_runs_in_two_folders_do_not_meet(tiny_folder, data, tmp_path):
    holder = Holder(tmp_path / "one")
    done = ran(*commands(tiny_folder, data, tmp_path / "two")["train"])
    assert done.code == 0, done.err
    holder.end()
