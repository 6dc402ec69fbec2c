"""Help texts and defaults from where they are kept: the attribute docstrings of the dataclasses.

The source is parsed, not imported, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Field:
    """One field of a dataclass as its source has it."""

    help: str
    """Its docstring, without the final full stop."""
    default: Any
    """Its default, where that is a literal; else None."""


@cache
def fields_of(file: str, name: str) -> dict[str, Field]:
    """Fields of the dataclass `name` in a file of this package, such as `training/settings.py`."""
    return fields_in((ROOT / file).read_text(encoding="utf-8"), name)


def fields_in(source: str, name: str) -> dict[str, Field]:
    """Fields of the dataclass `name` in a source text; class variables are none."""
    body = next(
        (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name), []
    )
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _class_variable(node):
            found[node.target.id] = Field(_docstring(after), _literal(node.value))
    return found


def _class_variable(node: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(node.annotation)


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split()).removesuffix(".")
    return ""


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def constant(file: str, name: str) -> Any:
    """A literal constant at the top of a file."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _literal(node.value)
    return None


def parameter(file: str, function: str, name: str) -> Any:
    """The literal default of a function's keyword parameter."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return next((_literal(value) for argument, value in defaults if argument.arg == name), None)
    return None
