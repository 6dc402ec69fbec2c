"""Works of a comparison in processes of this machine: equal results, processes that die, interruptions."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltatune import BitFit, LoRA, Probe
from deltatune.comparison.executors import worker_processes
from deltatune.comparison.executors.worker_processes import WorkerProcess, WorkerProcesses
from deltatune.comparison.plans.candidates import Candidate
from deltatune.comparison.plans.plan import Cell
from deltatune.comparison.run_comparison import run
from deltatune.comparison.works.cells import Event
from deltatune.comparison.works.works import Result, Work
from deltatune.core.errors import DeltatuneError
from support.executor_runs import make_place, outcome_of, plan_in

# ---- stand-ins for the processes


def work(name: str) -> Work:
    return Work("train", Cell("search", None, 0.1, 0), name, f"search/{name}")  # type: ignore[arg-type]


def ok(key: str) -> tuple[str, Result]:
    return "finished", Result({"status": "ok", "of": key})


class Process:
    """A process whose end of the pipe says what a test tells it to: a message, or an error for its death."""

    exitcode = -signal.SIGKILL

    def __init__(self, says) -> None:
        self.says, self.messages, self.ended = says, deque([("opened", None)]), False

    def send(self, given: Work) -> None:
        self.messages.append(self.says(given.key))

    def recv(self) -> Any:
        message = self.messages.popleft()
        if isinstance(message, Exception):
            raise message
        return message

    def close(self) -> None:
        self.ended = True

    terminate = kill = close

    def join(self, seconds: float = 0) -> None:
        self.ended = True

    def is_alive(self) -> bool:
        return not self.ended


@pytest.fixture
def executor(monkeypatch, tmp_path):
    """Makes an executor whose processes answer a work by `says(key)`."""
    monkeypatch.setattr(worker_processes, "portable", lambda plan: plan)
    monkeypatch.setattr(worker_processes, "shared_tensors", lambda host: {})
    monkeypatch.setattr(
        worker_processes.multiprocessing.connection, "wait", lambda pipes: [pipe for pipe in pipes if pipe.messages]
    )
    started: list[Process] = []

    def make(says, workers: int = 2, first=None):
        made = WorkerProcesses(SimpleNamespace(session=SimpleNamespace(host=None)), lambda *_: None, workers)

        def start() -> None:
            process = Process(says)
            if first is not None:
                process.messages = deque([first])
            started.append(process)
            made.workers.append(worker_processes.WorkerProcess(process, process))

        made._start = start
        made.started = started
        return made

    return make


def test_every_work_is_finished_once(executor):
    made = executor(ok)
    for name in "abcde":
        made.submit(work(name))
    assert sorted(made.wait().work.key for _ in range(5)) == list("abcde")
    assert len(made.started) == 2


def test_no_more_processes_than_works(executor):
    made = executor(ok, workers=8)
    made.submit(work("a"))
    made.wait()
    assert len(made.started) == 1


def test_only_the_work_whose_process_dies_is_counted(executor):
    """One that always kills its process fails in the end; those beside it are untouched, however long it takes."""
    made = executor(lambda key: EOFError() if key == "bad" else ok(key))
    for name in ("bad", "a", "b", "c", "d"):
        made.submit(work(name))
    results = {finished.work.key: finished.result.record for finished in (made.wait() for _ in range(5))}
    assert {key for key, record in results.items() if record["status"] == "ok"} == set("abcd")
    assert "its worker process died 3 times (killed by signal 9)" in results["bad"]["error"]
    assert results["bad"]["work_seconds"] == 0
    assert made.crashes == {"bad": 3}


def test_processes_that_never_begin_end_the_comparison(executor):
    made = executor(ok, first=EOFError())
    made.submit(work("a"))
    with pytest.raises(DeltatuneError, match="ended before it began") as caught:
        made.wait()
    assert '__name__ == "__main__"' in str(caught.value)


def test_a_model_that_is_gone_is_the_error(executor):
    made = executor(ok, first=("error", DeltatuneError("no model folder x")))
    made.submit(work("a"))
    with pytest.raises(DeltatuneError, match="no model folder x"):
        made.wait()


def test_a_process_that_dies_between_works_is_replaced(executor):
    made = executor(ok, workers=1)
    made.submit(work("a"))
    made.wait()
    made.started[0].messages.append(EOFError())
    made.started[0].send = lambda given: None
    made.submit(work("b"))
    assert made.wait().result.record["of"] == "b"
    assert len(made.started) == 2


def test_closing_ends_every_process(executor):
    made = executor(ok)
    for name in "abc":
        made.submit(work(name))
    made.wait()
    made.close()
    assert all(process.ended for process in made.started)
    assert not made.workers
    assert not made.queue


# ---- real processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and data."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plan_of(place: Path, out: Path, workers: int, epochs: int = 30, **more: Any):
    return plan_in(place, out, epochs, **{"methods": ["LoRA(r=2)", "BitFit()", "Full()"], "workers": workers, **more})


def children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


@pytest.mark.slow
def test_processes_find_what_this_one_finds(place, tmp_path):
    """Also after a process was killed in the middle of a work, with searches that pause."""
    more = {"rates": 3, "epochs": 8}
    run(plan_of(place, tmp_path / "alone", 1, **more))
    expected = outcome_of(tmp_path / "alone")
    assert any("@" in cell for cell in expected["records"]), "no training paused"
    killed: list[int] = []

    def on_event(event: Event) -> None:
        if event.kind == "cell_start" and len(killed) < 2:
            killed.append(children()[0])
            os.kill(killed[-1], signal.SIGKILL)

    run(plan_of(place, tmp_path / "workers", 2, **more), on_event)
    assert len(killed) == 2
    found = outcome_of(tmp_path / "workers")
    for name, value in expected.items():
        assert found[name] == value, name
    assert not children()


@pytest.mark.slow
def test_an_interruption_leaves_no_process(place, tmp_path):
    class Enough(KeyboardInterrupt):
        """Ctrl-C."""

    def interrupt(event: Event) -> None:
        if event.kind == "cell_done":
            raise Enough

    with pytest.raises(Enough):
        run(plan_of(place, tmp_path / "run", 2), interrupt)
    assert not children()
    assert len((tmp_path / "run/results.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_model_that_goes_before_the_processes_begin_is_named(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    shutil.copytree(place / "data", tmp_path / "data")
    plan = plan_of(tmp_path, tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(DeltatuneError, match=str(tmp_path / "model")):
        run(plan)
    assert not children()


PROGRAM = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from comparison.executors.test_worker_processes import plan_of, run
if __name__ == "__main__":
    run(plan_of(Path(sys.argv[1]), Path(sys.argv[2]), 2))
"""


@pytest.mark.slow
def test_no_process_outlives_a_killed_program(place, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "run"
    started = subprocess.Popen([sys.executable, str(program), str(place), str(out)], start_new_session=True)
    end = time.monotonic() + 120
    while not ((out / "results.jsonl").exists() and (out / "results.jsonl").read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    started.kill()
    started.wait()
    while (left := group(started.pid)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left
    kept = (out / "results.jsonl").read_text().splitlines()
    assert kept
    run(plan_of(place, out, 2))
    run(plan_of(place, tmp_path / "alone", 1))
    assert (out / "results.jsonl").read_text().splitlines()[: len(kept)] == kept
    found, expected = outcome_of(out), outcome_of(tmp_path / "alone")
    for name, value in expected.items():
        assert found[name] == value, name


def group(leader: int) -> list[int]:
    """The processes of a session, those that wait for their end aside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(place, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run(
        [sys.executable, str(program), str(place), str(tmp_path / "run")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode
    assert "must do so under" in done.stderr


def test_a_worker_goes_on_with_methods_that_it_has_run():
    """What the base computes for a method may be kept in the worker's memory."""
    executor = WorkerProcesses.__new__(WorkerProcesses)
    cells = [Cell("search", Candidate(method, (0.1,), 0), 0.1, 0) for method in (LoRA(), BitFit(), Probe(), BitFit())]
    works = [Work("train", cell, str(i), "") for i, cell in enumerate(cells)]
    executor.queue = deque(works)
    worker = WorkerProcess(None, SimpleNamespace(send=lambda work: None), candidates=[Candidate(BitFit(), (0.1,), 0)])
    given = []
    for _ in works:
        executor._give(worker)
        given.append(worker.work.key)
    assert given == ["1", "3", "0", "2"]
