"""Formats of adapter folders, found through the entry points `deltatune.formats`.

The Host saves in deltatune's own format and loads with the first format that recognises the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.regular_files import folder_problem


class Format(Protocol):
    """One format of an adapter folder. Entry points name a module with these functions."""

    def save(self, host: Any, name: str, folder: Path, extra: Mapping[str, Any]) -> None:
        """Write the adapter; the folder appears complete or not at all."""

    def knows(self, folder: Path) -> bool:
        """Whether the folder holds an adapter of this format."""

    def load(self, host: Any, folder: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
        """Attach the adapter in the folder."""


class OwnFormat(Format, Protocol):
    """deltatune's own format, which also writes whole models with adapters on them, and knows the hub."""

    def save_hosted(self, host: Any, folder: Path, base_options: Mapping[str, Any] | None) -> None:
        """Write all adapters of a host into a folder, and the base too, with these options, unless they are None."""

    def read_hosted(self, folder: Path) -> Mapping[str, Tensor]:
        """The tensors of the adapters in such a folder, by the names of the model's state dict."""

    def find(self, folder: str, name: str | None, revision: str | None) -> tuple[Path, str]:
        """The folder of an adapter on this machine, fetched from the hub where `folder` is a name there, and a name."""

    def push(self, host: Any, name: str, repo_id: str, options: Mapping[str, Any]) -> str:
        """Upload an adapter to the hub. Returns the address of its page."""

    def plain_model(self, host: Any, name: str) -> nn.Module:
        """The base, into which an adapter is merged, with the adapter's head as a model of transformers."""


def own_format() -> OwnFormat:
    """deltatune's own format."""
    own: Any = formats()["deltatune"]
    return own  # type: ignore[no-any-return]


def formats() -> dict[str, Format]:
    """Formats by name; deltatune's own is `deltatune`, the others read folders of other libraries."""
    modules = {point.name: point.load() for point in entry_points(group="deltatune.formats")}
    if "deltatune" not in modules:
        raise DeltatuneError(
            "deltatune is not installed properly (its entry points are missing); run pip install again"
        )
    return {"deltatune": modules.pop("deltatune"), **modules}


def format_of(folder: Path) -> Format:
    """The format of a folder. Raises DeltatuneError when there is none, naming the folder's files."""
    for adapter_format in formats().values():
        if adapter_format.knows(folder):
            return adapter_format
    problem = folder_problem(folder)
    if problem:
        raise DeltatuneError(f"no adapter folder at {folder}: {problem}")
    have = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise DeltatuneError(f"{folder} holds no adapter (no adapter.json and no adapter_config.json); it holds: {have}")
