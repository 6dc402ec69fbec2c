"""Few rows of each class, drawn again and again: the same draws for all methods, a source of spread of its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltatune.comparison.plans.make_plan import make_plan
from deltatune.comparison.run_comparison import run
from deltatune.comparison.statistics.score_statistics import draw, intervals_of
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.data.few_shot import MOST_UNLABELLED, few_shot, unlabelled_rows, without_labels
from deltatune.training import Settings
from support.command_line import QUICK, ran, reviews, write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three splits of reviews. Read only."""
    made = tmp_path_factory.mktemp("few") / "reviews"
    made.mkdir()
    for i, (name, count) in enumerate((("train", 80), ("dev", 24), ("test", 30))):
        write_csv(made / f"{name}.csv", reviews(count, seed=i))
    return made


def counts(rows):
    return {label: sum(row["label"] == label for row in rows) for label in ("good", "bad")}


def test_a_draw_has_so_many_rows_of_each_class(folder):
    data = read(str(folder))
    drawn = few_shot(data, 4, 0)
    assert counts(drawn.train) == counts(drawn.validation) == {"good": 4, "bad": 4}
    assert drawn.test == data.test
    assert few_shot(data, 4, 0) == drawn
    assert few_shot(data, 4, 1).train != drawn.train
    assert "drawn: 4 rows of each class out of 80" in drawn.notes[-1]
    many = few_shot(data, 20, 0)
    assert (counts(many.train), many.validation) == ({"good": 20, "bad": 20}, data.validation)
    assert "too few to draw from" in many.notes[-1]
    with pytest.raises(DeltatuneError, match="has only 40 rows"):
        few_shot(data, 41, 0)


def test_rows_without_labels_are_drawn_from_a_file_that_is_sorted_by_class(folder):
    data = read(str(folder))
    count = MOST_UNLABELLED
    rows = [{"text": f"{label} {i}", "label": label} for label in ("good", "bad") for i in range(count)]
    few = replace(data, train=rows[:4] + rows[-4:], validation=[])
    left = unlabelled_rows(replace(data, train=rows), few)
    assert left == unlabelled_rows(replace(data, train=rows), few)
    assert (len(left), {*left[0]}) == (count, {"text"})
    good = sum(row["text"].startswith("good") for row in left)
    assert 0.45 * count < good < 0.55 * count
    assert not {row["text"] for row in few.train} & {row["text"] for row in left}
    assert without_labels(rows[:3], "label") == [{"text": f"good {i}"} for i in range(3)]


@pytest.fixture(scope="module")
def compared(folder, tiny_folder, tmp_path_factory):
    """A comparison of two methods on three draws with two seeds each, its plan and its events."""
    out = tmp_path_factory.mktemp("few") / "out"
    plan = make_plan(
        read(str(folder)),
        model=str(tiny_folder),
        methods=("LoRA(r=2)", "Prompt(length=3)"),
        budget=None,
        shots=4,
        draws=3,
        seeds=2,
        rates=1,
        settings=Settings(epochs=1, batch_size=8, precision="float32"),
        max_length=24,
        out=out,
    )
    return plan, run(plan)


def test_every_method_is_trained_on_every_draw_with_every_seed(compared):
    plan, summary = compared
    records = [json.loads(line) for line in (plan.out / "results.jsonl").read_text().splitlines()]
    tested = [record for record in records if record["stage"] == "final"]
    for method in ("LoRA(r=2)", "Prompt(length=3)"):
        runs = sorted((record["draw"], record["seed"]) for record in tested if record["method"] == method)
        assert runs == [(drawn, seed) for drawn in range(3) for seed in range(2)]
    rows = {(record["method"], record["draw"]): record["config"]["draw"]["rows"] for record in tested}
    assert len(set(rows.values())) == 3  # draws differ, and are the same for both methods
    assert all(rows["LoRA(r=2)", drawn] == rows["Prompt(length=3)", drawn] for drawn in range(3))
    assert (summary["shots"], summary["draws"], summary["seeds"]) == (4, 3, [0, 1])
    assert summary["data"]["rows"] == {"train": 8, "validation": 8, "test": 30}
    assert [len(method["seed_scores"]) for method in summary["methods"]] == [6, 6]
    assert len(list((plan.out / "adapters").iterdir())) == 12


def test_the_report_states_draws_and_tokens(compared):
    plan, summary = compared
    page = (plan.out / "report.html").read_text()
    assert "2 seeds on each of 3 draws of 4 training rows a class" in page
    assert "The error of the draws of training rows, each with its seeds, comes on top" in page
    assert "3 draws of 4 rows a class" in page
    tokens = {method["method"]: method["tokens"] for method in summary["methods"]}
    assert tokens == {"LoRA(r=2)": 0, "Prompt(length=3)": 3}
    assert "<small>added</small>" in page
    assert "makes each text longer" in page


def test_other_draws_are_other_results(compared, folder, tiny_folder):
    plan, _ = compared
    more = {"model": str(tiny_folder), "methods": ("LoRA(r=2)",), "budget": None, "rates": 1, "out": plan.out}
    settings = Settings(epochs=1, batch_size=8, precision="float32")
    again = make_plan(read(str(folder)), **more, shots=4, draws=3, seeds=2, settings=settings, max_length=24)
    other = make_plan(read(str(folder)), **more, shots=5, draws=3, seeds=2, settings=settings, max_length=24)
    whole = make_plan(read(str(folder)), **more, settings=settings, max_length=24)
    keys = []
    for each in (again, other, whole):
        (cell,) = {(each.candidates[0].rates[0], *each.repeats[0])}
        from deltatune.comparison.plans.plan import Cell

        keys.append(each.key(Cell("search", each.candidates[0], *cell)))
    done = {json.loads(line)["cell"] for line in (plan.out / "results.jsonl").read_text().splitlines()}
    assert keys[0] in done
    assert not {keys[1], keys[2]} & done
    assert len(set(keys)) == 3


def test_runs_of_one_draw_are_not_independent():
    def scorers(scores):
        return {"a": [lambda weights, value=value: np.full(len(weights), value) for value in scores]}

    # three draws with four seeds each that agree: as three runs, not as twelve
    scores = [0.5] * 4 + [0.6] * 4 + [0.7] * 4
    apart = intervals_of(draw("accuracy", scorers(scores), 50))["a"]
    together = intervals_of(draw("accuracy", scorers(scores), 50, clusters={"a": [0] * 4 + [1] * 4 + [2] * 4}))["a"]
    three = intervals_of(draw("accuracy", scorers([0.5, 0.6, 0.7]), 50))["a"]
    assert (together.low, together.high) == pytest.approx((three.low, three.high))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert apart.mean == pytest.approx(together.mean)
    single = intervals_of(draw("accuracy", scorers([0.5, 0.7]), 50, clusters={"a": [0, 0]}))["a"]
    assert single.high > single.low  # one draw: its seeds are resampled


def test_from_the_command_line(folder, tiny_folder, tmp_path):
    common = ("--model", tiny_folder, "--data", folder, *QUICK, "--method", "LoRA(r=2)")
    done = ran("compare", *common, "--shots", "3", "--draws", "2", "--rates", "1", "--out", tmp_path / "few")
    assert done.code == 0, done.err
    assert "the best learning rate of each with 2 draws" in " ".join(done.out.split())
    summary = json.loads((tmp_path / "few/summary.json").read_text())
    assert (summary["shots"], summary["draws"], summary["seeds"]) == (3, 2, [0])
    assert "over draws, seeds and test rows" in done.out

    run_ = ("train", *common, "--out", tmp_path / "run", "--lr", "1e-3")
    done = ran(*run_, "--shots", "3")
    assert done.code == 0, done.err
    assert "6 train, 6 validation, 30 test rows" in " ".join(done.out.split())
    again = ran(*run_, "--shots", "4")
    assert again.code != 0
    assert "another run" in again.err or "--force" in again.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--draws", "2"), "set --shots too"),
        (("--shots", "0"), "at least 1"),
        (("--shots", "1000"), "has only 40 rows"),
        (("--shots", "2", "--draws", "0"), "at least 1"),
    ],
)
def test_mistakes_are_one_plain_error(folder, tiny_folder, tmp_path, options, words):
    done = ran("compare", "--model", tiny_folder, "--data", folder, *options, "--out", tmp_path / "out")
    assert done.code != 0
    assert words in done.err
    assert not (tmp_path / "out").exists()
