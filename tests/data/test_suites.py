"""Suites: GLUE and SuperGLUE from the hub's configurations, or from a folder with a place for each task."""

import datasets
import pytest

from deltatune.comparison.study import name_data_sets
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.data.published.benchmarks import BENCHMARKS
from deltatune.data.published.suites import SUITES, open_suite
from deltatune.tasks.metrics.classification_and_regression import CLASS_METRICS, REGRESSION_METRICS
from support.published import GLUE, SUPER_GLUE


def test_glue_is_eight_tasks_of_the_hub_and_says_what_it_leaves_out():
    glue = open_suite("glue")
    assert glue.sources["cola"] == "nyu-mll/glue:cola"
    assert list(glue.sources) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert any("WNLI is left out" in note for note in glue.notes)
    assert open_suite("SuperGLUE").sources["boolq"] == "aps/super_glue:boolq"


def test_other_sources_are_no_suites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("glue:cola", "nyu-mll/glue", "sst2", "a=b", "./glue", "glue=", "cola=x.csv"):
        assert open_suite(source) is None, source
    (tmp_path / "glue").write_text("a file")
    assert open_suite("glue") is None


def test_a_folder_has_a_place_for_each_task(tmp_path, monkeypatch):
    for name in ("CoLA", "STS-B", "notes", ".RTE"):
        (tmp_path / name).mkdir()
    (tmp_path / "rte.csv").write_text("text,label\n")
    (tmp_path / "mrpc.log").write_text("no data")
    (tmp_path / "WNLI").mkdir()
    glue = open_suite(f"glue={tmp_path}")
    assert glue.sources == {
        "cola": str(tmp_path / "CoLA"), "stsb": str(tmp_path / "STS-B"), "rte": str(tmp_path / "rte.csv")
    }  # fmt: skip
    assert "has no sst2, mrpc, qqp, mnli, qnli: the average of GLUE is over 3 tasks" in glue.notes[-1]
    monkeypatch.chdir(tmp_path.parent)
    tmp_path.rename(tmp_path.parent / "glue")
    assert set(open_suite("glue").sources) == {"cola", "stsb", "rte"}, "a folder here comes before the hub"


def test_a_folder_that_is_no_suite_is_refused(tmp_path):
    with pytest.raises(DeltatuneError, match="there is no folder"):
        open_suite(f"glue={tmp_path / 'gone'}")
    (tmp_path / "x").mkdir()
    with pytest.raises(DeltatuneError, match=r"holds no task of GLUE.*It holds x"):
        open_suite(f"glue={tmp_path}")
    for name in ("sst2", "SST-2"):
        (tmp_path / name).mkdir()
    with pytest.raises(DeltatuneError, match="has SST-2 and sst2: which one is sst2"):
        open_suite(f"glue={tmp_path}")


def test_two_suites_make_one_study_and_one_suite_twice_does_not():
    both = name_data_sets(["glue", "superglue"])
    assert len(both.sources) == 8 + 8
    assert len(set(both.sources)) == 16, "both have RTE"
    assert both.sources["glue-rte"] == "nyu-mll/glue:rte"
    assert [each.tasks["glue-rte" if i == 0 else "super_glue-rte"] for i, each in enumerate(both.suites)] == ["rte"] * 2
    with pytest.raises(DeltatuneError, match="GLUE twice"):
        name_data_sets(["glue", "glue"])


def test_a_task_that_is_left_out_counts_if_it_is_named(tmp_path):
    named = name_data_sets(["glue", "nyu-mll/glue:wnli", "trec"])
    assert named.suites[0].tasks["wnli"] == "wnli"
    assert "trec" not in named.suites[0].tasks
    for name in ("RTE", "WNLI"):
        (tmp_path / name).mkdir()
    assert name_data_sets([f"glue={tmp_path}"]).suites[0].tasks == {"rte": "rte"}
    both = name_data_sets([f"glue={tmp_path}", str(tmp_path / "WNLI")])
    assert both.suites[0].tasks == {"rte": "rte", "WNLI": "wnli"}


def test_metrics_of_a_suite_are_those_that_tasks_have():
    known = {*CLASS_METRICS, *REGRESSION_METRICS, "em"}
    for suite in SUITES.values():
        for task, metrics in suite.tasks.items():
            assert set(metrics) <= known, task
            if task in BENCHMARKS:
                assert BENCHMARKS[task].metric in metrics or task == "cb", task


@pytest.mark.parametrize(("name", "sets"), [("glue", GLUE), ("superglue", SUPER_GLUE)])
def test_every_task_of_a_suite_is_read_from_the_hub(name, sets, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, task: sets[task].load())
    suite = open_suite(name)
    found = {task: read(source) for task, source in suite.sources.items()}
    assert set(found) == set(sets) - set(suite.suite.left_out)
    for task, data in found.items():
        assert data.metric in (*suite.suite.tasks[task], "accuracy", ""), task
        assert all(len(rows) for rows in (data.train, data.validation, data.test))
        assert data.kind == ("number" if task == "stsb" else "span" if task == "record" else "classes")
    if name == "glue":
        assert list(found["mnli"].more_tests) == ["test_mismatched"]
