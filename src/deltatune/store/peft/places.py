"""Where PEFT's tensors are found: PEFT's own folders, and the files of LoRAs for pipelines."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.store.peft import peft_folder
from deltatune.store.peft.peft_folder import StoredPeft
from deltatune.store.peft.pipelines import lora_file


def knows(place: Path) -> bool:
    """Whether a place holds an adapter that PEFT wrote, or a LoRA for a pipeline."""
    return peft_folder.knows(place) or lora_file.knows(place)


def load(host: Host, place: Path, name: str, other_base: bool, head: nn.Module | None) -> None:
    """Attach the adapter of a place. Raises DeltatuneError listing everything that does not fit."""
    reader = peft_folder if peft_folder.knows(place) else lora_file
    reader.load(host, place, name, other_base, head)


def read_stored(folder: Path, verified: bool = False) -> StoredPeft:
    """Read the PEFT adapter of a folder. Raises DeltatuneError for LoRAs for pipelines, which take a model to read."""
    if not peft_folder.knows(folder):
        raise DeltatuneError(
            f"{folder} is a LoRA for a pipeline, whose meaning depends on the model; load it onto a Host, and save it "
            "again: host.save(name, folder)"
        )
    return peft_folder.read_stored(folder, verified)
