"""Versions of the packages that results depend on. Importing this imports no torch."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "accelerate",
    "datasets",
    "peft",
    "typer",
    "rich",
)


def versions() -> dict[str, str | None]:
    """Versions of deltatune, Python and the packages around them; None for a package that is not installed."""
    packages = {name: _installed(name) for name in PACKAGES}
    return {"deltatune": version("deltatune"), "python": platform.python_version(), **packages}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
