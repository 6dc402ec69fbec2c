"""Bad input to merge, combine, dimension and compare: a plain error before anything is written or lost."""

from pathlib import Path

import pytest

from support.command_line import QUICK, ran, review_folder


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """Two trained runs, and their data."""
    place = tmp_path_factory.mktemp("trained")
    data = review_folder(place / "data")
    for seed in ("1", "2"):
        command = ["train", "--model", tiny_folder, "--data", data, *QUICK, "--method", "LoRA(r=2)", "--seed", seed]
        assert ran(*command, "--out", place / seed).code == 0
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "out", "message"),
    [
        (["merge", "--adapter", "1"], "1/adapter", "1/adapter, which is read; choose another folder"),
        (["merge", "--adapter", "1/adapter"], "1/adapter/merged", "1/adapter, which is read"),
        (["merge", "--adapter", "1"], "2/adapter", "holds an adapter, which a model would replace"),
        (["merge", "--adapter", "1"], "1", "holds files that were not written here"),
        (["merge", "--adapter", "1"], "data", "holds files that were not written here"),
        (["merge", "--adapter", "1", "--weight", "1e300"], "new", "must be a finite number"),
        (["merge", "--adapter", "1"], "data/train.csv", "is a file; choose another folder"),
        (["merge", "--adapter", "1"], "data/train.csv/x", "cannot write"),
        (["merge", "--adapter", "1"], "/proc/deltatune", "cannot write /proc/deltatune"),
        (["combine", "1", "2", "--head", "mean"], "1/adapter", "1/adapter, which is read"),
        (["combine", "1", "2", "--head", "mean"], "2", "holds files that were not written here"),
        (["combine", "1", "2", "--head", "mean", "--weights", "1e308,1e308"], "new", "values that are not finite"),
    ],
)
def test_merge_and_combine_lose_nothing(command, out, message, trained, monkeypatch):
    monkeypatch.chdir(trained)
    before = contents(trained)
    done = ran(*command, "--out", out)
    assert done.code == 2, done.err
    assert message in done.err
    assert contents(trained) == before
    assert not (trained / "new").exists()


def test_a_merged_model_is_no_place_for_an_adapter(trained, monkeypatch):
    monkeypatch.chdir(trained)
    for _ in range(2):  # the same again replaces it
        assert ran("merge", "--adapter", "1", "--out", "merged").code == 0
    done = ran("combine", "1", "2", "--head", "mean", "--out", "merged")
    assert (done.code, "holds a model, which an adapter would replace" in done.err) == (2, True)
    done = ran("merge", "--adapter", "merged/adapter", "--out", "merged")
    assert (done.code, "which is read; choose another folder" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "1000000000"], "rates must be at most 50"),
        (["--seeds", "1000000000000"], "seeds must be at most 1000"),
        (["--epochs", "1e30"], "epochs must be at most 1,000,000"),
        (["--epochs", "1e300"], "epochs must be a number that float32 can hold"),
        (["--epochs", "nan"], "epochs"),
        (["--batch-size", "-1"], "batch_size must be at least 1"),
    ],
)
@pytest.mark.parametrize("command", [["compare", "--method", "BitFit()"], ["dimension"]], ids=["compare", "dimension"])
def test_absurd_numbers_are_refused_at_once(command, options, message, tiny_folder, trained, tmp_path):
    common = ["--model", tiny_folder, "--data", trained / "data", "--out", tmp_path / "out"]
    done = ran(*command, *common, *options)
    assert done.code == 2, done.err
    assert message in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_no_generator_takes_is_refused(seed, tiny_folder, trained, tmp_path):
    common = ["--model", tiny_folder, "--data", trained / "data", "--out", tmp_path / "out"]
    done = ran("train", *common, "--seed", seed)
    assert (done.code, "seed must be 0 to 4,294,967,295" in done.err) == (2, True), done.err


@pytest.mark.parametrize("command", [["compare", "--method", "BitFit()"], ["dimension"]], ids=["compare", "dimension"])
def test_comparisons_keep_out_of_models_and_runs(command, tiny_folder, trained):
    for out, message in ((tiny_folder, "a model (config.json)"), (trained / "1", "a training run (run.json)")):
        before = contents(out)
        done = ran(*command, "--model", tiny_folder, "--data", trained / "data", *QUICK, "--out", out)
        assert done.code == 2
        assert f"--out {out} holds {message}; choose another folder" in done.err
        assert contents(out) == before
