"""The report: complete, safe, self-contained, readable; also in a headless Chromium if one is installed."""

import base64
import copy
import hashlib
import html
import json
import math
import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.figures.label_layout import Box, LabelledPoint, place_labels, spread
from deltatune.comparison.report.figures.plots import smooth
from deltatune.comparison.report.figures.svg import Axis, linear, logarithmic, marker_styles, text_width
from deltatune.comparison.report.method_results import method_results
from deltatune.comparison.report.page import render, write_report
from deltatune.comparison.results.recommend import recommend
from deltatune.comparison.results.records import Records
from deltatune.core.theme import theme
from support.comparison_sample import EVIL, sample_summary
from support.html_pages import browse, needs_browser, outline


@pytest.fixture(scope="module")
def page():
    return render(sample_summary())


def test_the_page_contains_the_results(page):
    words = " ".join(outline(page).words)
    summary = sample_summary()
    for row in summary["methods"]:
        assert row["method"] in words
    assert "Use TopLayers(2)" in words.replace("  ", " ")
    for expected in (
        "all-MiniLM-L6-v2 × Python documentation",
        "References",
        "One run failed",
        "OutOfMemoryError: 1.9 GB asked, 0.4 GB left",
        "113,566",
        "≈ tied",
        "★ best",
        "2,000 times",
        "10 TFLOPs",
        "94 GB",
        "0.189",
        "12 rows were longer than 256 tokens",
        "2.13.0",
        "14 March 2026",
    ):
        assert expected in words, expected


def test_the_explanations_say_what_is_computed():
    """Seeds are not resampled (`statistics.draw`), and rates are not chosen by all seeds."""
    single, several = sample_summary() | {"seeds": [0]}, sample_summary()
    for summary, expected in (
        (several, "The error of the seeds comes on top: its variance is estimated from the runs of all methods"),
        (several | {"draws": 3, "shots": 8}, "The error of the draws of training rows, each with its seeds, comes on"),
        (single, "A single seed does not measure seed variance."),
    ):
        words = " ".join(" ".join(outline(render(summary)).words).split())
        assert expected in words
        assert "The test rows are resampled 2,000 times" in words
        assert "chosen on the validation rows alone" in words
        assert "seeds are resampled" not in words


def test_every_picture_is_well_formed_and_named(page):
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) > 40
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.get("aria-label") or root.get("aria-hidden")
        assert "nan" not in picture.lower().replace("nant", "")
    assert len(page) < 400_000


def test_the_page_loads_nothing_from_outside(page):
    for tag, key, value in outline(page).addresses:
        assert value == "data:," or (tag == "a" and key == "href"), f"<{tag} {key}={value}>"
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|sendBeacon|WebSocket|import\(", page)
    assert "default-src 'none'" in page


def test_the_script_is_allowed_by_its_hash(page):
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_text_from_data_stays_text():
    page = render(sample_summary(hostile=True))
    found = outline(page)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert EVIL not in page
    assert html.escape(EVIL, quote=True) in page
    assert any(EVIL in words for words in found.words)


def test_dollars_in_names_are_kept():
    summary = sample_summary()
    summary["data"]["name"] = "$style ${script} $"
    assert "$style ${script} $" in "".join(outline(render(summary)).words)


def test_the_page_is_written_atomically(tmp_path, monkeypatch):
    target = tmp_path / "runs" / "mine" / "report.html"
    write_report(sample_summary(), target)
    before = target.read_text(encoding="utf-8")
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]

    def broken(_):
        raise OSError("disk full")

    monkeypatch.setattr("deltatune.store.atomic_files.os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report({**sample_summary(), "name": "other"}, target)
    assert target.read_text(encoding="utf-8") == before
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


def test_a_summary_with_earlier_keys_is_rendered_the_same():
    summary = sample_summary()
    for row in summary["methods"]:
        row["latency_ratio_folded"] = row.pop("latency_ratio_merged")
    assert render(summary) == render(sample_summary())
    assert any(result.number("latency_ratio_merged") == 1.0 for result in method_results(summary))


def test_records_with_earlier_keys_are_read(tmp_path):
    line = {
        "cell": "a",
        "status": "ok",
        "stage": "seed",
        "config": {},
        "latency_ratio": 1.5,
        "latency_ratio_folded": 1.1,
    }
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert Records(tmp_path).cells["a"]["latency_ratio_merged"] == 1.1
    assert json.loads((tmp_path / "results.jsonl").read_text()) == line


def test_latency_has_an_unmerged_and_a_merged_number(page):
    words = outline(page).words
    assert "unmerged / merged" in words
    assert "Learning rate" in "".join(words)


def test_a_summary_may_come_from_json():
    summary = sample_summary()
    assert render(json.loads(json.dumps(summary))) == render(summary)


def without(summary, **changes):
    changed = copy.deepcopy(summary)
    for row in changed["methods"]:
        row.update(changes)
    return changed


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(methods=[], failed=[]),
        lambda s: s.update(methods=s["methods"][:1]),
        lambda s: s.update(methods=[row for row in s["methods"] if row["reference"]]),
        lambda s: s.update(methods=[row for row in s["methods"] if not row["reference"]], budget=None),
        lambda s: s.update(methods=[row for row in s["methods"] if row["failed"]]),
        lambda s: s.update(methods=[row | {"score": math.nan, "ci95": None} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"params": 0, "share": 0.0} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"score": 0.5, "ci95": [0.5, 0.5], "params": 7} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"ci95": None, "curves": [], "search": []} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"curves": [{"seed": 0, "loss": []}]} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"curves": [{"seed": 0, "loss": [[1, math.nan]]}]} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"score": -0.2, "ci95": [-0.4, 0.1]} for row in s["methods"]]),
        lambda s: s.update(methods=[row | {"peak_memory_bytes": None} for row in s["methods"]]),
        lambda s: s.update(metric="mse"),
        lambda s: s.update(metric="spearman", seeds=[0], majority=None, settings={}, versions={}, pscp_constants=None),
        lambda s: s.update(methods=[row | {"method": f"{i}{row['method']}"} for i in range(2) for row in s["methods"]]),
        lambda s: [s.pop(key) for key in ("name", "created", "elapsed_seconds", "failed", "head_params")],
        lambda s: [s.pop(key) for key in ("base_params", "majority", "pscp_constants", "versions", "settings")],
    ],
)
def test_unusual_comparisons_are_rendered_too(change):
    summary = sample_summary()
    change(summary)
    summary["recommendation"] = recommend(summary)
    page = render(summary)
    outline(page)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(picture)
        assert not re.search(r'="-?(nan|inf)"', picture)


def test_a_metric_of_errors_is_ranked_from_low_to_high():
    summary = sample_summary() | {"metric": "mse"}
    fitted = [result.score for result in method_results(summary) if not result.reference and result.score is not None]
    assert fitted == sorted(fitted)
    page = render(summary)
    assert 'data-key="score" class="c-score" data-first="ascending" aria-sort="ascending"' in page
    assert "mse, lower is better" in page


def test_every_method_has_its_own_marker_style():
    found = method_results(sample_summary())
    assert len({(result.style.color_class, result.style.shape) for result in found}) == len(found)
    assert len(set(marker_styles([False] * 30))) == 30
    assert [result.reference for result in found] == sorted(result.reference for result in found)


def test_labels_are_as_short_as_they_can_be():
    def labels(*methods):
        rows = [{"method": method, "name": method.split("(")[0]} for method in methods]
        return list(formats.short_labels(rows).values())

    assert labels("LoRA(r=8)", "Prefix(length=3)") == ["LoRA", "Prefix"]
    assert labels("Bottleneck(form='houlsby')", "Bottleneck(form='pfeiffer')") == [
        "Bottleneck houlsby",
        "Bottleneck pfeiffer",
    ]
    assert labels("LoRA(r=8)", "LoRA(r=2, sites='*.{q,k}')") == ["LoRA(r=8)", "LoRA(r=2)"]
    assert labels("LoRA(sites='*.q')", "LoRA(sites='*.v')") == ["LoRA(sites='*.q')", "LoRA(sites='*.v')"]


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (formats.score, 0.71234, "0.712"),
        (formats.score, None, "–"),
        (formats.score, -0.1, "−0.100"),
        (formats.count, 110592, "110,592"),
        (formats.short_count, 110592, "111 k"),
        (formats.short_count, 22713216, "22.7 M"),
        (formats.short_count, 12, "12"),
        (formats.size, 448213, "448 kB"),
        (formats.size, 1.0e9, "1 GB"),
        (formats.size, 20, "20 B"),
        (formats.seconds, 0.812, "0.81 s"),
        (formats.seconds, 41.2, "41 s"),
        (formats.seconds, 192, "3 min 12 s"),
        (formats.seconds, 5000, "1 h 23 min"),
        (formats.ratio, 1.0834, "1.08×"),
        (formats.rate, 0.0005, "5e-4"),
        (formats.rate, 0.0015, "1.5e-3"),
        (formats.rate, 0.0, "0"),
    ],
)
def test_numbers_are_written_for_readers(write, value, expected):
    assert write(value) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_on_the_axis_and_are_several(low, width):
    axis = Axis(low, low + width, 0, 100)
    ticks = axis.ticks(4) if low + width > low else [0, 1]
    assert 2 <= len(ticks) <= 12
    assert all(-0.01 <= axis.at(tick) <= 100.01 for tick in ticks) or low + width == low


@given(st.lists(st.floats(1e-6, 1e9), max_size=8))
def test_every_value_has_a_place_on_its_axis(values):
    for axis in (linear(values, 10, 90), logarithmic(values, 10, 90)):
        assert all(9.99 <= axis.at(value) <= 90.01 for value in values)
        assert axis.ticks()


@given(st.lists(st.floats(0, 100), max_size=12))
def test_spread_keeps_distance_order_and_bounds(values):
    wanted = sorted(values)
    places = spread(wanted, 8.0, 0.0, 100.0)
    assert len(places) == len(wanted)
    assert all(b - a >= 8 - 1e-6 for a, b in pairwise(places))
    assert all(-1e-6 <= x <= 100 + 1e-6 for x in places)
    apart = [10.0, 30.0, 50.0]
    assert spread(apart, 8.0) == apart


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(60, 540), st.floats(60, 340)), min_size=1, max_size=12))
def test_labels_never_cover_each_other_where_there_is_room(points):
    wanted = [LabelledPoint(x, y, 80, 14) for x, y in points]
    marks = [(Box(x - 6, y - 6, x + 6, y + 6), 30.0) for x, y in points]
    places = place_labels(wanted, marks, Box(0, 0, 600, 400))
    assert len(places) == len(points)
    assert all(not a.box.overlap(b.box) for a, b in combinations(places, 2))


@pytest.mark.parametrize("class_", ["wide", "narrow"])
def test_labels_of_the_main_figure_are_apart(page, class_):
    picture = ET.fromstring(re.search(rf'<svg [^>]*class="{class_}".*?</svg>', page, re.DOTALL)[0])
    boxes = []
    for words in picture.iter("text"):
        if words.get("class") == "label":
            x, y = float(words.get("x")), float(words.get("y"))
            boxes.append(Box(x, y - 10, x + text_width(words.text, 12), y + 3))
    assert len(boxes) == 11
    assert all(not a.overlap(b) for a, b in combinations(boxes, 2))
    width = float(picture.get("width"))
    assert all(box.left >= 0 and box.right <= width for box in boxes)


def test_no_marker_crosses_the_budget():
    """Overlapping markers may move, but those within the budget stay left of its line and the others right."""
    for class_ in ("wide", "narrow"):
        picture = re.search(rf'<svg [^>]*class="{class_}".*?</svg>', render(sample_summary()), re.DOTALL)[0]
        root = ET.fromstring(picture)
        budget = next(float(line.get("x1")) for line in root.iter("line") if line.get("class") == "budget")
        for group in root.iter("g"):
            title = group.find("title")
            if title is not None and "trainable parameters" in title.text:
                params = int(re.search(r"([\d,]+) trainable", title.text)[1].replace(",", ""))
                assert (float(group.find("line").get("x1")) < budget) == (params <= 113_566), title.text


def test_smoothing_keeps_the_shape_and_thins():
    curve = [[step, 2.0 - step / 1000] for step in range(1000)]
    found = smooth(curve)
    assert 70 <= len(found) <= 90
    assert all(abs(y - (2.0 - x / 1000)) < 0.05 for x, y in found)
    assert smooth([[1, 2.0], [2, None], [3, math.nan]]) == [(1.0, 2.0)]


def themes():
    blocks = re.findall(r"(:root[^{]*)\{([^}]*)\}", theme())
    colours = [dict(re.findall(r"--(\w+): (#\w+);", body)) for _, body in blocks]
    return colours[0], colours[1], colours[2]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear_parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear_parts, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_seen_in_both_themes():
    light, dark, chosen_dark = themes()
    assert dark == chosen_dark, "the dark theme stands twice in theme.css: both must be the same"
    assert set(light) == set(dark)
    for colours in (light, dark):
        for name, colour in colours.items():
            if re.fullmatch(r"c\d|ref", name):
                assert contrast(colour, colours["bg"]) >= 2.9, name
            if name in ("ink", "muted", "accent", "good", "bad"):
                assert contrast(colour, colours["bg"]) >= 4.5, name


PROBE = """<script>
addEventListener("error", (event) => report({ error: event.message }));
function report(found) {
  const place = document.createElement("pre");
  place.id = "found";
  place.textContent = JSON.stringify(found);
  top.document.body.append(place);
}
addEventListener("load", () => {
  const table = document.querySelector("table");
  const names = () => [...table.querySelectorAll("tbody tr th[scope=row] b")].map((each) => each.textContent);
  const head = (key) => document.querySelector(`th[data-key=${key}]`);
  const texts = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    if (!svg.getBoundingClientRect().width) continue;
    const boxes = [...svg.querySelectorAll("text")].map((each) => [each.textContent, each.getBoundingClientRect()]);
    const frame = svg.getBoundingClientRect();
    boxes.forEach(([words, a], i) => {
      if (a.left < frame.left - 2 || a.right > frame.right + 2) texts.push("outside: " + words);
      boxes.slice(i + 1).forEach(([other, b]) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && high > 3) texts.push(words + " | " + other);
      });
    });
  }
  const start = names(), started = head("score").ariaSort;
  head("params").querySelector("button").click();
  const once = names(), rising = head("params").ariaSort;
  head("params").querySelector("button").click();
  report({
    start, started, once, rising, twice: names(), falling: head("params").ariaSort, cleared: head("score").ariaSort,
    texts, width: innerWidth, page: document.documentElement.scrollWidth,
    background: getComputedStyle(document.documentElement).backgroundColor,
  });
});
</script></body>"""


def probe(tmp_path, *options, width=1280):
    """What a script finds that clicks and measures in the sample report, shown in a frame `width` pixels wide.

    The report's own policy would not let the script run. The frame is there because windows have a least width.
    """
    file = tmp_path / "probe.html"
    page = re.sub(r'<meta http-equiv="Content-Security.*?>', "", render(sample_summary())).replace("</body>", PROBE)
    style = f"width:{width}px;height:900px;border:0"
    file.write_text(f'<!doctype html><body><iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>', "utf-8")
    dom = browse(file, tmp_path, "--window-size=1400,1000", *options)
    return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(tmp_path, width):
    found = probe(tmp_path, width=width)
    fitted, references = [], []
    for result in method_results(sample_summary()):
        (references if result.reference else fitted).append(result)
    start = [result.label for result in fitted + references]

    def by_params(some, sign):
        return [result.label for result in sorted(some, key=lambda result: sign * result.row["params"])]

    assert found["start"] == start
    assert found["started"] == "descending"
    assert found["once"] == by_params(fitted, 1) + by_params(references, 1)
    assert found["rising"] == "ascending"
    assert found["twice"][-4:] == by_params(references, -1)
    assert found["falling"] == "descending"
    assert found["cleared"] == "none"
    assert found["texts"] == []
    assert found["width"] == width
    assert found["page"] <= width, "the page scrolls sideways"


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_the_address_sorts_and_sets_the_theme(tmp_path):
    file = tmp_path / "report.html"
    write_report(sample_summary(), file)
    dom = browse(file, tmp_path, fragment="#sort=score:ascending&theme=dark")
    rows = re.findall(r'<th class="c-method" scope="row".*?<b>(.*?)</b>', dom)
    scores = {result.label: result.score for result in method_results(sample_summary())}
    first = [scores[re.sub("<.*?>", "", label)] for label in rows[:7]]
    assert first == sorted(first)
    assert "hidden=512" in rows[7], "a method without a score is last in either direction"
    assert 'data-theme="dark"' in dom
    dark = probe(tmp_path, "--blink-settings=preferredColorScheme=0")["background"]
    light = probe(tmp_path, "--blink-settings=preferredColorScheme=1")["background"]
    assert dark == "rgb(18, 23, 28)"
    assert light == "rgb(253, 253, 252)"


@pytest.mark.browser
@needs_browser
def test_hostile_names_do_nothing_in_a_browser(tmp_path):
    file = tmp_path / "report.html"
    write_report(sample_summary(hostile=True), file)
    dom = browse(file, tmp_path)
    assert "<title>owned" not in dom
    assert "<img" not in dom
    assert dom.count("<script") == 1
