"""The page docs/neighbours.md says what the tests of this folder declare, and was written when they passed."""

import importlib.util
import re

import pytest

from support.neighbours import FOLDER, STEPS, rows

spec = importlib.util.spec_from_file_location("neighbours_page", FOLDER.parents[1] / "docs/neighbours.py")
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)
ROWS = rows()


def test_every_row_has_a_name_of_its_own():
    assert len({row.name for row in ROWS}) == len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path.stem)
def test_the_page_has_the_cells_that_the_tests_declare(row):
    lines = writer.parts_of(writer.PAGE.read_text(encoding="utf-8"))
    assert row.path.name in lines, "the page lacks it: run `python docs/neighbours.py`"
    found = lines[row.path.name]
    if "not tried" in found:
        assert found == writer.line(row, {}, fresh=False)
        return
    assert f"<!-- {row.path.name} {row.digest} -->" in found, (
        f"changed since: `python docs/neighbours.py {row.path.name}`"
    )
    version = re.match(rf"\| {re.escape(row.name)}( \S+) \|", found)
    assert version
    assert found.startswith(writer.table_row(row, version[1]))


def test_a_row_whose_test_failed_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(writer, "outcomes", lambda tests: {test: "test_media_models" not in test for test in tests})
    assert writer.main(["test_media_models.py", "test_hf_datasets.py"]) == 1
    lines = writer.parts_of(writer.PAGE.read_text())
    assert lines["test_media_models.py"].count("not tried") == len(STEPS)
    assert "works" in lines["test_hf_datasets.py"]
    before = lines["test_hf_datasets.py"]
    monkeypatch.setattr(writer, "outcomes", lambda tests: {})
    assert writer.main([]) == 1
    assert writer.parts_of(writer.PAGE.read_text())["test_hf_datasets.py"] == before, "it keeps what was shown"


def test_skipped_and_failed_cases_show_nothing(tmp_path):
    cases = {"a": "", "b": "<skipped/>", "c[x]": "", "c[y]": "<failure/>", "d": "<error/>"}
    text = "".join(
        f'<testcase classname="tests.x.test_y" name="{name}">{mark}</testcase>' for name, mark in cases.items()
    )
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    passed = {
        name.partition("::")[2] for name, passes in writer.read_outcomes(tmp_path / "report.xml").items() if passes
    }
    assert passed == {"a", "c[x]"}
