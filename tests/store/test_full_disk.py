"""A full disk, a limit on files, a folder that must not be written: one plain error, and what was there stays whole."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

import deltatune
from deltatune.comparison.results.records import Records
from deltatune.store import tensors
from deltatune.store.atomic_files import CannotWrite, append_line, check_folder, write_file, write_folder
from deltatune.store.merged_model import save_merged
from deltatune.training import train
from deltatune.training.reporting import FILE
from support import models
from support.child import in_child
from support.command_line import QUICK, ran, review_folder
from support.runs import PLAIN, ROWS, TASK, host_with

FULL = r"cannot write .*: the disk is full; it needs at least [\d,]+ bytes, and [\d,]+ are free in .*unchanged"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Disk:
    """Counts writes (files opened for writing, fsync, safetensors) and is full at the n-th one."""

    def __init__(self) -> None:
        self.left, self.writes = 0, 0

    def write(self) -> None:
        self.writes += 1
        if self.left:
            self.left -= 1
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def heard(self, event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR) and self.on:
            self.write()

    on = False


DISK = Disk()
sys.addaudithook(DISK.heard)  # it cannot be removed, only silenced


@pytest.fixture
def disk(monkeypatch):
    fsync, save = os.fsync, tensors.save_file

    def full_fsync(handle):
        if DISK.on:
            DISK.write()
        fsync(handle)

    def full_save(values, path, metadata=None):
        if DISK.on:
            try:
                DISK.write()
            except OSError:  # in its own words
                text = "Error while serializing: I/O error: No space left on device (os error 28)"
                raise safetensors.SafetensorError(text) from None
        save(values, path, metadata)

    monkeypatch.setattr(os, "fsync", full_fsync)
    monkeypatch.setattr(tensors, "save_file", full_save)
    yield DISK
    DISK.on = False


def full_everywhere(disk, act, folder):
    """Act with the disk full at the first write, the second, and so on; nothing may change. How many there were."""
    disk.on, disk.left, disk.writes = True, 0, 0
    act()
    disk.on = False
    total, before = disk.writes, contents(folder)
    for n in range(1, total + 1):
        disk.on, disk.left = True, n
        with pytest.raises(CannotWrite, match=FULL):
            act()
        disk.on = False
        assert contents(folder) == before, n
        assert not list(folder.glob(".*")), n
    return total


def test_an_adapter_that_does_not_fit_leaves_the_old_one(disk, tmp_path):
    host = host_with()
    assert full_everywhere(disk, lambda: host.save("a", tmp_path / "adapter"), tmp_path) > 5
    check_folder(tmp_path / "adapter")


def test_a_file_that_does_not_fit_leaves_the_old_one(disk, tmp_path):
    assert full_everywhere(disk, lambda: write_file(tmp_path / "report.html", "x" * 1000), tmp_path) == 2
    disk.on, disk.left = True, 1
    with pytest.raises(CannotWrite, match="needs at least 1,000 bytes"):
        write_file(tmp_path / "report.html", "y" * 1000)


def test_records_that_do_not_fit_leave_the_finished_ones(disk, tmp_path):
    record = {"cell": "a", "status": "ok", "stage": "final", "config": {}, "adapter": "x"}
    Records(tmp_path).add(record, np.zeros((5, 2)))
    for n in (1, 2, 3, 4):
        records = Records(tmp_path)
        disk.on, disk.left = True, n
        with pytest.raises(CannotWrite, match=FULL):
            records.add(record | {"cell": "b"}, np.zeros((5, 2)))
        disk.on = False
        assert Records(tmp_path).get("a", adapter=False) == record
        assert not list((tmp_path / "predictions").glob(".*"))


def test_a_merged_model_that_does_not_fit_is_not_there(disk, tmp_path, monkeypatch):
    host = deltatune.Host(models.tiny("bert"))
    host.attach("a", deltatune.parse("LoRA(r=2)"), head=False)
    size = sum(p.numel() * 4 for p in models.tiny("bert").parameters())

    def full(self, folder, **options):
        Path(folder, "model.safetensors").write_bytes(b"half of it")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(host.model), "save_pretrained", full)
    with pytest.raises(CannotWrite, match=f"needs at least {size:,} bytes"):
        save_merged(host, "a", tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_run_on_a_full_disk_stops_and_resumes(disk, tmp_path):
    tokenizer, settings = models.tiny_tokenizer(), PLAIN
    whole = host_with()
    wanted = train(whole, "a", TASK, ROWS, None, tokenizer, settings)

    def stop(step, *_):
        if step == 9:
            disk.on, disk.left = True, 6  # in the second checkpoint

    with pytest.raises(CannotWrite, match=r"checkpoint-10: the disk is full"):
        train(host_with(), "a", TASK, ROWS, None, tokenizer, settings, tmp_path, stop)
    disk.on = False
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-5"]
    assert not list(tmp_path.glob(".*"))
    again = host_with()
    outcome = train(again, "a", TASK, ROWS, None, tokenizer, settings, tmp_path)
    assert outcome.resumed == 5
    assert outcome.history == wanted.history


def test_a_limit_on_the_size_of_files_is_a_plain_error(tmp_path):
    resource = pytest.importorskip("resource")
    host = host_with()
    host.save("a", tmp_path / "adapter")
    before = contents(tmp_path)
    host.attach("b", deltatune.parse("LoRA(r=64)"), head=False)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            host.save("b", tmp_path / "adapter")
        except CannotWrite as error:
            return 0, str(error)
        return 1, "written"

    code, said = in_child(limited)
    assert code == 0, said
    assert "the file would be larger than this process may write (ulimit -f); it needs at least" in said
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, where tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    host = host_with()
    host.save("a", small_disk / "adapter")
    (small_disk / "film").write_bytes(b"x" * 90_000)
    before = contents(small_disk)
    host.attach("b", deltatune.parse("LoRA(r=128)"), head=False)
    with pytest.raises(CannotWrite, match=FULL):
        host.save("b", small_disk / "adapter")
    with pytest.raises(CannotWrite, match=FULL):
        save_merged(host, "a", small_disk / "merged")
    with pytest.raises(CannotWrite, match=FULL):
        write_file(small_disk / "metrics.json", "x" * 300_000)
    with pytest.raises(CannotWrite, match=FULL):
        append_line(small_disk / FILE, "x" * 300_000, sync=False)
    (small_disk / FILE).unlink()
    assert contents(small_disk) == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["adapter", "film"]
    out = small_disk / "run"
    with pytest.raises(CannotWrite, match="checkpoint-5: the disk is full"):
        train(host_with("LoRA(r=128)"), "a", TASK, ROWS, None, models.tiny_tokenizer(), PLAIN, out)
    assert [path.name for path in out.iterdir()] == [FILE]


def test_the_mode_of_files_and_folders_is_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        host = host_with()
        host.save("a", tmp_path / "adapter")
        save_merged(host, "a", tmp_path / "merged")
        write_folder(tmp_path / "x", lambda work: tensors.write_tensors(work / "x.safetensors", {"x": torch.ones(2)}))
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert oct(path.stat().st_mode & 0o777) == oct(0o750 if path.is_dir() else 0o640), path


@pytest.mark.slow
def test_a_folder_that_a_plain_user_must_not_write_is_refused_before_training(tiny_folder):
    """The command runs as another user in a child of this process, for which everything is imported already."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root can run a command as another user")
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        shutil.copytree(tiny_folder, place / "model")
        data = review_folder(place / "data")
        for path in place.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = ["train", "--model", place / "model", "--data", data, *QUICK, "--method", "BitFit()"]
        assert ran(*command, "--out", place / "theirs").code == 0
        (place / "empty").mkdir()
        before = contents(place)
        for out in ("new", "empty", "theirs"):
            for kind in ([], ["--force"]):
                code, said = as_nobody([*command, "--out", str(place / out), *kind])
                assert code == 2, said
                assert f"cannot write in --out {place / out}: Permission denied" in said
        assert contents(place) == before
    finally:
        shutil.rmtree(place)


def as_nobody(command):
    """Exit code and errors of a command run by a plain user."""

    def run():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        done = ran(*command)
        return done.code, done.err

    return in_child(run)
