"""The store's index and its files under damage, kills and several processes at once."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from deltatune import DeltatuneError
from deltatune.store.adapter_store import AdapterStore, current_index, store_folder
from deltatune.store.adapter_store.store_index import StoreIndex
from deltatune.store.folder_lock import FolderInUse
from support.child import in_child
from support.stored_adapters import make_adapter, same, saved_tensors


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """What is on the disk after a power failure is not seen here."""
    monkeypatch.setattr(store_folder, "sync", lambda folders: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    for i, name in enumerate("abcd"):
        make_adapter(place / name, i, score=i / 10)
    return place


@pytest.fixture
def store(folders, tmp_path):
    opened = AdapterStore(tmp_path / "store")
    opened.add_all(folders)
    return opened


def objects(store: AdapterStore) -> set[str]:
    return set(store._place.objects.digests())


def check_whole(store: AdapterStore) -> None:
    """Every adapter can be read, nothing is left over, and the index says what the files say."""
    for name in store.names():
        store.read(name)
    root = store._place.root
    store.close()
    for path in root.glob("index.sqlite*"):
        path.unlink()
    assert [entry.to_json() for entry in AdapterStore(root).list()] == [entry.to_json() for entry in store.list()]


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "schema", "pages", "tables"])
def test_an_index_that_is_damaged_is_rebuilt_and_said_so(damage, store):
    before, path = store.list(), store._place.index
    reader = AdapterStore(store._place.root)
    assert len(reader) == 4
    if damage in ("missing", "text", "cut", "pages"):
        store.close()
        reader.close()
    if damage == "missing":
        for each in path.parent.glob("index.sqlite*"):
            each.unlink()
    elif damage == "text":
        path.write_text("no database " * 1000)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "pages":
        content = path.read_bytes()
        path.write_bytes(content[:200] + b"\x13" * (len(content) - 200))
        for each in path.parent.glob("index.sqlite-*"):
            each.unlink()
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 7" if damage == "schema" else "DROP TABLE entries")
    again = AdapterStore(store._place.root)
    for opened in (again, reader, store):
        assert opened.list() == before
        assert opened.read("b").extra["scores"] == {"test": {"accuracy": 0.1, "f1": 0.05}}
        assert len(opened.search("good")) == 4
    assert any("made of 4 entries" in note for opened in (again, reader, store) for note in opened.notes)
    if damage != "missing":
        assert any("was damaged" in note for opened in (again, reader, store) for note in opened.notes)


def test_changes_of_the_files_by_hand_are_seen(store, tmp_path):
    entries = store._place.entries
    text = (entries / "a.json").read_text()
    (entries / "b.json").unlink()
    (entries / "e.json").write_text(text.replace('"name": "a"', '"name": "e"'))
    (entries / "notes.txt").touch()
    assert store.names() == ["a", "c", "d", "e"]
    assert store.revision("e") == store.revision("a")
    (entries / "f.json").write_text(text)
    (entries / "c.json").write_text("{")
    (entries / "g.json").write_text(text.replace('"name": "a"', '"name": "g"').replace('"digest": "', '"digest": "../'))
    os.utime(entries)
    assert store.names() == ["a", "d", "e"]
    for name, words in (("c", "cannot read"), ("f", "it is of 'a'"), ("g", "is no digest")):
        with pytest.raises(DeltatuneError, match=f"{words}.*store add FOLDER --name {name} --replace"):
            store.read(name)
    moved = tmp_path / "moved"
    shutil.move(store._place.root, moved)
    assert AdapterStore(moved).names() == ["a", "d", "e"]
    assert len(store) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes": 10**30}, "bytes is an integer|bytes is 1000.*from 0 to"),
        ({"parameters": 2**63}, "parameters is .*from 0 to"),
        ({"bytes": -1}, "bytes is -1, it must be from 0"),
        ({"base": {"bytes": 10**40}}, "base.bytes is .*from 0 to"),
        ({"format": "zip"}, "format is 'zip', it must be one of deltatune, peft"),
    ],
)
def test_an_entry_with_impossible_values_is_told_and_the_others_stay(change, words, store):
    path = store._place.entries / "b.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    os.utime(store._place.entries)
    assert store.names() == ["a", "c", "d"]
    assert any(re.search(words, note) for note in store.notes)
    with pytest.raises(DeltatuneError, match=f"(?s)({words}).*store add FOLDER --name b --replace"):
        store.read("b")
    assert store.storage().adapters == 3


def test_of_entries_that_differ_in_case_alone_one_is_read_and_the_other_told(store, folders):
    entries = store._place.entries
    text = (entries / "a.json").read_text()
    (entries / "B.json").write_text(text.replace('"name": "a"', '"name": "B"'))
    for opened in (store, AdapterStore(store._place.root)):
        assert opened.names() == ["a", "B", "c", "d"]
        with pytest.raises(DeltatuneError, match=r"b differs from that of 'B' in case alone.*store remove B"):
            opened.read("b")
    store.add(folders / "a", "more")
    store.remove("B")
    assert store.names() == ["a", "b", "c", "d", "more"]
    assert store.notes == []
    check_whole(store)


def test_what_is_no_file_among_the_entries_hides_none_of_them(store):
    entries = store._place.entries
    os.mkfifo(entries / "pipe.json")
    (entries / "folder.json").mkdir()
    for name in ("0", "bb", "z"):
        (entries / f"{name}.json").symlink_to(entries / "nothing")
    assert store.names() == ["a", "b", "c", "d"]
    store.close()
    store._place.index.unlink()
    assert AdapterStore(store._place.root).names() == ["a", "b", "c", "d"]


def test_a_store_that_must_not_be_written_is_read(store):
    root = store._place.root
    store.close()

    def read() -> tuple[int, str]:
        os.setuid(65534)
        opened = AdapterStore(root)
        found = [opened.read(name).extra["scores"]["test"]["accuracy"] for name in opened.names()]
        try:
            opened.remove("a")
        except DeltatuneError as error:
            return len(opened.search("good")), f"{found} {error} {opened.notes}"
        return 1, "removed"

    for folder in (root, *root.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    for parent in root.parents:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    if os.getuid():
        pytest.skip("needs to become another user")
    code, said = in_child(read)
    for folder in (root, *root.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    assert said.startswith("[0.0, 0.1, 0.2, 0.3] cannot write"), said
    assert "kept in memory" in said
    assert code == 4


TOUCHES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "sqlite3.connect"}


def killed_at(place: int, root: Path, act) -> int:
    """The exit code of a process that does `act` and dies right before it changes files for the `place`-th time."""

    def run() -> tuple[int, str]:
        seen = 0

        def hear(event: str, args: tuple) -> None:
            nonlocal seen
            writes = event == "open" and str(args[0]).startswith(str(root)) and str(args[1] or "r")[0] in "wax"
            if event in TOUCHES or writes:
                seen += 1
                if seen == place:
                    os._exit(9)

        sys.addaudithook(hear)
        for name in ("update", "set_fact", "set_verified"):
            count_too(StoreIndex, name, hear)
        act(AdapterStore(root))
        return 0, ""

    return in_child(run)[0]


def count_too(kind: type, name: str, hear) -> None:
    """Let a method count as a change of files, before it and after it."""
    before = getattr(kind, name)

    def counted(self, *arguments):
        hear("os.rename", ())
        before(self, *arguments)
        hear("os.rename", ())

    setattr(kind, name, counted)


ACTS = {
    "add": lambda store, folders: store.add(folders / "c", "new"),
    "replace": lambda store, folders: store.add(folders / "d", "a", replace=True),
    "remove": lambda store, folders: store.remove("b"),
}


@pytest.mark.parametrize(
    ("act", "step"), [("replace", 12), *(pytest.param(act, 1, marks=pytest.mark.slow) for act in ACTS)]
)
def test_a_writer_killed_at_any_moment_leaves_all_of_it_or_nothing(act, step, folders, tmp_path):
    template = AdapterStore(tmp_path / "template")
    template.add_many([source for source in sources(folders) if source.name in "ab"])
    template.close()
    place = 0
    while True:
        place += step
        root = tmp_path / f"store-{place}"
        shutil.copytree(tmp_path / "template", root)
        code = killed_at(place, root, lambda store: ACTS[act](store, folders))
        assert code in (0, 9)
        store = AdapterStore(root)
        names = set(store.names())
        assert names in ({"a", "b"}, {"a", "b", "new"} if act == "add" else {"a"} if act == "remove" else {"a", "b"})
        read = dict(store.read("a").tensors)
        expected = [saved_tensors(folders / name) for name in ("a", *("d" if act == "replace" else ()))]
        assert any(same(read, tensors) for tensors in expected)
        if act != "remove" or "b" in names:
            ACTS[act](store, folders)  # the same again ends as if nothing had happened
        assert objects(store) == {store.revision(name) for name in store.names()} or code == 9
        store.add(folders / "c", "last")
        assert objects(store) == {store.revision(name) for name in store.names()}
        assert not [path.name for path in root.rglob(".*") if path.name.startswith((".draft", ".entries"))]
        check_whole(store)
        if code == 0:
            assert place > 15
            return


def sources(folders):
    from deltatune.store.adapter_store.add_sources import sources_in

    return sources_in(folders)


def test_a_writer_waits_for_another_and_readers_do_not(store, folders, monkeypatch):
    monkeypatch.setattr(current_index, "LOCK_WAIT", 0.2)
    other = AdapterStore(store._place.root)
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        with store._index.writing():
            begun.set()
            go.wait(20)

    writer = threading.Thread(target=hold)
    writer.start()
    assert begun.wait(20)
    start = time.monotonic()
    assert len(other) == 4
    assert AdapterStore(store._place.root).read("b").extra["scores"]["test"]["accuracy"] == 0.1
    assert time.monotonic() - start < 2
    later = threading.Timer(0.1, go.set)
    later.start()
    other.add(folders / "a", "more")
    writer.join()
    assert len(store) == 5
    with store._place.lock(), pytest.raises(FolderInUse, match="is in use by"), other._place.lock(wait=0.05):
        pass


WORK = """
import random, sys
from pathlib import Path
from deltatune.store.adapter_store import AdapterStore, store_folder
from deltatune.core.errors import DeltatuneError
store_folder.sync = lambda folders: None
root, folders, seed, turns = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
drawn, store = random.Random(seed), AdapterStore(root)
for turn in range(turns):
    name = f"n{drawn.randrange(6)}"
    verb = drawn.choice(["add", "read", "read", "remove", "list"])
    try:
        if verb == "add":
            store.add(folders / drawn.choice("abcd"), name, replace=True)
        elif verb == "remove":
            store.remove(name)
        elif verb == "list":
            assert all(entry.task == "classify" for entry in store.list())
        else:
            stored = store.read(name)
            assert sum(float(tensor.sum()) for tensor in stored.tensors.values()) is not None
    except DeltatuneError as error:
        assert "is called" in str(error), error
print("done")
"""


def workers(root: Path, folders: Path, number: int, turns: int) -> list[subprocess.Popen]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORK, str(root), str(folders)]
    return [
        subprocess.Popen([*command, str(seed), str(turns)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env=environment)
        for seed in range(number)
    ]  # fmt: skip


@pytest.mark.slow
def test_processes_add_read_and_remove_at_once(store, folders):
    processes = workers(store._place.root, folders, 4, 60)
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [text.splitlines()[-1] for text in said] == ["done"] * 4
    assert {"a", "b", "c", "d"} <= set(store.names())
    assert objects(store) == {store.revision(name) for name in store.names()}
    check_whole(store)


@pytest.mark.slow
def test_processes_killed_at_random_lose_nothing(store, folders):
    root = store._place.root
    for turn in range(4):
        processes = workers(root, folders, 2, 10_000)
        time.sleep(8 + turn % 3)
        processes[0].send_signal(signal.SIGKILL)
        time.sleep(1)
        assert processes[1].poll() is None, processes[1].communicate()[0]
        processes[1].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()
        opened = AdapterStore(root)
        assert {"a", "b", "c", "d"} <= set(opened.names())
        opened.add(folders / "a", f"turn{turn}")
        assert objects(opened) == {opened.revision(name) for name in opened.names()}
        check_whole(opened)
        assert not list(root.rglob(".draft-*"))


@pytest.mark.slow
def test_threads_of_one_process_share_a_store(store, folders):
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(60):
                if (turn + seed) % 5 == 0:
                    store.add(folders / "abcd"[turn % 4], f"t{seed}", replace=True)
                assert store.read("abcd"[turn % 4]).method is not None
                assert "a" in store
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(store.names()) == {*"abcd", *(f"t{seed}" for seed in range(4))}
    check_whole(store)


def test_a_full_disk_changes_nothing(store, folders, monkeypatch):
    from deltatune.store.adapter_store import object_files
    from deltatune.store.atomic_files import CannotWrite

    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(object_files, "_copy", full)
    with pytest.raises(CannotWrite, match="the disk is full"):
        store.add(folders / "a", "more")
    monkeypatch.undo()
    assert store.names() == ["a", "b", "c", "d"]
    assert not list(store._place.root.rglob(".draft-*"))
    assert store.add(folders / "a", "more").name == "more"
