"""The package `gguf`, which is optional."""

from __future__ import annotations

from types import ModuleType

from deltatune.core.errors import DeltatuneError


def gguf_package() -> ModuleType:
    """The package gguf. Raises DeltatuneError with the line that installs it."""
    try:
        import gguf
    except ImportError as error:
        raise DeltatuneError('GGUF files need the package gguf: pip install "deltatune[gguf]"') from error
    module: ModuleType = gguf
    return module
