"""Public names of a package, listed once in its `__init__.pyi` and imported when first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str, folder: str) -> tuple[list[str], Callable[[str], Any]]:
    """The sorted names of a package and its `__getattr__`, from the stub's lines `from a.b import Name as Name`."""
    with open(f"{folder}/__init__.pyi", encoding="utf-8") as stub:
        words = [line.split() for line in stub if line.startswith("from ")]
    modules = {name: module for _, module, _, name, *_ in words}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return sorted(modules), load
