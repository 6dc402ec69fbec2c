"""`deltatune inspect`: tables, JSON and a figure of what adapters changed."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deltatune.comparison.report.figures.change_plots import _place
from support.command_line import QUICK, ran, review_folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Data and a run of several methods on it. Read only."""
    folder = tmp_path_factory.mktemp("inspect")
    data = review_folder(folder / "data")
    methods = {"one": "LoRA(r=2)", "two": "LoRA(r=3)", "prefix": "Prefix(length=3)", "full": "TopLayers(1)"}
    for name, method in methods.items():
        done = ran(
            *("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", "--method", method),
            *(*QUICK, "--out", folder / name),
        )
        assert done.code == 0, done.err
    return folder


def test_a_table_for_each_adapter_and_each_pair(runs, tmp_path):
    done = ran("inspect", runs / "one", runs / "two", "--plot", tmp_path / "out.svg")
    assert done.code == 0, done.err
    for words in ("layers.0.attn.q", "weight, low-rank", "one and two: cosine of all changes", "overlap in", "chance"):
        assert words in done.out
    image = ElementTree.parse(tmp_path / "out.svg").getroot()
    assert image.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in image.iter("{http://www.w3.org/2000/svg}text")]
    assert {"one", "two", "attn.q", "singular values", "overlap of subspaces φ(i, j)"} <= set(texts)


def test_json_has_the_whole_analysis(runs):
    found = json.loads(ran("inspect", runs / "one", runs / "two", "--top", "2", "--json").out)
    first, second = found["adapters"]
    row = first["changes"][0]
    assert (row["site"], row["form"], row["shape"]) == ("layers.0.attn.q", "low_rank", [32, 32])
    assert len(row["singular_values"]) == 2
    assert 0 < row["relative"] < 1
    assert len(second["changes"][0]["singular_values"]) == 3
    (pair,) = found["pairs"]
    assert pair["adapters"] == ["one", "two"]
    assert len(pair["sites"][0]["inputs"]) == len(pair["sites"][0]["inputs"][0]) == 2
    assert found["note"] is None


def test_without_its_base_norms_are_absolute(runs, tmp_path):
    whole = json.loads(ran("inspect", runs / "one", "--json").out)["adapters"][0]["changes"]
    alone = json.loads(ran("inspect", runs / "one", "--no-base", "--json").out)
    norms = {row["site"]: row["norm"] for row in alone["adapters"][0]["changes"] if row["form"] == "low_rank"}
    assert norms == pytest.approx({row["site"]: row["norm"] for row in whole if row["form"] == "low_rank"})
    assert {row["relative"] for row in alone["adapters"][0]["changes"]} == {None}
    moved = tmp_path / "moved"
    shutil.copytree(runs / "one/adapter", moved)
    stored = json.loads((moved / "adapter.json").read_text())
    assert "norms are absolute" in alone["note"]
    assert stored["extra"]["model"]
    done = ran("inspect", moved, "--model", tmp_path / "nowhere")
    assert done.code != 0
    assert "nowhere" in done.err


@pytest.mark.parametrize("method", ["prefix", "full"])
def test_every_kind_of_method_has_norms(runs, method, tmp_path):
    done = ran("inspect", runs / method, "--plot", tmp_path / "out.svg", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["adapters"][0]["changes"]
    assert all(row["norm"] > 0 for row in rows if row["parameter"] in ("keys", "values"))
    assert (method == "full") == any(row["singular_values"] for row in rows)
    ElementTree.parse(tmp_path / "out.svg")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nowhere",), "cannot read the adapter nowhere: it does not exist"),
        (("{runs}/one", "--plot", "out.png"), "an .svg file"),
        (("{runs}/data",), "data"),
    ],
)
def test_mistakes_are_one_plain_error(runs, options, words):
    done = ran("inspect", *(option.format(runs=runs) for option in options))
    assert done.code != 0
    assert words in done.err
    assert "Traceback" not in done.err


def test_layers_are_found_in_site_names_and_in_a_models_own_names():
    def place(site, parameter="weight"):
        return _place({"site": site, "parameter": parameter})

    assert place("layers.3.attn.q") == (3, "attn.q")
    assert place("encoder.layers.11.ffn.in", "bias") == (11, "encoder.ffn.in.bias")
    assert place("h.2.attn.c_attn.weight") == (2, "attn.c_attn.weight")
    assert place("encoder.layer.1.output.dense.bias", "bias") == (1, "encoder.output.dense.bias")
    assert place("embed") == (-1, "embed")
