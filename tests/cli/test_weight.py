"""`--weight`: the slider of an adapter in predict, evaluate and merge."""

import json
from pathlib import Path

import pytest

from support.command_line import QUICK, ran, review_folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Data and a run of several methods on it. Read only."""
    folder = tmp_path_factory.mktemp("weight")
    data = review_folder(folder / "data")
    for name, method in (("lora", "LoRA(r=2)"), ("prompt", "Prompt(length=3)"), ("full", "TopLayers(1)")):
        done = ran(
            *("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", "--method", method),
            *(*QUICK, "--out", folder / name),
        )
        assert done.code == 0, done.err
    return folder


def scores(*options: str | Path) -> list[float]:
    """The probability of the label good for two texts."""
    done = ran("predict", "-", *options, stdin="the film was good\nit was awful\n")
    assert done.code == 0, done.err
    return [json.loads(line)["scores"]["good"] for line in done.out.splitlines()]


@pytest.mark.slow
def test_merged_with_a_weight_is_unmerged_with_it(runs, tmp_path):
    lora = runs / "lora"
    slider = {weight: scores("--adapter", lora, "--weight", weight) for weight in ("0", "0.5", "1", "2")}
    assert slider["1"] == scores("--adapter", lora)
    assert len({tuple(values) for values in slider.values()}) == 4
    done = ran("merge", "--adapter", lora, "--weight", "0.5", "--out", tmp_path / "half", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["weight"] == 0.5
    assert json.loads((tmp_path / "half/merge.json").read_text())["weight"] == 0.5
    merged = scores("--adapter", tmp_path / "half/adapter", "--model", tmp_path / "half")
    assert merged == pytest.approx(slider["0.5"], abs=1e-4)


@pytest.mark.slow
def test_outputs_record_the_weight(runs):
    done = ran("predict", "--adapter", runs / "lora", "--weight", "0.5", stdin="the film was good\n")
    assert json.loads(done.out)["weight"] == 0.5
    assert "weight" not in json.loads(ran("predict", "--adapter", runs / "lora", stdin="the film\n").out)
    done = ran("evaluate", "--adapter", runs / "lora", "--data", runs / "data", "--weight", "0.5", "--json")
    assert json.loads(done.out)["weight"] == 0.5
    shown = ran("evaluate", "--adapter", runs / "lora", "--data", runs / "data", "--weight", "0.5")
    assert "multiplied by 0.5; its head was used whole" in " ".join(shown.out.split())


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("run", "weight", "words"),
    [
        ("prompt", "0.5", "3 virtual tokens"),
        ("full", "0.5", "replaces weights of the base, which have no scale"),
        ("lora", "nan", "finite number"),
        ("lora", "inf", "finite number"),
    ],
)
def test_what_cannot_be_scaled_says_so(runs, run, weight, words, tmp_path):
    for command in (("predict", "-"), ("evaluate", "--data", runs / "data"), ("merge", "--out", tmp_path / "out")):
        done = ran(command[0], *command[1:], "--adapter", runs / run, "--weight", weight, stdin="a film\n")
        assert done.code != 0, command
        assert words in done.err
    assert not (tmp_path / "out").exists()
