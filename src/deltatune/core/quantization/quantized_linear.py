"""A frozen linear map whose weight is stored in 4 or 8 bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.quantization.schemes import NESTED_BLOCK, FourBit, Scheme

TENSORS = ("codes", "absmax", "nested_absmax", "offset")
"""Names that a scheme's tensors may have."""


class QuantizedLinear(nn.Module):
    """y = x · dequantise(W)ᵀ + bias, W (out, in) stored by a scheme; gradients reach x and the bias, never W.

    The matrix is made anew in forward and in backward, in the type in which the product is computed (autocast's, else
    x's), and kept in neither. `.to(bfloat16)` and the like leave the stored tensors as they are. In a state dict the
    names, shapes and values are bitsandbytes', so that transformers reads a saved model.
    """

    codes: Tensor
    absmax: Tensor

    def __init__(
        self,
        scheme: Scheme,
        width_in: int,
        width_out: int,
        bias: nn.Parameter | None = None,
        transposed: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """An empty map on the current default device. `transposed`: it takes the place of a Conv1D, whose weight is
        (in, out); `dtype`: that of the weight before, which `weight` has too."""
        super().__init__()
        self.scheme, self.in_features, self.out_features, self.transposed = scheme, width_in, width_out, transposed
        self.dtype = dtype
        self.bias = bias
        for name, tensor in scheme.empty(self.shape).items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def of(
        cls, weight: Tensor, scheme: Scheme, bias: nn.Parameter | None = None, transposed: bool = False
    ) -> QuantizedLinear:
        """Quantise a weight (out, in), or (in, out) if `transposed`. Raises DeltatuneError unless it is finite."""
        matrix = (weight.T if transposed else weight).detach()
        with torch.device("meta"):
            module = cls(scheme, matrix.shape[1], matrix.shape[0], bias, transposed, weight.dtype)
        module.fill_(scheme.quantize(matrix.contiguous()))
        return module

    def fill_(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a scheme's tensors as the stored ones. Raises DeltatuneError for a wrong size and damaged magnitudes."""
        self.scheme.check(tensors)
        for name, tensor in tensors.items():
            if tensor.numel() != self.get_buffer(name).numel():
                raise DeltatuneError(f"{name} has {tensor.numel():,} entries, not {self.get_buffer(name).numel():,}")
            self._buffers[name] = tensor.reshape(self.get_buffer(name).shape)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.out_features, self.in_features

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by the scheme's names."""
        return {name: self.get_buffer(name) for name in TENSORS if name in self._buffers}

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), made anew."""
        return self.scheme.dequantize(self.tensors, self.shape, dtype)

    @property
    def weight(self) -> Tensor:
        """The weight as the plain map held it, (in, out) if `transposed`: made anew at every access, read only."""
        matrix = self.matrix(self.dtype)
        return matrix.T if self.transposed else matrix

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out). Raises DeltatuneError for an x that is not floating."""
        if not x.is_floating_point():
            raise DeltatuneError(f"a linear map in {self.scheme.text} takes floating values, not {x.dtype}")
        kind = x.device.type
        # torch 2.6 cannot compile the question
        known = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
        autocast = known and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        x, bias = x.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if not torch.is_grad_enabled() or not (x.requires_grad or (bias is not None and bias.requires_grad)):
            return F.linear(x, self.matrix(dtype), bias)
        y: Tensor = FrozenProduct.apply(x, bias, self.scheme, self.shape, *self.tensors.values())  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        widths = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{self.scheme!r}, {widths}, bias={self.bias is not None}"

    # --- moving: what is stored keeps its type

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        stored = self.tensors
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in stored.items():
            if self.get_buffer(name).dtype != before.dtype:
                self._buffers[name] = before.to(self.get_buffer(name).device)
        device = next(iter(stored.values())).device
        if device.type != "meta":
            self.dtype = fn(torch.empty(0, dtype=self.dtype, device=device)).dtype
        return self

    # --- files: bitsandbytes' names

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.stored_state().items():
            destination[prefix + name] = tensor

    def stored_state(self) -> dict[str, Tensor]:
        """The stored tensors by bitsandbytes' names: `weight`, `weight.absmax`, ..., or `weight` and `SCB`."""
        scheme, tensors = self.scheme, self.tensors
        if not isinstance(scheme, FourBit):
            return {"weight": tensors["codes"], "SCB": tensors["absmax"]}
        state = {"weight": tensors["codes"][:, None], "weight.absmax": tensors["absmax"]}
        state["weight.quant_map"] = scheme.table.clone().to(self.codes.device)
        facts: dict[str, Any] = {"quant_type": scheme.name, "blocksize": scheme.block}
        facts |= {"dtype": str(self.dtype).removeprefix("torch."), "shape": list(self.shape)}
        if scheme.double:
            state["weight.nested_absmax"] = tensors["nested_absmax"]
            state["weight.nested_quant_map"] = scheme.nested_table.clone().to(self.codes.device)
            facts |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
            facts["nested_offset"] = float(tensors["offset"]) if self.codes.device.type != "meta" else 0.0
        packed = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        return {**state, f"weight.quant_state.bitsandbytes__{scheme.name}": packed}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = list(self.stored_state())
        found = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if len(found) == len(names):
            assign = args[0].get("assign_to_params_buffers", False) or self.codes.is_meta
            self.read_state_(found if assign else {n: t.to(self.codes.device, copy=True) for n, t in found.items()})
        missing: list[str] = args[2]
        unexpected: list[str] = args[3]
        extra: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, args[0], args[1], missing, extra, args[4])
        unexpected += [key for key in extra if key.removeprefix(prefix) not in names]
        missing += [prefix + name for name in names if name not in found]

    def read_state_(self, state: Mapping[str, Tensor]) -> None:
        """Take stored tensors by bitsandbytes' names; they stay where they are.

        Raises DeltatuneError, before anything has changed, if they are of another scheme, shape or table of values.
        """
        tensors = {"codes": state["weight"], "absmax": state["SCB" if "SCB" in state else "weight.absmax"]}
        if isinstance(self.scheme, FourBit):
            facts = json.loads(bytes(state[f"weight.quant_state.bitsandbytes__{self.scheme.name}"].tolist()))
            wanted: dict[str, object] = {"blocksize": self.scheme.block, "shape": list(self.shape)}
            problems = [
                f"{key} is {facts.get(key)}, not {value}" for key, value in wanted.items() if facts.get(key) != value
            ]
            tables = {"weight.quant_map": self.scheme.table}
            if self.scheme.double:
                tables["weight.nested_quant_map"] = self.scheme.nested_table
                tensors["nested_absmax"] = state["weight.nested_absmax"]
                tensors["offset"] = torch.tensor(facts["nested_offset"], device=state["weight"].device)
            problems += [
                f"{name} holds other values" for name, table in tables.items() if not _equal(state[name], table)
            ]
        else:
            shape = tuple(state["weight"].shape)
            problems = [f"the codes' shape is {shape}, not {self.shape}"] if shape != self.shape else []
        raise_all([f"these tensors are not of {self.scheme!r}: {problem}" for problem in problems])
        self.fill_(tensors)


def _equal(found: Tensor, table: Tensor) -> bool:
    return found.is_meta or torch.equal(found.cpu().float(), table)


class FrozenProduct(torch.autograd.Function):
    """x · Wᵀ + bias, where W is dequantised in forward and again in backward: nothing of W's size is kept between."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, scheme: Scheme, shape: tuple[int, int], *stored: Tensor) -> Tensor:
        tensors = dict(zip(TENSORS, stored, strict=False))
        return F.linear(x, scheme.dequantize(tensors, shape, x.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.scheme, ctx.shape, *stored = inputs
        ctx.save_for_backward(*stored)
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        stored = ctx.saved_tensors
        grad_x = grad_bias = None
        if needs[0]:
            tensors = dict(zip(TENSORS, stored, strict=False))
            grad_x = grad @ ctx.scheme.dequantize(tensors, ctx.shape, ctx.dtype)
        if needs[1]:
            grad_bias = grad.reshape(-1, ctx.shape[0]).sum(0)
        return grad_x, grad_bias, None, None, *(None for _ in stored)
