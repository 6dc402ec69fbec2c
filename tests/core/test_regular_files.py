"""Files are looked at before they are opened: no pipe blocks, every obstacle is named."""

import os
from pathlib import Path

import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import check_directory, check_regular, read_text


def test_a_pipe_a_dangling_link_and_a_folder_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, why in (
        ("pipe", r"pipe \(FIFO\), not a regular file"),
        ("link", "a link to .*nowhere, which does not exist"),
        ("loop", "symbolic link"),
        (".", "a folder, not a regular file"),
        ("missing", "does not exist"),
        ("x" * 300, "too long"),
        ("a\0b", "null"),
    ):
        with pytest.raises(DeltatuneError, match=f"cannot read the recipe .*{why}"):
            check_regular(tmp_path / name, "recipe")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeltatuneError, match="it is a file, not a folder"):
        check_directory(tmp_path / "file")
    check_directory(tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(DeltatuneError, match=r"not UTF-8 \(byte 0xe9 at position 3\)"):
        read_text(tmp_path / "latin")
