"""Streams and environments of unusual shells: closed or full outputs, narrow terminals, no home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltatune.cli.ui.screen import say, show, table
from deltatune.core.input_validation.regular_files import expanded
from support.command_line import ran, reviews, write_csv


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        (">/dev/full", 2, "error: cannot write the output: No space left on device\n"),
    ],
)
def test_a_closed_or_full_output_is_no_traceback(redirection: str, code: int, error: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m deltatune --version {redirection}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, error)


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    program = (
        "import os; from deltatune.cli.app import run; run(['--version']); "
        f"file = open({str(tmp_path / 'made')!r}, 'w'); file.write(str(file.fileno()))"
    )
    subprocess.run(["bash", "-c", f'"{sys.executable}" -c "$0" <&- >&- 2>&-', program], check=True)
    assert int((tmp_path / "made").read_text()) > 2


def test_a_command_whose_reader_is_gone_does_not_report_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> None:
        raise BrokenPipeError

    monkeypatch.setattr("deltatune.cli.app.metadata.version", lambda name: closed())
    done = ran("--version")
    assert (done.code, done.err) == (141, "")
    monkeypatch.setattr("deltatune.cli.commands.methods.show", lambda *parts: closed())
    done = ran("methods")
    assert (done.code, done.err) == (141, "")


@pytest.mark.parametrize("columns", ["0", "1", "20", "x", ""])
def test_a_narrow_terminal_hides_no_cell(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    show(table(["metric", "validation", "test"], [["accuracy", "0.912", "0.897"]], right=["validation", "test"]))
    shown = capsys.readouterr().out.split()
    assert shown == ["metric", "validation", "test", "accuracy", "0.912", "0.897"]
    say("one line")


def test_a_path_with_a_tilde_is_at_home_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "~nobody-has-this-name.csv", reviews(40))
    assert ran("data", "check", "--data", "~nobody-has-this-name.csv").code == 0
    assert expanded("~nobody-has-this-name.csv") == Path("~nobody-has-this-name.csv")
    (tmp_path / "other.txt").touch()
    done = ran("train", "--data", "~nobody-has-this-name.csv", "--out", "~/other.txt")
    assert done.err == f"error: --out {tmp_path / 'other.txt'} is a file; choose another folder\n"


def test_an_empty_number_of_processes_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "")
    assert ran("methods", "LoRA").code == 0
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "two")
    assert "runs in one process" in ran("methods", "LoRA").err


def test_an_error_sends_no_control_characters_to_the_terminal() -> None:
    done = ran("data", "check", "--data", "no\x1b[31m\0file\x07.csv")
    assert done.code == 2
    assert "no file no\\x1b[31m\\x00file\\x07.csv" in done.err
    assert all(sign.isprintable() or sign == "\n" for sign in done.err)
