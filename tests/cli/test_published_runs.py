"""Published data sets in the hub's form through the commands: trained, scored as a folder and as a file, predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import models
from support.command_line import QUICK, ran
from support.language_models import generation_tokenizer
from support.published import GLUE, OTHERS, SUPER_GLUE

pytest.importorskip("datasets").disable_progress_bars()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for kind in ("bert", "gpt2"):
        models.tiny(kind, "lm").save_pretrained(folder / kind)
        generation_tokenizer().save_pretrained(folder / kind)
    for name in ("web_nlg", "wikisql"):
        OTHERS[name].write_parquet(folder / name)
    SUPER_GLUE["wic"].write_parquet(folder / "wic")
    GLUE["cola"].write_parquet(folder / "cola")
    return folder


def train(place: Path, kind: str, name: str, *options: str) -> dict[str, Any]:
    run = place / f"run-{name}"
    done = ran("train", "--model", place / kind, "--data", place / name, *QUICK, *options, "--out", run)
    assert done.code == 0, done.err
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def evaluated(place: Path, name: str, data: Path, *options: str) -> dict[str, Any]:
    done = ran("evaluate", "--adapter", place / f"run-{name}", "--data", data, "--json", *options)
    assert done.code == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    return result


def predicted(place: Path, name: str, file: Path) -> list[dict[str, Any]]:
    done = ran("predict", "--adapter", place / f"run-{name}", file)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_webnlg(place: Path) -> None:
    metrics = train(place, "gpt2", "web_nlg", "--new-tokens", "4")
    folder = evaluated(place, "web_nlg", place / "web_nlg", "--by", "seen", "--by", "category")
    assert folder["scores"] == pytest.approx(metrics["test"], abs=1e-6)
    assert {group: result["rows"] for group, result in folder["by"]["seen"].items()} == {"seen": 4, "unseen": 2}
    assert set(folder["by"]["category"]) == {"Airport", "City", "Artist"}
    test = place / "web_nlg" / "data" / "test-00000-of-00001.parquet"
    assert evaluated(place, "web_nlg", test)["scores"] == pytest.approx(metrics["test"], abs=1e-6)
    rows = predicted(place, "web_nlg", test)
    assert rows[0]["triples"][0] == ["Airport_46", "runwayLength", "4600"]
    assert all("output" in row for row in rows)


def test_wikisql_is_predicted_with_the_columns_of_its_tables(place: Path) -> None:
    metrics = train(place, "gpt2", "wikisql", "--new-tokens", "4")
    test = place / "wikisql" / "data" / "test-00000-of-00001.parquet"
    assert evaluated(place, "wikisql", test)["scores"] == pytest.approx(metrics["test"], abs=1e-6)
    assert "logical_form" in metrics["test"]
    assert predicted(place, "wikisql", test)[0]["columns"] == "Player | No. | Max speed"


@pytest.mark.slow
def test_wic_reads_its_word_and_cola_is_scored_by_matthews(place: Path) -> None:
    train(place, "bert", "wic")
    assert evaluated(place, "wic", place / "wic")["rows"] == 6
    train(place, "bert", "cola")
    assert evaluated(place, "cola", place / "cola")["metric"] == "matthews"
    hidden = place / "cola" / "data" / "test-00000-of-00001.parquet"
    done = ran("evaluate", "--adapter", place / "run-cola", "--data", hidden)
    assert done.code == 2
    assert "none of its 6 rows has a label in column 'label'" in done.err
