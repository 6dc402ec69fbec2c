"""A store behind a URL: few requests, a cache that is verified and bounded, failures in the middle of a download."""

import os
import shutil
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deltatune import DeltatuneError
from deltatune.store.adapter_store import AdapterStore, remote_folder, store_folder
from support.stored_adapters import make_adapter, same, saved_tensors

URL = "memory://bucket/adapters"


@pytest.fixture(autouse=True)
def emptied(monkeypatch):
    monkeypatch.setattr(store_folder, "sync", lambda folders: None)
    monkeypatch.setattr(remote_folder.time, "sleep", lambda seconds: None)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    for i, name in enumerate("abcd"):
        make_adapter(place / name, i, score=i / 10)
    return place


@pytest.fixture
def requests(monkeypatch):
    """What is asked of the file system, in order."""
    asked = []
    for name in ("cat_file", "ls", "pipe_file", "open", "rm"):
        before = getattr(MemoryFileSystem, name)

        def counted(self, path, *args, _name=name, _before=before, **more):
            asked.append(f"{_name} {str(path).removeprefix('/bucket/adapters')}")
            return _before(self, path, *args, **more)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    return asked


def opened(tmp_path, cache="cache", **more):
    return AdapterStore(URL, cache=tmp_path / cache, **more)


def test_what_one_machine_adds_another_one_reads(folders, tmp_path):
    here, there = opened(tmp_path), opened(tmp_path, "there", refresh=0)
    assert len(there) == 0
    assert not there.exists
    here.add_all(folders)
    assert there.exists
    assert there.names() == here.names() == [*"abcd"]
    assert there.entry("b") == here.entry("b")
    stored = there.read("b")
    assert str(tmp_path / "there") in str(stored.folder)
    assert same(dict(stored.tensors), saved_tensors(folders / "b"))
    here.add(folders / "d", "b", replace=True)
    assert same(dict(there.read("b").tensors), saved_tensors(folders / "d"))
    there.remove("a")
    here._place._listed = None  # as after `refresh` seconds
    assert here.names() == ["b", "c", "d"]
    with pytest.raises(DeltatuneError, match=f"no adapter of the store {URL} is called 'a'"):
        here.read("a")
    out = there.export("c", tmp_path / "out")
    assert same(saved_tensors(out), saved_tensors(folders / "c"))
    files = fsspec.filesystem("memory")
    digests = {path.split("/")[-2] for path in files.find("/bucket/adapters/objects") if path.endswith("manifest.json")}
    assert digests == {here.revision(name) for name in here.names()}


def test_a_listing_takes_few_requests(folders, tmp_path, requests, monkeypatch):
    first = opened(tmp_path)
    monkeypatch.setattr(remote_folder, "FEW", 3)
    first.add_all(folders)
    requests.clear()
    second = opened(tmp_path, "other")
    assert len(second.list()) == 4
    assert second.entry("a").score == ("accuracy", 0.0)
    assert second.search("good") != []
    assert [each for each in requests if not each.startswith("ls")] == ["cat_file /store.json", "cat_file /index.jsonl"]
    assert len(requests) == 3
    second.close()
    requests.clear()
    assert len(opened(tmp_path, "other").list()) == 4  # from the cache of the machine
    assert requests == ["cat_file /store.json", "ls /entries"]
    # entries that the file with all of them does not have as they are now are fetched, and it is not trusted
    text = fsspec.filesystem("memory").cat_file("/bucket/adapters/entries/a.json")
    fsspec.filesystem("memory").pipe_file("/bucket/adapters/entries/e.json", text.replace(b'"a"', b'"e"'))
    fsspec.filesystem("memory").pipe_file("/bucket/adapters/entries/b.json", text.replace(b'"a"', b'"b"'))
    third = opened(tmp_path, "third")
    assert third.names() == [*"abcde"]
    assert third.revision("b") == third.revision("a") == third.revision("e")
    fsspec.filesystem("memory").pipe_file("/bucket/adapters/index.jsonl", b"[] nonsense\n{}\n")
    assert opened(tmp_path, "fourth").names() == [*"abcde"]


@pytest.mark.parametrize("fault", ["error", "cut", "gone", "changed"])
def test_a_download_that_fails_leaves_nothing_and_is_tried_again(fault, folders, tmp_path, monkeypatch):
    opened(tmp_path).add_all(folders)
    reader = opened(tmp_path, "other")
    files, count = fsspec.filesystem("memory"), 0
    path = f"/bucket/adapters/objects/{reader.revision('c')[:2]}/{reader.revision('c')}/adapter.safetensors"
    content, before = files.cat_file(path), remote_folder.RemoteFolder._copy

    def failing(self, remote, local):
        nonlocal count
        if remote == path:
            count += 1
            local.write_bytes(content[:100])
            raise ConnectionResetError("the line is down")
        before(self, remote, local)

    if fault == "error":
        monkeypatch.setattr(remote_folder.RemoteFolder, "_copy", failing)
    elif fault == "gone":
        files.rm(path)
    else:
        files.pipe_file(path, content[:-8] if fault == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    words = {"error": "cannot fetch adapter.safetensors of 'c' at memory://.*: ConnectionResetError: the line is down"}
    words |= {"gone": "cannot fetch adapter.safetensors of 'c'.*FileNotFound"}
    with pytest.raises(
        DeltatuneError, match=words.get(fault, "'c' of memory://.* is damaged; add it again with --repl")
    ):
        reader.read("c")
    assert count == (3 if fault == "error" else 0)
    place = reader._place.objects.root
    assert not list(place.rglob("adapter*"))
    assert not list(place.glob(".draft*"))
    assert reader.read("d").method is not None
    monkeypatch.setattr(remote_folder.RemoteFolder, "_copy", before)
    if fault != "error":
        opened(tmp_path).add(folders / "c", replace=True)
    assert same(dict(reader.read("c").tensors), saved_tensors(folders / "c"))


def test_one_failure_of_a_request_is_no_failure(folders, tmp_path, monkeypatch):
    opened(tmp_path).add_all(folders)
    before, failed = MemoryFileSystem.cat_file, set()

    def once(self, path, *args, **more):
        if path not in failed:
            failed.add(path)
            raise OSError("try again")
        return before(self, path, *args, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", once)
    assert opened(tmp_path, "other").read("a").method is not None


def test_what_was_listed_holds_while_the_url_does_not_answer(folders, tmp_path, monkeypatch):
    opened(tmp_path).add_all(folders)
    reader = opened(tmp_path, "other", refresh=0)
    reader.read("a")

    def down(self, *args, **more):
        raise TimeoutError("no answer")

    monkeypatch.setattr(MemoryFileSystem, "ls", down)
    assert reader.names() == [*"abcd"]
    assert reader.read("a").method is not None
    with pytest.raises(DeltatuneError, match=r"cannot list the entries at memory://.*: TimeoutError: no answer"):
        len(opened(tmp_path, "third"))


def test_the_cache_is_bounded_and_damage_in_it_is_fetched_again(folders, tmp_path, requests):
    opened(tmp_path).add_all(folders)
    size = max(entry.bytes for entry in opened(tmp_path).list())
    reader = opened(tmp_path, "other", cache_bytes=2 * size)
    for name in "abcab":
        reader.read(name)
    here = set(reader._place.objects.digests())
    assert here == {reader.revision(name) for name in "ab"}  # c, used longest ago, has gone
    requests.clear()
    reader.read("a")
    assert requests == []
    path = reader.read("a").folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    assert same(dict(reader.read("a").tensors), saved_tensors(folders / "a"))
    held = reader.read("b")
    for name in "cda":
        reader.read(name)
    assert same(dict(held.tensors), saved_tensors(folders / "b"))


def test_a_local_store_that_was_copied_to_a_url_is_one(folders, tmp_path):
    local = AdapterStore(f"file://{tmp_path}/local")
    local.add_all(folders)
    local.close()
    for folder, _, names in os.walk(tmp_path / "local"):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                remote = f"/bucket/adapters/{os.path.relpath(path, tmp_path / 'local')}"
                fsspec.filesystem("memory").pipe_file(remote, file.read())
    reader = opened(tmp_path)
    assert [entry.to_json() for entry in reader.list()] == [entry.to_json() for entry in local.list()]
    assert same(dict(reader.read("d").tensors), saved_tensors(folders / "d"))


def test_urls_that_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(DeltatuneError, match="the store nothing://x cannot be opened: Protocol not known: nothing"):
        AdapterStore("nothing://x", cache=tmp_path)
    if "s3fs" not in sys.modules and not shutil.which("s3fs"):
        with pytest.raises(DeltatuneError, match="pip install s3fs"):
            AdapterStore("s3://bucket/x", cache=tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(DeltatuneError, match="needs fsspec: pip install fsspec"):
        AdapterStore(URL, cache=tmp_path)
    monkeypatch.undo()
    fsspec.filesystem("memory").pipe_file("/bucket/adapters/store.json", b'{"schema": 3}')
    with pytest.raises(DeltatuneError, match="has schema 3"):
        opened(tmp_path)
