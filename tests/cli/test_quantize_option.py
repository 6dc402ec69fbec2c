"""`--quantize` on every command that loads a model; an adapter's base is stored as it was at training."""

from __future__ import annotations

import json

import pytest

from support.command_line import ran, reviews, write_csv

QUICK = ("--epochs", "1", "--max-length", "16", "--precision", "float32")
COMMANDS = (
    "train", "compare", "evaluate", "predict", "pretrain", "continual", "facts", "latency", "inspect", "self-instruct",
    "sites",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("rows") / "films.csv", reviews(60, 0))


@pytest.fixture(scope="module")
def adapter(rows, tiny_folder, tmp_path_factory):
    """The folder of a run on a base in nf4, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    done = ran("train", "--model", tiny_folder, "--data", rows, "--quantize", "NF4()", *QUICK, "--out", folder)
    assert done.code == 0, done.err
    return folder, done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_option_and_names_the_nearest_scheme(command):
    help_screen = ran(command, "--help").out
    assert "--quantize" in help_screen
    assert "nf4 (4 bits, as in QLoRA)" in " ".join(help_screen.split())
    arguments = {"inspect": ["x"], "self-instruct": ["x", "--out", "y"], "evaluate": ["--data", "x"],
                 "continual": ["--data", "x"]}.get(command, [])  # fmt: skip
    wrong = ran(command, *arguments, "--quantize", "nf5")
    assert wrong.code == 2
    assert "--quantize nf5: 'nf5' is not a quantisation, did you mean 'nf4'?" in " ".join(wrong.err.split())
    field = ran(command, *arguments, "--quantize", "NF4(blok=64)")
    assert "has no field 'blok', did you mean 'block'?" in " ".join(field.err.split())


def test_the_run_says_how_its_base_is_stored(adapter, tiny_folder):
    folder, printed = adapter
    assert "linear maps in nf4" in printed
    assert json.loads((folder / "run.json").read_text())["base"]["quantized"] == "nf4"
    from deltatune.training.open_session import open_host

    host = open_host(str(tiny_folder), quantize="nf4")[0]
    assert json.loads((folder / "metrics.json").read_text())["training"]["base_bytes"] == host.base.bytes
    assert host.base.bytes < open_host(str(tiny_folder))[0].base.bytes


def test_the_share_of_a_budget_is_that_of_the_plain_base(rows, tiny_folder, tmp_path):
    counted = []
    for scheme in ("none", "nf4"):
        done = ran(
            "train", "--model", tiny_folder, "--data", rows, "--quantize", scheme, *QUICK, "--budget", "5%",
            "--out", tmp_path / scheme,
        )  # fmt: skip
        assert done.code == 0, done.err
        counted.append(next(line for line in done.out.splitlines() if line.startswith("trained")))
    assert counted[0] == counted[1]


def test_an_adapter_is_evaluated_on_the_base_that_it_was_trained_on(adapter, rows, tmp_path):
    folder, _ = adapter
    trained = json.loads((folder / "metrics.json").read_text())["test"]
    done = ran("evaluate", "--adapter", folder, "--data", rows, "--split", "test", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["scores"] == pytest.approx(trained)
    other = ran("evaluate", "--adapter", folder, "--data", rows, "--quantize", "none")
    assert other.code == 2
    assert "was trained on a base in nf4, and without quantisation it is another one" in " ".join(other.err.split())
    assert "--other-base" in other.err
    similar = ran("evaluate", "--adapter", folder, "--data", rows, "--quantize", "NF4(double=False)")
    assert "trained on a base in nf4, and in NF4(double=False) it is another one" in " ".join(similar.err.split())
    assert ran("evaluate", "--adapter", folder, "--data", rows, "--quantize", "none", "--other-base").code == 0
    assert ran("inspect", folder).code == 0
    texts = tmp_path / "texts.txt"
    texts.write_text("a fine film\n")
    assert ran("predict", "--adapter", folder, texts).code == 0


def test_training_goes_on_on_the_same_base(adapter, rows, tmp_path):
    folder, _ = adapter
    done = ran("train", "--from", folder, "--data", rows, "--epochs", "1", "--precision", "float32", "--out", tmp_path)
    assert done.code == 0, done.err
    assert "linear maps in nf4" in done.out
    wrong = ran("train", "--from", folder, "--data", rows, "--quantize", "int8", "--out", tmp_path / "other")
    assert wrong.code == 2
    assert "trained on a base in nf4, and in int8 it is another one" in " ".join(wrong.err.split())


def test_another_quantisation_is_another_run(rows, tiny_folder, adapter):
    folder, _ = adapter
    done = ran(
        "train", "--model", tiny_folder, "--data", rows, "--quantize", "NF4(double=False)", *QUICK, "--out", folder
    )
    assert done.code == 2
    assert "base.quantized: it was 'nf4', now it is 'NF4(double=False)'" in " ".join(done.err.split())


def test_full_fine_tuning_of_a_quantised_base_is_refused(rows, tiny_folder, tmp_path):
    done = ran(
        "train", "--model", tiny_folder, "--data", rows, "--quantize", "nf4", "--method", "Full()", "--out", tmp_path
    )
    assert done.code == 2
    assert "nf4" in done.err


def test_sites_say_what_would_be_quantised(tiny_folder):
    done = ran("sites", tiny_folder, "--quantize", "nf4", "--json")
    assert done.code == 0, done.err
    stored = json.loads(done.out)["quantized"]
    assert stored["scheme"] == "nf4"
    assert 4.1 < stored["bits"] < 4.7
    assert stored["bytes"] < stored["plain_bytes"]
    assert "bits a parameter" in ran("sites", tiny_folder, "--quantize", "nf4").out


def test_a_prompt_on_a_server_has_no_quantisation_here(rows):
    done = ran(
        "evaluate", "--url", "http://127.0.0.1:9/v1", "--name", "m", "--data", rows, "--template", "{text} {mask}",
        "--quantize", "nf4",
    )  # fmt: skip
    assert done.code == 2
    assert "--quantize nf4: a server's model is stored as it is" in " ".join(done.err.split())


def test_none_never_means_a_folder_of_codes(rows, tiny_folder, tmp_path):
    codes = tmp_path / "codes"
    assert ran("quantize", tiny_folder, "--out", codes, "--no-compare").code == 0
    for command in (("train", "--quantize", "none"), ("compare", "--quantize", "none", "--quantize", "nf4")):
        done = ran(*command, "--model", codes, "--data", rows, *QUICK[:2], "--out", tmp_path / command[0])
        assert done.code != 0
        assert "none means plain weights" in " ".join(done.err.split())
    asked_nothing = ran("train", "--model", codes, "--data", rows, *QUICK, "--out", tmp_path / "run")
    assert asked_nothing.code == 0, asked_nothing.err
