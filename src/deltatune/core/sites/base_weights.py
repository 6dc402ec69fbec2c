"""The base's parameters at one site in one orientation, however the model stores them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.stored_weights import stored_weight, weight_of
from deltatune.core.sites.fused_projections import put, take
from deltatune.core.sites.site import Site


class BaseWeights:
    """The base's parameters under one Delta: weights (out, in), biases (out,), cut to the site's slice. Read only.

    A convolution's weight is (out, channels·kh·kw), as it maps patches.
    """

    def __init__(self, module: nn.Module, site: Site) -> None:
        self.module, self.site = module, site

    def __deepcopy__(self, memo: Any) -> BaseWeights:
        return self  # a copied adapter has the same base

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name; at kind `weight` the one under its attribute's name."""
        return {name: self.oriented(tensor, name) for name, tensor in self.stored().items()}

    def stored(self) -> dict[str, Tensor]:
        """The same as the model stores them: whole, and GPT-2's weights as (in, out)."""
        if self.site.kind == "weight":
            return {self.site.attribute: getattr(self.module, self.site.attribute)}
        plain: dict[str, Tensor] = dict(self.module.named_parameters())
        return plain if stored_weight(self.module) is None else {**plain, "weight": weight_of(self.module)}

    @property
    def weight(self) -> Tensor:
        """(out, in) of a linear map, (V, D) of an embedding, (D,) of a norm; of a quantised map made anew."""
        return self.oriented(weight_of(self.module), "weight")

    @property
    def state(self) -> tuple[object, ...]:
        """What changes when the weight does: for values that are computed from it and kept."""
        stored = stored_weight(self.module)
        tensors: Iterable[Any] = [self.module.weight] if stored is None else stored.tensors()
        return tuple((_version(tensor), tensor.data_ptr(), tensor.dtype) for tensor in tensors)

    @property
    def bias(self) -> Tensor | None:
        """(out,), or None."""
        bias = getattr(self.module, "bias", None)
        return self.oriented(bias, "bias") if isinstance(bias, Tensor) else None

    def placed(self, name: str, part: Tensor) -> Tensor:
        """A whole parameter as the model stores it, with this site's part of it replaced."""
        whole = self.stored()[name].to(part.dtype)
        if self.site.kernel is not None:
            return part.view_as(whole)
        if not self._cuts:
            return part
        if name != "weight":
            return put(whole, self.site.slice, part)
        turned = whole if self.site.transposed else whole.T  # (in, out)
        changed = put(turned, self.site.slice, part.T)
        return changed if self.site.transposed else changed.T

    @property
    def _cuts(self) -> bool:
        return self.site.kind in ("linear", "input")

    def oriented(self, tensor: Tensor, name: str) -> Tensor:
        """A whole parameter as the model stores it -> this site's part of it, weights (out, in)."""
        if self.site.kernel is not None and name == "weight":
            return tensor.flatten(1)
        if not self._cuts:
            return tensor
        turned = tensor.T if self.site.transposed and name == "weight" else tensor
        return take(turned.T, self.site.slice).T if name == "weight" else take(turned, self.site.slice)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def check_whole(model: nn.Module, what: str, fix: str, error: type[DeltatuneError] = DeltatuneError) -> None:
    """Raise if the base is sharded over processes, none of which can read a whole weight."""
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):  # FSDP2's parameters
        raise error(f"{what} reads the base's weights, which are sharded (FSDP); {fix}")
