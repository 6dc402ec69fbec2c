"""Comparisons from Python: what `compare` runs, and the tables, plots and pages of its result."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

import deltatune
from deltatune.comparison.result import FEW_SHOT_BATCH, FEW_SHOT_STEPS
from deltatune.core.errors import DeltatuneError
from deltatune.data import read
from deltatune.training import Settings
from support.comparison_sample import EVIL, sample_summary
from support.html_pages import outline
from support.study_sample import sample_study

QUICK = {"seeds": 1, "rates": 1, "max_length": 16, "settings": Settings(max_steps=2, batch_size=8, precision="float32")}


@pytest.fixture
def table(tmp_path):
    dice = random.Random(0)
    words = {"sun": ["the", "cat", "sat"], "rain": ["a", "dog", "ran"]}
    lines = ["words,sort"]
    for i in range(80):
        label = ("sun", "rain")[i % 2]
        lines.append(f"{' '.join(dice.choices([*words[label], 'on', str(i)], k=6))},{label}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def stored(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return deltatune.open_results(folder)


@pytest.fixture
def result(tmp_path):
    return stored(tmp_path / "sst2", "summary.json", sample_summary())


@pytest.fixture
def study(tmp_path):
    return stored(tmp_path / "glue", "study.json", sample_study(methods=4, sets=3))


def test_a_comparison_is_run_and_its_result_opened(tiny_folder, table, tmp_path):
    events, out = [], tmp_path / "run"
    options = {**QUICK, "model": str(tiny_folder), "methods": ["BitFit()", deltatune.LoRA(r=2)], "out": out}
    result = deltatune.compare(table, label="sort", limit=40, on_event=lambda e: events.append(e.kind), **options)
    assert events[-1] == "done"
    assert set(result.table()["method"]) == {"BitFit()", "LoRA(r=2)"}, "sizes stay as they are written"
    assert result.summary["data"]["rows"]["train"] == 40
    assert result.report.is_file()
    assert result.best.method in ("BitFit()", "LoRA(r=2)")
    assert (result.best.adapter / "adapter.json").is_file()
    assert result.best.score == next(
        row["score"] for row in result.summary["methods"] if row["method"] == result.best.method
    )
    assert len(result.pairs()) == 1
    again = deltatune.open_results(out)
    assert again == result
    assert "recommended" in repr(result)
    # the same call goes on: nothing is trained again
    lines = (out / "results.jsonl").read_bytes()
    deltatune.compare(read(table, label="sort", limit=40), **options)
    assert (out / "results.jsonl").read_bytes() == lines


def test_several_values_make_a_study(tiny_folder, table, tmp_path):
    out = tmp_path / "study"
    options = {**QUICK, "model": str(tiny_folder), "methods": "BitFit()", "out": out}
    result = deltatune.compare({"a": table}, label="sort", limit=[24, 40], **options)
    assert result.run.kind == "study"
    assert list(result.table()["limit"]) == [24, 40]
    assert result.report == out / "study.html"
    assert result.best == ("BitFit()", pytest.approx(result.table()["score"].mean()), None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": 3}, "compare has no option seed, did you mean 'seeds'"),
        ({"metod": ["LoRA()"], "rats": 3}, "compare has no option rats, did you mean 'rates'"),
        ({"methods": ["LoRa()"]}, "did you mean"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"limit": 0}, "limit"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tiny_folder, table, tmp_path, options, expected):
    with pytest.raises(DeltatuneError, match=expected):
        deltatune.compare(table, model=str(tiny_folder), out=tmp_path / "run", **{**QUICK, **options})
    assert not (tmp_path / "run").exists()


def test_the_defaults_are_those_of_the_command_line(monkeypatch, table):
    from deltatune.comparison import result
    from deltatune.comparison.plans import make_plan

    seen = {}

    def stop(data, **options):
        seen.update(options)
        raise KeyboardInterrupt

    for methods, budget in ((None, make_plan.DEFAULT_BUDGET), (["LoRA()"], None)):
        monkeypatch.setattr(make_plan, "make_plan", stop)
        monkeypatch.setattr(result, "_check_options", lambda options: None)
        with pytest.raises(KeyboardInterrupt):
            deltatune.compare(table, methods=methods, shots=4)
        assert seen["budget"] == budget
        assert seen["methods"] == (make_plan.DEFAULT_METHODS if methods is None else ("LoRA()",))
        settings = seen["settings"]
        assert (settings.max_steps, settings.batch_size) == (FEW_SHOT_STEPS, FEW_SHOT_BATCH)
        with pytest.raises(KeyboardInterrupt):
            deltatune.compare(table, methods=methods, shots=4, budget="2k", settings=Settings(max_steps=3))
        assert (seen["budget"], seen["settings"].max_steps) == ("2k", 3)


def test_the_table_is_a_data_frame(result, study):
    table = result.table().set_index("method")
    assert table.loc["Full()", "verdict"] == "best"
    assert math.isnan(table.loc["Prefix(length=12, hidden=512)", "score"])
    assert len(study.table()) == 4 * 3
    assert set(study.table()["data"]) == {"sst2", "trec6", "cola"}


def test_pairs_of_a_study_have_their_place(tmp_path):
    content = sample_study(methods=2, sets=2)
    pair = {"first": "LoRA()", "second": "Houlsby()", "difference": 0.1, "ci": [0.05, 0.15], "verdict": "better"}
    for each in content["comparisons"]:
        each["summary"]["pairs"] = [pair]
    pairs = stored(tmp_path / "study", "study.json", content).pairs()
    assert list(pairs["data"]) == ["sst2", "trec6"]
    assert list(pairs["ci_low"]) == [0.05, 0.05]
    assert stored(tmp_path / "none", "study.json", sample_study()).pairs().empty


class Axes:
    """Axes that remember what is drawn."""

    def __init__(self):
        self.points, self.names = [], {}

    def errorbar(self, x, y, yerr=None, **options):
        self.points.append((options["label"], x[0], y[0], yerr))

    def annotate(self, words, place, **options):
        assert place == self.points[-1][1:3]

    def __getattr__(self, name):
        return lambda *values, **options: self.names.update({name: (values, options)})


def test_a_plot_has_every_method_with_its_interval(result, study):
    ax = Axes()
    assert result.plot(ax) is ax
    rows = {row["score"]: row for row in result.summary["methods"] if row["score"] is not None}
    assert len(ax.points) == len(rows)
    for _, params, score, errors in ax.points:
        assert params == rows[score]["params"]
        low, high = rows[score]["ci95"]
        assert errors == [[pytest.approx(score - low)], [pytest.approx(high - score)]]
    assert ax.names["set_ylabel"] == (("test accuracy",), {})
    assert ax.names["set_xscale"][1]["linthresh"] == 38_400 / 2
    means = Axes()
    study.plot(means)
    assert [score for _, _, score, _ in means.points] == [row["mean"] for row in study.summary["averages"]]


@pytest.mark.parametrize(("package", "use"), [("pandas", "table"), ("pandas", "pairs"), ("matplotlib", "plot")])
def test_a_package_that_is_missing_is_named(result, monkeypatch, package, use):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DeltatuneError, match=f"pip install {package}"):
        getattr(result, use)()


def test_a_notebook_shows_a_compact_table(result, study, tmp_path):
    page = result._repr_html_()
    words = " ".join(outline(page).words)
    assert "Use TopLayers(2)" in words
    assert "0.741" in words or f"{result.summary['methods'][8]['score']:.3f}" in words
    assert len(page) < 8000
    assert "rank" in " ".join(outline(study._repr_html_()).words)
    evil = stored(tmp_path / "evil", "summary.json", sample_summary(hostile=True))
    assert EVIL not in evil._repr_html_()
    many = stored(tmp_path / "many", "study.json", sample_study(methods=20, sets=2))
    assert many._repr_html_().count("<tr>") <= 21


def test_a_notebook_shows_the_figure_of_the_report(result, study, tmp_path):
    """It is whole XML, carries its colours, and styles nothing but itself."""
    path = result.figure().save(tmp_path / "figure.svg")
    picture = path.read_text(encoding="utf-8")
    assert picture == result.figure()._repr_svg_()
    root = ElementTree.fromstring(picture)
    style = next(element.text for element in root.iter() if element.tag.endswith("}style"))
    assert style
    assert all(rule.startswith("svg.wide ") for rule in style.split("}")[:-1])
    assert "var(" not in picture
    classes = {name for element in root.iter() for name in element.get("class", "").split()}
    styled = set(re.findall(r"[.](\w+)", style))
    assert classes - {"hollow"} <= styled | {"point"}, "each class of the figure has a rule"
    titles = [element.text for element in root.iter() if element.tag.endswith("}title")]
    scored = [row["method"] for row in result.summary["methods"] if row["score"] is not None]
    assert all(any(title.startswith(f"{method}: ") for title in titles) for method in scored)
    means = study.figure().svg
    assert all(f"{row['method']}: {row['mean']:.3f}" in means for row in study.summary["averages"])
    hostile = stored(tmp_path / "evil", "summary.json", sample_summary(hostile=True)).figure().svg
    assert EVIL not in hostile
    nothing = {**sample_summary(), "methods": []}
    assert "no method has a score" in stored(tmp_path / "nothing", "summary.json", nothing).figure().svg


def test_results_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(DeltatuneError, match="there is no folder"):
        deltatune.open_results(tmp_path / "nowhere")


def test_the_package_is_still_imported_without_them():
    code = "import deltatune, sys; print(sorted({'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
