"""Where a run is: its progress file, and what is read from its folder while it runs, after its end and after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.report.watch_page import watch_content, watch_page
from deltatune.comparison.results.progress_file import ProgressFile, with_progress
from deltatune.comparison.results.run_state import StateReader, StudyState
from deltatune.comparison.run_comparison import run
from deltatune.comparison.works.cells import Event
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.store.folder_lock import FolderLock, owner_of
from deltatune.training import Settings
from support.comparison_sample import EVIL, sample_summary
from support.html_pages import outline
from support.study_sample import sample_study


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def progress_of(folder):
    return json.loads((folder / "progress.json").read_text())


def test_progress_is_written_at_most_once_a_second(tmp_path, monkeypatch):
    clock, writes = Clock(), []
    progress = ProgressFile(tmp_path, clock)
    from deltatune.comparison.results import progress_file

    original = progress_file.write_file
    monkeypatch.setattr(progress_file, "write_file", lambda *each: (writes.append(clock.now), original(*each)))
    progress(Event("start", "run", 0, 9, None))
    progress(Event("cell_start", "LoRA, lr 0.1", 0, 9, None, {"next": "BitFit, lr 0.1"}))
    for step in range(1, 31):
        clock.now = step / 10
        progress(Event("step", "LoRA, lr 0.1", 0, 9, 12.0, {"step": step, "steps": 40, "loss": 1 / step}))
    assert writes == [0.0, 1.0, 2.0, 3.0]
    stored = progress_of(tmp_path)
    assert stored["now"] == [{"text": "LoRA, lr 0.1", "step": 30, "steps": 40, "loss": 1 / 30}]
    assert (stored["state"], stored["done"], stored["total"], stored["seconds_left"]) == ("running", 0, 9, 12.0)
    progress(Event("look", "run", 5, 9, 3.0, {"sentence": "3 of 6 pairs are told apart."}))
    progress(Event("done", "run", 9, 9, 0.0))
    stored = progress_of(tmp_path)
    assert writes[-1] == 3.0, "the end is written at once"
    assert (stored["state"], stored["now"], stored["seconds_left"]) == ("finished", [], None)
    assert stored["sentence"] == "3 of 6 pairs are told apart."
    assert [file.name for file in tmp_path.iterdir()] == ["progress.json"]


def test_several_cells_at_once_are_all_shown(tmp_path):
    progress = ProgressFile(tmp_path, Clock())
    for text in ("a", "b", "c"):
        progress(Event("cell_start", text, 0, 3, None))
    progress(Event("cell_done", "b", 1, 3, None))
    progress(Event("cell_failed", "c", 2, 3, None))
    progress(Event("start", "again", 2, 3, None))
    assert [each["text"] for each in progress_of(tmp_path)["now"]] == ["a"]


def test_a_full_disk_does_not_end_the_run(tmp_path):
    seen = []
    take = with_progress(tmp_path / "gone", seen.append)
    take(Event("start", "run", 0, 1, None))
    assert [event.kind for event in seen] == ["start"]


RECORD = {"stage": "search", "status": "ok", "metric": "accuracy", "seed": 0, "draw": None, "config": {}}


def record(cell, method, rate, score, **more):
    scores = {"validation": {"accuracy": score}, **({"test": {"accuracy": more.pop("test")}} if "test" in more else {})}
    return {**RECORD, "cell": cell, "method": method, "learning_rate": rate, "scores": scores, **more}


def write_lines(folder, records, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records) + tail)


def test_the_table_so_far_is_read_from_the_records(tmp_path):
    write_lines(tmp_path, [
        record("a@4", "LoRA()", 0.1, 0.5, until=4),
        record("a", "LoRA()", 0.1, 0.8),
        record("b@4", "LoRA()", 0.3, 0.6, until=4),
        record("c", "LoRA()", 0.1, 0.7, stage="seed", seed=1),
        record("a-test", "LoRA()", 0.1, 0.8, stage="final", test=0.79),
        record("c-test", "LoRA()", 0.1, 0.7, stage="final", test=0.77, seed=1),
        record("d", "BitFit()", 0.1, 0.9),
        {**RECORD, "cell": "e", "method": "Full()", "learning_rate": 1.0, "status": "failed", "error": "NaN\nin step"},
        {**RECORD, "cell": "f", "method": "Probe()", "learning_rate": 1.0, "status": "failed", "error": "disk"},
        record("f", "Probe()", 1.0, 0.4),
    ], tail='{"cell": "half a li')  # fmt: skip
    state = StateReader(tmp_path).read()
    assert state.state == "stopped"
    assert [each.method for each in state.methods] == ["BitFit()", "LoRA()", "Probe()", "Full()"]
    lora = state.methods[1]
    assert (lora.runs, lora.validation, lora.rate, lora.tested) == (4, 0.75, 0.1, 2)
    assert lora.test == pytest.approx(0.78)
    assert state.failures == ("Full(): NaN",), "the probe's run succeeded later"
    assert "So far BitFit() leads with 0.900 accuracy on the validation rows, of 3 methods" in state.sentence


def test_a_metric_of_errors_is_ranked_from_low_to_high(tmp_path):
    rows = [record(cell, cell, 0.1, 0.0, metric="mse") for cell in ("a", "b")]
    for row, score in zip(rows, (0.3, 0.2), strict=True):
        row["scores"] = {"validation": {"mse": score}}
    write_lines(tmp_path, rows)
    assert [each.method for each in StateReader(tmp_path).read().methods] == ["b", "a"]


def test_a_running_comparison_is_followed(tiny_folder, tmp_path):
    rows = [f"{'the cat sat' if i % 2 else 'a dog ran'} on {i},{'sun' if i % 2 else 'rain'}" for i in range(80)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    states, out = [], tmp_path / "run"
    settings = Settings(max_steps=4, batch_size=8, precision="float32")
    plan = make_plan(
        read(table), model=str(tiny_folder), methods=("BitFit()", "Probe()"), settings=settings, out=out, budget=None,
        seeds=1, rates=1, max_length=16,
    )  # fmt: skip
    run(plan, lambda event: states.append(StateReader(out).read()))
    assert {state.state for state in states[:-1]} == {"running"}
    assert states[-1].total > 0
    counts = [sum(each.runs for each in state.methods) for state in states]
    assert counts == sorted(counts), "every finished run shows at once"
    after = StateReader(out).read()
    assert after.state == "finished"
    assert after.report == out / "report.html"
    assert after.sentence.startswith("Use ")
    assert {each.method for each in after.methods} == {"BitFit()", "Probe()"}
    assert progress_of(out)["state"] == "finished"


HOLD = """
import sys, time
from pathlib import Path
from deltatune.store.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_is_told_from_a_running_one(tmp_path):
    write_lines(tmp_path / "run", [record("a", "LoRA()", 0.1, 0.8)])
    reader = StateReader(tmp_path / "run")
    assert reader.read().state == "stopped"
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            before = (tmp_path / "run" / ".lock").stat().st_mtime_ns
            assert reader.read().state == "running"
            assert owner_of(tmp_path / "run")["pid"] == other.pid
            assert (tmp_path / "run" / ".lock").stat().st_mtime_ns == before
        finally:
            other.send_signal(signal.SIGKILL)
    assert (tmp_path / "run" / ".lock").exists(), "it was killed"
    assert reader.read().state == "stopped"
    with FolderLock(tmp_path / "run"):  # watching did not take the lock
        assert reader.read().state == "running"


def test_an_earlier_summary_does_not_hide_that_the_run_goes_on(tmp_path):
    write_lines(tmp_path, [record("a", "LoRA()", 0.1, 0.8)])
    (tmp_path / "summary.json").write_text(json.dumps(sample_summary()))
    reader = StateReader(tmp_path)
    assert reader.read().state == "finished"
    with FolderLock(tmp_path):
        assert [each.method for each in reader.read().methods] == ["LoRA()"]


def test_files_are_read_again_only_if_they_changed(tmp_path, monkeypatch):
    write_lines(tmp_path, [record("a", "LoRA()", 0.1, 0.8)])
    reader = StateReader(tmp_path)
    reader.read()
    from deltatune.comparison.results import run_state

    calls = []
    original = run_state.loads
    monkeypatch.setattr(run_state, "loads", lambda *each: (calls.append(1), original(*each))[1])
    reader.read()
    assert calls == []
    time.sleep(0.01)
    write_lines(tmp_path, [record("a", "LoRA()", 0.1, 0.8), record("b", "BitFit()", 0.1, 0.9)])
    assert len(reader.read().methods) == 2


def study_folder(folder, **options):
    study = sample_study(**options)
    for each in study["comparisons"]:
        inner = folder / each["folder"]
        inner.mkdir(parents=True)
        if each["summary"] is not None:
            (inner / "summary.json").write_text(json.dumps(each["summary"]))
            (inner / "report.html").write_text("<p>the report")
    (folder / "study.json").write_text(json.dumps(study))
    return study


def test_a_study_is_its_comparisons(tmp_path):
    study = study_folder(tmp_path, sets=4, unfinished=2)
    write_lines(tmp_path / study["comparisons"][2]["folder"], [record("a", "LoRA()", 0.1, 0.8)])
    state = StateReader(tmp_path).read()
    assert isinstance(state, StudyState)
    assert [run.state for run in state.runs] == ["finished", "finished", "stopped", "not begun"]
    assert state.state == "stopped"
    with FolderLock(tmp_path):
        assert StateReader(tmp_path).read().state == "running"
    outline(f"<body>{watch_content(state)}</body>")
    study_folder(tmp_path / "whole", sets=2)
    assert StateReader(tmp_path / "whole").read().state == "finished"


def test_a_study_does_not_lead_out_of_its_folder(tmp_path):
    study = study_folder(tmp_path / "study", sets=2)
    study["comparisons"][0]["folder"] = "../elsewhere"
    write_lines(tmp_path / "elsewhere", [record("a", "secret", 0.1, 0.8)])
    (tmp_path / "study" / "study.json").write_text(json.dumps(study))
    assert len(StateReader(tmp_path / "study").read().runs) == 1


@pytest.mark.parametrize("content", ["[]", "{", '{"now": [], "done": null}', "null", "[" * 5000])
def test_files_of_anything_are_shown_as_far_as_they_go(tmp_path, content):
    write_lines(tmp_path, [record("a", "LoRA()", 0.1, 0.8)])
    for name in ("progress.json", "summary.json"):
        (tmp_path / name).write_text(content)
    assert StateReader(tmp_path).read().methods


def test_text_from_data_stays_text(tmp_path):
    rows = [record("a", EVIL, 0.1, 0.8), {**RECORD, "cell": "b", "method": EVIL, "status": "failed", "error": EVIL}]
    write_lines(tmp_path / "run", rows)
    write_progress = {
        "now": [{"text": EVIL, "step": 1, "steps": 2, "loss": "x"}],
        "sentence": EVIL,
        "done": 1,
        "total": 2,
    }
    (tmp_path / "run" / "progress.json").write_text(json.dumps(write_progress))
    with FolderLock(tmp_path / "run"):
        state = StateReader(tmp_path / "run").read()
    page = watch_page(state)
    assert EVIL not in page
    assert outline(page).tags.count("script") == 1
    assert "img" not in outline(page).tags


def test_a_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(DeltatuneError, match="there is no folder"):
        StateReader(tmp_path / "nowhere")
    with pytest.raises(DeltatuneError, match="holds no comparison and no study"):
        StateReader(tmp_path)
