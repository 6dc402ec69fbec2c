"""Writer of docs/neighbours.md: what works beside which other library, from the tests of tests/neighbours/.

`python docs/neighbours.py` runs all of them and takes some minutes; `python docs/neighbours.py test_hf_trainer.py`
those of one row. A row is written only if all its tests passed; the page keeps a hash of the tests that it was
written from. A row whose library is not installed keeps what the page has, and else says that it was not tried.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.neighbours import STEPS, rows  # noqa: E402

PAGE = Path(__file__).parent / "neighbours.md"
NOT_TRIED = {
    "DeepSpeed": "not installed in the development environment; ZeRO-3 shards parameters as FSDP does",
    "Lightning": "not installed in the development environment; a hosted model is an `nn.Module` as any other",
    "Keras": "another framework: a Host takes PyTorch modules",
    "Megatron-LM": "not installed in the development environment",
}
"""Neighbours that no test has tried, and why."""
HEAD = """# Neighbours

What works beside which other library while a Host is on a model: attach an adapter, train it, save it, load it again,
serve it. Each cell is what a test of `tests/neighbours/` showed when `python docs/neighbours.py` wrote this page; the
tests run the lines and assert the words of refusals that stand here. “works” is without any line beyond
`Host(model)` and `attach`.
"""


def main(names: Sequence[str]) -> int:
    """Run the tests of all rows, or of files of these names, and write the page. Returns the exit status."""
    old = parts_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    wanted = [row for row in rows() if not row.missing and (not names or row.path.name in names)]
    passed = outcomes(sorted({test for row in wanted for test in row.tests}))
    failed = {row.name: tests for row in wanted if (tests := [test for test in row.tests if not passed.get(test)])}
    for name, tests in failed.items():
        print(f"{name}: not written, these did not pass: {', '.join(tests)}")
    fresh = {row.path.name for row in wanted if row.name not in failed}
    lines = {row.path.name: line(row, old, row.path.name in fresh) for row in rows()}
    PAGE.write_text(page(lines), encoding="utf-8")
    return 1 if failed else 0


def outcomes(tests: Sequence[str]) -> dict[str, bool]:
    """Test -> whether all its cases passed; tests that did not run are left out."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-p", "no:cacheprovider"]
        subprocess.run([*command, f"--junitxml={report}", *tests], cwd=ROOT, check=False)
        return read_outcomes(report) if report.exists() else {}


def read_outcomes(report: Path) -> dict[str, bool]:
    """The outcomes in a report in JUnit's form."""
    results: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        passed = not any(child.tag in ("failure", "error", "skipped") for child in case)
        test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for name in {test, test.partition("[")[0]}:
            results[name] = results.get(name, True) and passed
    return results


def line(row: Any, old: dict[str, str], fresh: bool) -> str:
    """A row of the table with the hash of its tests: a new one, the one that the page has, or that it was not tried."""
    if fresh:
        return f"{table_row(row, versions(row))} <!-- {row.path.name} {row.digest} -->"
    if row.path.name in old:
        return old[row.path.name]
    return f"| {row.name} | {'not tried | ' * len(STEPS)}<!-- {row.path.name} -->"


def table_row(row: Any, version: str) -> str:
    """The cells, as the tests declare them."""
    cells = (str(row.cells[step]).replace("|", "\\|") for step in STEPS)
    return f"| {row.name}{version} | {' | '.join(cells)} |"


def versions(row: Any) -> str:
    """The version of the first package, in front of which the name mostly says the rest."""
    package = row.packages[0].partition(".")[0]
    names = importlib.metadata.packages_distributions().get(package, [package])
    return f" {importlib.metadata.version(names[0]).partition('+')[0]}"


def page(lines: dict[str, str]) -> str:
    """The whole page."""
    header = f"| neighbour | {' | '.join(STEPS)} |\n|{'---|' * (len(STEPS) + 1)}"
    untried = "\n".join(f"- {name}: {why}." for name, why in NOT_TRIED.items())
    return f"{HEAD}\n{header}\n" + "\n".join(lines.values()) + f"\n\nNot tried:\n\n{untried}\n"


def parts_of(text: str) -> dict[str, str]:
    """The rows of a page by the names of their files."""
    return {found[1]: found[0] for found in re.finditer(r"^\|.*<!-- (\S+)(?: \w+)? -->$", text, re.MULTILINE)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
