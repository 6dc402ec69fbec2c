"""Quantisation of a model's linear maps in place, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.quantization.plain_map import plain_dtype, plain_map
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import Scheme, read_scheme
from deltatune.core.quantization.stored_weights import is_linear, is_transposed, stored_weight, weight_of
from deltatune.core.seams.model_seams import has_host
from deltatune.core.sites.blocks import find_blocks, widths
from deltatune.core.sites.discovery import find_sites
from deltatune.core.sites.site import Site, Sites

DEFAULT_SITES = "blocks"
"""Every linear map of the transformer blocks: not the embeddings, norms, pooler, language-model head and task heads."""

SAME_PRODUCT = ("FalconLinear",)
"""Classes of linear maps with a forward of their own that computes the same product."""


@dataclass(frozen=True)
class Quantized:
    """What `quantize_` did."""

    scheme: Scheme | None
    """The scheme; None where nothing was to be done."""
    modules: tuple[str, ...]
    """Paths of the linear maps that are quantised now."""
    skipped: dict[str, str]
    """Paths of the other matrices, which were left as they are, each with the reason."""
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
    if has_host(model) or hasattr(model, "deltatune"):
        raise DeltatuneError("this model has a Host, which knows its weights; quantise before Host(model)")
    wanted, skipped = maps_to_quantize(model, find_sites(model), sites)
    _check_finite(model, wanted)
    for path in wanted:
        module = model.get_submodule(path)
        weight, transposed = weight_of(module), is_transposed(module)
        if weight.is_meta:  # shapes alone
            tensors = chosen.empty((weight.shape[1], weight.shape[0]) if transposed else tuple(weight.shape))  # type: ignore[arg-type]
            tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
        else:
            tensors = chosen.quantize((weight.T if transposed else weight).detach().contiguous())
        model.set_submodule(path, quantized_map(module, chosen, tensors, weight.dtype))
    return quantized(model, chosen, wanted, skipped)


def quantized_map(
    module: nn.Module, scheme: Scheme, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> QuantizedLinear:
    """A map with these tensors in the place of a Linear or Conv1D, with its bias. dtype: that of the weight before."""
    width_in, width_out = widths(module)
    bias: nn.Parameter | None = getattr(module, "bias", None)
    with torch.device("meta"):
        new = QuantizedLinear(scheme, width_in, width_out, bias, is_transposed(module), dtype)
    new.fill_(tensors)
    return new.train(module.training)


def quantized(model: nn.Module, scheme: Scheme, paths: Sequence[str], skipped: dict[str, str]) -> Quantized:
    """Parameters and bytes of the quantised maps at these paths, counted from their tensors."""
    maps = [model.get_submodule(path) for path in paths]
    params = stored = 0
    for module in maps:
        assert isinstance(module, QuantizedLinear)
        params += module.in_features * module.out_features
        stored += sum(tensor.numel() * tensor.element_size() for tensor in module.tensors.values())
    return Quantized(scheme, tuple(paths), skipped, params, stored)


def maps_to_quantize(
    model: nn.Module, found: Sites, sites: str | Sequence[str] = DEFAULT_SITES
) -> tuple[list[str], dict[str, str]]:
    """Paths of the linear maps at these sites, and those of all other matrices of the model, each with the reason why
    it stays as it is."""
    picked: Iterable[Site]
    if sites == DEFAULT_SITES:
        picked = [site for site in found.values() if site.kind == "linear" and site.layer is not None]
        if not picked:
            raise DeltatuneError(f"this {found.facts.architecture} has no linear maps in its blocks; name --sites")
    else:
        picked = found.match(sites, kinds=("linear",))
    paths = list(dict.fromkeys(site.module for site in picked))
    stored = [path for path in paths if stored_weight(model.get_submodule(path)) is not None]
    raise_all([
        f"{len(stored)} weights are quantised already, such as {stored[0]}; load the model without quantisation"
        for _ in stored[:1]
    ])  # fmt: skip
    shared = _shared_weights(model)
    unfit = {path: why for path in paths if (why := shared.get(path) or _unfit(model.get_submodule(path)))}
    wanted = [path for path in paths if path not in unfit]
    if not wanted:
        raise DeltatuneError(f"nothing to quantise: {'; '.join(f'{path}: {why}' for path, why in unfit.items())}")
    return wanted, unfit | _others(model, found, {*paths}, shared)


def _unfit(module: nn.Module) -> str | None:
    """Why a linear map cannot be replaced by one with codes; None if it can."""
    kind = type(module)
    if is_parametrized(module):
        return "its weight is computed from others (torch.nn.utils.parametrize)"
    own = kind.forward not in (nn.Linear.forward, Conv1D.forward) and kind.__name__ not in SAME_PRODUCT
    if own or "forward" in vars(module):
        return f"{kind.__name__} has a forward of its own"
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "hooks are registered on it" if any(not _is_own(hook) for hook in hooks) else None


def _is_own(hook: object) -> bool:
    """Whether a Host has registered a hook: it stays where it is when codes take a weight's place."""
    return type(getattr(hook, "__self__", hook)).__module__.startswith("deltatune.core.seams.")


def _others(model: nn.Module, found: Sites, picked: set[str], shared: Mapping[str, str]) -> dict[str, str]:
    """The matrices that no site in question holds, by path, each with what it is."""
    blocks = tuple(f"{block.path}." for block in find_blocks(model))
    known = {site.module for site in found.values() if site.kind == "linear"}
    others: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if parameter.dim() < 2 or path in picked:
            continue
        if not is_linear(module) or leaf != "weight":
            if isinstance(module, nn.Embedding):
                others[path] = "an embedding"
            elif isinstance(module, nn.modules.conv._ConvNd):
                others[path] = "a convolution"
            elif parameter.dim() > 2 and name.startswith(blocks):
                others[name] = f"several matrices in one tensor of shape {tuple(parameter.shape)}, such as experts"
            else:
                others[name] = "not the weight of a linear map"
        elif path in shared:
            others[path] = shared[path]
        elif not name.startswith(blocks):
            others[path] = "outside the blocks"
        else:
            others[path] = "not among the sites asked for" if path in known else "in a block, but at no known site"
    return others


def dequantize_(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Make the quantised weights of a model plain again, with exactly the values that their codes stand for.

    dtype: that of the new weights; None: that of the weights before, in the place of other packages' maps the model's.
    Returns the paths of the modules. Raises DeltatuneError for a model with a Host: merge or detach first.
    """
    if hasattr(model, "deltatune"):
        raise DeltatuneError("this model has a Host with adapters; dequantise before Host(model)")
    paths = [path for path, module in model.named_modules() if stored_weight(module) is not None]
    for path in paths:
        module = model.get_submodule(path)
        model.set_submodule(path, plain_map(module, dtype or plain_dtype(model, module)))
    return paths


def _shared_weights(model: nn.Module) -> dict[str, str]:
    """Paths of modules whose weight belongs to another module too, each with words that name the other."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(path)
    groups = [paths for paths in owners.values() if len(paths) > 1]
    # before its weights are loaded, a model only declares which will be tied
    declared: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups += [[one.removesuffix(".weight"), other.removesuffix(".weight")] for one, other in declared.items()]
    return {
        path: f"its weight is tied to {next((other for other in paths if other != path), path)}"
        for paths in groups
        for path in paths
    }


def _check_finite(model: nn.Module, paths: Iterable[str]) -> None:
    def damaged() -> Iterator[str]:
        for path in paths:
            weight = weight_of(model.get_submodule(path))
            if weight.device.type != "meta" and not weight.isfinite().all():
                yield f"{path}.weight holds values that are infinite or NaN, which no code stands for"

    raise_all(list(damaged()))
