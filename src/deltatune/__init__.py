"""Adapt a frozen pretrained transformer by training few parameters, and find out which method is best.

`Host` plugs adapters into a model; `LoRA`, `Bottleneck`, `Prefix`, ... are the methods; `parse` reads them from text.
The public names are listed once, in `__init__.pyi`, and imported when first used, so that the command line starts fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _modules_of_names() -> dict[str, str]:
    """Public name to module, from the stub's lines `from deltatune.core.host import Host as Host`."""
    with open(f"{__path__[0]}/__init__.pyi", encoding="utf-8") as stub:
        words = [line.split() for line in stub if line.startswith("from ")]
    return {name: module for _, module, _, name, *_ in words}


_MODULES = _modules_of_names()

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'deltatune' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
