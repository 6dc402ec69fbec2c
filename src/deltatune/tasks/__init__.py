"""Tasks: rows to tokens, logits to a loss, logits to answers and scores.

The public names are listed once, in `__init__.pyi`, and imported when first used, so that reports can read facts about
metrics without importing torch.
"""

from importlib import import_module
from typing import Any


def _modules_of_names() -> dict[str, str]:
    """Public name to module, from the stub's lines `from deltatune.tasks.heads import Head as Head`."""
    with open(f"{__path__[0]}/__init__.pyi", encoding="utf-8") as stub:
        words = [line.split() for line in stub if line.startswith("from ")]
    return {name: module for _, module, _, name, *_ in words}


_MODULES = _modules_of_names()

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
