"""Works of a comparison on a Ray cluster: a stand-in for Ray in fast tests, two real nodes here in slow ones."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltatune.comparison.executors import ray_cluster, ray_executor
from deltatune.comparison.executors.ray_cluster import RayCluster, check_answers
from deltatune.comparison.executors.ray_executor import RayTasks
from deltatune.comparison.executors.ray_node import Mailbox, NodeResult, input_folders, read_files, write_files
from deltatune.comparison.plans.plan import Cell
from deltatune.comparison.run_comparison import run
from deltatune.comparison.works.cells import Event
from deltatune.comparison.works.works import Result, Work
from deltatune.core.errors import DeltatuneError
from deltatune.store.atomic_files import put_folder
from support import models
from support.command_line import ran
from support.executor_runs import make_place, outcome_of, plan_in

# ---- addresses


def test_without_ray_the_error_has_the_install_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeltatuneError, match=r'Install it: pip install "deltatune\[ray\]"'):
        RayCluster(None)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["ray://", ""])
def test_an_address_that_does_not_answer_is_refused_at_once(scheme):
    address = f"{scheme}127.0.0.1:{closed_port()}"
    started = time.monotonic()
    with pytest.raises(DeltatuneError, match=f"no Ray cluster answers at {address}.*ray start --head"):
        check_answers(address)
    assert time.monotonic() - started < ray_cluster.ANSWER_SECONDS + 1


@pytest.mark.parametrize(
    "address",
    ["ray://", "ray://host", "host:", "host:0", "host:99999", "http://host:6379", ":6379", "a b:1", "ray:x:1"],
)
def test_a_text_that_is_no_address_is_refused(address):
    with pytest.raises(DeltatuneError, match="cannot read the address"):
        check_answers(address)


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(DeltatuneError, match=r"no Ray cluster answers at no-such-host\.invalid:6379"):
        check_answers("no-such-host.invalid:6379")


class Connection(SimpleNamespace):
    """What connects to a cluster, in place of Ray."""

    def __init__(self, running: bool = False, already: bool = False) -> None:
        super().__init__(running=running, connected=already, calls=[])

    def is_initialized(self):
        return self.connected

    def init(self, address, **options):
        self.calls.append(address)
        if address == "auto" and not self.running:
            raise ConnectionError
        self.connected = True

    def shutdown(self):
        self.calls.append("shutdown")
        self.connected = False

    def cluster_resources(self):
        return {"CPU": 3.0}


@pytest.fixture
def ray_that(monkeypatch):
    """Puts a stand-in in the place of the package."""

    def make(**state):
        made = Connection(**state)
        monkeypatch.setitem(sys.modules, "ray", made)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: made)
        monkeypatch.setattr(ray_cluster, "check_answers", lambda address: None)
        monkeypatch.setattr(ray_cluster, "_connected", [])
        return made

    return make


def test_a_cluster_is_started_where_none_runs_and_ended_once(ray_that):
    ray = ray_that()
    first, second = RayCluster(None), RayCluster(None)  # to count its cores, and to use it
    assert ray.calls == ["auto", "shutdown", "local"]
    assert (first.slots, second.slots) == (3, 3)
    second.disconnect()
    first.disconnect()
    assert ray.calls == ["auto", "shutdown", "local", "shutdown"]
    RayCluster(None)
    assert ray.calls[4:] == ["auto", "shutdown", "local"]


def test_the_running_cluster_is_taken(ray_that):
    ray = ray_that(running=True)
    RayCluster(None)
    assert ray.calls == ["auto"]


def test_another_address_is_another_connection(ray_that):
    ray = ray_that()
    for address in ("a:1", "a:1", "b:2"):
        RayCluster(address)
    assert ray.calls == ["a:1", "shutdown", "b:2"]


def test_a_connection_of_the_program_itself_stays(ray_that):
    ray = ray_that(already=True)
    RayCluster("a:1").disconnect()
    assert ray.calls == []


def test_a_client_that_comes_too_late_tries_again(ray_that):
    ray = ray_that()
    init = ray.init

    def slow(address, **options):
        ray.init = init
        raise ConnectionError("ray client connection timeout")

    ray.init = slow
    RayCluster("ray://a:1")
    assert ray.calls == ["shutdown", "ray://a:1"]
    ray.shutdown()
    ray.init = slow
    with pytest.raises(DeltatuneError, match="cannot use the Ray cluster at a:1: ray client connection timeout"):
        RayCluster("a:1")


def test_what_a_cluster_refuses_is_a_plain_error(ray_that):
    ray = ray_that()

    def refuse(address, **options):
        raise RuntimeError("Version mismatch: The cluster was started with Ray 1\nmore")

    ray.init = refuse
    with pytest.raises(DeltatuneError, match=r"cannot use the Ray cluster at a:1: Version mismatch.*Ray 1$"):
        RayCluster("a:1")


# ---- files


def work(kind: str = "train", name: str = "w", **more: Any) -> Work:
    return Work(kind, Cell("search", None, 0.1, 0), name, f"search/{name}", **more)  # type: ignore[arg-type]


def test_a_work_takes_along_what_it_goes_on_from(tmp_path):
    write_files(tmp_path, {"search/w/checkpoints/1/a": b"1", "search/w/adapter/b": b"2", "search/other/c": b"3"})
    resumed = read_files(tmp_path, input_folders(work(resumable=True)))
    assert resumed == {"search/w/checkpoints/1/a": b"1"}
    assert read_files(tmp_path, input_folders(work())) == {}
    tested = read_files(tmp_path, input_folders(work("test", earlier={"adapter": "search/w/adapter"})))
    assert tested == {"search/w/adapter/b": b"2"}


def test_a_folder_that_comes_back_replaces_the_one_here_whole(tmp_path):
    folder = tmp_path / "search/w"
    put_folder(folder, {"checkpoints/1/a": b"old", "gone": b""})
    put_folder(folder, {"checkpoints/1/a": b"new", "adapter/b": bytes(range(256))})
    assert read_files(folder, ["."]) == {"checkpoints/1/a": b"new", "adapter/b": bytes(range(256))}
    assert [path.name for path in folder.parent.iterdir()] == ["w"]


# ---- a stand-in for Ray


class RayError(Exception):
    """What Ray raises."""


class WorkerCrashedError(RayError):
    """The process of a task died."""


class NodeDiedError(RayError):
    """The node of a task is gone."""


class RayTaskError(RayError):
    """A task raised an error."""


class StandIn:
    """As much of Ray as the executor uses; tasks end as a test says."""

    exceptions = SimpleNamespace(RayError=RayError, RaySystemError=OSError, RpcError=OSError)

    def __init__(self, outcome):
        self.outcome, self.begun, self.cancelled, self.killed = outcome, [], [], []

    def remote(self, **options):
        def wrap(what):
            if what is Mailbox:
                mailbox = Mailbox()
                handle = SimpleNamespace(take=SimpleNamespace(remote=lambda: ("messages", mailbox.take())))
                return SimpleNamespace(remote=lambda: handle)
            return SimpleNamespace(remote=self.begin)

        return wrap

    def begin(self, opening, work, files, mailbox):
        self.begun.append(work.key)
        return (work.key, len(self.begun))

    def put(self, value):
        return value

    def wait(self, tasks, num_returns, timeout):
        return tasks[:1], tasks[1:]

    def get(self, task, timeout=None):
        if task[0] == "messages":
            return task[1]
        outcome = self.outcome(*task)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, task, force):
        self.cancelled.append(task)

    def kill(self, actor):
        self.killed.append(actor)


class Plan:
    """As much of a plan as the executor looks at itself."""

    def __init__(self, out):
        self.out, self.session = out, SimpleNamespace(base_record=dict)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Makes an executor on a stand-in whose tasks end as `outcome(key, number)` says."""
    monkeypatch.setattr(ray_executor, "portable", lambda plan: b"")

    def make(outcome, slots=1):
        ray, ended = StandIn(outcome), []
        cluster = SimpleNamespace(ray=ray, slots=slots, has_gpus=False, disconnect=lambda: ended.append(True))
        executor = RayTasks(Plan(tmp_path), lambda *_: None, cluster)
        executor.ended = ended
        return executor, ray

    return make


def good(key: str, number: int) -> NodeResult:
    return NodeResult(Result({"status": "ok", "of": key}), {"adapter/a": key.encode()})


def test_results_and_files_come_back(tasks, tmp_path):
    executor, _ = tasks(good)
    for name in "ab":
        executor.submit(work(name=name))
    for name in "ab":
        finished = executor.wait()
        assert (finished.work.key, finished.result.record["of"]) == (name, name)
        assert (tmp_path / f"search/{name}/adapter/a").read_bytes() == name.encode()


def test_works_are_sent_when_there_is_room(tasks):
    executor, ray = tasks(good, slots=2)
    for name in "abcdefgh":
        executor.submit(work(name=name))
    first = executor.wait().work.key
    assert ray.begun == list("abcd")  # two at work, two that a cluster which can grow sees waiting
    assert [first, *(executor.wait().work.key for _ in range(7))] == list("abcdefgh")


def test_a_work_whose_process_dies_is_begun_again_and_in_the_end_fails(tasks):
    executor, ray = tasks(lambda key, number: WorkerCrashedError() if key == "a" else good(key, number))
    executor.submit(work(name="a"))
    executor.submit(work(name="b"))
    results = {finished.work.key: finished.result.record for finished in (executor.wait(), executor.wait())}
    assert ray.begun.count("a") == ray_executor.TRIES
    assert results["a"]["status"] == "failed"
    assert "died 3 times" in results["a"]["error"]
    assert results["b"]["status"] == "ok"


def test_lost_nodes_are_not_counted_against_a_work(tasks):
    executor, ray = tasks(lambda key, number: NodeDiedError() if number < 9 else good(key, number))
    executor.submit(work(name="a"))
    assert executor.wait().result.record["status"] == "ok"
    assert ray.begun == ["a"] * 9


def test_a_node_that_can_run_nothing_ends_the_comparison(tasks):
    executor, _ = tasks(lambda key, number: NodeResult(None, {}, "node 10.0.0.7 cannot open the model"))
    executor.submit(work())
    with pytest.raises(DeltatuneError, match=r"node 10\.0\.0\.7 cannot open the model"):
        executor.wait()


def test_what_a_task_raises_is_told_without_its_traceback(tasks):
    said = "ray::run_work()\nTraceback:\nModuleNotFoundError: No module named 'deltatune'"
    executor, _ = tasks(lambda key, number: RayTaskError(said))
    executor.submit(work())
    with pytest.raises(DeltatuneError) as caught:
        executor.wait()
    assert "No module named 'deltatune'; install it on every node" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_cluster_that_is_gone_is_a_plain_error(tasks, tmp_path):
    executor, _ = tasks(lambda key, number: ConnectionError("Client is shutting down"))
    executor.submit(work())
    with pytest.raises(DeltatuneError, match=f"the Ray cluster is gone .*kept in {tmp_path}"):
        executor.wait()


def test_closing_cancels_what_runs_and_disconnects(tasks):
    executor, ray = tasks(good, slots=2)
    for name in "abcdefgh":
        executor.submit(work(name=name))
    executor.wait()
    executor.close()
    assert [key for key, _ in ray.cancelled] == list("bcd")
    assert len(ray.killed) == 1
    assert executor.ended == [True]


# ---- two nodes


def on_two_nodes(test):
    """Marks of a test that needs the cluster. Ray leaves its log files open."""
    marks = [
        pytest.mark.slow,
        pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
        pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    ]
    for mark in marks:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes with a core each on this machine."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": closed_port()}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.client = f"ray://127.0.0.1:{head['ray_client_server_port']}"
    made.add_node(num_cpus=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    torch.set_num_threads(threads)
    made.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and data."""
    return make_place(tmp_path_factory.mktemp("place"))


def plan_of(place: Path, out: Path, executor: str = "local", epochs: int = 30, **more: Any):
    workers = 1 if executor == "local" else None
    methods = ["LoRA(r=2)", "BitFit()"]
    return plan_in(place, out, epochs, **{"methods": methods, "executor": executor, "workers": workers, **more})


@pytest.fixture(scope="module")
def alone(place):
    """The comparison of `plan_of` in this process."""
    run(plan_of(place, place / "alone"))
    return outcome_of(place / "alone")


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert found[name] == value, name


def at_work(*nodes) -> list[int]:
    """The processes on some nodes that run a work."""
    found = []
    for node in nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        for children in Path(f"/proc/{raylet}/task").glob("*/children"):
            for child in children.read_text().split():
                with contextlib.suppress(OSError):
                    if b"ray::run_work" in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.append(int(child))
    return found


def eventually(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return bool(true)


@on_two_nodes
def test_two_nodes_find_what_this_process_finds(cluster, place, tmp_path):
    """With a search that pauses: checkpoints travel to whichever node goes on."""
    import ray

    searched = {"rates": 3, "epochs": 8}
    run(plan_of(place, tmp_path / "alone", **searched))
    events: list[Event] = []
    run(plan_of(place, tmp_path / "ray", cluster.address, **searched), events.append)
    expected = outcome_of(tmp_path / "alone")
    assert any("@" in cell for cell in expected["records"]), "no training paused"
    assert_equal(outcome_of(tmp_path / "ray"), expected)
    kinds = [event.kind for event in events]
    assert kinds.count("cell_start") >= kinds.count("cell_done") - 2  # costs are measured here
    assert not ray.is_initialized()
    assert eventually(lambda: not at_work(*cluster.list_all_nodes()))
    assert len([node for node in cluster.list_all_nodes() if node.remaining_processes_alive()]) == 2


@on_two_nodes
def test_a_killed_worker_process_is_replaced(cluster, place, alone, tmp_path):
    killed: list[int] = []

    def on_event(event: Event) -> None:
        if event.kind == "step" and not killed:
            victims = at_work(*cluster.list_all_nodes())
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            killed.extend(victims)

    run(plan_of(place, tmp_path / "ray", cluster.address), on_event)
    assert killed
    assert_equal(outcome_of(tmp_path / "ray"), alone)


@on_two_nodes
def test_a_node_that_goes_takes_no_result_with_it(cluster, place, alone, tmp_path):
    extra = cluster.add_node(num_cpus=1)
    removed: list[bool] = []

    def on_event(event: Event) -> None:
        if event.kind == "step" and not removed and at_work(extra):
            for processes in extra.all_processes.values():  # the machine is cut off: nothing says goodbye
                for info in processes:
                    info.process.kill()
            removed.append(True)

    run(plan_of(place, tmp_path / "ray", cluster.address), on_event)
    assert removed
    assert_equal(outcome_of(tmp_path / "ray"), alone)
    with contextlib.suppress(Exception):
        cluster.remove_node(extra, allow_graceful=False)


@on_two_nodes
def test_an_interrupted_comparison_leaves_the_cluster_free_and_resumes(cluster, place, alone, tmp_path):
    import ray

    class Enough(KeyboardInterrupt):
        """Ctrl-C."""

    def interrupt(event: Event) -> None:
        if event.kind == "cell_done":
            raise Enough

    with pytest.raises(Enough):
        run(plan_of(place, tmp_path / "ray", cluster.address), interrupt)
    assert not ray.is_initialized()
    assert eventually(lambda: not at_work(*cluster.list_all_nodes()))
    kept = (tmp_path / "ray/results.jsonl").read_text().splitlines()
    assert len(kept) == 1
    run(plan_of(place, tmp_path / "ray", cluster.address))
    assert (tmp_path / "ray/results.jsonl").read_text().splitlines()[:1] == kept
    assert_equal(outcome_of(tmp_path / "ray"), alone)


@on_two_nodes
def test_a_killed_program_goes_on_where_it_was(cluster, place, alone, tmp_path):
    """SIGKILL of the program itself, and the same again; the cluster ends the works of a program that is gone."""
    out = tmp_path / "ray"
    child = os.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(place), str(out), cluster.address])
    assert eventually(lambda: (out / "results.jsonl").exists() and (out / "results.jsonl").read_text().count("\n"), 120)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = (out / "results.jsonl").read_text().splitlines()
    assert eventually(lambda: not at_work(*cluster.list_all_nodes()))
    run(plan_of(place, out, cluster.address))
    assert (out / "results.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert_equal(outcome_of(out), alone)


PROGRAM = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from comparison.executors.test_ray_executor import plan_of, run
run(plan_of(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
"""


@on_two_nodes
def test_a_model_that_a_node_lacks_or_has_otherwise_is_named(cluster, place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    shutil.copytree(place / "data", tmp_path / "data")
    plan = plan_of(tmp_path, tmp_path / "ray", cluster.address)
    other = models.tiny("bert")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(DeltatuneError) as caught:
        run(plan)
    assert re.search(r"node \S+ of the Ray cluster has another model or tokenizer at", str(caught.value))
    assert str(tmp_path / "model") in str(caught.value)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(DeltatuneError) as caught:
        run(dataclasses.replace(plan))
    assert re.search(r"node \S+ of the Ray cluster cannot open the model", str(caught.value))
    assert str(tmp_path / "model") in str(caught.value)


@on_two_nodes
def test_the_command_line_takes_an_address(cluster, place, tmp_path):
    done = ran(
        *("compare", "--model", place / "model", "--data", place / "data", "--out", tmp_path / "run", "--json"),
        *("--method", "BitFit()", "--rates", "1", "--seeds", "2", "--epochs", "1", "--max-length", "16"),
        *("--precision", "float32", "--executor", cluster.address),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["methods"][0]["failed"] is None


@on_two_nodes
def test_a_client_finds_the_same(cluster, place, alone, tmp_path):
    """Over `ray://`, where this program is no part of the cluster."""
    import ray

    run(plan_of(place, tmp_path / "ray", cluster.client))
    assert_equal(outcome_of(tmp_path / "ray"), alone)
    assert not ray.is_initialized()


@on_two_nodes
def test_the_cluster_of_this_machine_is_found(cluster, place, alone, tmp_path):
    run(plan_of(place, tmp_path / "ray", "ray"))
    assert_equal(outcome_of(tmp_path / "ray"), alone)
    assert all(node.remaining_processes_alive() for node in cluster.list_all_nodes())
