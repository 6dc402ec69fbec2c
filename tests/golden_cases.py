"""Reads the cases of tests/golden/ and compares with them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden"
PROVENANCE: dict[str, Any] = json.loads((FOLDER / "provenance.json").read_text())
Tensors = dict[str, torch.Tensor]


def tensors(case: str, prefix: str = "") -> Tensors:
    """The tensors of a case, or those under a prefix, which is cut off."""
    found = load_file(FOLDER / PROVENANCE[case]["file"])
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def close(mine: torch.Tensor, theirs: torch.Tensor, what: str = "output") -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5, msg=lambda m: f"{what}: {m}")
