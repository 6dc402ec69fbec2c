"""The colours of all pages, light and dark: of reports and of the server."""

from __future__ import annotations

from importlib.resources import files


def theme() -> str:
    """CSS that sets the colours as variables: --bg, --ink, ..., and --c of the classes s0 to s9."""
    return files("deltatune.core").joinpath("theme.css").read_text(encoding="utf-8")
