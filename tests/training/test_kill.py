"""Runs killed with SIGKILL at any moment: the same command again ends with the same adapter, and nothing lies about."""

import json
from pathlib import Path

import pytest

from deltatune.store.adapter_folder import TENSORS
from support import models
from support.command_line import review_folder
from support.killed import killed
from support.language_models import generation_tokenizer, make_rows

QUICK = ["--epochs", "3", "--lr", "1e-2", "--batch-size", "16", "--accumulation", "2", "--precision", "float32"]
CASES = {
    "classify": ["--max-length", "32"],
    "generate": ["--task", "generate", "--packing", "--max-length", "48", "--new-tokens", "4"],
    "lm": ["--task", "lm", "--text", "text", "--packing", "--max-length", "32"],
}


def prepared(case: str, folder: Path) -> list[str]:
    """A command that trains a tiny model of the folder on data of the folder."""
    model, data = folder / "model", folder / "data"
    if case == "generate":
        data.mkdir()
        for seed, split in enumerate(("train", "dev", "test")):
            lines = [json.dumps(row) for row in make_rows(8 if seed else 40, seed)]
            (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    else:
        review_folder(data)
    (models.tiny("bert") if case == "classify" else models.tiny("llama", "lm")).save_pretrained(model)
    generation_tokenizer().save_pretrained(model)
    return ["train", "--model", str(model), "--data", str(data), *QUICK, *CASES[case]]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def scores(folder: Path) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    return {split: found[split] for split in ("validation", "test")} | {"loss": found["training"]["final_loss"]}


def figures(folder: Path) -> list[dict]:
    """What metrics.jsonl says, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def assert_as_if_never_killed(folder: Path) -> int:
    """Every run in the folder has the bytes of the uninterrupted one, and no file more; how many there are."""
    whole = folder / "whole"
    others = [path for path in folder.iterdir() if path.name != "whole" and (path / "run.json").exists()]
    for other in others:
        assert files(other) == files(whole), other.name
        adapter = Path("adapter") / TENSORS
        assert (other / adapter).read_bytes() == (whole / adapter).read_bytes(), other.name
        assert scores(other) == scores(whole), other.name
        assert figures(other) == figures(whole), other.name
    return len(others)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    killed(prepared("lm", tmp_path), tmp_path, touches=1)
    assert assert_as_if_never_killed(tmp_path) == 1


def tried(folder: Path) -> dict:
    search = json.loads((folder / "metrics.json").read_text())["training"]["search"]
    return {name: value for name, value in search.items() if name != "seconds"}


@pytest.mark.slow
def test_a_killed_search_of_a_rate_ends_as_if_it_had_not_been(tmp_path):
    command = [*prepared("classify", tmp_path), "--lr", "auto", "--epochs", "12"]
    killed(command, tmp_path, touches=2, clock=2)
    assert assert_as_if_never_killed(tmp_path) == 4
    assert all(tried(path.parent) == tried(tmp_path / "whole") for path in tmp_path.glob("*/metrics.json"))


@pytest.mark.slow
def test_there_is_no_moment_of_a_search_at_which_a_kill_does_harm(tmp_path):
    """Killed at many changes of a file: the rate and the adapter are the same."""
    killed([*prepared("classify", tmp_path), "--lr", "auto", "--epochs", "12"], tmp_path, touches=40, clock=8)
    assert assert_as_if_never_killed(tmp_path) == 42
    assert all(tried(path.parent) == tried(tmp_path / "whole") for path in tmp_path.glob("*/metrics.json"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_survives(case, tmp_path):
    assert killed(prepared(case, tmp_path), tmp_path, touches=8, clock=8)["clock"] >= 3
    assert assert_as_if_never_killed(tmp_path) == 10


@pytest.mark.slow
def test_there_is_no_moment_at_which_a_kill_does_harm(tmp_path):
    """Killed before every single change of a file, one run each."""
    said = killed(prepared("classify", tmp_path), tmp_path, touches=0, clock=20)
    assert said["touches"] > 100
    assert assert_as_if_never_killed(tmp_path) == said["touches"] + 2
