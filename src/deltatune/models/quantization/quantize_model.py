"""Quantisation of a model's linear maps in place, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.quantization.plain_map import plain_map
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import Scheme, read_scheme
from deltatune.core.quantization.stored_weights import is_transposed, stored_weight, weight_of
from deltatune.core.sites.discovery import find_sites
from deltatune.core.sites.site import Site, Sites

DEFAULT_SITES = "blocks"
"""Every linear map of the transformer blocks: not the embeddings, norms, pooler, language-model head and task heads."""


@dataclass(frozen=True)
class Quantized:
    """What `quantize_` did."""

    scheme: Scheme | None
    """The scheme; None where nothing was to be done."""
    modules: tuple[str, ...]
    """Paths of the linear maps that are quantised now."""
    skipped: dict[str, str]
    """Paths of linear maps that were left as they are, each with the reason."""
    params: int
    """Parameters that are quantised."""
    bytes: int
    """Bytes that they take."""

    @property
    def bits(self) -> float:
        """Bits a parameter, codes and scales."""
        return 8 * self.bytes / self.params if self.params else 0.0


def quantize_(model: nn.Module, scheme: str | Scheme = "nf4", sites: str | Sequence[str] = DEFAULT_SITES) -> Quantized:
    """Store the weights of linear maps in 4 or 8 bits, in place: `quantize_(model, NF4(double=True), "*.attn.*")`.

    sites: globs of site names (`deltatune sites MODEL`), by default every linear map of the blocks. A fused projection
    is quantised whole. Tied weights are left as they are and named. The replaced modules are `QuantizedLinear`; biases
    stay parameters. Raises DeltatuneError, before anything has changed, for a model with a Host or with quantised
    weights, globs that match nothing, and weights that are not finite.
    """
    chosen = read_scheme(scheme)
    if chosen is None:
        return Quantized(None, (), {}, 0, 0)
    if hasattr(model, "deltatune"):
        raise DeltatuneError("this model has a Host with adapters, which know its weights; quantise before Host(model)")
    found = find_sites(model)
    wanted, skipped = maps_to_quantize(model, found, sites)
    _check_finite(model, wanted)
    params = stored = 0
    for path in wanted:
        module = model.get_submodule(path)
        new = QuantizedLinear.of(weight_of(module), chosen, module.bias, is_transposed(module))  # type: ignore[arg-type]
        new.train(module.training)
        model.set_submodule(path, new)
        params += new.in_features * new.out_features
        stored += chosen.bytes(new.shape)
    return Quantized(chosen, tuple(wanted), skipped, params, stored)


def maps_to_quantize(
    model: nn.Module, found: Sites, sites: str | Sequence[str] = DEFAULT_SITES
) -> tuple[list[str], dict[str, str]]:
    """Paths of the linear maps at these sites, and those that cannot be quantised, each with the reason."""
    picked: Iterable[Site]
    if sites == DEFAULT_SITES:
        picked = [site for site in found.values() if site.kind == "linear" and site.layer is not None]
        if not picked:
            raise DeltatuneError(f"this {found.facts.architecture} has no linear maps in its blocks; name --sites")
    else:
        picked = found.match(sites, kinds=("linear",))
    paths = list(dict.fromkeys(site.module for site in picked))
    shared = _shared_weights(model)
    skipped = {path: "its weight is tied to another module's" for path in paths if path in shared}
    quantized = [path for path in paths if stored_weight(model.get_submodule(path)) is not None]
    raise_all([
        f"{len(quantized)} weights are quantised already, such as {quantized[0]}; load the model without quantisation"
        for _ in quantized[:1]
    ])  # fmt: skip
    wanted = [path for path in paths if path not in skipped]
    if not wanted:
        raise DeltatuneError(f"nothing to quantise: {'; '.join(f'{path}: {why}' for path, why in skipped.items())}")
    return wanted, skipped


def dequantize_(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Make the quantised weights of a model plain again, with exactly the values that their codes stand for.

    dtype: that of the new weights; None: that of the weights before. Returns the paths of the modules. Raises
    DeltatuneError for a model with a Host: merge or detach first.
    """
    if hasattr(model, "deltatune"):
        raise DeltatuneError("this model has a Host with adapters; dequantise before Host(model)")
    paths = [path for path, module in model.named_modules() if stored_weight(module) is not None]
    for path in paths:
        model.set_submodule(path, plain_map(model.get_submodule(path), dtype))
    return paths


def _shared_weights(model: nn.Module) -> set[str]:
    """Paths of modules whose weight belongs to another module too."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def _check_finite(model: nn.Module, paths: Iterable[str]) -> None:
    def damaged() -> Iterator[str]:
        for path in paths:
            weight = weight_of(model.get_submodule(path))
            if weight.device.type != "meta" and not weight.isfinite().all():
                yield f"{path}.weight holds values that are infinite or NaN, which no code stands for"

    raise_all(list(damaged()))
