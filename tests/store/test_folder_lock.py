"""One process writes a run: a second one is refused by name, a killed one leaves nothing in the way."""

import errno
import json
import os
import signal
import socket
import threading

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.store import folder_lock
from deltatune.store.folder_lock import LOCK, FolderLock
from support.holder import Holder


@pytest.fixture(params=[True, False], ids=["flock", "without"])
def flock(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(folder_lock, "fcntl", None)
    return request.param


def test_a_second_process_is_refused_by_the_first_ones_name(flock, tmp_path):
    folder = tmp_path / "run"
    holder = Holder(folder, flock)
    where = rf"--out .*run is in use by process {holder.process.pid} on {socket.gethostname()}, which began at 20\d\d-"
    with pytest.raises(DeltatuneError, match=where), FolderLock(folder):
        pass
    holder.end()
    assert not folder.exists()  # it had made the folder and wrote nothing
    with FolderLock(folder):
        pass


def test_a_killed_process_leaves_no_lock(flock, tmp_path):
    holder = Holder(tmp_path, flock)
    holder.end(signal.SIGKILL)
    assert (tmp_path / LOCK).is_file()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_later_process_with_the_same_number_is_not_the_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "fcntl", None)
    owner = {"pid": os.getppid(), "host": socket.gethostname(), "start": 1_000_000_000}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    with FolderLock(tmp_path):
        pass
    (tmp_path / LOCK).write_text(json.dumps(owner | {"host": "elsewhere"}))  # nobody here can tell
    with pytest.raises(DeltatuneError, match="on elsewhere, which began at 2001-09-"), FolderLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, '{"pid": "x"}', '{"pid": 1e400}', '{"pid": -1, "start": 5}']
)
def test_a_damaged_lock_file_is_replaced(flock, content, tmp_path):
    (tmp_path / LOCK).write_text(content)
    with FolderLock(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_the_same_thread_may_nest_and_another_may_not(flock, tmp_path):
    errors = []

    def other():
        try:
            with FolderLock(tmp_path):
                errors.append(None)
        except DeltatuneError as error:
            errors.append(str(error))

    with FolderLock(tmp_path):
        with FolderLock(tmp_path), FolderLock(tmp_path / "inner"):
            pass
        assert (tmp_path / LOCK).is_file()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"in use by another thread of this process ({os.getpid()})" in errors[0]
    with FolderLock(tmp_path):
        pass


def test_a_child_of_a_fork_has_no_lock(tmp_path):
    with FolderLock(tmp_path):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with FolderLock(tmp_path):
                    pass
            except DeltatuneError:
                code = 0 if not folder_lock._held else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (tmp_path / LOCK).is_file()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(handle, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", no_locks)
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeltatuneError, match="file is a file; choose another folder"), FolderLock(tmp_path / "file"):
        pass
    with (
        pytest.raises(DeltatuneError, match=r"cannot write in --out .*Not a directory"),
        FolderLock(tmp_path / "file/x"),
    ):
        pass
    for trap in ("link", "folder"):
        place = tmp_path / trap
        place.mkdir()
        (place / LOCK).symlink_to(place / LOCK) if trap == "link" else (place / LOCK).mkdir()
        with pytest.raises(DeltatuneError, match="cannot write in --out "), FolderLock(place):
            pass
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(DeltatuneError, match=r"cannot write in .*Read-only file system"), FolderLock(tmp_path):
        pass
