"""Pages of the site that are not files of docs/: README and its like, recipes, notebooks, and the API from docstrings.

MkDocs calls the functions named `on_...` while it builds (`make site`); https://www.mkdocs.org/dev-guide/plugins/.
"""

from __future__ import annotations

import ast
import base64
import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/deltatune"

NOTEBOOKS = ("own_csv", "comparing_methods", "many_adapters")
"""The notebooks in the order in which one reads them."""

ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LOG.md": "log.md",
    "benchmarks/README.md": "benchmarks.md",
    "recipes": "recipe_files.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    **{f"examples/notebooks/{name}.ipynb": f"notebooks/{name}.md" for name in NOTEBOOKS},
}
"""Where files outside docs/ stand on the site."""

API = {
    "": "Models, adapters and functions.",
    "methods": "The methods that `deltatune` exports, each a frozen dataclass; [methods](../methods.md) compares them.",
    "core.method": "Parts of your own method, with `deltatune.Method` and `deltatune.Delta` "
    "([how to add a method](../contributing.md#add-a-method)).",
    "core.delta": "Kinds of Deltas besides `deltatune.Delta`, and generators for their initial values.",
    "core.capabilities": "",
    "data": "",
    "tasks": "",
    "tasks.pretraining": "",
    "training": "",
    "training.recipes": "",
    "training.tokenizer_extension": "",
    "prompting": "",
    "store.peft": "",
    "testing": "",
}
"""The public packages, a page each, and how the page begins where it is not the package's docstring."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of methods, notebooks and the API to the navigation."""
    for section in config.nav or []:
        match section:
            case {"Methods": list(pages)}:
                pages += [f"methods/{path.name}" for path in sorted((ROOT / "docs/methods").glob("*.md"))]
            case {"Notebooks": list(pages)}:
                pages += [f"notebooks/{name}.md" for name in NOTEBOOKS]
            case {"API": list(pages)}:
                pages += list(api_pages())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    from mkdocs.structure.files import File  # the rest of this file works without MkDocs: a test reads it

    for source, target in ROOT_PAGES.items():
        files.append(File.generated(config, target, content=text_of(source)))
    for target, text in api_pages().items():
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages, and mend tables for Python-Markdown."""
    sources = {target: source for source, target in ROOT_PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def site_link(link: re.Match[str]) -> str:
        target, _, anchor = link[1].partition("#")
        if re.match(r"[a-z]+:", link[1]) or not target or page.file.src_uri.startswith("api/"):
            return link[0]
        repository_path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if repository_path.startswith("recipes/"):
            anchor, repository_path = Path(repository_path).stem, "recipes"
        if repository_path.startswith("src/"):
            repository_path = "docs/map.md"  # source files are not on the site; the map has a line on each
        place = ROOT_PAGES.get(repository_path, repository_path.removeprefix("docs/"))
        relative = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
        return f"]({relative}{'#' + anchor if anchor else ''})"

    markdown = re.sub(r"\]\(([^)\s]+)\)", site_link, markdown)
    return "\n".join(_table_row(line) if line.startswith("|") else line for line in markdown.split("\n"))


def _table_row(line: str) -> str:
    """GitHub wants a pipe escaped inside code in a table; Python-Markdown would show the backslash."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), line)


def text_of(source: str) -> str:
    """The page of a file or folder outside docs/, in Markdown."""
    if source == "recipes":
        return recipes_page()
    return notebook_page(ROOT / source) if source.endswith(".ipynb") else (ROOT / source).read_text(encoding="utf-8")


def notebook_page(path: Path) -> str:
    """A committed notebook: its text, its code and its outputs."""
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        else:
            blocks += [f"```python\n{source}\n```", *map(_output, cell["outputs"])]
    where = f"This page is the notebook `examples/notebooks/{path.name}`, with the outputs of a run."
    title, _, rest = "\n\n".join(filter(None, blocks)).partition("\n")
    return f"{title}\n\n{where}\n{rest}\n"


def _output(output: Mapping[str, Any]) -> str:
    """An output of a cell: a figure as a file of its own, whose styles stay inside it, a table, or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    texts = {kind: "".join(text) for kind, text in data.items()}
    if "image/svg+xml" in texts:
        encoded = base64.b64encode(texts["image/svg+xml"].encode()).decode()
        return f'<p><img alt="Figure of the cell above" src="data:image/svg+xml;base64,{encoded}"></p>'
    if "text/html" in texts:
        return f'<div class="output">{" ".join(texts["text/html"].split())}</div>'
    text = texts.get("text/plain", "").rstrip()
    return f"```text\n{text}\n```" if text else ""


def recipes_page() -> str:
    """Every file of recipes/."""
    lines = ["# Recipe files", "", "The files of `recipes/`, explained in [recipes](docs/recipes.md).", ""]
    tables = ["## tables", "", "Experiments of papers, explained in [tables of papers](docs/paper_tables.md).", ""]
    for folder, level, intro in (("recipes", "##", []), ("recipes/tables", "###", tables)):
        lines += intro
        for path in sorted((ROOT / folder).glob("*.yaml")):
            lines += [f"{level} {path.stem}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def api_pages() -> dict[str, str]:
    """Page -> Markdown: every public name of every public package, documented from its docstring."""
    pages = {}
    for package, intro in API.items():
        module = ".".join(filter(None, ["deltatune", package]))
        title = "deltatune: methods" if package == "methods" else module
        names = sorted(api_names(package), key=str.lower)
        lines = [f"# {title}", "", intro or _docstring(package), ""]
        for name in names:
            lines += [f"::: {'deltatune' if package == 'methods' else module}.{name}", ""]
        pages[f"api/{package or 'deltatune'}.md"] = "\n".join(lines)
    return pages


def api_names(package: str) -> list[str]:
    """The public names of a page: those that the package exports, or for a module those that it defines."""
    if package in ("", "methods"):
        exports = _exports(PACKAGE)
        return [name for name, origin in exports.items() if origin.startswith("methods.") == (package == "methods")]
    folder = PACKAGE / package.replace(".", "/")
    if (folder / "__init__.py").is_file():
        return list(_exports(folder))
    tree = ast.parse(folder.with_suffix(".py").read_text(encoding="utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return [name for name in defined if not name.startswith("_") and name not in _exports(PACKAGE)]


def _exports(folder: Path) -> dict[str, str]:
    """Public name -> the module that it comes from, below the package. Nothing is imported: torch takes seconds."""
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.is_file() else folder / "__init__.py").read_text(encoding="utf-8"))
    origins = {
        alias.asname or alias.name: (node.module or "").removeprefix("deltatune.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    if stub.is_file():
        return origins
    public: Any = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return {name: origins.get(name, "") for name in ast.literal_eval(public)}


def _docstring(package: str) -> str:
    path = PACKAGE / package.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
