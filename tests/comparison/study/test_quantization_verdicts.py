"""Quantisations of one base side by side: paired verdicts, their words, their table; the axis in plans and files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deltatune.comparison.report.study_page import render_study
from deltatune.comparison.study import Axes, Point, run_study
from deltatune.comparison.study.quantization_verdicts import (
    QuantizationVerdicts,
    ScoredComparison,
    ScoredRuns,
    judge_quantizations,
    verdict_sentences,
)
from deltatune.core.errors import DeltatuneError
from deltatune.tasks.metrics.classification_and_regression import weighted_score
from deltatune.training import Settings
from support.command_line import ran, reviews, write_csv

ROWS = 400
AT = {"data": "sst2", "model": "builtin", "limit": None, "budget": None, "shots": None}


def answers(share: float, seed: int) -> np.ndarray:
    """Answers of which `share` are right, the same rows first for every share."""
    order = np.random.default_rng(5).permutation(ROWS)
    noise = np.random.default_rng(seed).permutation(ROWS)[:4]
    right = np.isin(np.arange(ROWS), order[: round(share * ROWS)])
    right[noise] = ~right[noise]
    return np.where(right, TRUE, 1 - TRUE)


TRUE = np.random.default_rng(0).integers(0, 2, ROWS)


def scored(**shares: float) -> ScoredComparison:
    def runs(share: float) -> ScoredRuns:
        scorers = [weighted_score("accuracy", answers(share, seed), TRUE, 2).resampled for seed in range(3)]
        return ScoredRuns(tuple(scorers), (0, 1, 2), fixed=False)

    return ScoredComparison("accuracy", ROWS, 0.03, {method: runs(share) for method, share in shares.items()})


def test_a_quantisation_is_equal_worse_or_better_than_the_published_weights():
    tested = {None: scored(A=0.9, B=0.7), "int8": scored(A=0.9, B=0.9), "nf4": scored(A=0.6, B=0.7)}
    pairs = judge_quantizations(tested, (None, "int8", "nf4"), None, AT)
    found = {(pair["method"], pair["scheme"]): pair for pair in pairs}
    assert {name: pair["verdict"] for name, pair in found.items()} == {
        ("A", "int8"): "equal", ("A", "nf4"): "worse", ("B", "int8"): "better", ("B", "nf4"): "equal",
    }  # fmt: skip
    assert found["A", "nf4"]["difference"] == pytest.approx(-0.3, abs=0.02), "quantised minus published"
    for pair in pairs:
        assert pair["ci"][0] < pair["difference"] < pair["ci"][1]
        assert pair["against"] is None
        assert pair["at"] == AT


def test_runs_on_other_numbers_of_rows_and_methods_of_one_side_have_no_verdict():
    short = ScoredComparison("accuracy", ROWS - 1, 0.03, scored(A=0.9).runs)
    assert judge_quantizations({None: scored(A=0.9), "nf4": short}, (None, "nf4"), None, AT) == []
    alone = judge_quantizations({None: scored(A=0.9, B=0.9), "nf4": scored(A=0.9)}, (None, "nf4"), None, AT)
    assert [pair["method"] for pair in alone] == ["A"]


def test_the_words():
    def pair(data, verdict, **more):
        ends = {"ci": [-0.02, 0.01], "margin": 0.02, "against": None}
        return {"method": "LoRA()", "scheme": "nf4", "at": {**AT, "data": data}, "verdict": verdict, **ends, **more}

    varied = ("data", "quantize")
    (equal,) = verdict_sentences([pair(name, "equal") for name in ("sst2", "trec6", "rte")], varied)
    assert equal["sentence"] == "LoRA() on nf4 is equal to LoRA() unquantised within 0.02 on all 3 data sets."
    mixed = [pair("sst2", "equal"), pair("trec6", "worse", ci=[-0.09, -0.03]), pair("rte", "undecided")]
    (said,) = verdict_sentences(mixed, varied)
    assert said["sentence"] == (
        "LoRA() on nf4 is equal to LoRA() unquantised within 0.02 on sst2, worse than it on trec6 (−0.090 to −0.030), "
        "neither told apart from it nor shown to be equal within 0.02 on rte (−0.020 to +0.010)."
    )
    (alone,) = verdict_sentences([pair("sst2", "undecided", margin=None, against="int8")], ("quantize",))
    assert alone["sentence"] == "LoRA() on nf4 is not told apart from LoRA() on int8 (−0.020 to +0.010)."


def test_the_reference_is_the_published_base_or_else_the_first():
    assert QuantizationVerdicts(Axes(("a",), quantize=("nf4", None))).reference is None
    assert QuantizationVerdicts(Axes(("a",), quantize=("int8", "nf4"))).reference == "int8"


def test_a_value_is_given_once_and_named_in_folders_and_labels():
    with pytest.raises(DeltatuneError, match="--quantize none is given twice"):
        Axes(("a",), quantize=(None, None))
    axes = Axes(("a", "b"), quantize=(None, "nf4"))
    assert axes.varied == ("data", "quantize")
    assert [point.quantize for point in axes.points()] == [None, None, "nf4", "nf4"], "a base is loaded once"
    assert Point("a", quantize="nf4").describe(axes.varied) == "a, nf4"
    assert Point("a").describe(axes.varied) == "a, unquantised"


@pytest.fixture(scope="module")
def study(tiny_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    rows = str(write_csv(place / "films.csv", reviews(80, 0)))
    quick = {
        "methods": ["LoRA(r=2)"], "budget": None, "seeds": 2, "rates": 1, "max_length": 16, "workers": 1,
        "settings": Settings(epochs=1, batch_size=16, precision="float32"),
    }  # fmt: skip
    schemes = ["none", "NF4(double=False)", "nf4"]
    return run_study(rows, model=str(tiny_folder), quantize=schemes, out=place / "out", **quick), place / "out"


@pytest.mark.slow
def test_a_study_has_scores_and_costs_of_each_quantisation(study):
    summary, out = study
    assert summary["axes"] == [{"name": "quantize", "values": [None, "NF4(double=False)", "nf4"]}]
    found = summary["quantizations"]
    assert [row["scheme"] for row in found["rows"]] == [None, "NF4(double=False)", "nf4"]
    sizes = [row["base_bytes"] for row in found["rows"]]
    assert sizes[0] > sizes[1] > sizes[2]
    assert found["rows"][0]["time_ratio"] == 1.0
    assert {pair["scheme"] for pair in found["pairs"]} == {"NF4(double=False)", "nf4"}
    for comparison in summary["comparisons"]:
        entry = comparison["summary"]["methods"][0]
        assert comparison["summary"]["quantize"] == comparison["at"]["quantize"]
        pair = next((p for p in found["pairs"] if p["scheme"] == comparison["at"]["quantize"]), None)
        if pair is not None:
            plain = summary["comparisons"][0]["summary"]["methods"][0]
            assert pair["difference"] == pytest.approx(entry["score"] - plain["score"], abs=1e-9)
            assert pair["runs"] == [len(entry["seed_scores"]), len(plain["seed_scores"])]
    assert found["sentences"][0]["sentence"] in summary["recommendation"]["sentence"]
    copies = {row["at"]["quantize"]: row["copies"] for row in summary["totals"]}
    assert len(set(copies.values())) == 1, "a fine-tuned copy has plain weights"
    stored = json.loads((out / "study.json").read_text())
    assert stored["quantizations"]["pairs"] == json.loads(json.dumps(found["pairs"]))


def test_equal_codes_with_other_scales_are_another_result(study):
    """Double quantisation changes no code: results of one must never stand in for those of the other."""
    configs = []
    for folder in ("NF4-double-False", "nf4"):
        (path,) = (each for each in study[1].glob(f"*{folder}/results.jsonl"))
        configs.append(json.loads(path.read_text().splitlines()[0])["config"]["base"])
    assert [base["quantized"] for base in configs] == ["NF4(double=False)", "nf4"]


def test_the_page_shows_them_side_by_side_and_escapes_texts(study):
    summary = json.loads(json.dumps(study[0]))
    summary["quantizations"]["sentences"].append({"sentence": "<script>alert(1)</script>"})
    page = render_study(summary)
    assert "Quantised base" in page
    assert "linear maps" not in page
    assert "<script>alert(1)" not in page
    for text in ("unquantised", "NF4(double=False)", "Base size", "Peak"):
        assert text in page
    del summary["quantizations"]
    assert "Quantised base" not in render_study(summary)


def test_the_table_of_costs_is_shown_again(study):
    done = ran("results", study[1])
    assert done.code == 0, done.err
    for text in ("base size", "peak", "unquantised", "NF4(double=False)", "1.00×"):
        assert text in done.out
