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
    return {"deltatune": version("deltatune"), "python": platform.python_version()} | {
        name: package_version(name) for name in PACKAGES
    }


def package_version(name: str) -> str | None:
    """The installed version of one package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
