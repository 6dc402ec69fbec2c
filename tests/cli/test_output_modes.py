"""--json and --quiet on every command: stdout is JSON alone, and nothing but the result and errors is printed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from deltatune.cli.app import app
from deltatune.cli.ui.output_mode import aside_stream, output_mode, result_stream
from support.command_line import QUICK, ran, review_folder, reviews, write_csv


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command of the program with its words."""
    command = command or typer.main.get_command(app)
    if hasattr(command, "commands"):
        for name, part in command.commands.items():
            yield from commands(part, (*path, name))
    else:
        yield " ".join(path), command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return review_folder(tmp_path_factory.mktemp("data") / "reviews")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, data: Path) -> tuple[Path, Any]:
    """A finished run, and what `train --json` printed."""
    out = tmp_path_factory.mktemp("runs") / "reviews"
    done = ran("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", out, "--json")
    assert done.code == 0, done.err
    return out, json.loads(done.out)


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_command_has_json_and_quiet(name: str, command: Any) -> None:
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    assert options["--json"].name == "as_json", f"{name} prints JSON where its parameter `as_json` is true"
    assert options["--quiet"] is options["-q"]
    for option in ("--json", "--quiet"):
        assert options[option].rich_help_panel == "Output"
        assert options[option].help


def test_training_prints_its_scores_as_json_and_everything_else_to_stderr(
    trained: tuple[Path, Any], tiny_folder: Path, data: Path
) -> None:
    out, printed = trained
    assert printed["folder"] == str(out)
    assert printed["metrics"] == json.loads((out / "metrics.json").read_text())
    again = ran("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", out, "--json")
    assert json.loads(again.out) == printed
    assert "finished before" in again.err
    assert "finished before" not in again.out


def test_quiet_training_prints_the_result_alone(trained: tuple[Path, Any], tiny_folder: Path, data: Path) -> None:
    out, _ = trained
    same = ("train", "--model", tiny_folder, "--data", data, *QUICK, "--out", out)
    loud, quiet = ran(*same), ran(*same, "-q")
    assert quiet.err == ""
    assert set(quiet.out.splitlines()) < set(loud.out.splitlines())
    assert "accuracy" in quiet.out
    assert f"Adapter: {out}" in quiet.out
    assert "finished before" in loud.out
    both = ran(*same, "--quiet", "--json")
    assert both.err == ""
    assert json.loads(both.out)["folder"] == str(out)


def test_predictions_are_json_lines_with_or_without_the_option(trained: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = trained
    plain = ran("predict", "--adapter", out, stdin="the film is good\nbad\n")
    with_option = ran("predict", "--adapter", out, "--json", "-q", stdin="the film is good\nbad\n")
    assert with_option.out == plain.out
    assert [json.loads(line)["text"] for line in plain.out.splitlines()]
    file = tmp_path / "rows.jsonl"
    written = ran("predict", "--adapter", out, "--json", "--out", file, stdin="good\n")
    assert json.loads(written.out) == {"out": str(file), "rows": 1}


def test_a_wrong_row_ends_json_lines_with_an_error(trained: tuple[Path, Any], tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", [{"title": "good"}])
    done = ran("predict", "--adapter", trained[0], "--json", rows)
    assert done.code == 2
    last = json.loads(done.out.splitlines()[-1])
    assert last["exit_code"] == 2
    assert f"error: {last['error']}" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("sites", "no-such-model"),
        ("train", "--metod", "x"),
        ("nope",),
        ("store", "show"),
        ("keys", "list", "no-such-file.json"),
        ("results", "no-such-folder"),
        ("watch", "no-such-folder", "--once"),
    ],
)
def test_an_error_is_one_json_value_on_stdout_and_its_text_on_stderr(words: tuple[str, ...]) -> None:
    done = ran(*words, "--json")
    assert done.code == 2
    assert json.loads(done.out) == {"error": done.err.removeprefix("error: ").removesuffix("\n"), "exit_code": 2}
    assert ran(*words).out == ""


def test_errors_are_printed_with_quiet() -> None:
    loud, quiet = ran("sites", "no-such-model"), ran("sites", "no-such-model", "-q")
    assert quiet == loud
    assert quiet.err


def test_keys_as_json(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = ran("keys", "add", file, "anna", "--json", "--quiet")
    assert made.err == ""
    assert json.loads(made.out).keys() == {"name", "key"}
    assert json.loads(ran("keys", "remove", file, "anna", "--json").out) == {"removed": "anna"}


def test_data_check_and_env_as_json(tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", reviews(8))
    assert json.loads(ran("data", "check", rows, "--json", "-q").out)
    assert json.loads(ran("env", "--json").out)["deltatune"]


def test_what_libraries_print_never_reaches_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with output_mode(json=True, quiet=False):
        print("a library")
        print("aside", file=aside_stream())
        print("[]", file=result_stream())
    captured = capsys.readouterr()
    assert captured.out == "[]\n"
    assert captured.err == "a library\naside\n"


def test_quiet_leaves_nothing_but_results(capsys: pytest.CaptureFixture[str]) -> None:
    with output_mode(json=False, quiet=True):
        print("result")
        print("aside", file=aside_stream())
        print("progress", file=sys.stderr)
    print("after", file=sys.stderr)
    assert capsys.readouterr() == ("result\n", "after\n")


def test_the_precision_of_predictions_is_that_of_training_unless_another_is_named(trained: tuple[Path, Any]) -> None:
    """It was trained in float32."""
    text = "the film is good and the plot was great\n"
    outs = {
        precision: ran("predict", "--adapter", trained[0], *options, stdin=text).out
        for precision, options in {
            "default": (), "float32": ("--precision", "float32"), "bfloat16": ("--precision", "bfloat16"),
        }.items()
    }  # fmt: skip
    assert outs["default"] == outs["float32"] != outs["bfloat16"]
    refused = ran("predict", "--model", "x", "--template", "{text} {mask}", "--precision", "float32", stdin=text)
    assert refused.code == 2
    assert "--precision float32" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "r.csv"), "unexpected argument r.csv; data are named by an option: --data r.csv; see"),
        (("train", "--method", "LoRA()", "--method", "BitFit()"), "--method is given 2 times but takes one value; see"),
        (("env", "x"), "unexpected argument x; see"),
        (("train", "--epochs", "abc"), "--epochs needs a number; see"),
        (("train", "--seed", "x"), "--seed needs a whole number; see"),
        (("-q",), "no option -q; it stands after the command: deltatune COMMAND -q; see"),
    ],
)
def test_first_mistakes(words: tuple[str, ...], message: str) -> None:
    done = ran(*words)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
