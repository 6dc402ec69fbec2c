"""`deltatune merge`, `combine` and `inspect` of adapters that were trained on a quantised base."""

import json

import pytest

from support.command_line import QUICK, ran, review_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    """A run on a base in nf4. Read only."""
    folder = tmp_path_factory.mktemp("quantized")
    data = review_folder(folder / "data")
    train(tiny_folder, data, folder / "one")
    return folder


def train(model, data, out, *more):
    done = ran(
        *("train", "--model", model, "--data", data, "--lr", "3e-2", "--method", "LoRA(r=4)", *more),
        *(*QUICK, "--quantize", "nf4", "--out", out),
    )
    assert done.code == 0, done.err


def scores(*options):
    done = ran("predict", "-", *options, stdin="the film was good\nit was awful\n")
    assert done.code == 0, done.err
    return [json.loads(line)["scores"]["good"] for line in done.out.splitlines()]


@pytest.mark.slow
def test_merged_computes_what_the_quantised_base_does_with_the_adapter(run, tmp_path):
    unmerged = scores("--adapter", run / "one")
    done = ran("merge", "--adapter", run / "one", "--out", tmp_path / "plain", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["base"], result["quantize"]) == ("nf4", None)
    assert result["error"] < 1e-3
    assert scores("--adapter", tmp_path / "plain/adapter") == pytest.approx(unmerged, abs=1e-4)
    shown = ran("merge", "--adapter", run / "one", "--out", tmp_path / "plain", "--dtype", "bfloat16").out
    assert "stored in nf4" in shown
    assert "of the adapter's effect there" in shown


def test_codes_are_refused_above_the_bound_and_used_below_it(run, tmp_path):
    out = tmp_path / "codes"
    options = ("merge", "--adapter", run / "one", "--out", out, "--quantize", "nf4")
    refused = ran(*options, "--bound", "0.001")
    assert refused.code != 0
    assert "more than the bound of 0.001" in refused.err
    assert "(--bound)" in refused.err
    assert not out.exists()
    done = ran(*options, "--bound", "50", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["quantize"] == "nf4"
    assert 0 < result["error"] < 50
    assert "quantization_config" in json.loads((out / "config.json").read_text())
    assert all(0 <= score <= 1 for score in scores("--adapter", out / "adapter"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bound", "0.5"), "--quantize takes a bound"),
        (("--quantize", "nf5"), "--quantize nf5: 'nf5' is not a quantisation, did you mean 'nf4'"),
        (("--quantize", "nf4", "--bound", "-1"), "--bound"),
    ],
)
def test_options_that_do_not_go_together_say_so(run, options, words, tmp_path):
    done = ran("merge", "--adapter", run / "one", "--out", tmp_path / "out", *options)
    assert done.code != 0
    assert words in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_adapters_of_a_quantised_base_are_combined_and_inspected(run, tiny_folder, tmp_path):
    two = tmp_path / "two"
    train(tiny_folder, run / "data", two, "--seed", "1")
    done = ran("combine", run / "one", two, "--head", run / "one", "--out", tmp_path / "both")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "both/adapter.json").read_text())
    assert config["base"]["quantized"] == ["nf4"]
    assert config["extra"]["quantize"] == "nf4"
    assert len(scores("--adapter", tmp_path / "both")) == 2
    done = ran("inspect", run / "one", two, "--json")
    assert done.code == 0, done.err
    analysis = json.loads(done.out)
    assert analysis["note"] is None
    assert all(row["relative"] > 0 for row in analysis["adapters"][0]["changes"] if row["form"] == "low_rank")
