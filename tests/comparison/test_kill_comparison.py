"""Comparisons and searches killed with SIGKILL at any moment: the same command again ends with the same results."""

import json
import re
from pathlib import Path

import pytest

from support import models
from support.command_line import review_folder
from support.killed import killed

TIMES = re.compile(r"second|created|pscp|latency|memory|_ms|speed|versions|sentence")
COMMANDS = {
    "compare": ["compare", "--method", "BitFit()", "--method", "LoRA(r=2)", "--rates", "2", "--seeds", "2"],
    "dimension": ["dimension", "--rates", "3", "--max", "60", "--fraction", "1"],
}


def prepared(case: str, folder: Path) -> list[str]:
    """A command on a tiny model and data of the folder."""
    review_folder(folder / "data")
    models.tiny("bert").save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    quick = ["--epochs", "1", "--max-length", "16", "--precision", "float32", "--batch-size", "32"]
    return [*COMMANDS[case], "--model", str(folder / "model"), "--data", str(folder / "data"), *quick]


def without_times(value):
    """The same value without figures of time and memory."""
    if isinstance(value, dict):
        return {name: without_times(entry) for name, entry in value.items() if not TIMES.search(name)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def results(folder: Path) -> dict:
    """What a finished folder says: its files, its records by cell, its summary and the tensors of its adapters."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    summary = json.loads(
        (folder / ("summary.json" if (folder / "summary.json").exists() else "dimension.json")).read_text()
    )
    return {
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
        "records": {line["cell"]: without_times(line) for line in lines},
        "summary": without_times(summary),
        "bytes": {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.suffix in (".npy", ".safetensors")
        },
    }


def assert_as_if_never_killed(folder: Path) -> int:
    """Every run in the folder has the results of the uninterrupted one; how many there are."""
    whole = results(folder / "whole")
    others = [path for path in folder.iterdir() if path.name != "whole" and (path / "results.jsonl").exists()]
    for other in others:
        found = results(other)
        for part, value in whole.items():
            assert found[part] == value, (other.name, part)
    return len(others)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["compare", "dimension"])
def test_a_killed_run_ends_as_if_it_had_not_been(case, tmp_path):
    killed(prepared(case, tmp_path), tmp_path, touches=1)
    assert assert_as_if_never_killed(tmp_path) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", COMMANDS)
def test_there_is_no_moment_at_which_a_kill_does_harm(case, tmp_path):
    """Killed before 45 random changes of files, a run each, and one run at 5 random times: it has ever less to do."""
    said = killed(prepared(case, tmp_path), tmp_path, touches=45, clock=5)
    assert said["touches"] >= 15  # a search changes fewer files than that
    assert said["clock"] >= 1
    assert assert_as_if_never_killed(tmp_path) == said["touches"] + 2
