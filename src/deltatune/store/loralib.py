"""Reading checkpoints of microsoft/LoRA (loralib): `lora_A` and `lora_B` beside the base's names, alpha not among them.

A fused projection (`MergedLinear`) has one pair for each part that is enabled, stacked: A (k·r, in), B (k·out/3, r).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.core.sites.site import Site, brief, brief_ranks, common_rank
from deltatune.store.tensors import attach_filled, read_tensors

CONVERT = (
    "import torch; from safetensors.torch import save_file; "
    "s = torch.load({source!r}, map_location='cpu', weights_only=True); s = s.get('model_state_dict', s); "
    "save_file({{k: v.clone().contiguous() for k, v in s.items()}}, {target!r})"
)
"""Turns a pickled checkpoint into a file that can be read without running what is in it."""
Found = TypeVar("Found")
BUFFERS = ("attn.bias", "attn.masked_bias", "position_ids")
"""What old models kept in their state dict beside weights: masks and counters."""
GPT2 = (True, False, True)
"""The parts of q, k, v that microsoft/LoRA's GPT-2 adapts."""


def load_loralib(
    host: Host,
    file: str | Path,
    *,
    alpha: float,
    name: str | None = None,
    enabled: Sequence[bool] = GPT2,
    dropout: float = 0.0,
) -> Adapter:
    """Attach the LoRA of a loralib checkpoint as a safetensors file, under the file's name unless another is given.

    `alpha` is `lora_alpha` of its training, as the checkpoint does not hold it; `enabled` is `enable_lora` of fused
    projections. Biases that were trained too (`bias="all"`, `"lora_only"`) become a BitFit beside the LoRA, and the
    values of the model's own head its head. Base weights in the file must be this base's.
    """
    file = Path(file)
    if file.suffix in (".pt", ".bin", ".pth", ".ckpt"):
        target = str(file.with_suffix(".safetensors"))
        raise DeltatuneError(
            f"{file} is a pickle, which can run code when it is opened; turn it into safetensors first:\n"
            f'python -c "{CONVERT.format(source=str(file), target=target)}"'
        )
    tensors = read_tensors(file)
    about = f"the loralib checkpoint {file} does not fit this model:"
    found = _Reading(host, enabled)
    for key in sorted(tensors):
        if not key.endswith((".lora_A", ".lora_B")):
            found.base(key, tensors[key])
    for path in sorted({key.rpartition(".")[0] for key in tensors if ".lora_" in key}):
        found.pair(path, tensors.get(f"{path}.lora_A"), tensors.get(f"{path}.lora_B"))
    if not found.ranks:
        found.problems.append("it holds no pair lora_A, lora_B")
    raise_all(found.problems[:12], about if found.problems else "")
    method, ours = found.method(alpha, dropout)
    return attach_filled(
        host,
        name or file.stem,
        method,
        {**ours, **found.heads},
        about,
        head=None if found.heads else False,
        extra={"origin": {"format": "loralib", "alpha": alpha}},
    )


class _Reading:
    """What has been found of a checkpoint so far."""

    def __init__(self, host: Host, enabled: Sequence[bool]) -> None:
        self.host, self.enabled = host, tuple(enabled)
        self.own = dict(host.base_tensors())
        self.factors: dict[str, Tensor] = {}
        """By site and letter: `layers.0.attn.q.A`."""
        self.ranks: dict[str, int] = {}
        self.biases: dict[str, Tensor] = {}
        self.heads: dict[str, Tensor] = {}
        self.problems: list[str] = []

    def pair(self, path: str, a: Tensor | None, b: Tensor | None) -> None:
        """Enter the factors of one module."""
        site = self._whole(path, ("linear", "embed"))
        if a is None or b is None:
            self.problems.append(f"{path} has no {'lora_A' if a is None else 'lora_B'}")
        elif site is None:
            self.problems.append(
                f"it adapts {path}, which is no linear map of this {self.host.sites.facts.architecture}"
            )
        elif len(b) == site.width_out and len(a) == b.shape[1]:
            self._enter(site, a, b)
        else:
            self._parts(path, site, a, b)

    def base(self, key: str, tensor: Tensor) -> None:
        """Enter a tensor that is no factor: of the head, a bias, or the base's own."""
        path, _, attribute = key.rpartition(".")
        if key.endswith(BUFFERS):
            return
        head = next(
            (s for s in self.host.sites.values() if s.kind == "head" and f".{path}.".find(f".{s.module}.") >= 0), None
        )
        if head is not None:
            inner = f".{key}".partition(f".{head.module}.")[2]
            self.heads[f"head.{head.name}.module.{inner}"] = tensor
            return
        mine = self._own(key)
        if mine is None:
            self.problems.append(f"{key} is nothing of this {self.host.sites.facts.architecture}")
            return
        turned = tensor.T if tensor.dim() == 2 and tensor.shape != mine.shape else tensor  # GPT-2's Conv1D
        site = self._whole(path, ("linear", "norm"))
        if turned.shape == mine.shape and torch.equal(turned.to(mine), mine):
            return
        if attribute == "bias" and site is not None and turned.shape == mine.shape:
            self.biases[site.name] = tensor.double() - mine.detach().double()
        else:
            self.problems.append(
                f"{key} is not the base's: the checkpoint is of another base, or trained more than LoRA"
            )

    def method(self, alpha: float, dropout: float) -> tuple[Method, dict[str, Tensor]]:
        """LoRA, with BitFit where biases were trained, and the tensors."""
        sites = self.host.sites
        r, odd = common_rank(self.ranks)
        method: Method = registry()["LoRA"](
            r=r,
            # loralib's scale is alpha / r in every layer, each with its own r, as LoRA's is here
            alpha=float(alpha),
            dropout=dropout,
            sites=brief(list(self.ranks), sites, ("linear", "embed")),
            ranks=brief_ranks(odd, self.ranks),
        )
        tensors = {f"lora.{name}": tensor for name, tensor in self.factors.items()}
        if self.biases:
            method = method + registry()["BitFit"](sites=brief(list(self.biases), sites, ("linear", "norm")))
            tensors |= {f"bitfit.{name}.b": tensor for name, tensor in self.biases.items()}
        return method, tensors

    def _enter(self, site: Site, a: Tensor, b: Tensor) -> None:
        self.factors |= {f"{site.name}.A": a, f"{site.name}.B": b}
        self.ranks[site.name] = len(a)

    def _parts(self, path: str, site: Site, a: Tensor, b: Tensor) -> None:
        """Enter the enabled parts of a fused projection."""
        parts = [s for s in self.host.sites.values() if s.module == site.module and s.kind == "linear" and s.slice]
        parts = sorted(
            (s for s in parts if s.slice and s.slice.groups == 1), key=lambda s: s.slice.start if s.slice else 0
        )
        chosen = [part for part, on in zip(parts, self.enabled, strict=False) if on]
        r = b.shape[1]
        fits = len(parts) == len(self.enabled) and len(a) == r * len(chosen)
        if not fits or len(b) != sum(part.width_out for part in chosen):
            self.problems.append(
                f"{path}: A {tuple(a.shape)} and B {tuple(b.shape)} are no pair for a map of {site.width_in} to "
                f"{site.width_out}, nor one for each part of enabled={self.enabled}"
            )
            return
        widths = [part.width_out for part in chosen]
        for part, down, up in zip(chosen, torch.split(a, r), torch.split(b, widths), strict=True):
            self._enter(part, down, up)

    def _whole(self, path: str, kinds: Sequence[str]) -> Site | None:
        """The site of a module, whose path may have more in front (`module.`) or less (no `transformer.`)."""
        sites = {s.module: s for s in self.host.sites.values() if s.kind in kinds and s.slice is None}
        return _same(path, sites)

    def _own(self, key: str) -> Tensor | None:
        """The base's parameter of a name."""
        return _same(key, self.own)


def _same(path: str, known: Mapping[str, Found]) -> Found | None:
    """The one entry whose name is `path`, but for what one of them has more in front; None if not just one."""
    if path in known:
        return known[path]
    near = [name for name in known if path.endswith("." + name) or name.endswith("." + path)]
    longest = [name for name in near if len(name) == max(map(len, near))]
    return known[longest[0]] if len(longest) == 1 else None
