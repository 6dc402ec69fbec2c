"""`deltatune combine`: folders in, a folder out that the other commands take."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from deltatune import Host
from support.command_line import QUICK, ran, review_folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Data and two runs on it. Read only."""
    folder = tmp_path_factory.mktemp("combine")
    data = review_folder(folder / "data")
    for name, method in (("one", "LoRA(r=2)"), ("two", "LoRA(r=3, sites='*.attn.k')")):
        done = ran(
            *("train", "--model", tiny_folder, "--data", data, "--lr", "1e-2", "--method", method),
            *(*QUICK, "--out", folder / name),
        )
        assert done.code == 0, done.err
    return folder


def test_a_weighted_sum_is_what_the_route_does_live(world, tiny_folder, tmp_path):
    done = ran(
        "combine", world / "one", world / "two", "--weights", "0.5,-0.25", "--head", "mean", "--out", tmp_path / "sum"
    )
    assert done.code == 0, done.err
    assert "none: exact" in done.out
    scored = ran("evaluate", "--adapter", tmp_path / "sum", "--data", world / "data", "--json")
    assert scored.code == 0, scored.err
    assert 0 <= json.loads(scored.out)["scores"]["accuracy"] <= 1
    host = Host(AutoModel.from_pretrained(tiny_folder, add_pooling_layer=False).eval())
    for name, folder in (("one", world / "one/adapter"), ("two", world / "two/adapter"), ("sum", tmp_path / "sum")):
        host.load(folder, name=name)
    ids = torch.arange(5, 15).view(2, 5)
    found = []
    for route in ("sum", {"one": 0.5, "two": -0.25}, None):
        host.use(route)
        with torch.no_grad():
            found.append(host.model(input_ids=ids)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-4
    extra = json.loads((tmp_path / "sum/adapter.json").read_text())["extra"]
    assert {name: of["weight"] for name, of in extra["combined"]["of"].items()} == {"one": 0.5, "two": -0.25}
    assert "scores" not in extra


def test_ties_at_a_rank_says_what_was_lost(world, tmp_path):
    done = ran(
        *("combine", world / "one", world / "two", "--how", "ties", "--rank", "1", "--density", "0.5"),
        *("--head", world / "two", "--out", tmp_path / "ties"),
    )
    assert done.code == 0, done.err
    assert "% of the change (norm); largest at layers." in " ".join(done.out.split())
    assert "LoRA(r=1" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--head must choose the classification head"),
        (("--head", "three"), "no such folder here"),
        (("--head", "mean", "--weights", "1"), "1 weights for 2 adapters"),
        (("--head", "mean", "--weights", "a,b"), "write numbers"),
        (("--head", "mean", "--how", "ties"), "set a rank, such as rank=8"),
        (("--head", "mean", "--how", "svd", "--rank", "x"), "must be a number or full"),
        (("--head", "mean", "--how", "dare"), "needs a density"),
        (("--head", "mean", "--how", "dare", "--rank", "2", "--density", "1e-9"), "dare drops every entry"),
        (("--head", "mean", "--scope", "tensor"), "scope='tensor': linear does not trim"),
        (("--head", "mean", "--how", "svd", "--rank", "2", "--seed", "3"), "seed=3: svd draws nothing"),
        (("--head", "mean", "--how", "ties", "--rank", "2", "--scope", "layer"), "it is model or tensor"),
    ],
)
def test_mistakes_leave_nothing_behind(world, tmp_path, options, words):
    done = ran("combine", world / "one", world / "two", "--out", tmp_path / "out", *options)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_given_twice(world, tmp_path):
    done = ran("combine", world / "one", world / "one/adapter", "--out", tmp_path / "out")
    assert done.code == 2
    assert "named twice" in done.err
