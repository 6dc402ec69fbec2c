"""The base's own weights under a Host: without adapters, whatever is merged into them or stands in for them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from deltatune.core.merging import MergedAdapters
from deltatune.core.quantization.stored_weights import stored_weight, weight_of
from deltatune.core.quantization.weight_storage import StoredWeight
from deltatune.core.seams.weight_override import WeightSeam
from deltatune.core.sites.site import Sites


class BaseTensors:
    """Reads the parameters of one base by path."""

    def __init__(self, model: nn.Module, sites: Sites, merging: MergedAdapters, weights: WeightSeam) -> None:
        self.model, self.sites, self.merging, self.weights = model, sites, merging, weights

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All by path; of quantised weights copies, made one after the other."""
        return ((path, self.tensor(path)) for path in self.sites.weights)

    def tensor(self, path: str) -> Tensor:
        """One of them; of a quantised weight the values that its codes stand for, made anew."""
        site = self.sites.weights[path]
        if site.quantized:
            return weight_of(self.merging.stored(self.model.get_submodule(site.module)))
        return self.merging.original(self.weights.original(path))

    def stored(self, path: str) -> StoredWeight | None:
        """How one is stored, even while an adapter is merged into it; None for a plain one."""
        site = self.sites.weights[path]
        return stored_weight(self.merging.stored(self.model.get_submodule(site.module))) if site.quantized else None

    @property
    def bytes(self) -> int:
        """Bytes of all of them as they are stored."""
        tensors: list[Tensor] = []
        for path in self.sites.weights:
            stored = self.stored(path)
            tensors += [self.tensor(path)] if stored is None else stored.tensors()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
