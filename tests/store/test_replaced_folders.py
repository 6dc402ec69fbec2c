"""Folders that are replaced: at every moment the old or the new one is in its place, also behind a link."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.store import atomic_files, run_folder
from deltatune.store.atomic_files import check_folder, write_folder
from support.child import in_child


def filled(text):
    return lambda work: (work / "a.txt").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["replace", "rmtree"])
def test_a_process_killed_while_it_replaces_a_folder_leaves_one(call, tmp_path, monkeypatch):
    write_folder(tmp_path / "x", filled("old"))

    def killed():
        module = os if call == "replace" else atomic_files.shutil
        monkeypatch.setattr(module, call, lambda *args, **options: os._exit(9))
        write_folder(tmp_path / "x", filled("new"))
        return 0, ""

    in_child(killed)
    assert (tmp_path / "x/a.txt").read_text() == "new"
    check_folder(tmp_path / "x")


def test_without_exchange_the_old_folder_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)
    write_folder(tmp_path / "x", filled("old"))
    replace = os.replace

    def killed():
        calls = []

        def second_kills(*paths):
            calls.append(paths)
            os._exit(9) if len(calls) == 2 else replace(*paths)

        monkeypatch.setattr(os, "replace", second_kills)
        write_folder(tmp_path / "x", filled("new"))
        return 0, ""

    assert in_child(killed)[0] == 9
    assert not (tmp_path / "x").exists()

    def fails(work):
        raise ValueError("an error of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        write_folder(tmp_path / "x", fails)
    assert (tmp_path / "x/a.txt").read_text() == "old"
    check_folder(tmp_path / "x")


def test_behind_a_link_the_folder_it_names_is_written(tmp_path):
    for name in ("there", "not-yet"):
        (tmp_path / name).mkdir()
    write_folder(tmp_path / "there/x", filled("old"))
    (tmp_path / "link").symlink_to(tmp_path / "there/x")
    (tmp_path / "dangling").symlink_to(tmp_path / "not-yet/x")
    for name, folder in (("link", "there"), ("dangling", "not-yet")):
        write_folder(tmp_path / name, filled("new"))
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / folder / "x/a.txt").read_text() == "new"
        assert names(tmp_path / folder) == ["x"]
    assert names(tmp_path) == ["dangling", "link", "not-yet", "there"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_what_is_write_protected_is_not_replaced_and_nothing_is_left_beside_it():
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        run_folder.open_run(place / "run", {"a": 1}, force=False)
        write_folder(place / "run" / run_folder.ADAPTER, filled("old"))
        (place / "run" / run_folder.METRICS).write_text("{}")
        os.chown(place, 65534, 65534)
        for path in place.rglob("*"):
            os.chown(path, 65534, 65534)
        (place / "run" / run_folder.ADAPTER).chmod(0o555)
        before = sorted(place.rglob("*"))

        def act():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = []
            for attempt in (
                lambda: write_folder(place / "run" / run_folder.ADAPTER, filled("new")),
                lambda: run_folder.open_run(place / "run", {"a": 2}, force=True),
            ):
                try:
                    attempt()
                except DeltatuneError as error:
                    said.append(str(error))
            return 0, "\n".join(said)

        said = in_child(act)[1]
        assert "adapter: it is write-protected; choose another folder" in said
        assert "adapter is write-protected, so the run in" in said
        assert sorted(place.rglob("*")) == before
    finally:
        shutil.rmtree(place)
