"""Studies killed with SIGKILL at any moment: the same command again ends with the same results."""

import json
import re
from pathlib import Path

import pytest

from support import models
from support.command_line import review_folder, reviews, write_csv
from support.killed import killed

TIMES = re.compile(r"second|created|pscp|latency|memory|_ms|speed|versions|sentence")
"""Figures of time and memory, and what single comparisons say of them."""


def prepared(folder: Path) -> list[str]:
    """A study of two data sets on a tiny model in the folder."""
    review_folder(folder / "films")
    write_csv(folder / "books.csv", reviews(60, 1))
    models.tiny("bert").save_pretrained(folder / "model")
    models.tiny_tokenizer().save_pretrained(folder / "model")
    sets = ["--data", str(folder / "films"), "--data", str(folder / "books.csv")]
    quick = ["--epochs", "1", "--max-length", "16", "--precision", "float32", "--seeds", "1", "--rates", "1"]
    return ["compare", "--model", str(folder / "model"), *sets, "--method", "BitFit()", "--method", "Probe()", *quick]


def without_times(value):
    """The same value without figures of time and memory."""
    if isinstance(value, dict):
        return {name: without_times(entry) for name, entry in value.items() if not TIMES.search(name)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def results(folder: Path) -> dict:
    """What a finished study says, its files, and the tensors of its adapters."""
    study = json.loads((folder / "study.json").read_text())
    return {
        "study": without_times(study),
        "recommendation": study["recommendation"],
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        "bytes": {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")},
    }


def assert_as_if_never_killed(folder: Path) -> int:
    """Every study in the folder has the results of the uninterrupted one; how many there are."""
    whole = results(folder / "whole")
    others = [path for path in folder.iterdir() if path.name != "whole" and (path / "study.json").exists()]
    for other in others:
        found = results(other)
        for part, value in whole.items():
            assert found[part] == value, (other.name, part)
    return len(others)


@pytest.mark.slow
def test_a_killed_study_ends_as_if_it_had_not_been(tmp_path):
    """Killed before 6 random changes of files, a run each, and one run at 2 random times."""
    said = killed(prepared(tmp_path), tmp_path, touches=6, clock=2)
    assert said["touches"] == 6
    assert said["clock"] >= 1
    assert assert_as_if_never_killed(tmp_path) == said["touches"] + 2
