"""Reading checkpoints of microsoft/LoRA (loralib): `lora_A` and `lora_B` beside the base's names, without alpha.

A fused projection (`MergedLinear`) stacks one pair for each enabled part: A (k·r, in), B (k·out/3, r).
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
"""Converts a pickled checkpoint to a file that can be read without running its code."""
Value = TypeVar("Value")
BUFFERS = ("attn.bias", "attn.masked_bias", "position_ids")
"""Masks and counters that old models have in their state dict beside weights."""
GPT2 = (True, False, True)
"""Which of q, k, v microsoft/LoRA adapts in GPT-2."""


def load_loralib(
    host: Host,
    file: str | Path,
    *,
    alpha: float,
    name: str | None = None,
    enabled: Sequence[bool] = GPT2,
    dropout: float = 0.0,
) -> Adapter:
    """Attach the LoRA of a loralib checkpoint, a safetensors file. The default name is the file's.

    `alpha` is `lora_alpha` of its training, which the checkpoint does not contain; `enabled` is `enable_lora` of fused
    projections. Trained biases (`bias="all"`, `"lora_only"`) become a BitFit beside the LoRA, and the values of the
    model's own head its head. Base weights in the file must equal this base's. Raises DeltatuneError listing all that
    does not fit.
    """
    file = Path(file)
    if file.suffix in (".pt", ".bin", ".pth", ".ckpt"):
        target = str(file.with_suffix(".safetensors"))
        raise DeltatuneError(
            f"{file} is a pickle, which can run code when it is opened; convert it to safetensors first:\n"
            f'python -c "{CONVERT.format(source=str(file), target=target)}"'
        )
    tensors = read_tensors(file)
    heading = f"the loralib checkpoint {file} does not fit this model:"
    checkpoint = _Checkpoint(host, enabled)
    for key in sorted(tensors):
        if not key.endswith((".lora_A", ".lora_B")):
            checkpoint.read_other_(key, tensors[key])
    for path in sorted({key.rpartition(".")[0] for key in tensors if ".lora_" in key}):
        checkpoint.read_pair_(path, tensors.get(f"{path}.lora_A"), tensors.get(f"{path}.lora_B"))
    if not checkpoint.ranks:
        checkpoint.problems.append("it has no pair lora_A, lora_B")
    raise_all(checkpoint.problems[:12], heading if checkpoint.problems else "")
    method, method_tensors = checkpoint.method(alpha, dropout)
    return attach_filled(
        host,
        name or file.stem,
        method,
        {**method_tensors, **checkpoint.heads},
        heading,
        head=None if checkpoint.heads else False,
        extra={"origin": {"format": "loralib", "alpha": alpha}},
    )


class _Checkpoint:
    """The tensors of a checkpoint, sorted by what they are."""

    def __init__(self, host: Host, enabled: Sequence[bool]) -> None:
        self.host, self.enabled = host, tuple(enabled)
        self.paths = {path: path for path in host.sites.weights}
        """Of the base's parameters, by themselves: names in a checkpoint may have other prefixes."""
        self.factors: dict[str, Tensor] = {}
        """By site and factor: `layers.0.attn.q.A`."""
        self.ranks: dict[str, int] = {}
        self.biases: dict[str, Tensor] = {}
        self.heads: dict[str, Tensor] = {}
        self.problems: list[str] = []

    def read_pair_(self, path: str, a: Tensor | None, b: Tensor | None) -> None:
        """Read the factors of one module."""
        site = self._module_site(path, ("linear", "embed"))
        if a is None or b is None:
            self.problems.append(f"{path} has no {'lora_A' if a is None else 'lora_B'}")
        elif site is None:
            self.problems.append(
                f"it adapts {path}, which is not a linear map of this {self.host.sites.facts.architecture}"
            )
        elif len(b) == site.width_out and len(a) == b.shape[1]:
            self._add_(site, a, b)
        else:
            self._read_parts_(path, site, a, b)

    def read_other_(self, key: str, tensor: Tensor) -> None:
        """Read a tensor that is not a factor: of the head, a trained bias, or a base weight."""
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
        name = _match_name(key, self.paths)
        if name is None:
            self.problems.append(f"{key} is not a tensor of this {self.host.sites.facts.architecture}")
            return
        if label := self.host.sites.weights[name].quantized:
            self.problems.append(
                f"{key} cannot be compared with the base's, which is stored in {label}: load the model without "
                "quantisation, or remove the base's own weights from the checkpoint"
            )
            return
        weight = self.host.base.tensor(name)
        value = tensor.T if tensor.dim() == 2 and tensor.shape != weight.shape else tensor  # GPT-2's Conv1D
        site = self._module_site(path, ("linear", "norm"))
        if value.shape == weight.shape and torch.equal(value.to(weight), weight):
            return
        if attribute == "bias" and site is not None and value.shape == weight.shape:
            self.biases[site.name] = tensor.double() - weight.detach().double()
        else:
            self.problems.append(
                f"{key} differs from the base's: the checkpoint has another base, or more than LoRA was trained"
            )

    def method(self, alpha: float, dropout: float) -> tuple[Method, dict[str, Tensor]]:
        """Return LoRA, with BitFit if biases were trained, and the tensors."""
        sites = self.host.sites
        r, exceptions = common_rank(self.ranks)
        method: Method = registry()["LoRA"](
            r=r,
            # loralib's scale is alpha / r in every layer, each with its own r, as LoRA's is here
            alpha=float(alpha),
            dropout=dropout,
            sites=brief(list(self.ranks), sites, ("linear", "embed")),
            ranks=brief_ranks(exceptions, self.ranks),
        )
        tensors = {f"lora.{name}": tensor for name, tensor in self.factors.items()}
        if self.biases:
            method = method + registry()["BitFit"](sites=brief(list(self.biases), sites, ("linear", "norm")))
            tensors |= {f"bitfit.{name}.b": tensor for name, tensor in self.biases.items()}
        return method, tensors

    def _add_(self, site: Site, a: Tensor, b: Tensor) -> None:
        self.factors |= {f"{site.name}.A": a, f"{site.name}.B": b}
        self.ranks[site.name] = len(a)

    def _read_parts_(self, path: str, site: Site, a: Tensor, b: Tensor) -> None:
        """Read the enabled parts of a fused projection."""
        parts = [s for s in self.host.sites.values() if s.module == site.module and s.kind == "linear" and s.slice]
        parts = sorted(
            (s for s in parts if s.slice and s.slice.groups == 1), key=lambda s: s.slice.start if s.slice else 0
        )
        adapted = [part for part, on in zip(parts, self.enabled, strict=False) if on]
        r = b.shape[1]
        fits = len(parts) == len(self.enabled) and len(a) == r * len(adapted)
        if not fits or len(b) != sum(part.width_out for part in adapted):
            self.problems.append(
                f"{path}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit a map of {site.width_in} to "
                f"{site.width_out}, nor the parts of enabled={self.enabled}"
            )
            return
        widths = [part.width_out for part in adapted]
        for part, down, up in zip(adapted, torch.split(a, r), torch.split(b, widths), strict=True):
            self._add_(part, down, up)

    def _module_site(self, path: str, kinds: Sequence[str]) -> Site | None:
        """The site of a module. Its path may have a longer prefix (`module.`) or a shorter one (no `transformer.`)."""
        sites = {s.module: s for s in self.host.sites.values() if s.kind in kinds and s.slice is None}
        return _match_name(path, sites)


def _match_name(path: str, values: Mapping[str, Value]) -> Value | None:
    """Return the value whose name equals `path` up to a prefix of one of them; None unless there is exactly one."""
    if path in values:
        return values[path]
    near = [name for name in values if path.endswith("." + name) or name.endswith("." + path)]
    longest = [name for name in near if len(name) == max(map(len, near))]
    return values[longest[0]] if len(longest) == 1 else None
