"""`deltatune results`: finished runs as tables of the terminal, CSV, LaTeX, Markdown and JSON; errors that help."""

import io
import json
import re

import pandas as pd
import pytest

from deltatune.comparison.report.exports import COSTS, export, rows_of
from deltatune.comparison.results.finished_run import read_finished
from support.command_line import ran
from support.comparison_sample import EVIL, sample_summary
from support.study_sample import sample_study


@pytest.fixture
def comparison(tmp_path):
    return written(tmp_path / "sst2", "summary.json", sample_summary())


@pytest.fixture
def study(tmp_path):
    return written(tmp_path / "glue", "study.json", sample_study(methods=5, sets=3, limits=(100, 1000), unfinished=1))


def written(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_table_of_the_terminal_is_printed_again(comparison):
    shown = ran("results", comparison)
    assert shown.code == 0
    assert "Bottleneck(size=11, form='houlsby')" in shown.out
    assert "Use TopLayers(2)" in shown.out
    assert shown.out.rstrip().endswith(f"report: {comparison / 'report.html'}")
    assert sorted(file.name for file in comparison.iterdir()) == ["summary.json"], "nothing is written"


def test_csv_has_every_number(comparison):
    table = pd.read_csv(io.StringIO(ran("results", comparison, "--to", "csv").out))
    rows = {row["method"]: row for row in sample_summary()["methods"]}
    assert set(table["method"]) == set(rows)
    for row in table.to_dict("records"):
        source = rows[row["method"]]
        assert row["verdict"] == "failed" or row["score"] == pytest.approx(source["score"], abs=1e-15)
        assert row["params"] == source["params"]
    assert set(COSTS) <= set(table.columns)
    assert table["params"].dtype.kind == "i", "counts are whole numbers"
    assert list(table["verdict"]).count("best") == 1
    assert table.set_index("method").loc["Full()", "test_f1"] == pytest.approx(rows["Full()"]["scores"]["f1"])


def test_json_has_the_rows_of_csv(comparison, study):
    for folder in (comparison, study):
        rows = json.loads(ran("results", folder, "--to", "json").out)
        table = pd.read_csv(io.StringIO(ran("results", folder, "--to", "csv").out))
        assert len(rows) == len(table)
        assert list(rows[0]) == list(table.columns)
        assert [row["method"] for row in rows] == list(table["method"])


def test_a_study_has_a_row_for_each_method_of_each_finished_comparison(study):
    table = pd.read_csv(io.StringIO(ran("results", study, "--to", "csv").out))
    assert len(table) == 5 * 5, "five of six comparisons are finished"
    one = table[(table["data"] == "trec6") & (table["limit"] == 1000) & (table["asked"] == "Houlsby()@3%")]
    source = read_finished(study).content["comparisons"][4]["summary"]["methods"][1]
    assert float(one["score"].iloc[0]) == pytest.approx(source["score"])


def cells_of(line):
    """The cells of a line of a Markdown table: a bar that is escaped does not end one."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


@pytest.mark.parametrize("kind", ["comparison", "study"])
@pytest.mark.parametrize("hostile", [False, True])
def test_markdown_is_a_table_with_as_many_cells_in_each_line(kind, hostile, tmp_path):
    content = sample_summary(hostile) if kind == "comparison" else sample_study(hostile=hostile)
    rows = content["methods"] if kind == "comparison" else content["comparisons"][0]["summary"]["methods"]
    if hostile:
        name = "a|b`` \n| ` --> \\| <b>"
        rows[0]["method"] = rows[0]["asked"] = name
    name = "summary.json" if kind == "comparison" else "study.json"
    text = ran("results", written(tmp_path / "run", name, content), "--to", "markdown").out
    lines = text.splitlines()
    assert len({len(cells_of(line)) for line in lines}) == 1
    assert re.fullmatch(r"\|---\|(---:\|)+", lines[1])
    assert "**" in text
    prose = re.sub(r"(`+).*?\1", "", text)  # what is not code must not be HTML
    assert not re.search(r"(?<!\\)<", prose)


def latex_problems(text):
    """What a LaTeX run would stumble over: braces, environments, cells, and specials that are not escaped."""
    problems = []
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    plain = re.sub(r"\\[\\{}$&#_%]", "", re.sub(r"\\\\$", "", body, flags=re.MULTILINE))
    depth = 0
    for letter in plain:
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            break
    if depth:
        problems.append("braces")
    outside = re.sub(r"\$(\\[a-z]+|-|\^\d)\$", "", plain)
    problems += [f"bare {letter}" for letter in '$#_%^~<>|"`' if letter in outside]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    for line in body.splitlines():
        if line.endswith(r"\\") and len(re.findall(r"(?<!\\)&", line)) != columns - 1:
            problems.append(f"cells: {line}")
    for name in (r"\begin{tabular}", r"\end{tabular}", r"\toprule", r"\midrule", r"\bottomrule"):
        if text.count(name) != 1:
            problems.append(name)
    commands = set(re.findall(r"\\([a-z]+)", body)) - {"begin", "end", "toprule", "midrule", "bottomrule", "textbf"}
    known = {"texttt", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"}
    known |= {"textquotedbl", "textquotesingle", "textasciigrave", "times", "pm", "dots", "alpha"}
    return problems + [f"command {command}" for command in commands - known]


@pytest.mark.parametrize("kind", ["comparison", "study"])
@pytest.mark.parametrize("hostile", [False, True])
def test_latex_is_a_booktabs_table(kind, hostile, tmp_path):
    content = sample_summary(hostile) if kind == "comparison" else sample_study(hostile=hostile)
    if hostile:
        rows = content["methods"] if kind == "comparison" else content["comparisons"][0]["summary"]["methods"]
        rows[0]["method"] = rows[0]["asked"] = "x_1 & 50% #{$} ~^ \\end{tabular} |\n\n| \"`'"
    name = "summary.json" if kind == "comparison" else "study.json"
    text = ran("results", written(tmp_path / "run", name, content), "--to", "latex").out
    assert latex_problems(text) == []
    assert r"\textbf{" in text


def test_the_check_of_latex_sees_mistakes():
    good = export(type("Run", (), {"kind": "comparison", "content": sample_summary()})(), "latex")
    assert latex_problems(good) == []
    for bad in (
        good.replace("&", "", 1),
        good.replace(r"\%", "%", 1),
        good.replace("textbf{", "textbf", 1),
        good + r"\end{tabular}",
    ):
        assert latex_problems(bad), bad[:200]


def test_bold_is_what_is_not_told_apart_from_the_best(comparison):
    lines = ran("results", comparison, "--to", "markdown").out.splitlines()
    bold = {cells_of(line)[0].strip("*`") for line in lines[2:] if line.startswith("| **")}
    assert bold == {"Full()", "TopLayers(2)"}


@pytest.mark.parametrize(("name", "start"), [("a.csv", "method,"), ("a.tex", "% "), ("a.md", "| "), ("a.JSON", "[")])
def test_the_name_of_the_file_says_the_format(comparison, tmp_path, name, start):
    shown = ran("results", comparison, "--out", tmp_path / name)
    assert shown.code == 0
    assert shown.out == f"results: {tmp_path / name}\n"
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
    assert ran("results", comparison, "--out", tmp_path / name).code == 0, "a second time too"


def test_text_from_data_does_not_break_csv(tmp_path):
    folder = written(tmp_path / "run", "summary.json", sample_summary(hostile=True))
    table = pd.read_csv(io.StringIO(ran("results", folder, "--to", "csv").out))
    assert all(name.endswith(EVIL) for name in table["method"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["{tmp}/sst"], "there is no folder {tmp}/sst, did you mean 'sst2'?"),
        (["{tmp}"], "did you mean one of: broken, other, sst2"),
        (["{tmp}/sst2/summary.jso"], "there is no folder"),
        (["{tmp}/started"], "the comparison is not finished; `deltatune watch"),
        (["{tmp}/adapter"], "it holds an adapter"),
        (["{tmp}/broken"], "cannot read {tmp}/broken/summary.json"),
        (["{tmp}/other"], "is of no comparison of methods: it has no methods"),
        (["{tmp}/sst2", "--to", "markdwn"], "did you mean 'markdown'"),
        (["{tmp}/sst2", "--out", "{tmp}/table.xlsx"], "name it with --to, one of csv, latex, markdown, json"),
        (["{tmp}/sst2", "--to", "json", "--out", "{tmp}/sst2/summary.json"], "would overwrite the input"),
        (["{tmp}/sst2", "--to", "json", "--out", "{tmp}/none/x.json"], "there is no folder {tmp}/none"),
    ],
)
def test_errors_name_the_thing_and_the_fix(comparison, tmp_path, argv, expected):
    written(tmp_path / "adapter", "adapter.json", {})
    written(tmp_path / "other", "summary.json", {"points": []})
    written(tmp_path / "started", "results.jsonl", {})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text('{"methods": [')
    before = (comparison / "summary.json").read_bytes()
    shown = ran("results", *(word.format(tmp=tmp_path) for word in argv))
    assert shown.code == 2
    assert expected.format(tmp=tmp_path) in shown.err
    assert (comparison / "summary.json").read_bytes() == before


def test_the_file_itself_may_be_named(comparison):
    assert read_finished(comparison / "summary.json").folder == comparison
    assert rows_of(read_finished(comparison)) == rows_of(read_finished(comparison / "summary.json"))
