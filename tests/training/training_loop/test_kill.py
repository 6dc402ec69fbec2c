"""Runs killed with SIGKILL at any moment: the same command again ends with the same adapter, and nothing lies about."""

import json
from pathlib import Path

import pytest

from support.killed import killed
from support.killed_runs import CASES, assert_as_if_never_killed, prepared


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
