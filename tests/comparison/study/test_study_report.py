"""The page of a study: complete, safe, also unfinished, small, and without a sideways scroll bar."""

import html
import json
import re
import xml.etree.ElementTree as ET

import pytest

from deltatune.comparison.report.figures.critical_difference import RankedMethod, critical_difference
from deltatune.comparison.report.figures.series_plots import Series, read_points, series_panel, size_families
from deltatune.comparison.report.figures.svg import MarkerStyle, text_width
from deltatune.comparison.report.number_format import model_labels
from deltatune.comparison.report.study_page import render_study, write_study_report
from deltatune.comparison.report.study_results import StudyResults
from support.comparison_sample import EVIL
from support.html_pages import browse, needs_browser, outline
from support.study_sample import sample_study

STYLE = MarkerStyle("s0", "circle")


def words_of(page):
    return " ".join(" ".join(outline(page).words).split())


def pictures(page):
    return re.findall(r"<svg.*?</svg>", page, re.DOTALL)


def test_the_page_contains_the_results():
    study = sample_study(limits=(100, 1000, 5000), models=2)
    words = words_of(render_study(study))
    for expected in (
        "Eight methods on GLUE",
        "Use LoRA() : the best average rank",
        "p < 0.001",
        "Score against training rows",
        "training rows, log scale",
        "Score against length",
        "Mean score against parameters",
        "Published and measured",
        "For many tasks",
        "OutOfMemoryError: 1.9 GB asked",
        "model-1, 5,000 rows",
        "Rows that occur twice were kept.",
        "Houlsby()@3%",
    ):
        assert expected in words, expected
    for each in study["comparisons"]:
        for row in each["summary"]["methods"]:
            assert row["score"] is None or f"{row['score']:.3f}" in words


def test_models_of_one_folder_name_are_told_apart():
    text = json.dumps(sample_study(models=2))
    study = json.loads(text.replace("org/model-0", "nsp/model").replace("org/model-1", "mlm/model"))
    results = StudyResults(study)
    assert len({results.label(each) for each in results.comparisons}) == len(results.comparisons)
    words = words_of(render_study(study))
    assert "nsp/model" in words
    assert "mlm/model" in words
    paths = ["runs/nsp/model", "runs/mlm/model", "a/b", "b", "C:\\m\\x"]
    assert list(model_labels(paths).values()) == ["nsp/model", "mlm/model", "a/b", "b", "x"]


def test_what_stands_under_a_table_is_true_of_it():
    of_groups = render_study(sample_study(limits=(100, 1000)))
    means, details = of_groups.index("Means of test scores"), of_groups.index("<details")
    assert means < details
    assert "Bold: not told apart" not in of_groups
    assert "Means of test scores" not in render_study(sample_study())


def test_the_names_beside_a_panel_have_room_in_the_widest_font():
    """The length of "Houlsby adapter" was measured in DejaVu Sans Bold."""
    series = Series("Houlsby adapter", STYLE, [(1.0, 0.5, 0.4, 0.6), (2.0, 0.5, 0.4, 0.6)])
    root = ET.fromstring(series_panel("sst2", "rows", "accuracy", [series]))
    label = next(words for words in root.iter("text") if words.get("class") == "label")
    assert label.text == "Houlsby adapter"
    assert float(label.get("x")) + 12.5 * 9.32 <= float(root.get("viewBox").split()[2])
    assert text_width("Houlsby adapter", 12.5) >= 12.5 * 9.32


def test_a_score_stands_in_its_row_and_column():
    study = sample_study(methods=3, sets=3)
    table = re.search(r'<table class="sortable study">.*?</table>', render_study(study), re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    assert [re.search(r"<b>(.*?)</b>", row)[1] for row in rows] == ["LoRA", "Houlsby adapter", "Pfeiffer adapter"]
    for i, row in enumerate(rows):
        shown = [float(value) for value in re.findall(r'<td data-value="(.*?)"', row)]
        scores = [each["summary"]["methods"][i]["score"] for each in study["comparisons"]]
        assert shown == pytest.approx([sum(scores) / 3, i + 1.3, *scores], rel=1e-5)


def test_published_figures_stand_beside_measured_ones_on_their_scale():
    study = sample_study(methods=3, sets=2)
    row = study["comparisons"][0]["summary"]["methods"][0]
    page = render_study(study)
    table = re.search(r'aria-label="Published.*?</table>', page, re.DOTALL)[0]
    assert f"<td>94.2</td><td>{100 * row['score']:.1f}</td>" in table
    f1 = study["comparisons"][1]["summary"]["methods"][1]["scores"]["f1"]
    assert f"<td>0.871</td><td>{f1:.3f}</td>" in table, "another metric than the primary one is looked up"
    assert '<a href="https://arxiv.org/abs/2106.09685"' in table
    study["published"] = [{"method": "LoRA()", "at": {"data": "elsewhere"}, "metric": "", "value": 1.0, "source": ""}]
    assert "<td>1.000</td><td>–</td><td>–</td>" in render_study(study), "nothing here is like it"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(comparisons=[], methods=[], averages=[], series=[], totals=[]),
        lambda s: [each.update(summary=None, report=None) for each in s["comparisons"]],
        lambda s: s["comparisons"][0].update(summary=None, error="DeltatuneError: no such file"),
        lambda s: s.update(ranks=None, averages=[]),
        lambda s: [s.pop(key) for key in ("ranks", "series", "totals", "published", "averages", "recommendation")],
        lambda s: s["ranks"].update(p=None, critical_difference=None, cliques=[["nobody"]]),
        lambda s: [row.update(score=None) for each in s["comparisons"] for row in each["summary"]["methods"]],
        lambda s: [row.pop("asked") for each in s["comparisons"] for row in each["summary"]["methods"]],
        lambda s: [each.update(points=[]) for each in s["series"]],
        lambda s: [point.update(ci=None, x=None) for each in s["series"] for point in each["points"]],
        lambda s: s.update(methods=["(", "f(", "f(x=1)", "f(x=2)", *s["methods"]]),
        lambda s: [each["summary"].update(metric="perplexity") for each in s["comparisons"][:1]],
    ],
)
def test_unfinished_and_unusual_studies_are_rendered(change):
    study = json.loads(json.dumps(sample_study(limits=(100, 5000))))
    change(study)
    page = render_study(study)
    outline(page)
    for picture in pictures(page):
        ET.fromstring(picture)
        assert not re.search(r'="-?(nan|inf)"', picture)


def test_an_unfinished_study_says_so():
    words = words_of(render_study(sample_study(sets=4, unfinished=2)))
    assert "2 of 4 finished" in words
    assert words.count("not finished") == 2


def test_text_from_data_stays_text():
    page = render_study(sample_study(limits=(10, 2000), hostile=True))
    found = outline(page)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert EVIL not in page
    for tag, _key, value in found.addresses:
        assert value == "data:," or (tag == "a" and value), value


@pytest.mark.parametrize("address", ["javascript:alert(1)", "/etc/passwd", "file:///etc/passwd", "//evil.example/x"])
def test_links_lead_to_reports_below_the_page_alone(address):
    study = sample_study(methods=2, sets=2)
    study["comparisons"][0]["report"] = address
    study["published"][0]["source"] = "javascript:alert(1)"
    found = outline(render_study(study))
    assert address not in [value for _, _, value in found.addresses]
    assert not [value for _, _, value in found.addresses if value.startswith("javascript")]
    assert study["comparisons"][1]["report"] in [value for _, _, value in found.addresses]


def test_methods_keep_their_name_over_comparisons_with_different_sizes():
    """A budget gives LoRA another rank in each comparison; it is one row of the table."""
    study = sample_study(methods=2, sets=3)
    results = StudyResults(study)
    assert [method.asked for method in results.methods] == ["LoRA()", "Houlsby()@3%"]
    assert all(results.score(results.methods[0], each) is not None for each in results.comparisons)


def test_methods_that_differ_in_one_number_are_a_family():
    families = size_families(["Prompt(length=20)", "Prompt(length=1)", "LoRA(r=8, alpha=16.0)", "LoRA(r=2, alpha=16.0)",
                              "LoRA(r=8, alpha=8.0)", "Prefix()", "not a method ("])  # fmt: skip
    assert families == {
        ("Prompt()", "length"): [(1.0, "Prompt(length=1)"), (20.0, "Prompt(length=20)")],
        ("LoRA(alpha=16.0)", "r"): [(2.0, "LoRA(r=2, alpha=16.0)"), (8.0, "LoRA(r=8, alpha=16.0)")],
        ("LoRA(r=8)", "alpha"): [(8.0, "LoRA(r=8, alpha=8.0)"), (16.0, "LoRA(r=8, alpha=16.0)")],
    }


@pytest.mark.parametrize(("values", "log"), [((100, 1000), False), ((100, 1001), True), ((0, 5000), False)])
def test_an_axis_is_logarithmic_beyond_a_factor_of_ten(values, log):
    points = read_points([{"x": x, "score": 0.5, "ci": [0.4, 0.6]} for x in values])
    assert ("log scale" in series_panel("sst2", "rows", "accuracy", [Series("LoRA", STYLE, points)])) == log


def test_ranks_are_placed_in_order_with_a_bar_for_each_clique():
    methods = [RankedMethod(f"m{i}", f"m{i}", rank, STYLE) for i, rank in enumerate((3.1, 1.2, 2.0, 4.0))]
    wide, narrow = critical_difference(methods, 1.5, [["m1", "m2"], ["m2", "m1", "m0"], ["m3"], ["m0", "m3"]])
    for picture in (wide, narrow):
        root = ET.fromstring(picture)
        assert len([bar for bar in root.iter("line") if bar.get("class") == "clique"]) == 2, "one is within another"
    titles = [group.find("title").text for group in ET.fromstring(narrow).iter("g")]
    assert [title.split(":")[0] for title in titles] == ["m1", "m2", "m0", "m3"]
    assert critical_difference(methods[:1], 1.0, []) == []
    assert "Ranks" not in words_of(render_study(sample_study(sets=2))), "two data sets have no ranks to speak of"


def test_a_large_study_opens_at_once():
    """Twenty methods on ten sets, and the same at four numbers of rows: small files with few elements."""
    for study, bytes_, elements in (
        (sample_study(20, 10), 150_000, 3_000),
        (sample_study(20, 10, limits=(200, 500, 1000, 5000)), 600_000, 12_000),
    ):
        page = render_study(study)
        assert len(page.encode()) < bytes_
        assert len(outline(page).tags) < elements


def test_the_page_is_written(tmp_path):
    write_study_report(sample_study(), tmp_path / "new" / "study.html")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["study.html"]


WIDTHS = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth + 1);
  const found = {
    width: innerWidth, page: document.documentElement.scrollWidth, boxes: wide.map((box) => box.ariaLabel),
    first: document.querySelector("table.study tbody b").textContent,
    milliseconds: performance.timing.domContentLoadedEventEnd - performance.timing.responseEnd,
  };
  document.querySelector("table.study th[data-key=rank] button").click();
  document.querySelector("table.study th[data-key=rank] button").click();
  found.sorted = document.querySelector("table.study tbody b").textContent;
  const place = document.createElement("pre");
  place.id = "found";
  place.textContent = JSON.stringify(found);
  top.document.body.append(place);
});
</script></body>"""


def measured(page, tmp_path, width):
    page = re.sub(r'<meta http-equiv="Content-Security.*?>', "", page).replace("</body>", WIDTHS)
    file = tmp_path / "probe.html"
    style = f"width:{width}px;height:900px;border:0"
    file.write_text(f'<!doctype html><body><iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>', "utf-8")
    dom = browse(file, tmp_path, "--window-size=1400,1000")
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


@pytest.mark.one_in(2)
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_in_a_browser(tmp_path, width):
    found = measured(render_study(sample_study(20, 10)), tmp_path, width)
    assert found["width"] == width
    assert found["page"] <= width, "the page scrolls sideways"
    if width == 1200:
        assert found["boxes"] == [], "a table scrolls sideways"
    assert found["first"] == "LoRA"
    assert found["sorted"] == "Prefix", "by falling rank"
    assert found["milliseconds"] < 3000


def test_suites_totals_and_notes_of_a_study_are_shown():
    study = sample_study(methods=3, sets=3)
    asked = study["methods"]
    rows = [{"method": asked[0], "average": None, "tasks": {"sst2": 0.9}},
            {"method": asked[1], "average": 0.8123, "tasks": {"sst2": 0.8, "cola": 0.5}}]  # fmt: skip
    study["suites"] = [
        {"suite": "GLUE", "at": {"model": "org/bert", "limit": None}, "tasks": ["sst2", "cola"], "missing": ["wnli"],
         "methods": rows}
    ]  # fmt: skip
    study["notes"] = ["the mean is over different metrics"]
    study["totals"] = [
        {"method": method, "at": {"model": model, "budget": None}, "tasks": 1000, "params": 5, "bytes": size,
         "copies": 14e12}
        for method, model, size in ((asked[0], "org/large", 14e9), (asked[1], "org/small", 3e9))
    ]  # fmt: skip
    words = words_of(render_study(study))
    assert "Suites" in words
    assert "without wnli" in words
    assert words.index("0.812") < words.index("0.900"), "a method without an average comes last"
    assert "the mean is over different metrics" in words
    assert "large" in words
    assert words.index("3 GB") < words.index("14 GB") < words.index("14 TB", words.index("14 GB"))
