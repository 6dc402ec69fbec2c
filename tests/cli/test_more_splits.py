"""Data with two parts of each held-out split, as MNLI has them: every command reads and scores both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.command_line import QUICK, ran, reviews


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, two parts of validation, and two parts of test whose labels are hidden."""
    place = tmp_path_factory.mktemp("nli")
    sizes = {"train": 60, "dev_matched": 30, "dev_mismatched": 20, "test_matched": 10, "test_mismatched": 10}
    for seed, (name, size) in enumerate(sizes.items()):
        rows: list[dict[str, Any]] = [dict(row) for row in reviews(size, seed)]
        rows = [{**row, "label": -1} for row in rows] if name.startswith("test") else rows
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "notes.csv").write_text("a,b\n1,2\n")
    return place


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("run") / "run"
    done = ran("train", "--model", tiny_folder, "--data", folder, "--lr", "1e-2", *QUICK, "--out", run)
    assert done.code == 0, done.err
    return run, done.out


def test_train_scores_and_shows_every_test_split(trained: tuple[Path, str]) -> None:
    run, out = trained
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["test"]) == set(metrics["test_mismatched"])
    rows = json.loads((run / "run.json").read_text())["data"]["rows"]
    assert (rows["train"] + rows["validation"], rows["test"], rows["test_mismatched"]) == (60, 30, 20)
    table = out[out.index("Trained in") - 600 :]
    assert "test_mismatched" in table
    plain = " ".join(out.split())
    assert "several parts are scored: test is dev_matched, test_mismatched is dev_mismatched" in plain
    assert "the 10 test_mismatched rows have no label, so they are not used" in plain
    assert "not used, as no split has their name: notes.csv" in plain


def test_evaluate_scores_what_train_scored(folder: Path, trained: tuple[Path, str]) -> None:
    run, _ = trained
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("test", "test_mismatched"):
        done = ran("evaluate", "--adapter", run, "--data", folder, "--split", split, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["scores"] == pytest.approx(metrics[split], abs=1e-6)
    done = ran("evaluate", "--adapter", run, "--data", folder, "--split", "test_matched")
    assert done.code == 2
    assert "train, validation, test, test_mismatched, all" in done.err


def test_compare_reports_every_test_split_and_selects_by_none(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    options = ["--method", "LoRA(r=2)", "--seeds", "1", "--rates", "1", "--budget", "5%"]
    done = ran("compare", "--model", tiny_folder, "--data", folder, *options, *QUICK, "--out", tmp_path / "c")
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    for row in summary["methods"]:
        assert set(row["more_scores"]["test_mismatched"]) == set(row["scores"])
    assert "test_mismatched" in done.out
    page = next((tmp_path / "c").glob("*.html")).read_text()
    assert 'data-key="test_mismatched"' in page


def test_data_check_lists_every_split(folder: Path) -> None:
    done = ran("data", "check", folder)
    assert done.code == 0, done.err
    assert "test_mismatched" in done.out


@pytest.mark.parametrize("command", ["train", "compare"])
def test_files_of_single_splits(command: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Rows of --validation and --test take the place of splits made from the training rows."""
    for seed, (name, size) in enumerate({"train": 40, "validation": 6, "test": 8}.items()):
        lines = "".join(json.dumps(dict(row)) + "\n" for row in reviews(size, seed))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    files = ["--validation", tmp_path / "validation.jsonl", "--test", tmp_path / "test.jsonl"]
    short = ["--seeds", "1", "--rates", "1"] if command == "compare" else []
    options = ["--model", tiny_folder, "--method", "BitFit()", *QUICK, *short, "--out", tmp_path / "run"]
    done = ran(command, "--data", tmp_path / "train.jsonl", *files, *options)
    assert done.code == 0, done.err
    records = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("*.json")]
    assert any('"train": 40, "validation": 6, "test": 8' in json.dumps(record) for record in records)


def test_files_of_single_splits_are_not_for_mixtures(tmp_path: Path) -> None:
    done = ran("train", "--data", "a=a.csv", "--data", "b=b.csv", "--test", "more.csv", "--out", tmp_path / "run")
    assert done.code == 2
    assert "--test is for a single data set" in done.err
