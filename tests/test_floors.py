"""The architecture, checked: who may import whom, how long a file may be, what must not appear anywhere.

Folders stand on floors. A file imports from its own folder and from the floors below; folders on one floor do not
know each other. Inside `core` the files have an order too. The tests read the imports with `ast` and run nothing.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "deltatune"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE

FLOORS: list[list[str]] = [
    ["core", "data"],
    ["models"],
    ["methods", "store", "tasks"],
    ["training"],
    ["prompting", "serving"],
    ["comparison"],
    ["cli", "testing"],
]
"""From the ground up."""

CORE_FLOORS: list[list[str]] = [
    ["errors", "html_table", "theme", "input_validation", "lazy_exports", "trained_rows"],
    ["quantization"],
    ["sites"],
    [
        "attention_call",
        "capabilities",
        "delta",
        "bank_delta",
        "module_copy",
        "method",
        "union",
        "registry",
        "memory",
        "budget",
    ],
    ["route"],
    ["adapter", "adapter_shape"],
    ["seams"],
    [
        "merging",
        "adapter_formats",
        "host_parts",
        "host",
    ],
]
"""The floors of core, from the ground up: files and rooms. A file imports from its own floor and from those below."""

BESIDES = {
    "data": {
        "core.errors",
        *(f"core.input_validation.{name}" for name in ("option_words", "regular_files", "strict_json")),
    }
}
"""What a folder may import from a folder of its own floor."""

METHOD_IMPORTS = (
    *("attention_call", "bank_delta", "capabilities", "delta", "errors", "method", "module_copy", "union"),
    *("sites.base_weights", "sites.convolutions", "sites.site"),
)
ONLY = {"methods": {f"core.{name}" for name in METHOD_IMPORTS}}
"""Folders that may import nothing else of ours: a method file is the equation and little more."""

ANYTHING = {"__init__", "__main__"}
"""Top-level files that stand on the roof: the public names."""

MAX_LINES = 340

FILES = sorted(ROOT.rglob("*.py"))
"""Every source file of the package; folders of the plan that do not exist yet simply have none."""


@dataclass(frozen=True)
class Edge:
    """`importer` imports `imported`, both as module names below the package: `core.host`, `core.delta`."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer} line {self.line} imports {self.imported}"


def module_name(file: Path) -> str:
    """`core/delta.py` -> `core.delta`, `core/__init__.py` -> `core`, `__init__.py` -> `__init__`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def module_exists(name: str) -> bool:
    """Whether `name`, below the package, is a file or a folder with Python files in it."""
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or any(place.glob("*.py"))


def imports_of(file: Path, source: str) -> Iterator[Edge]:
    """Every import of this package in `source`, also those inside functions, relative or absolute."""
    importer = module_name(file)
    package = [PACKAGE, *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            targets = [(origin, alias.name) for alias in node.names]
        else:
            continue
        for origin, name in targets:
            if origin != PACKAGE and not origin.startswith(PACKAGE + "."):
                continue
            below = origin.removeprefix(PACKAGE).removeprefix(".")
            # `from deltatune.core import delta` imports the file core.delta, not a name of core/__init__.py.
            longer = ".".join(filter(None, [below, name]))
            yield Edge(importer, longer if name and module_exists(longer) else below or "__init__", node.lineno)


def floor_of(folder: str) -> int:
    for height, folders in enumerate(FLOORS):
        if folder in folders:
            return height
    raise AssertionError(f"{folder!r} stands on no floor: add it to FLOORS in tests/test_floors.py")


def judge(edge: Edge) -> str | None:
    """Why this import is not allowed, or None."""
    if edge.importer in ANYTHING:
        return None
    source, target = edge.importer.split(".")[0], edge.imported.split(".")[0]
    if target in ANYTHING:
        return "the public names are made of the floors, no floor may need them"
    if source == target:
        return judge_inside_core(edge) if source == "core" else None
    if source in ONLY:
        allowed = ONLY[source]
        return None if edge.imported in allowed else f"{source} imports only {', '.join(sorted(allowed))}"
    if edge.imported in BESIDES.get(source, set()) or floor_of(target) < floor_of(source):
        return None
    return "same floor" if floor_of(target) == floor_of(source) else "a higher floor"


def judge_inside_core(edge: Edge) -> str | None:
    source, target = (name.removeprefix("core").removeprefix(".") for name in (edge.importer, edge.imported))
    if not source or (ROOT / "core" / source.replace(".", "/")).is_dir():
        return None
    heights = []
    for name in (source, target):
        height = core_floor_of(name)
        if height is None:
            return f"core/{name or '__init__'} has no place in CORE_FLOORS in tests/test_floors.py"
        heights.append(height)
    return None if heights[1] <= heights[0] else "a higher floor of core"


def core_floor_of(name: str) -> int | None:
    """The floor of a file of core (`delta`, `sites.blocks`), or None if it stands on none."""
    room = name.split(".")[0]
    return next((height for height, rooms in enumerate(CORE_FLOORS) if room in rooms), None)


def test_the_package_is_there():
    assert len(FILES) > 3, f"found {len(FILES)} Python files in {ROOT}"
    assert any(list(imports_of(file, file.read_text())) for file in FILES), "found no import between files at all"


def test_imports_go_down():
    edges = [edge for file in FILES for edge in imports_of(file, file.read_text())]
    wrong = dict.fromkeys(f"{edge}: {reason}" for edge in edges if (reason := judge(edge)))
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other():
    """The imports at the top of the files form no cycle, those for type checkers alone aside."""
    below: dict[str, set[str]] = {}
    for file in FILES:
        tree = ast.parse(file.read_text())
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        below[module_name(file)] = {edge.imported for edge in imports_of(file, ast.unparse(tree))}
    done: list[str] = []
    while ready := [
        name for name, imported in below.items() if name not in done and not imported & (below.keys() - {*done})
    ]:
        done += ready
    assert not below.keys() - {*done}, f"import each other: {', '.join(sorted(below.keys() - {*done}))}"


def test_every_file_stands_somewhere():
    names = [module_name(file) for file in FILES]
    top = {name for name in names if "." not in name and (ROOT / f"{name}.py").is_file()}
    assert top <= ANYTHING, f"files beside the folders: {sorted(top - ANYTHING)}"
    for name in names:
        if name not in top:
            floor_of(name.split(".")[0])
        if name.startswith("core.") and not (ROOT / name.replace(".", "/")).is_dir():
            assert core_floor_of(name.removeprefix("core.")) is not None, f"{name} has no place in CORE_FLOORS"
    assert {folder for floor in FLOORS for folder in floor} == {name.split(".")[0] for name in names} - ANYTHING


def test_no_two_files_share_a_name():
    names = [file.stem for file in FILES if file.stem != "__init__"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_no_two_public_classes_share_a_name():
    """A class that a reader meets in an error or a signature is found by its name alone."""
    files: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files.setdefault(node.name, []).append(module_name(file))
    shared = [f"{name}: {', '.join(modules)}" for name, modules in sorted(files.items()) if len(modules) > 1]
    assert not shared, "\n".join(shared)


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("core/delta.py", "from deltatune.core.sites.site import Site", True),
        ("core/sites/site.py", "from deltatune.core.delta import Delta", False),
        ("core/sites/site.py", "from ..delta import Delta", False),
        ("core/host.py", "from deltatune.core import Adapter", False),
        ("core/route.py", "from deltatune.core.seams.hook_points import HookPoint", False),
        ("core/adapter.py", "from deltatune.core.seams.attention import AttentionSeam", False),
        ("core/seams/hook_registry.py", "from deltatune.core.adapter import Adapter", True),
        ("core/method.py", "def late():\n    from deltatune.core.union import join", True),
        ("core/delta.py", "from deltatune.core.unheard import Of", False),
        ("core/host.py", "def late():\n    from deltatune.methods.low_rank.lora import LoRA", False),
        ("data/dataset.py", "from deltatune.core.errors import DeltatuneError", True),
        ("data/dataset.py", "from deltatune.core.sites.site import Site", False),
        ("methods/low_rank/lora.py", "from deltatune.core.delta import Delta", True),
        ("methods/low_rank/lora.py", "from deltatune.core.host import Host", False),
        ("methods/low_rank/lora.py", "from ...core.host import Host", False),
        ("tasks/classification.py", "import deltatune.store.adapter_folder", False),
        ("tasks/classification.py", "from deltatune.core.host import Host", True),
        ("tasks/classification.py", "from deltatune import Host", False),
        ("training/train_adapter.py", "from deltatune.tasks.classification import Classify", True),
        ("training/train_adapter.py", "from deltatune.comparison import run_comparison", False),
        ("cli/commands/train.py", "from deltatune.comparison import run_comparison", True),
        ("__init__.py", "from deltatune.cli import main", True),
    ],
)
def test_the_judge_knows_right_from_wrong(file, source, allowed):
    edges = list(imports_of(ROOT / file, source))
    assert edges
    assert all((judge(edge) is None) == allowed for edge in edges)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_file_is_a_chapter(file):
    lines = len(file.read_text().splitlines())
    assert lines <= MAX_LINES, f"{module_name(file)} has {lines} lines; split it by idea"


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=module_name)
def test_public_names_are_sorted_and_real(file):
    if not file.read_text().strip():
        return
    name = PACKAGE if file.parent == ROOT else f"{PACKAGE}.{module_name(file)}"
    module = importlib.import_module(name)
    if imports_something(file):
        assert hasattr(module, "__all__"), f"{name} re-exports names but has no __all__"
    names = list(getattr(module, "__all__", []))
    assert names == sorted(set(names)), f"sorted: {sorted(set(names))}"
    assert not [public for public in names if not hasattr(module, public)]


def imports_something(file: Path) -> bool:
    """Whether the file has an import of this package at its top level."""
    return any(
        isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("", PACKAGE)
        for node in ast.parse(file.read_text()).body
    )


PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def forbidden_code(source: str) -> Iterator[str]:
    """The forbidden things in code. Text is free: an error may say "pickle", a table may list a module's name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if loads := {alias.name.split(".")[0] for alias in names} & PICKLES:
                yield f"line {node.lineno} imports {', '.join(loads)}: files are safetensors and JSON"
            case ast.ImportFrom(module=str(origin)) if origin.split(".")[0] in PICKLES:
                yield f"line {node.lineno} imports {origin}: files are safetensors and JSON"
            case ast.ImportFrom(module="torch", names=names) if any(alias.name in ("load", "save") for alias in names):
                yield f"line {node.lineno} imports torch.load or torch.save: files are safetensors and JSON"
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" as verb):
                yield f"line {node.lineno} has torch.{verb}: files are safetensors and JSON"
            case ast.keyword(arg="trust_remote_code") | ast.Constant(value="trust_remote_code"):
                yield f"line {node.lineno} has trust_remote_code: code from a model folder is never run"
            case ast.Call(func=ast.Name(id="eval" | "exec" as verb)):
                yield f"line {node.lineno} has {verb}: text is parsed, never run"


def test_the_forbidden_is_seen():
    bad = "import pickle", "from dill import load", "from torch import load", "torch.load('x')", "torch.save(x, 'x')"
    bad += "f(trust_remote_code=True)", "f(**{'trust_remote_code': True})", "eval('1')"
    assert not [source for source in bad if not list(forbidden_code(source))]
    good = '"""No pickle."""', "model.eval()", "MODULES = ['pickle', 'marshal']", "torch.compile(f)"
    assert not [source for source in good if list(forbidden_code(source))]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_nothing_forbidden(file):
    found = list(forbidden_code(file.read_text()))
    assert not found, f"{module_name(file)}: {'; '.join(found)}"


def test_the_command_line_starts_light():
    """`deltatune --help` must not wait for torch: commands import what they need when they run."""
    heavy = "torch", "transformers", "datasets", "numpy"
    code = f"import sys, deltatune.cli; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"import deltatune.cli imports {done.stdout.split()}"
