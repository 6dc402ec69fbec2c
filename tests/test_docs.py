"""The generated documentation is what the code says, and what the documents name exists."""

import importlib.util
import re
from pathlib import Path

import pytest

import deltatune

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_generated_documents_are_fresh():
    for path, text in tables.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make docs`"


def test_no_page_is_left_of_a_method_that_is_gone():
    pages = set((ROOT / "docs/methods").glob("*.md"))
    assert pages == {path for path in tables.generated() if path.parent.name == "methods"}


@pytest.mark.parametrize("document", ["README.md", "docs/composing.md", "docs/interchange.md", "docs/methods/lora.md"])
def test_public_names_in_documents_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    names = set(re.findall(r"deltatune\.([A-Za-z_]\w*)\(", text))
    assert names
    for name in names:
        assert hasattr(deltatune, name), f"{document} names deltatune.{name}"


def test_the_file_tree_of_the_readme_is_the_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ {6}(\w+)/ ", text, re.MULTILINE))
    package = {path.name for path in (ROOT / "src/deltatune").iterdir() if (path / "__init__.py").is_file()}
    assert listed == package


def test_files_that_documents_link_to_exist():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
