"""`deltatune dimension`: the search alone against a known curve, and the whole command on a tiny model."""

import json
import math
import xml.etree.ElementTree as xml
from itertools import pairwise

import numpy as np
import pytest

from deltatune import DeltatuneError, Host, parse
from deltatune.comparison.intrinsic_dimension.dimension_config import (
    FINE,
    DimensionConfig,
    by_distance,
    grid,
    midpoint,
    plan_search,
    refusal,
    target_of,
)
from deltatune.comparison.intrinsic_dimension.dimension_report import (
    draw_curve,
    equivalents,
    sentence,
    summarise_search,
)
from deltatune.comparison.intrinsic_dimension.dimension_search import search_dimension
from deltatune.comparison.works import works
from deltatune.data import read
from deltatune.testing import tiny
from deltatune.training import Settings
from support.command_line import ran, reviews, write_csv


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("reviews") / "reviews.csv", reviews(120))


@pytest.fixture
def planned(tiny_folder, data, tmp_path):
    """A plan for a question; runs are cheap."""

    def make(config, out="run"):
        settings = Settings(epochs=1, batch_size=32, precision="float32")
        options = {"model": str(tiny_folder), "settings": settings, "max_length": 16, "out": tmp_path / out}
        return plan_search(read(data), config, **options)

    return make


class Curve:
    """Stands in for training: the score is a known function of the dimension, best at one rate."""

    def __init__(self, monkeypatch, enough, head=0.4, full=0.9, best_rate=1e-2):
        self.tried = []
        self.enough, self.head, self.full, self.best_rate = enough, head, full, best_rate
        monkeypatch.setattr(works.Worker, "_train", lambda worker, work, on_step: self.train(work.cell))

    def train(self, cell):
        method = cell.candidate.method
        if method.size is None:
            score = self.full if "Full" in repr(method) else self.head
        else:
            self.tried.append((method.size, cell.rate))
            away = abs(math.log(cell.rate / self.best_rate))
            reached = min(1.0, 0.5 + 0.4 * math.log(method.size) / math.log(self.enough))
            score = self.full * reached - 0.01 * away
        scores = {"validation": {"accuracy": score}, "test": {"accuracy": score}}
        return works.Result({"scores": scores, "params": 1, "train_seconds": 0.0})


# ---- what is tried


@pytest.mark.parametrize(("smallest", "largest"), [(1, 10_000), (7, 10_000), (1, 8), (20, 20), (300, 2000)])
def test_the_grid_rises_evenly_from_the_smallest_to_the_largest(smallest, largest):
    found = grid(smallest, largest)
    assert found == sorted(set(found))
    assert smallest <= found[0] <= max(10, smallest)
    assert found[-1] == largest
    assert all(b / a <= 4.5 for a, b in pairwise(found))


@pytest.mark.parametrize(("low", "high"), [(0, 10), (640, 2560), (0, 2), (3, 4), (99, 100_000)])
@pytest.mark.parametrize("answer", [0.0, 0.3, 1.0])
def test_bisection_closes_in(low, high, answer):
    wanted = low + 1 + round(answer * (high - low - 1))
    for _ in range(40):
        middle = midpoint(low, high)
        if middle is None:
            break
        assert low < middle < high
        low, high = (low, middle) if middle >= wanted else (middle, high)
    assert low < wanted <= high
    assert high - low <= 1 or high / low <= FINE


def test_rates_begin_with_the_best():
    assert by_distance(3e-3, 3) == [3e-3, 1e-3, 9e-3]
    assert by_distance(3e-3, 1) == [3e-3]


def test_the_target():
    assert target_of(DimensionConfig(fraction=0.9), 0.8, 0.6) == pytest.approx(0.72)
    assert target_of(DimensionConfig(fraction=0.9, of="gain"), 0.8, 0.6) == pytest.approx(0.78)


def test_what_no_dimension_is_concluded_from():
    """0.9 against 0.4 is certain on 50 rows; 0.6 against 0.55 needs thousands."""
    assert refusal("accuracy", 0.9, 0.4, 50) is None
    assert refusal("accuracy", 0.6, 0.55, 3000) is None
    near = refusal("accuracy", 0.6, 0.55, 200)
    assert "0.600 accuracy on the 200 validation rows, not above" in near
    assert "the head alone (0.550)" in near
    below = refusal("accuracy", 0.5, 0.9, 1000)
    assert "0.500 accuracy on the 1,000 validation rows, below training the head alone (0.900)" in below
    assert refusal("f1", 0.7, 0.7, 10**9), "equal scores are never enough"
    assert refusal("pearson", 0.9, 0.2, 100) is None
    assert refusal("pearson", 0.3, 0.2, 100)
    assert refusal("accuracy", 1.0, 1.0, 100)


def test_the_noise_is_that_of_two_samples():
    """Of two equally good models, the better one is called better in 5 % of all draws of 200 rows."""
    generator = np.random.default_rng(0)
    scores = generator.binomial(200, 0.7, (2, 4000)) / 200
    called = sum(refusal("accuracy", full, head, 200) is None for full, head in scores.T) / 4000
    assert 0.03 < called < 0.07


# ---- the search on a known curve


@pytest.mark.parametrize("enough", [9, 47, 300, 1700])
def test_the_smallest_dimension_that_reaches_the_target_is_found(enough, planned, monkeypatch):
    """The curve reaches 90 % of full fine-tuning exactly at `enough`."""
    curve = Curve(monkeypatch, enough)
    found = search_dimension(planned(DimensionConfig()), DimensionConfig())
    assert found.target == pytest.approx(0.81)
    assert found.below < found.dimension
    assert found.below < enough <= found.dimension * 1.001
    assert found.dimension - found.below <= 1 or found.dimension / found.below <= FINE
    assert [point.dimension for point in found.points] == sorted(point.dimension for point in found.points)
    assert max(size for size, _ in curve.tried) <= 4.5 * enough + 10, "the grid goes no further than it must"


def test_the_rate_goes_beyond_the_edge_where_the_best_is(planned, monkeypatch):
    curve = Curve(monkeypatch, enough=10**9, best_rate=0.09)
    found = search_dimension(planned(DimensionConfig(largest=40)), DimensionConfig(largest=40))
    assert found.dimension is None
    assert found.points[1].rate in (0.081, 0.082, 0.09)
    assert len([1 for size, _ in curve.tried if size == 10]) > 3


def test_the_head_alone_may_be_enough(planned, monkeypatch):
    curve = Curve(monkeypatch, enough=50, head=0.5, full=1.0)
    found = search_dimension(planned(DimensionConfig(fraction=0.45)), DimensionConfig(fraction=0.45))
    assert (found.dimension, found.below) == (0, None)
    assert not curve.tried
    assert search_dimension(planned(DimensionConfig(of="gain"), "gain"), DimensionConfig(of="gain")).dimension > 0


@pytest.mark.parametrize("of", ["full", "gain"])
def test_nothing_is_concluded_where_the_head_alone_is_as_good(of, planned, monkeypatch):
    curve = Curve(monkeypatch, enough=50, head=0.85, full=0.8)
    plan, config = planned(DimensionConfig(of=of)), DimensionConfig(of=of)
    found = search_dimension(plan, config)
    assert (found.dimension, found.below) == (None, None)
    assert not curve.tried, "no time is spent on dimensions that say nothing"
    assert "full fine-tuning scores 0.800 accuracy" in found.refusal
    summary = summarise_search(plan, config, found, 1.0)
    assert summary["refusal"] == summary["sentence"] == found.refusal
    assert summary["dimension"] is None
    assert summary["methods"] == []
    assert [point["reaches"] for point in summary["points"]] == [None]
    assert "No conclusion" in draw_curve(summary)


def test_a_rate_at_which_training_fails_is_left(planned, monkeypatch):
    curve = Curve(monkeypatch, enough=30)
    real = curve.train

    def train(cell):
        if cell.rate > 2e-2 and cell.candidate.method.size:
            raise DeltatuneError("the loss became nan")
        return real(cell)

    curve.train = train
    events = []
    found = search_dimension(planned(DimensionConfig()), DimensionConfig(), events.append)
    assert found.dimension
    assert any(event.kind == "cell_failed" for event in events)


def test_seeds_are_averaged(planned, monkeypatch):
    curve = Curve(monkeypatch, enough=30)
    events = []
    search_dimension(planned(DimensionConfig(seeds=3)), DimensionConfig(seeds=3), events.append)
    first = [event.text for event in events if event.kind == "cell_done"]
    assert sum("Full()" in text and "learning-rate search" not in text for text in first) == 2
    assert all(event.done <= event.total for event in events)
    assert events[-1].done == len(first)
    assert curve.tried


# ---- the words


def result(dimension, **more):
    points = [{"dimension": d} for d in (0, 10, 40)]
    question = {"fraction": 0.9, "of": "full"}
    full = {"test": 0.8}
    base = {"metric": "accuracy", "target": 0.7, "base_params": 10_000, "below": 10, "majority": None, "methods": []}
    return base | {"question": question, "dimension": dimension, "points": points, "full": full} | more


def test_sentences():
    assert "up to 40" in sentence(result(None))
    assert "Probe()" in sentence(result(0, below=None))
    assert sentence(result(40)).startswith("40 parameters (0.40 % of the model's) reach 90 %")
    assert "10 do not" in sentence(result(40))
    assert "Warning" in sentence(result(40, majority={"score": 0.9}))
    assert "Warning" not in sentence(result(40, majority={"score": 0.5}))


@pytest.mark.parametrize("dimension", [1, 100, 2000])
def test_methods_of_that_many_parameters(dimension):
    sites = Host(tiny("bert")).sites
    found = equivalents(sites, dimension, ["LoRA()", "Bottleneck(form='pfeiffer')", "Prefix()", "Full()"])
    assert len(found) == 3
    assert all(entry["params"] >= dimension for entry in found)
    assert found == sorted(found, key=lambda entry: entry["params"])
    for entry in found:
        method = parse(entry["method"])
        assert method.count(sites) == entry["params"]
        assert method.size == 1 or method.sized(method.size - 1).count(sites) < dimension


# ---- the command


def test_the_whole_command(tiny_folder, data, tmp_path, monkeypatch):
    Curve(monkeypatch, enough=30)
    command = ("dimension", "--model", tiny_folder, "--data", data, "--max-length", "16", "--epochs", "1")
    command += ("--precision", "float32", "--rates", "2", "--largest", "40", "--out", tmp_path / "out")
    done = ran(*command)
    assert done.code == 0, done.err
    assert "all weights" in done.out
    assert "validation accuracy" in done.out
    stored = json.loads((tmp_path / "out/dimension.json").read_text())
    assert stored["sentence"] in " ".join(done.out.split())
    assert stored["full"]["dimension"] is None
    assert stored["points"][0]["dimension"] == 0
    assert stored["target"] == pytest.approx(0.9 * stored["full"]["score"])
    picture = xml.parse(tmp_path / "out/dimension.svg").getroot()
    assert picture.tag.endswith("svg")
    marks = [element for element in picture.iter() if element.get("class") in ("mark", "mark hollow")]
    assert len(marks) == len(stored["points"])
    again = ran(*command, "--json")
    assert json.loads(again.out)["points"] == stored["points"]
    assert "from an earlier session" in again.err
    ended = [line for line in again.err.splitlines() if ", lr 0" in line]
    assert ended
    assert all(line.endswith("from an earlier session") for line in ended), "nothing is trained twice"


def test_a_command_that_concludes_nothing(tiny_folder, data, tmp_path, monkeypatch):
    Curve(monkeypatch, enough=30, head=0.9, full=0.6)
    command = ("dimension", "--model", tiny_folder, "--data", data, "--max-length", "16", "--out", tmp_path / "out")
    done = ran(*command)
    assert done.code == 2
    assert "error: no dimension is concluded: full fine-tuning scores 0.600 accuracy" in done.err
    assert "the head alone (0.900)" in done.err
    assert "all weights" in done.out
    assert "result" not in done.out
    assert "target  0" not in done.out
    again = ran(*command, "--json")
    assert again.code == 2
    printed = json.loads(again.out)
    assert printed["refusal"] in again.err
    assert printed == json.loads((tmp_path / "out/dimension.json").read_text()) | {
        name: printed[name] for name in ("created", "elapsed_seconds")
    }


def test_what_cannot_be_asked(tiny_folder, data, tmp_path):
    command = ("dimension", "--model", tiny_folder, "--data", data, "--out", tmp_path / "out")
    for options, words in {
        ("--method", "SAD"): "DID or SAID, not 'SAD'",
        ("--fraction", "1.2"): "at most 1",
        ("--of", "gains"): "of full or of gain",
        ("--largest", "0"): "at least 1",
        ("--rates", "0"): "rates must be at least 1",
        ("--method", "SAID", "--largest", "3"): "SAID has at least",
    }.items():
        done = ran(*command, *options)
        assert done.code == 2, done.out
        assert words in done.err
    assert not (tmp_path / "out").exists()


def test_a_metric_where_less_is_better_is_refused(tiny_folder, tmp_path):
    rows = [{"text": row["text"], "label": f"{i % 7}.5"} for i, row in enumerate(reviews(60))]
    table = write_csv(tmp_path / "numbers.csv", rows)
    done = ran("dimension", "--model", tiny_folder, "--data", table, "--metric", "mse", "--out", tmp_path / "out")
    assert done.code == 2
    assert "lower is better" in done.err


def test_interrupted(tiny_folder, data, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(works.Worker, "perform", stop)
    done = ran("dimension", "--model", tiny_folder, "--data", data, "--max-length", "16", "--out", tmp_path / "out")
    assert done.code == 130
    assert "the same command resumes" in done.err
