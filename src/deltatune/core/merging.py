"""Merging: adapters written into the base's weights, verified on fixed random inputs, and taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter
from deltatune.core.delta import Delta, generator_for
from deltatune.core.errors import CannotMerge, raise_all
from deltatune.core.quantization.plain_map import exchange_, exchangeable, plain_dtype, plain_map
from deltatune.core.quantization.quantized_linear import QuantizedLinear
from deltatune.core.quantization.stored_weights import is_linear, quantized_label, stored_weight
from deltatune.core.sites.base_weights import BaseWeights, check_whole
from deltatune.core.sites.blocks import is_norm, modules_of, widths
from deltatune.core.sites.convolutions import kernel_of
from deltatune.core.sites.site import Facts


class MergedAdapters:
    """The adapters that are merged into one base, and the base's original values.

    A map with a quantised weight is plain while an adapter is merged into it: its weight is exactly what its codes
    stand for, plus the change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.differences: dict[str, float] = {}
        """Merged adapters, and the largest difference of the outputs that merging made on verification inputs."""
        self.weights: dict[str, float] = {}
        """The weight with which each was merged."""
        self._originals: dict[int, tuple[Tensor, Tensor]] = {}
        self._codes: dict[int, tuple[nn.Module, nn.Module]] = {}
        """Maps that are plain for the time being, and the modules that keep their codes."""

    def write_(self, name: str, adapter: Adapter, weight: float) -> None:
        """Write an adapter into the base's weights; the first time, copies of the originals are kept."""
        self.weights[name] = weight
        self._make_plain_(adapter)
        for parameter in self._changed_parameters(adapter):
            self._originals.setdefault(id(parameter), (parameter, parameter.detach().clone()))
        write_adapter_(self.model, adapter, weight)

    def verify_(self, name: str, unmerged: Tensor | None, facts: Facts) -> float:
        """Return the largest difference of the outputs to those before; CannotMerge if rounding does not explain it."""
        dtype = computing_dtype(self.model)
        worst = self.differences[name] = difference(unmerged, verification_output(self.model, facts))
        if not worst <= rounding_tolerance(unmerged, dtype):
            theirs = [codes for _, codes in self._codes.values() if not isinstance(codes, QuantizedLinear)]
            labels = {quantized_label(codes) for codes in theirs}  # ours compute exactly as plain maps do
            advice = (
                f". Maps in {', '.join(sorted(labels))} may round their outputs more coarsely than plain maps do: "
                "dequantize_(model) before Host(model), load the adapter with other_base=True, and merge it there"
            )
            raise CannotMerge(
                f"merging {name!r} changed the outputs by {worst:.2g}, more than {dtype} rounding explains; it was "
                f"undone{advice if labels else ''}"
            )
        return worst

    def remove_(self, name: str, adapters: Mapping[str, Adapter]) -> None:
        """Take an adapter out; those that stay merged are written again into the original bits."""
        for module, codes in self._codes.values():
            exchange_(module, codes)
        self._codes.clear()
        with torch.no_grad():
            for parameter, original in self._originals.values():
                parameter.copy_(original)
        del self.differences[name], self.weights[name]
        if not self.differences:
            self._originals.clear()
        for other in self.differences:
            self._make_plain_(adapters[other])
            write_adapter_(self.model, adapters[other], self.weights[other])

    def keep_(self) -> None:
        """Make what is merged the base's own: nothing is kept that could take it out."""
        self.differences.clear()
        self.weights.clear()
        self._originals.clear()
        self._codes.clear()

    def original(self, parameter: Tensor) -> Tensor:
        """The value of a base parameter without merged adapters."""
        return self._originals.get(id(parameter), (parameter, parameter))[1]

    def stored(self, module: nn.Module) -> nn.Module:
        """A linear map as it was before merging: what keeps the codes of one that is plain for the time being."""
        return self._codes.get(id(module), (module, module))[1]

    def _make_plain_(self, adapter: Adapter) -> None:
        """Make the maps plain whose quantised weights an adapter changes."""
        for _, site, delta in adapter.entries():
            if "weight" not in delta.capabilities.merges_into:
                continue
            for module in self.model.get_submodule(site.module).modules():  # a task head may hold several maps
                if stored_weight(module) is not None:
                    codes = plain_map(module, plain_dtype(self.model, module))
                    exchange_(module, codes)
                    self._codes[id(module)] = module, codes

    def _changed_parameters(self, adapter: Adapter) -> list[Tensor]:
        """Base parameters that merging an adapter may change, each once; those that codes bring back are left out."""
        changed: dict[int, Tensor] = {}
        for _, site, _ in adapter.entries():
            module = self.model.get_submodule(site.module)
            coded = stored_weight(self.stored(module)) is not None
            for name, tensor in BaseWeights(module, site).stored().items():
                if not (coded and name == "weight"):
                    changed[id(tensor)] = tensor
        return list(changed.values())


def merge_obstacles(adapter: Adapter) -> list[str]:
    """Why an adapter cannot be merged: no weight form, no place for it at a site, or a tied weight. Empty if it can."""
    merging = [(site, delta.capabilities) for _, site, delta in adapter.entries() if delta.capabilities.merges]
    stuck = sorted({adapter.method_at(key) for key, _, delta in adapter.entries() if not delta.capabilities.merges})
    missing = [
        f"site {site.name} has no bias to merge into"
        for site, can in merging
        if "bias" in can.merges_into and not site.bias
    ]
    tied = [
        f"the weight at {site.name} is tied to another module's, which would change with it"
        for site, can in merging
        if "weight" in can.merges_into and site.tied
    ]
    return [f"{method} has no exact weight form" for method in stuck] + missing + tied


def check_merges(name: str, adapter: Adapter, model: nn.Module) -> None:
    """Raise CannotMerge unless every Delta has a weight form here, naming the methods that have none."""
    check_whole(model, f"merging {name!r}", "save the adapter, and merge it where the base is whole", CannotMerge)
    about = f"adapter {name!r} ({adapter.method!r}) cannot be merged; keep it unmerged:"
    raise_all([*merge_obstacles(adapter), *_unreadable(adapter, model)], about, CannotMerge)


def _unreadable(adapter: Adapter, model: nn.Module) -> list[str]:
    """Weights that other packages store in a way in which no merged values can stand in for them."""
    labels = {
        stored.label
        for _, site, delta in adapter.entries()
        if delta.capabilities.merges and "weight" in delta.capabilities.merges_into
        for module in model.get_submodule(site.module).modules()
        if (stored := stored_weight(module)) is not None and not exchangeable(module)
    }
    return [
        f"the weights are stored in {label}, which cannot be made plain in place; where their layout is known, "
        "dequantize_(model) makes a plain model of the same values before there is a Host"
        for label in sorted(labels)
    ]


@torch.no_grad()
def write_adapter_(model: nn.Module, adapter: Adapter, weight: float = 1.0) -> None:
    """Write every Delta of an adapter into the base's parameters in place, its changes multiplied by a weight.

    Each site's output is linear in its parameters, so W + w ΔW gives h + w Δ exactly. Unmerged, all Deltas of a module
    see the output of the base alone, so their changes of its weights add up; those of its input come last.
    """
    changes: dict[tuple[bool, str, str], list[tuple[BaseWeights, Delta]]] = {}
    for _, site, delta in adapter.entries():
        key = (site.kind == "input", site.module, site.attribute)
        changes.setdefault(key, []).append((BaseWeights(model.get_submodule(site.module), site), delta))
    for key in sorted(changes, key=lambda key: key[0]):
        _write_(changes[key], weight)


def _write_(changes: list[tuple[BaseWeights, Delta]], weight: float) -> None:
    """Write the changes of one module, each computed from its parameters before any of them."""
    alone = len(changes) == 1 and weight == 1.0
    new: dict[str, Tensor] = {}
    old = {name: tensor.clone() for name, tensor in ({} if alone else changes[0][0].stored()).items()}
    for base, delta in changes:
        params = base.parameters()
        if not alone:  # added up in double precision, rounded once
            params = {name: tensor.double() for name, tensor in params.items()}
        for name, tensor in delta.merge(params).items():
            if alone:
                new[name] = base.placed(name, tensor)
            else:
                change = base.placed(name, tensor).double() - old[name].double()
                new[name] = new.get(name, old[name].double()) + weight * change
    stored = changes[0][0].stored()
    for name, tensor in new.items():
        stored[name].copy_(tensor)


@torch.no_grad()
def verification_output(model: nn.Module, facts: Facts) -> Tensor | None:
    """Output of the model on fixed random inputs, or None if its input shape is unknown.

    Of a model of diffusers, those of its maps one by one: what merges acts at single maps.
    """
    if facts.denoiser:
        return outputs_of_maps(model)
    batch = verification_inputs(model, facts)
    if batch is None:
        return None
    training = model.training
    try:
        outputs = model.eval()(**batch)
    finally:
        model.train(training)
    output: Tensor = outputs["logits"] if "logits" in outputs else outputs[0]
    return output.float()


def difference(unmerged: Tensor | None, merged: Tensor | None) -> float:
    """Largest absolute difference of two verification outputs; 0 where there are none."""
    return 0.0 if unmerged is None or merged is None else float((unmerged - merged).abs().max())


def computing_dtype(model: nn.Module) -> torch.dtype:
    """The coarsest type that a model computes in: that of its parameters, or of bitsandbytes' products."""
    dtypes = [next(p.dtype for p in model.parameters() if p.is_floating_point())]
    for module in model.modules():
        own = getattr(module, "compute_dtype", None)
        if isinstance(own, torch.dtype) and own.is_floating_point and stored_weight(module) is not None:
            dtypes.append(own)
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def rounding_tolerance(unmerged: Tensor | None, dtype: torch.dtype) -> float:
    """Largest difference that the dtype's rounding explains."""
    scale = 1.0 if unmerged is None else max(1.0, float(unmerged.abs().max()))
    return scale * max(1e-5, 32 * torch.finfo(dtype).eps)


def outputs_of_maps(model: nn.Module) -> Tensor:
    """The outputs of all linear maps, convolutions and norms of a model on fixed random inputs, in one vector."""
    training, outputs = model.training, []
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    try:
        model.eval()
        for path, module in modules_of(model):
            shape = _input_shape(module)
            if shape is not None:
                x = torch.randn(shape, generator=generator_for(0, f"probe/{path}"))
                own = getattr(module, "weight", like)  # some norms stay in float32; codes have no type of their own
                x = x.to(own if isinstance(own, Tensor) and own.is_floating_point() else like)
                outputs.append(module(x).float().flatten())
    finally:
        model.train(training)
    return torch.cat(outputs)


def _input_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of a small input: two tokens, or an image of one patch; None for modules that are no map."""
    if isinstance(module, nn.Conv2d) and (kernel := kernel_of(module)) is not None:
        spans = (d * (k - 1) + 1 for k, d in zip(kernel.size, kernel.dilation, strict=True))
        return 1, module.in_channels, *spans
    if is_linear(module):
        return 1, 2, widths(module)[0]
    return (1, 2, len(module.get_parameter("weight"))) if is_norm(module) else None


def verification_inputs(model: nn.Module, facts: Facts) -> dict[str, Tensor] | None:
    """Random tokens, images or sounds for two rows on the model's device, or None if its input shape is unknown."""
    generator = generator_for(0, "probe")
    first = str(getattr(model, "main_input_name", "input_ids"))
    if first == "input_ids":
        batch = _tokens(model, facts, generator) if facts.vocabulary else None
    else:
        shape = _shape(model, first)
        batch = None if shape is None else {first: torch.randn(2, *shape, generator=generator)}
    if batch is None:
        return None
    if facts.encoder_decoder and facts.vocabulary:
        batch["decoder_input_ids"] = batch.get("input_ids", _ids(model, facts, generator))
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {name: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for name, t in batch.items()}


def _tokens(model: nn.Module, facts: Facts, generator: torch.Generator) -> dict[str, Tensor]:
    ids = _ids(model, facts, generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ids(model: nn.Module, facts: Facts, generator: torch.Generator) -> Tensor:
    """Token ids (2, 8). T5's and BART's classifiers read the end token, so every row has exactly one."""
    ids = torch.randint(0, facts.vocabulary, (2, 8), generator=generator)
    end = getattr(model.config, "eos_token_id", None)
    if isinstance(end, int):
        ids[ids == end] = (end + 1) % facts.vocabulary
        ids[:, -1] = end
    return ids


def _shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """Shape of one row of images or sounds, from the config."""
    config: Any = model.config
    bins: Any = getattr(config, "num_mel_bins", None)
    if name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return getattr(config, "num_channels", 3), height, width
    if name == "input_features" and hasattr(config, "max_source_positions"):  # Whisper: two frames a position
        return bins, 2 * config.max_source_positions
    if name == "input_values" and bins and hasattr(config, "max_length"):  # spectrograms (AST)
        return config.max_length, bins
    if name == "input_values":  # audio samples: enough for some frames of any usual convolution
        return (4000,)
    return None
