"""Targets of exports: what a program takes, what it cannot take and why, and how its files are written.

Other packages add targets through the entry points `deltatune.exports`: each names an `ExportTarget`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol

from transformers import PreTrainedTokenizerBase

from deltatune.core.errors import DeltatuneError, nearest
from deltatune.core.host import Host
from deltatune.store.exports.lora_factors import EXACT

Form = Literal["lora", "model"]


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how."""

    host: Host
    name: str
    """The adapter on the host."""
    tokenizer: PreTrainedTokenizerBase | None = None
    weight: float = 1.0
    """Factor on the adapter's changes."""
    merge: bool = False
    """Write the whole model with the adapter merged into it, instead of the adapter alone."""
    dtype: str | None = None
    """How numbers are stored: float32, bfloat16, float16, and for GGUF q8_0. None: float32."""
    rank: int = 64
    """Largest rank of a change that is converted to LoRA."""
    bound: float = EXACT
    """Largest share of a change that its conversion to LoRA may lose."""


@dataclass(frozen=True)
class ExportedFiles:
    """What was written."""

    folder: Path
    target: str
    form: Form
    """lora: the adapter alone, beside its base; model: the whole model."""
    difference: float
    """Largest difference of the outputs on verification inputs between the adapter and the files read back."""
    error: float | None = None
    """‖read back − adapter‖ / ‖adapter − base‖ of these outputs; None if the adapter changes nothing there."""
    rank: int | None = None
    """Rank of the LoRA; None for a whole model."""
    notes: tuple[str, ...] = ()
    """What was converted, and what the other program does not do."""
    usage: tuple[str, ...] = ()
    """How the other program loads it: command lines."""


Write = Callable[[Path], ExportedFiles]
"""Writes into an empty folder, reads the files back and compares. Raises DeltatuneError if they differ."""


class CannotExport(DeltatuneError):
    """An adapter that another program cannot take."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ExportTarget(Protocol):
    """One program, or one format of files."""

    forms: tuple[Form, ...]
    """What it takes: adapters, whole models or both."""
    dtypes: tuple[str, ...]
    """Types in which numbers can be stored."""

    def prepare(self, request: ExportRequest) -> Write:
        """Check a request and return what writes it. Raises CannotExport with everything for which the program would
        refuse the files, or serve something else than was trained."""


BUILT_IN: Mapping[str, str] = {
    "vllm": "deltatune.store.exports.lora_servers:VLLM",
    "sglang": "deltatune.store.exports.lora_servers:SGLANG",
    "tgi": "deltatune.store.exports.lora_servers:TGI",
    "gguf": "deltatune.store.exports.gguf.gguf_target:GGUF",
    "onnx": "deltatune.store.exports.onnx.onnx_target:ONNX",
}
"""Targets that come with deltatune, by name."""


def target_names() -> list[str]:
    """Names of all targets, those of other packages too."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group="deltatune.exports")} - BUILT_IN.keys())]


def read_target(name: str) -> ExportTarget:
    """The target of a name. Raises DeltatuneError for names that are not known."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        target: ExportTarget = getattr(import_module(module), attribute)
        return target
    for point in entry_points(group="deltatune.exports"):
        if point.name == name:
            target = point.load()
            return target
    names = target_names()
    raise DeltatuneError(f"there is no export for {name!r}{nearest(name, names)}; there are: {', '.join(names)}")
