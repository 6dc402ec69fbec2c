"""Weights of bitsandbytes' Linear4bit and Linear8bitLt, as `BitsAndBytesConfig` of transformers makes them.

Two habits of bitsandbytes 0.50 change a base that is only run. On processors with AVX512-BF16, the first forward in
eval mode packs the codes of 4 bits anew and rounds the blocks' magnitudes to bfloat16. And both modules cast their bias
in place to the type in which they compute. `protect_` ends both: outputs are those of the stored values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.core.errors import DeltatuneError
from deltatune.core.quantization.blockwise import dequantize_4bit, dequantize_8bit, pack
from deltatune.core.quantization.schemes import INT8_STEP, SCHEMES, Int8
from deltatune.core.quantization.weight_storage import StoredWeight

ROWS = 32
"""Rows that bitsandbytes' packing for AVX512-BF16 interleaves: a byte holds row i's code low, row i + 16's high."""


def bitsandbytes_weight(module: nn.Module) -> StoredWeight | None:
    """The weight of a module of bitsandbytes that is quantised."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(module).__mro__}
    if "bitsandbytes.Linear4bit" in names:
        return FourBitWeight(module)
    return EightBitWeight(module) if "bitsandbytes.Linear8bitLt" in names else None


class FourBitWeight(StoredWeight):
    """The weight of Linear4bit."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.weight: Any = module.weight
        self.state: Any = getattr(self.weight, "quant_state", None) or getattr(module, "quant_state", None)
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        self.transposed = getattr(module, "source_cls", None) is Conv1D
        self.label = "bitsandbytes 4 bits"
        if self.state is not None:
            rounded = hasattr(self.state, "original_nested")  # was packed once: no longer the magnitudes in the file
            double = self.state.original_nested if rounded else self.state.nested
            scheme = SCHEMES[self.state.quant_type]
            self.label = f"bitsandbytes {scheme(double=double, block=self.state.blocksize).text}"  # type: ignore[call-arg]
            self.label += ", magnitudes rounded to bfloat16" if rounded else ""

    @property
    def packed(self) -> bool:
        """Whether codes and magnitudes are in the order for AVX512-BF16 at present."""
        return bool(getattr(self.state, "packing_format_for_cpu", False))

    def read(self) -> Tensor:
        state = self._state()
        dtype = state.original_dtype if self.packed else state.dtype
        codes, absmax = self._canonical()
        return dequantize_4bit(codes, absmax, state.code, state.blocksize, self.shape, dtype).detach()

    def tensors(self) -> Iterable[Tensor]:
        yield self.weight.detach().view(torch.uint8)
        if self.state is not None:
            yield self.state.absmax
            if getattr(self.state, "state2", None) is not None:
                yield from (self.state.state2.absmax, self.state.offset)

    @torch.no_grad()
    def protect_(self) -> None:
        """Give codes their order back, and keep the module from packing and from casting its bias.

        Raises DeltatuneError where bitsandbytes' kernel computes with other values than the codes stand for.
        """
        state = self._state()
        if self.packed:
            codes, absmax = self._canonical()
            codes = codes.view(getattr(state, "original_storage_type", None) or torch.uint8)
            self.weight.data = codes.view(-1, 1)
            state.absmax, state.nested, state.state2, state.offset = absmax, False, None, None
            state.dtype, state.packing_format_for_cpu = state.original_dtype, False
        self.module.support_avx512bf16_for_cpu = False
        keep_bias_(self.module)
        if not self.weight.is_meta and self.shape[1] % state.blocksize and not self._kernel_agrees():
            raise DeltatuneError(
                f"bitsandbytes computes wrong values on this processor for weights of {self.shape[1]} columns in "
                f"blocks of {state.blocksize}. Load the model without quantisation and quantise it with "
                'deltatune.quantize_(model, "nf4") or load_backbone(..., quantize="nf4"), which do not'
            )

    def _state(self) -> Any:
        if self.state is None:
            raise DeltatuneError(
                "a Linear4bit of bitsandbytes holds no codes yet: move the model to its device, or load all its weights"
            )
        return self.state

    def _canonical(self) -> tuple[Tensor, Tensor]:
        """Codes (⌈N/2⌉,) in the order of the weight's values, and each block's magnitude in float32."""
        state, codes = self._state(), self.weight.data
        if self.packed:
            return _unpacked(codes, self.shape), state.absmax.T.float().reshape(-1)
        absmax = state.absmax
        if state.nested:
            nested = state.state2
            absmax = dequantize_8bit(absmax, nested.absmax, nested.code, nested.blocksize) + state.offset
        return codes.view(torch.uint8).reshape(-1), absmax.float()

    def _kernel_agrees(self) -> bool:
        import bitsandbytes

        there = bitsandbytes.functional.dequantize_4bit(self.weight.data, self.state)
        return bool(torch.allclose(there.float(), self.read().float(), rtol=1e-2, atol=1e-6))


def _unpacked(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Codes in the order for AVX512-BF16 (N, K/2) -> in the order of the weight's values (N · K/2,)."""
    rows, columns = shape
    data = packed.view(torch.uint8).view(rows // ROWS, columns // 2, ROWS)
    codes = torch.cat([data & 0xF, data >> 4], dim=-1).view(rows // ROWS, columns // 2, ROWS, 2)
    return pack(codes.transpose(1, 2).reshape(-1))


class EightBitWeight(StoredWeight):
    """The weight of Linear8bitLt: codes of 8 bits, or with `has_fp16_weights` values that it quantises when it runs."""

    label = "bitsandbytes int8"

    def __init__(self, module: nn.Module) -> None:
        self.weight: Any = module.weight
        self.module: Any = module
        self.shape = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        self.transposed = getattr(module, "source_cls", None) is Conv1D

    def read(self) -> Tensor:
        codes, scales = self.weight.data, self._scales()
        if codes.is_floating_point():
            made = Int8().quantize(codes.half())
            codes, scales = made["codes"], made["absmax"]
        if scales is None:
            raise DeltatuneError("a Linear8bitLt of bitsandbytes holds no scales: load all weights of the model")
        matrix: Tensor = codes * scales[:, None] * INT8_STEP
        return matrix.detach()

    def tensors(self) -> Iterable[Tensor]:
        yield self.weight
        if (scales := self._scales()) is not None:
            yield scales

    def protect_(self) -> None:
        keep_bias_(self.module)

    def _scales(self) -> Tensor | None:
        """(out,): on the weight until the first forward, then in the module's state."""
        scales: Tensor | None = getattr(self.weight, "SCB", None)
        if scales is None and not self.weight.is_floating_point():
            scales = self.module.state.SCB
        return scales


class KeptBias:
    """Hooks that give a module its frozen bias back after a forward that has cast it in place."""

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def before(self, module: nn.Module, _: Any) -> None:
        """Keep the values."""
        bias: Any = module.bias
        self.values = None if bias.requires_grad else bias.data

    def after(self, module: nn.Module, _: Any, __: Any) -> None:
        """Put them back."""
        bias: Any = module.bias
        if self.values is not None and bias.dtype != self.values.dtype:
            bias.data = self.values
        self.values = None


def keep_bias_(module: nn.Module) -> None:
    """Let a module that casts its bias in place have it back after each forward."""
    kept = any(isinstance(getattr(hook, "__self__", None), KeptBias) for hook in module._forward_hooks.values())
    if getattr(module, "bias", None) is not None and not kept:
        keeper = KeptBias()
        module.register_forward_pre_hook(keeper.before)
        module.register_forward_hook(keeper.after, always_call=True)
