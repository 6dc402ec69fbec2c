"""Quantisation schemes: how the weight of a frozen linear map is stored in 4 or 8 bits, and read again.

NF4 and FP4 store codes of 4 bits in blocks (QLoRA: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), Int8 a code
of 8 bits and a scale for each row (LLM.int8: Dettmers et al. 2022, https://arxiv.org/abs/2208.07339). The tensors are
those of bitsandbytes 0.50, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.quantization.blockwise import (
    dequantize_4bit,
    dequantize_8bit,
    dequantize_rows,
    quantize_4bit,
    quantize_8bit,
)
from deltatune.core.quantization.codebooks import dynamic_map, fp4, fp8_map, nf4
from deltatune.core.quantization.kernels import four_bit_kernel

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Values a block may have, as in bitsandbytes."""
NESTED_BLOCK = 256
"""Blocks' magnitudes that share a second magnitude under double quantisation."""
INT8_STEP = 0.007874015748031496
"""1/127, as bitsandbytes writes it."""


class Scheme(ABC):
    """How a matrix (out, in) becomes a few named tensors, and those a matrix again."""

    name: ClassVar[str]
    """The scheme's name in text, on the command line and in files."""

    @property
    def text(self) -> str:
        """The scheme as `read_scheme` reads it: its name, or the fields that differ from the defaults in brackets."""
        defaults = type(self)()
        changed = {name: value for name, value in vars(self).items() if value != getattr(defaults, name)}
        inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"{type(self).__name__}({inside})" if inside else self.name

    @abstractmethod
    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of a matrix (out, in). Raises DeltatuneError for values that are not finite."""

    @abstractmethod
    def dequantize(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrix of this shape and dtype: computed in float32, rounded once."""

    @abstractmethod
    def empty(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Tensors like those that `quantize` returns for a matrix of this shape, without values."""

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise DeltatuneError naming stored magnitudes that are negative, infinite or NaN: no matrix has such."""
        raise_all([
            f"{name} holds magnitudes that are negative, infinite or NaN: the tensors are damaged"
            for name in ("absmax", "nested_absmax", "offset")
            if name in tensors and tensors[name].is_floating_point() and not tensors[name].is_meta
            and not ((tensors[name] >= 0) & tensors[name].isfinite()).all()
        ])  # fmt: skip

    def bytes(self, shape: tuple[int, int]) -> int:
        """Bytes that a matrix of this shape takes."""
        with torch.device("meta"):
            return sum(tensor.numel() * tensor.element_size() for tensor in self.empty(shape).values())


@dataclass(frozen=True)
class FourBit(Scheme):
    """Codes of 4 bits in blocks, the largest magnitude of each block beside them."""

    double: bool = True
    """Whether the blocks' magnitudes are quantised too, to 8 bits: 4.127 instead of 4.5 bits a parameter."""
    block: int = 64
    """Values that share one magnitude: 32 to 4096, a power of two."""
    nested: Literal["dynamic", "fp8"] = "dynamic"
    """The 8-bit type of double quantisation: bitsandbytes' dynamic map, or 8-bit floats, as the paper says."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.block not in BLOCKS:
            raise DeltatuneError(f"{self!r}: block must be one of {', '.join(map(str, BLOCKS))}")

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """The value (16,) of each code."""

    @property
    def nested_table(self) -> Tensor:
        """The value (256,) of each code of a magnitude."""
        return dynamic_map() if self.nested == "dynamic" else fp8_map()

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """`codes` (⌈N/2⌉,) uint8 and `absmax` (⌈N/block⌉,) in float32.

        With `double`, `absmax` is uint8, and `nested_absmax` (float32, one for 256) and `offset` () stand beside it.
        The last bit of `offset`, a mean, depends on the number of threads, as in bitsandbytes.
        """
        codes, absmax = quantize_4bit(weight, self.table, self.block)
        if not self.double:
            return {"codes": codes, "absmax": absmax}
        offset = absmax.mean()
        small, nested_absmax = quantize_8bit(absmax - offset, self.nested_table, NESTED_BLOCK)
        tensors = {"codes": codes, "absmax": small, "nested_absmax": nested_absmax, "offset": offset}
        if not (self.magnitudes(tensors).abs() <= torch.finfo(weight.dtype).max).all():
            raise DeltatuneError(
                f"magnitudes of up to {float(absmax.max()):.3g}, quantised twice, pass the largest {weight.dtype}; "
                f"use {type(self).__name__}(double=False)"
            )
        return tensors

    def magnitudes(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The largest magnitude of each block (⌈N/block⌉,) in float32."""
        absmax = tensors["absmax"]
        if not self.double:
            return absmax
        small = dequantize_8bit(absmax, tensors["nested_absmax"], self.nested_table, NESTED_BLOCK)
        return small.add_(tensors["offset"])

    def dequantize(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        if tensors["codes"].is_meta:  # shapes alone: neither tables nor chunks are made
            return tensors["codes"].new_empty(shape, dtype=dtype)
        codes, absmax = tensors["codes"], self.magnitudes(tensors)
        kernel = four_bit_kernel(codes.device, shape, self.block, dtype)
        if kernel is not None:
            return kernel(codes, absmax, self.block, self.name, shape, dtype)
        return dequantize_4bit(codes, absmax, self.table, self.block, shape, dtype)

    def empty(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        count = shape[0] * shape[1]
        blocks = -(-count // self.block)
        tensors = {"codes": torch.empty(-(-count // 2), dtype=torch.uint8)}
        if not self.double:
            return tensors | {"absmax": torch.empty(blocks)}
        nested = {"nested_absmax": torch.empty(-(-blocks // NESTED_BLOCK)), "offset": torch.empty(())}
        return tensors | {"absmax": torch.empty(blocks, dtype=torch.uint8)} | nested


@dataclass(frozen=True)
class NF4(FourBit):
    """4-bit NormalFloat: the codes stand for quantiles of the normal distribution, as weights are distributed."""

    name: ClassVar[str] = "nf4"

    @property
    def table(self) -> Tensor:
        return nf4()


@dataclass(frozen=True)
class FP4(FourBit):
    """4-bit floats: a sign, two bits of exponent, one of fraction."""

    name: ClassVar[str] = "fp4"

    @property
    def table(self) -> Tensor:
        return fp4()


@dataclass(frozen=True)
class Int8(Scheme):
    """Codes of 8 bits, a scale for each row. Weights alone: activations stay as they are, so no outliers are lost."""

    name: ClassVar[str] = "int8"

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """`codes` (out, in) int8 and `absmax` (out,), the largest magnitude of each row, in float32."""
        absmax = weight.abs().amax(1).float()
        if not absmax.isfinite().all():
            raise DeltatuneError("some values are infinite or NaN, which no code stands for")
        largest = torch.finfo(torch.float32).max / 127
        if not (absmax <= largest).all():
            raise DeltatuneError(f"values of up to {float(absmax.max()):.3g} pass what 8 bits can hold, {largest:.3g}")
        codes = torch.round(weight * (127.0 / absmax.clamp(min=1e-36)[:, None]))  # 127 / 1e-37 is infinite
        return {"codes": codes.to(torch.int8), "absmax": absmax}

    def dequantize(self, tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        codes, absmax = tensors["codes"], tensors["absmax"]
        if codes.is_meta:
            return codes.new_empty(shape, dtype=dtype)
        return dequantize_rows(codes, absmax, INT8_STEP, dtype)

    def empty(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        return {"codes": torch.empty(shape, dtype=torch.int8), "absmax": torch.empty(shape[0])}


SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (NF4, FP4, Int8)}
"""The schemes by name."""


def read_scheme(text: str | Scheme | None) -> Scheme | None:
    """The scheme that a text names: `nf4`, `fp4`, `int8`, with fields `NF4(double=False, block=128)`; `none` is None.

    Raises DeltatuneError for other names and fields.
    """
    if text is None or isinstance(text, Scheme):
        return text
    name, _, rest = text.strip().partition("(")
    if name.strip().lower() in ("none", ""):
        return None
    kind = SCHEMES.get(name.strip().lower())
    if kind is None or (rest and not rest.rstrip().endswith(")")):
        raise DeltatuneError(
            f"{text!r} is not a quantisation{nearest(name.strip().lower(), SCHEMES)}; the choices are none, "
            + ", ".join(SCHEMES)
            + ", and fields in brackets: NF4(double=False)"
        )
    given = [part.partition("=") for part in rest.strip()[:-1].split(",") if part.strip()] if rest else []
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type] # every scheme is a dataclass
    raise_all([
        f"{text!r}: {kind.__name__} has no field {key.strip()!r}{nearest(key.strip(), known)}; "
        f"fields: {', '.join(known) or 'none'}"
        for key, _, _ in given
        if key.strip() not in known
    ])  # fmt: skip
    names = [key.strip() for key, _, _ in given]
    raise_all([f"{text!r} gives {name} more than once" for name in dict.fromkeys(names) if names.count(name) > 1])
    return kind(**{key.strip(): _value(value.strip()) for key, _, value in given})


def scheme_text(text: str | Scheme | None) -> str | None:
    """The one text of the scheme that a text names, `nf4` for `NF4()`; None for `none`. Errors as `read_scheme`'s."""
    scheme = read_scheme(text)
    return None if scheme is None else scheme.text


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("-").isdecimal() else text.strip("'\"")
