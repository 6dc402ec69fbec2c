"""`deltatune compare` with several values of an option: one study; with single values: a comparison as ever."""

from __future__ import annotations

import json

import pytest

from support.command_line import ran, reviews, write_csv

ONE_RUN = ("--seeds", "1", "--rates", "1", "--epochs", "1", "--max-length", "16", "--precision", "float32")
QUICK = ("--method", "LoRA(r=2)", "--method", "BitFit()", *ONE_RUN)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return [write_csv(folder / f"{name}.csv", reviews(80, seed)) for seed, name in enumerate(("films", "books"))]


def test_several_data_sets_make_a_study(sets, tiny_folder, tmp_path):
    command = ("compare", "--model", tiny_folder, *(word for path in sets for word in ("--data", path)), *QUICK)
    done = ran(*command, "--out", tmp_path / "out", "--tasks", "1000")
    assert done.code == 0, done.err
    assert "comparison 2 of 2: books" in done.err
    assert f"report: {tmp_path / 'out' / 'study.html'}" in done.out
    for part in ("films", "books", "mean", "rank", "LoRA(r=2)", "BitFit()", "1,000", "on disk"):
        assert part in done.out, part
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert study["recommendation"]["sentence"].split()[0] in done.out
    assert (tmp_path / "out" / f"{tiny_folder.name}-films" / "report.html").is_file()
    again = ran(*command, "--out", tmp_path / "out", "--tasks", "1000", "--json")
    assert again.code == 0
    assert json.loads(again.out)["averages"] == study["averages"]
    assert "from an earlier session" in again.err


def test_single_values_stay_a_comparison(sets, tiny_folder, tmp_path):
    done = ran(
        "compare", "--model", tiny_folder, "--data", sets[0], "--limit", "20", "--budget", "10%", *QUICK, "--out",
        tmp_path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["budget"]["text"] == "10%"
    assert summary["data"]["rows"]["train"] == 20
    assert (tmp_path / "summary.json").is_file()
    assert not (tmp_path / "study.json").exists()


def test_a_budget_may_have_a_comma_and_is_an_axis_beside_shots(sets, tiny_folder, tmp_path):
    done = ran(
        "compare", "--model", tiny_folder, "--data", sets[0], "--budget", "1,200", "--budget", "10%", "--shots", "2",
        "--method", "LoRA(r=2)", *ONE_RUN, "--draws", "1", "--out", tmp_path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    study = json.loads(done.out)
    assert study["axes"] == [{"name": "budget", "values": ["1,200", "10%"]}]
    assert [each["at"]["shots"] for each in study["comparisons"]] == [2, 2]
    sizes = {point["value"]: point["x"] for line in study["series"] for point in line["points"]}
    assert sizes["1,200"] == 1200


def test_mistakes_of_all_combinations_come_before_the_first_training(sets, tiny_folder, tmp_path):
    done = ran(
        "compare", "--model", tiny_folder, "--data", sets[0], "--data", tmp_path / "gone.csv", "--metric", "pearson",
        *QUICK, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 2
    assert "films: " in done.err
    assert "pearson" in done.err
    assert "gone.csv: " in done.err
    assert "comparison 1" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "films={0}", "--data", "{1}"), "to compare on one mixture name all of them, NAME=DATA"),
        (("--data", "{0}", "--data", "{0}"), "is given 2 times"),
        (("--data", "{0}", "--limit", "5", "--limit", "5"), "--limit 5 is given twice"),
        (("--data", "{0}", "--limit", "0", "--limit", "5"), "--limit 0"),
        (("--data", "{0}", "--data", "{1}", "--test", "{0}"), "give each as a folder with its own train, dev and test"),
        (("--data", "glue=nowhere"), "there is no folder nowhere"),
        (("--data", "{0}", "--data", "{1}", "--tasks", "0"), "--tasks 0"),
        (("--data", "{0}", "--tasks", "7"), "--tasks 7 is for a study"),
        (("--data", "{0}", "--limit", "5,10"), "--limit"),
    ],
)
def test_mistakes_are_said_with_their_fix(options, said, sets, tmp_path):
    words = [word.format(*sets) for word in options]
    done = ran("compare", "--model", "builtin", *words, *QUICK, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def test_all_named_data_sets_are_one_mixture(sets, tiny_folder, tmp_path):
    parts = [word for path in sets for word in ("--data", f"{path.stem}={path}")]
    done = ran("compare", "--model", tiny_folder, *parts, *QUICK, "--limit", "20", "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metric"] == "mean"


@pytest.mark.slow
def test_a_suite_is_read_from_a_folder(sets, tiny_folder, tmp_path):
    for task in ("SST-2", "CoLA"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
        (tmp_path / "tasks" / task / "train.csv").write_bytes(sets[0].read_bytes())
    done = ran(
        "compare", "--model", tiny_folder, "--data", f"glue={tmp_path / 'tasks'}", *QUICK, "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert "GLUE average of 2 tasks: " in done.out
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [each["summary"]["metric"] for each in study["comparisons"]] == ["matthews", "accuracy"]
    assert study["suites"][0]["missing"] == ["mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert any("the average of GLUE is over 2 tasks" in note for note in study["notes"])
    assert "GLUE" in (tmp_path / "out" / "study.html").read_text()
