"""Every JSON file that is written here is strict JSON, and files that are not are refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deltatune.comparison.results.records import Records
from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import read_json, write_json
from deltatune.store.fingerprint import contents_of
from deltatune.store.run_folder import RECORD, write_record
from deltatune.training import reporting


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_metric_that_is_not_finite_is_null_in_every_file(tmp_path: Path) -> None:
    write_record(tmp_path / RECORD, {"scores": {"perplexity": math.inf, "loss": 2.5}})
    assert strict((tmp_path / RECORD).read_text()) == {"scores": {"perplexity": None, "loss": 2.5}}

    folder = tmp_path / "comparison"
    (folder / "predictions").mkdir(parents=True)
    records = Records(folder)
    records.add({"cell": "a", "status": "failed", "scores": {"loss": math.nan}}, answers=["text"])
    assert strict((folder / "results.jsonl").read_text())["scores"] == {"loss": None}


def test_metrics_of_steps_are_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = object.__new__(reporting.Reporter)
    reporter.folder, reporter.trackers = tmp_path, []
    reporter.log_step(1, 0.5, {"loss": math.nan, "learning_rate": 1e-3})
    assert strict((tmp_path / reporting.FILE).read_text())["loss"] is None
    assert reporting.read(tmp_path / reporting.FILE)[0]["learning_rate"] == 1e-3


def test_configuration_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DeltatuneError, match=r"adapter.json: scale is inf"):
        write_json(tmp_path / "adapter.json", {"scale": math.inf})


def test_a_repeated_key_in_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text('{"seed": 1, "seed": 2}')
    with pytest.raises(DeltatuneError, match=r"adapter.json: the key 'seed' is repeated \(line 1, column 13\)"):
        read_json(tmp_path / "adapter.json")


def test_lines_of_metrics_may_end_early_but_not_be_broken_before(tmp_path: Path) -> None:
    path = tmp_path / reporting.FILE
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert reporting.read(path) == [{"step": 1}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(DeltatuneError, match=r"metrics.jsonl line 1"):
        reporting.read(path)


def test_a_manifest_of_a_model_that_lists_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": []}')
    with pytest.raises(DeltatuneError, match=r"manifest.json lists no files"):
        contents_of(str(tmp_path))
