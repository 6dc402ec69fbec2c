"""Finished runs whose model, adapter or scores are no longer what they were: never taken for the run that is asked."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.command_line import QUICK, ran, review_folder


@pytest.fixture
def data(tmp_path):
    return review_folder(tmp_path / "data")


@pytest.fixture
def model(tiny_folder, tmp_path):
    """A model's folder that may be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def replaced(model: Path) -> None:
    """Put another model of the same shapes into a folder."""
    tensors = load_file(model / "model.safetensors")
    tensors = {name: value + 0.1 if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


TRAIN = ["train", "--method", "BitFit()"]
CONTINUAL = ["continual", "--method", "BitFit()", "--mode", "apart"]


@pytest.mark.parametrize("command", [TRAIN, CONTINUAL], ids=["train", "continual"])
def test_a_run_on_another_model_of_the_same_name_is_refused(command, model, data, tmp_path):
    sources = ["--data", data] if command is TRAIN else ["--data", f"a={data}", "--data", f"b={data}"]
    options = ["--epochs", "1", "--max-length", "32", "--precision", "float32"]
    words = [*command, "--model", model, *sources, *options, "--out", tmp_path / "out"]
    assert ran(*words).code == 0
    replaced(model)
    done = ran(*words)
    assert (done.code, "finished run with other settings:\n  base.content: it was" in done.err) == (2, True), done.err


def test_a_run_of_an_earlier_version_does_not_say_its_model(model, data, tmp_path):
    words = [*TRAIN, "--model", model, "--data", data, *QUICK, "--out", tmp_path / "out"]
    assert ran(*words).code == 0
    record = json.loads((tmp_path / "out/run.json").read_text())
    del record["base"]
    (tmp_path / "out/run.json").write_text(json.dumps(record))
    assert "finished before" in ran(*words).out


def test_results_of_a_comparison_on_another_model_are_not_used(model, data, tmp_path):
    words = ["compare", "--method", "BitFit()", "--rates", "1", "--seeds", "1", "--model", model, "--data", data]
    words += [*QUICK, "--out", tmp_path / "out"]
    assert ran(*words).code == 0
    replaced(model)
    done = ran(*words)
    assert done.code == 0
    assert "results of another configuration (base.content was" in " ".join(done.out.split())


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A finished run, and the words that ask for it in another folder."""
    place = tmp_path_factory.mktemp("finished")
    words = [*TRAIN, "--model", tiny_folder, "--data", review_folder(place / "data"), *QUICK, "--out"]
    assert ran(*words, place / "out").code == 0
    return words, place / "out"


@pytest.fixture
def copied(finished, tmp_path):
    """The words that ask for a copy of the finished run, and its folder."""
    words, folder = finished
    shutil.copytree(folder, tmp_path / "out")
    return [*words, tmp_path / "out"], tmp_path / "out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: shutil.rmtree(run / "adapter"), "adapter is incomplete"),
        (lambda run: (run / "adapter/adapter.safetensors").unlink(), "adapter.safetensors is missing"),
        (lambda run: (run / "metrics.json").write_text("{}"), "metrics.json has no scores"),
        (lambda run: (run / "metrics.json").write_text('{"validation": 3, "training": {}}'), "has no scores"),
        (lambda run: (run / "metrics.json").write_text("[1]"), "has no scores"),
    ],
)
def test_a_damaged_finished_run_is_refused_and_force_trains_it_again(change, message, copied):
    words, folder = copied
    change(folder)
    done = ran(*words)
    assert done.code == 2, done.out
    assert message in done.err
    assert "--force trains it again" in done.err
    if message in ("adapter.safetensors is missing", "metrics.json has no scores"):  # a part of it gone, or unreadable
        assert ran(*words, "--force").code == 0


def test_a_finished_run_without_its_adapter_is_not_called_unfinished(copied):
    _, folder = copied
    shutil.rmtree(folder / "adapter")
    done = ran("predict", "--adapter", folder, stdin="good\n")
    assert (done.code, "is finished, but its adapter was removed" in done.err) == (2, True), done.err


def test_force_replaces_a_link_to_an_adapter_and_leaves_what_it_names(copied, tmp_path):
    words, _ = copied
    shutil.move(tmp_path / "out/adapter", tmp_path / "kept")
    (tmp_path / "out/adapter").symlink_to(tmp_path / "kept")
    assert "finished before" in ran(*words).out
    before = (tmp_path / "kept/adapter.safetensors").read_bytes()
    assert ran(*words, "--force").code == 0
    assert not (tmp_path / "out/adapter").is_symlink()
    assert (tmp_path / "kept/adapter.safetensors").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter", "metrics.json", "metrics.jsonl", "run.json",
    ]  # fmt: skip


def test_a_comparison_in_which_every_run_failed_is_an_error(model, data, tmp_path):
    tensors = load_file(model / "model.safetensors")
    broken = next(name for name in tensors if name.endswith("query.weight"))
    save_file({**tensors, broken: tensors[broken] * float("nan")}, model / "model.safetensors", {"format": "pt"})
    words = ["compare", "--method", "BitFit()", "--rates", "1", "--seeds", "1", "--model", model, "--data", data]
    for more in ((), ("--json",)):
        done = ran(*words, *QUICK, "--out", tmp_path / "out", *more)
        assert done.code == 2, done.out
        assert "every run failed; BitFit(): DeltatuneError: the loss became nan in step 1: the model's own" in done.err
    assert (tmp_path / "out/report.html").is_file()
