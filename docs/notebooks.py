"""The notebooks of examples/notebooks: percent-format sources, run in a fresh kernel and written as .ipynb.

`make notebooks` runs this file. The .py files are what is written and reviewed; each .ipynb has the same cells with the
outputs of a run in an empty folder. Outputs keep no path of the machine and no progress, and seconds are replaced by …
outside the cells that are tagged "measured", which are there for their times.

.venv/bin/python docs/notebooks.py            all notebooks
.venv/bin/python docs/notebooks.py own_csv    one of them
.venv/bin/python docs/notebooks.py --text     those whose code is as it was: only their text is written anew
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "examples/notebooks"
CELL = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?")
MEASURED = "measured"
"""Tag of cells whose output is about times."""
SECONDS = re.compile(r"\b\d+(?:\.\d+)? (?=(?:s|ms|min|minutes|seconds)\b)")


@dataclass(frozen=True)
class Cell:
    """A cell of a source file."""

    kind: str
    """markdown or code."""
    source: str
    tags: tuple[str, ...] = ()
    line: int = 1
    """Where it begins in the file."""


def sources() -> list[Path]:
    """The source files of all notebooks."""
    return sorted(FOLDER.glob("*.py"))


def read_cells(path: Path) -> list[Cell]:
    """The cells of a source file. Text before the first marker is an error, as it would be lost."""
    cells: list[Cell] = []
    lines: list[str] = []
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), "# %%"], 1):
        marker = CELL.fullmatch(line)
        if not marker:
            lines.append(line)
            continue
        if cells:
            cells[-1] = _with_source(cells[-1], lines)
        elif any(lines):
            raise ValueError(f"{path.name} begins with text before its first cell")
        tags = tuple(json.loads(marker["tags"] or "[]"))
        cells.append(Cell("markdown" if marker["markdown"] else "code", "", tags, number + 1))
        lines = []
    return cells[:-1]


def _with_source(cell: Cell, lines: list[str]) -> Cell:
    if cell.kind == "markdown":
        lines = [re.sub("^# ?", "", line) for line in lines]
    return Cell(cell.kind, "\n".join(lines).strip("\n"), cell.tags, cell.line)


def notebook(path: Path) -> Any:
    """The notebook of a source file, without outputs."""
    import nbformat.v4 as v4

    cells = []
    for i, cell in enumerate(read_cells(path)):
        make = v4.new_markdown_cell if cell.kind == "markdown" else v4.new_code_cell
        metadata = {"tags": list(cell.tags)} if cell.tags else {}
        cells.append(make(cell.source, id=f"cell-{i}", metadata=metadata))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def run(content: Any, folder: Path, timeout: int = 1200) -> Any:
    """Run every cell of a notebook in a fresh kernel that starts in this folder. Raises CellExecutionError."""
    from nbclient import NotebookClient

    client = NotebookClient(content, timeout=timeout, kernel_name="python3", record_timing=False)
    return client.execute(cwd=str(folder))


def clean_(content: Any, folder: Path) -> None:
    """Take out of the outputs what another machine or another day would change."""
    for cell in content.cells:
        outputs = []
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                continue  # progress bars; a test fails on warnings
            if "data" in output and set(output.data) & {"text/html", "image/svg+xml"}:
                output.data.pop("text/plain", None)
            texts = output.data if "data" in output else output
            for key, text in list(texts.items()):
                if isinstance(text, str) and (key == "text" or "/" in key):
                    texts[key] = plain(text, folder, measured=MEASURED in cell.metadata.get("tags", ()))
            last = outputs[-1] if outputs else {}
            if output.output_type == last.get("output_type") == "stream":
                last.text += output.text  # a kernel sends a stream in pieces, now so, now otherwise
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs


def plain(text: str, folder: Path, measured: bool) -> str:
    """A text without paths of this machine and, unless it is a measurement, without seconds."""
    for path in (folder.resolve(), folder, Path(sys.prefix), Path.home()):
        text = text.replace(f"{path}/", "").replace(str(path), ".")
    return text if measured else SECONDS.sub("… ", text)


def write(path: Path) -> Path:
    """Run a source file and write its notebook beside it."""
    import nbformat

    content = notebook(path)
    with tempfile.TemporaryDirectory() as folder:
        run(content, Path(folder))
        clean_(content, Path(folder))
    nbformat.validate(content)
    target = path.with_suffix(".ipynb")
    target.write_text(nbformat.writes(content, version=4) + "\n", encoding="utf-8")
    return target


def write_text(path: Path) -> Path:
    """Write the text of a notebook anew and keep its outputs. Raises ValueError if its code has changed."""
    import nbformat

    content, target = notebook(path), path.with_suffix(".ipynb")
    before = [cell for cell in nbformat.read(target, 4).cells if cell.cell_type == "code"]
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != [cell.source for cell in before]:
        raise ValueError(f"the code of {path.name} has changed; run it: make notebooks ARGS={path.stem}")
    for cell, run_cell in zip(code, before, strict=True):
        cell.outputs, cell.execution_count = run_cell.outputs, run_cell.execution_count
    target.write_text(nbformat.writes(content, version=4) + "\n", encoding="utf-8")
    return target


def main() -> None:
    """Run the notebooks that are named, or all."""
    names = [name for name in sys.argv[1:] if name != "--text"]
    if wrong := set(names) - {path.stem for path in sources()}:
        sys.exit(f"there is no notebook {', '.join(sorted(wrong))}; there are: {', '.join(p.stem for p in sources())}")
    for path in sources():
        if not names or path.stem in names:
            target = write_text(path) if "--text" in sys.argv else write(path)
            print(target.relative_to(FOLDER.parent.parent), flush=True)


if __name__ == "__main__":
    main()
