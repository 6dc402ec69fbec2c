"""What a comparison decided, in its report: pairs, what is open, the rungs of the search; twenty methods at once."""

import copy
import html
import json
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from deltatune.comparison.report.page import render
from deltatune.comparison.report.verdict_section import difference, outlook
from support.comparison_sample import EVIL, poisoned, sample_summary
from support.html_pages import browse, needs_browser, outline


def decided_summary(methods=None):
    """The sample with a verdict for every pair, the rungs of each search, and more seeds for some methods."""
    summary = sample_summary()
    if methods:
        first = [row for row in summary["methods"] if row["score"] is not None]
        summary["methods"] = [
            {**copy.deepcopy(first[i % len(first)]), "method": f"{first[i % len(first)]['method']} + N{i}"}
            for i in range(methods)
        ]
    scored = [row for row in summary["methods"] if row["score"] is not None]
    pairs = []
    for first, second in combinations(scored, 2):
        apart = first["score"] - second["score"]
        verdict = "undecided" if 0.004 < abs(apart) < 0.03 else "equal" if abs(apart) <= 0.004 else "better"
        verdict = "worse" if verdict == "better" and apart < 0 else verdict
        pairs.append({"first": first["method"], "second": second["method"], "difference": apart,
                      "ci": [apart - 0.02, apart + 0.02], "verdict": verdict})  # fmt: skip
    for row in scored:
        rates = [row["learning_rate"] * by for by in (1 / 3, 1, 3)]
        row["rungs"] = [
            {"method": row["method"], "learning_rate": rate, "step": step, "steps": 160,
             "score": 0.4 + step / 1000 + i / 100, "kept": step < 160 and i >= step // 40}
            for i, rate in enumerate(rates) for step in (40, 80) if i >= step // 80
        ]  # fmt: skip
    scored[0]["seed_scores"] = scored[0]["seed_scores"] + [0.7, 0.71]
    decision = {"margin": 0.005, "looks": 2, "alpha": 0.05, "stopped": "seeds", "sentence": "Full() is the best."}
    return summary | {"pairs": pairs, "decision": decision}


@pytest.fixture(scope="module")
def summary():
    return decided_summary()


def test_the_verdicts_of_all_pairs_are_counted_and_shown(summary):
    page = render(summary)
    words = " ".join(" ".join(outline(page).words).split())
    verdicts = [pair["verdict"] for pair in summary["pairs"]]
    apart = verdicts.count("better") + verdicts.count("worse")
    assert {"better", "worse", "equal", "undecided"} == set(verdicts), "the sample has every verdict"
    assert f"{apart} of {len(verdicts)} pairs of methods are told apart" in words
    assert f"{verdicts.count('equal')} are equal within 0.005" in words
    assert f"{verdicts.count('undecided')} are not told apart" in words
    assert "is wrong in at most 5 % of such comparisons" in words
    assert "looked at twice; then every method had the most seeds" in words
    assert "3 to 5" in words, "seeds were added to one method"
    table = re.search(r'<table class="matrix">.*?</table>', page, re.DOTALL)[0]
    cells = re.findall(r'<td class="(\w+)" title=', table)
    assert len(cells) == 2 * len(verdicts)
    assert cells.count("better") == cells.count("worse") == apart
    assert cells.count("equal") == 2 * verdicts.count("equal")


def test_a_row_of_the_matrix_is_the_row_against_the_column(summary):
    table = re.search(r'<table class="matrix">.*?</table>', render(summary), re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table)[1:] or re.findall(r"<tr>(.*?)</tr>", table)
    full = next(row for row in rows if "<b>Full</b>" in row)
    worse = [pair for pair in summary["pairs"] if "Full()" in (pair["first"], pair["second"])]
    assert 'class="worse"' not in full
    assert full.count('class="better"') == sum(pair["verdict"] in ("better", "worse") for pair in worse)


def test_open_pairs_are_listed_with_what_would_decide_them():
    pair = {"first": "A()", "second": "B()", "difference": 0.0123, "ci": [-0.01, 0.034], "verdict": "undecided"}
    assert difference(pair) == "+0.012 (−0.010 to 0.034)"
    assert outlook(pair) == "", "the summary does not say enough"
    parts = {"look": 1, "runs": [2, 2], "level": 0.05, "row_error": 0.004, "seed_error": 0.01}
    pair |= parts
    seeds = int(re.search(r"about (\d+) more seeds would tell", outlook(pair, None, 500))[1])
    assert 2 <= seeds <= 12
    rows = outlook({**pair, "row_error": 0.011, "seed_error": 0.0001}, None, 500)
    assert re.search(r"about [\d,]+ more test rows would tell, more seeds would not", rows)
    assert "neither" in outlook({**pair, "difference": 0.0001}, None, 500)
    assert "more seed" in outlook({**pair, "difference": 0.0001}, 0.03, 500), "they would be equal within the margin"
    assert outlook({**pair, "verdict": "equal"}, None, 500) == ""


def test_every_rung_of_the_search_is_drawn_and_listed(summary):
    page = render(summary)
    words = " ".join(outline(page).words)
    assert "Search by successive halving" in words
    assert "Every step of the search" in words
    searched = [row for row in summary["methods"] if row.get("rungs")]
    pictures = [each for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if 'aria-label="Search of' in each]
    assert len(pictures) == len(searched)
    for picture in pictures:
        runs = [group for group in ET.fromstring(picture).iter("g") if group.find("title") is not None]
        assert len(runs) == 3
    lora = re.search(r"<h3>LoRA\(r=12\)</h3>.*?</table>", page, re.DOTALL)[0]
    assert lora.count("<small>stopped</small>") == 2, "one rate at step 40, the second one at step 80"
    assert lora.count("<b>0.") == 3


def test_runs_that_were_compared_once_have_no_lines_to_draw():
    summary = decided_summary()
    for row in summary["methods"]:
        row["rungs"] = [rung for rung in row.get("rungs", ()) if rung["step"] == 40]
    page = render(summary)
    assert "Search by successive halving" not in page
    assert "Every step of the search" in page


def test_sizes_that_were_tried_are_told_apart():
    summary = decided_summary()
    row = next(row for row in summary["methods"] if row.get("rungs"))
    row["rungs"] += [{**rung, "method": "LoRA(r=64)"} for rung in row["rungs"]]
    page = render(summary)
    assert "Size and learning rate" in page
    assert "<code>LoRA(r=64)</code>" in page


def test_earlier_summaries_have_no_such_section():
    page = render(sample_summary())
    assert "What is decided" not in page
    assert "successive halving" not in page


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(pairs=s["pairs"][:1]),
        lambda s: s.update(decision=None),
        lambda s: s["decision"].update(margin=None, looks=None, alpha=None, stopped=None, sentence=None),
        lambda s: [pair.update(ci=None, difference=None) for pair in s["pairs"]],
        lambda s: [pair.update(ci=[None, 0.1], verdict="undecided") for pair in s["pairs"]],
        lambda s: [pair.update(verdict="something else") for pair in s["pairs"]],
        lambda s: [pair.update(first="nobody") for pair in s["pairs"]],
        lambda s: [rung.update(step=None) for row in s["methods"] for rung in row.get("rungs", ())],
        lambda s: [rung.update(score=None) for row in s["methods"] for rung in row.get("rungs", ())],
        lambda s: s.update(methods=[]),
    ],
)
def test_unusual_decisions_are_rendered_too(change):
    summary = decided_summary()
    change(summary)
    outline(render(summary))


def test_text_from_data_stays_text():
    summary = decided_summary()
    for key in ("pairs", "decision", "methods"):
        summary[key] = poisoned(summary[key])
    for pair in summary["pairs"]:
        pair["verdict"] = pair["verdict"].removesuffix(EVIL)
    page = render(summary)
    assert outline(page).tags.count("script") == 1
    assert EVIL not in page


WIDTHS = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth + 1);
  const place = document.createElement("pre");
  place.id = "found";
  const page = document.documentElement.scrollWidth;
  place.textContent = JSON.stringify({ width: innerWidth, page, boxes: wide.map((box) => box.ariaLabel) });
  top.document.body.append(place);
});
</script></body>"""


@pytest.fixture(scope="module")
def twenty():
    """The page of twenty methods."""
    return render(decided_summary(methods=20))


@pytest.mark.one_in(2)
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_twenty_methods_fit_a_page(twenty, tmp_path, width):
    page = re.sub(r'<meta http-equiv="Content-Security.*?>', "", twenty).replace("</body>", WIDTHS)
    style = f"width:{width}px;height:900px;border:0"
    file = tmp_path / "probe.html"
    file.write_text(f'<!doctype html><body><iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>', "utf-8")
    dom = browse(file, tmp_path, "--window-size=1400,1000")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert found["page"] <= width, "the page scrolls sideways"
    if width == 1200:
        assert found["boxes"] == [], "a table scrolls sideways"


def test_twenty_methods_are_a_small_page(twenty):
    assert len(twenty.encode()) < 700_000
    assert len(outline(twenty).tags) < 15_000
