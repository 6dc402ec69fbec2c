"""Merged weights stored in codes: quantised again in place, measured, and refused if too much is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from deltatune.core.errors import CannotMerge, DeltatuneError, raise_all
from deltatune.core.host import Host
from deltatune.core.quantization.plain_map import exchange_
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.schemes import Scheme
from deltatune.core.quantization.stored_weights import is_transposed, weight_of
from deltatune.models.quantization.quantize_model import maps_to_quantize

BOUND = 0.25
"""The largest relative error that merging into codes may make, unless another bound is given."""


@contextmanager
def stored_in_codes(host: Host, scheme: Scheme) -> Iterator[dict[str, QuantizedLinear]]:
    """Within this block the weights of a merged base are stored by a scheme: those that the base itself stores in
    codes, or, of a plain base, those of all linear maps in its blocks. The maps by path.

    Maps whose codes are of this scheme, and which no adapter has changed, keep them as they are.
    """
    exchanged: list[tuple[nn.Module, nn.Module]] = []
    problems: list[str] = []
    quantized = [site.module for site in host.sites.weights.values() if site.quantized]
    paths = quantized or maps_to_quantize(host.model, host.sites)[0]
    try:
        for path in paths:
            module: nn.Module = host.model.get_submodule(path)
            if isinstance(module, QuantizedLinear) and module.scheme == scheme:
                continue
            try:
                codes = QuantizedLinear.of(
                    weight_of(module), scheme, getattr(module, "bias", None), is_transposed(module)
                )
            except DeltatuneError as error:
                problems.append(f"{path}.weight: {error}")
                continue
            exchange_(module, codes.train(module.training))
            exchanged.append((module, codes))
        raise_all(problems)
        yield {path: host.model.get_submodule(path) for path in paths}  # type: ignore[misc]
    finally:
        for module, plain in reversed(exchanged):
            exchange_(module, plain)


def check_error(error: float | None, bound: float, scheme: Scheme) -> None:
    """Raise CannotMerge if storing the merged weights by a scheme loses more of the adapter's change than the bound."""
    if error is None:
        raise CannotMerge(
            "the adapter changes nothing on the verification inputs, so that it cannot be measured what of its change "
            "is kept; keep it unmerged, or merge it without quantisation"
        )
    if not error <= bound:
        raise CannotMerge(
            f"merged and stored in {scheme.text}, the model is {error:.2f} times the adapter's whole effect away from "
            f"the unmerged adapter, more than the bound of {bound:g} (‖merged − unmerged‖ / ‖unmerged − base‖ of the "
            "outputs on verification inputs; from 1 on, the base alone is as near). Nothing was written. Keep the "
            "adapter apart from its quantised base, merge it without quantisation, or allow more with bound= (--bound)"
        )
