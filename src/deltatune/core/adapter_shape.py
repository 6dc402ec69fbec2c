"""What adapters of one method have in common on one base: whether and how a bank can hold them, names and shapes."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from deltatune.core.adapter import Adapter, outline
from deltatune.core.bank_delta import bank_form
from deltatune.core.capabilities import Capabilities, Needs
from deltatune.core.delta import generator_for
from deltatune.core.method import Method
from deltatune.core.sites.site import Sites


@dataclass(frozen=True)
class AdapterShape:
    """What all adapters of one method have in common on one base."""

    adapter: Adapter
    """Its Deltas without values."""
    key: Hashable | None
    """What adapters have in common that share stacks; None for a method that no bank can hold."""
    names: Mapping[str, tuple[str, ...]]
    """Names of each Delta's tensors, by the Delta's key."""
    shared: Mapping[str, tuple[str, ...]]
    """Names of the tensors that the Deltas of a part share, by its label."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of all tensors by their stable names, those of a head left out."""
    capabilities: Capabilities
    needs: Needs
    count: int
    """Trainable parameters, heads left out."""
    reads_base: bool
    """Whether what is stored depends on the base's weights."""

    def of_delta(self, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of one Delta by their own names, and those of its part's shared module as `shared.NAME`."""
        own = {name: tensors[f"{key}.{name}"] for name in self.names[key]}
        label = key.partition(".")[0]
        return {**own, **{f"shared.{name}": tensors[f"shared.{label}.{name}"] for name in self.shared.get(label, ())}}


def adapter_shape(method: Method, sites: Sites, model: nn.Module) -> AdapterShape:
    """What adapters of a method have in common on a model."""
    adapter = outline(method, sites, model)
    entries = [(key, site, delta, bank_form(delta)) for key, site, delta in adapter.entries()]
    forms = [form for *_, form in entries if form is not None]
    shared = {label: names for label, module in adapter.shared_modules() if (names := tuple(_tensors_of(module)))}
    read = {key.partition(".")[0] for key, _, _, form in entries if form is not None and form.reads_shared}
    held = bool(entries) and len(forms) == len(entries) and not shared.keys() - read
    keys = [(key, form, form.shape(delta, site)) for key, site, delta, form in entries if form is not None]
    held = held and all(shape is not None for *_, shape in keys)
    of_deltas = {key: form.tensor_shapes(delta) for key, _, delta, form in entries if form is not None}
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors().items()}
    shapes.update({f"{key}.{name}": size for key, sizes in of_deltas.items() for name, size in sizes.items()})
    return AdapterShape(
        adapter=adapter,
        key=tuple(keys) if held else None,
        names={key: tuple(sizes) for key, sizes in of_deltas.items()},
        shared=shared,
        shapes=shapes,
        capabilities=adapter.capabilities,
        needs=adapter.needs,
        count=method.count(sites),
        reads_base=any(form.reads_base for form in forms),
    )


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that files do not hold among them."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def shared_tensors(shape: AdapterShape, tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Tensors of shared modules that are in no file: they are drawn from the adapter's seed."""
    drawn: dict[str, Tensor] = {}
    for label, names in shape.shared.items():
        missing = [name for name in names if f"shared.{label}.{name}" not in tensors]
        if missing:
            module = copy.deepcopy(dict(shape.adapter.shared_modules())[label]).to_empty(device="cpu")
            module.init_(partial(_generator, seed, label))
            of_module = _tensors_of(module)
            drawn.update({f"shared.{label}.{name}": of_module[name] for name in missing})
    return drawn


def _generator(seed: int, label: str, name: str) -> Generator:
    return generator_for(seed, f"{label}.{name}")


def mismatches(expected: Mapping[str, Tensor | tuple[int, ...]], tensors: Mapping[str, Tensor]) -> list[str]:
    """List tensors that are missing, extra or misshapen; where tensors are expected, also those of an unfit dtype."""
    problems = [f"tensor {name} is missing" for name in expected if name not in tensors]
    problems += [f"tensor {name} is not one of this adapter's" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        tensor, wanted = tensors[name], expected[name]
        shape = tuple(wanted.shape) if isinstance(wanted, Tensor) else wanted
        if tuple(tensor.shape) != shape:
            problems.append(f"tensor {name} has shape {tuple(tensor.shape)}, not {shape}")
        if not isinstance(wanted, Tensor):
            continue
        if tensor.is_floating_point() != wanted.is_floating_point():
            problems.append(f"tensor {name} is of {tensor.dtype}, not {wanted.dtype}")
        elif tensor.dtype != wanted.dtype and _overflows(tensor, wanted.dtype):
            problems.append(f"tensor {name} has values beyond the range of {wanted.dtype}")
    return sorted(problems)


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether finite values are not finite in another dtype."""
    return bool(torch.isfinite(tensor).all()) and not torch.isfinite(tensor.to(dtype)).all()
