"""Comparisons on a quantised base in other places: worker processes, shared passes, recipes with stages, prompts."""

from __future__ import annotations

import json

import pytest

import deltatune
from deltatune.comparison.result import open_results
from deltatune.training import Settings
from support import models
from support.command_line import ran, reviews, write_csv

QUICK = {
    "budget": None, "seeds": 2, "rates": 1, "max_length": 16,
    "settings": Settings(epochs=1, batch_size=16, precision="float32"),
}  # fmt: skip
METHODS = ["LoRA(r=2)", "BitFit()"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return str(write_csv(tmp_path_factory.mktemp("rows") / "films.csv", reviews(80, 0)))


@pytest.fixture(scope="module")
def alone(rows, tiny_folder, tmp_path_factory):
    """The comparison in this process, training by training."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return deltatune.compare(rows, model=str(tiny_folder), methods=METHODS, quantize="nf4", out=out, workers=1, **QUICK)


def scores(result):
    return {entry["method"]: entry["seed_scores"] for entry in result.summary["methods"]}


@pytest.mark.slow
def test_the_summary_says_how_the_base_is_stored(alone):
    assert alone.summary["quantize"] == "nf4"
    assert "linear maps in nf4" in alone.report.read_text()
    assert open_results(alone.folder).summary["base_bytes"] == alone.summary["base_bytes"]


@pytest.mark.slow
def test_shared_passes_give_the_same_losses(rows, tmp_path):
    """Without dropout, which shared passes draw for all at once."""
    folder = tmp_path / "model"
    models.tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    options = {"model": str(folder), "methods": METHODS, "quantize": "nf4", "head": {"dropout": 0.0}, **QUICK}
    apart = deltatune.compare(rows, out=tmp_path / "apart", workers=1, **options)
    joint = deltatune.compare(rows, out=tmp_path / "joint", together="auto", **options)
    for first, second in zip(apart.summary["methods"], joint.summary["methods"], strict=True):
        for curve, other in zip(first["curves"], second["curves"], strict=True):
            assert [loss for _, loss in curve["loss"]] == pytest.approx([loss for _, loss in other["loss"]], rel=1e-4)


@pytest.mark.slow
def test_worker_processes_open_the_base_as_it_is_stored_here(alone, rows, tiny_folder, tmp_path):
    others = deltatune.compare(
        rows, model=str(tiny_folder), methods=METHODS, quantize="nf4", out=tmp_path, workers=2, **QUICK
    )
    assert scores(others) == scores(alone)


def test_a_method_that_trains_the_base_is_named_with_the_scheme(rows, tiny_folder, tmp_path):
    with pytest.raises(deltatune.DeltatuneError, match=r"Full\(\).*nf4"):
        deltatune.compare(rows, model=str(tiny_folder), methods=["Full()"], quantize="nf4", out=tmp_path, **QUICK)


def test_an_unknown_scheme_is_named_before_anything_is_loaded(rows, tmp_path):
    with pytest.raises(deltatune.DeltatuneError, match="'nf5' is not a quantisation, did you mean 'nf4'"):
        deltatune.compare(rows, model="no-such-model", methods=METHODS, quantize="nf5", out=tmp_path)


def test_a_recipe_refuses_an_unknown_scheme_and_stages_that_train_quantised_weights(rows, tiny_folder, tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        f"model: {tiny_folder}\nquantize: nf4\nout: {tmp_path / 'out'}\nstages:\n"
        f"  - {{name: one, data: {rows}, method: Full(), merge: false}}\n"
    )
    refused = ran("run", recipe)
    assert refused.code == 2
    assert "two.yaml: stages.one: Full()" in refused.err
    assert "nf4" in refused.err
    unknown = ran("run", recipe, "quantize=nf5")
    assert unknown.code == 2
    assert "did you mean 'nf4'" in " ".join(unknown.err.split())


def test_a_stage_trains_on_the_quantised_base(rows, tiny_folder, tmp_path):
    recipe = tmp_path / "one.yaml"
    recipe.write_text(
        f"model: {tiny_folder}\nquantize: nf4\nout: {tmp_path / 'out'}\nstages:\n"
        f"  - {{name: one, data: {rows}, method: LoRA(r=2), merge: false, task: {{max_length: 16}}, "
        "settings: {max_steps: 2, precision: float32}}\n"
    )
    done = ran("run", recipe)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "1-one" / "run.json").read_text())
    assert record["base"]["quantized"] == "nf4"
    changed = ran("run", recipe, "quantize=int8")
    assert changed.code == 2
    assert "quantize: it was 'nf4', now it is 'int8'" in " ".join(changed.err.split())
