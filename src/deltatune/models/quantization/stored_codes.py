"""Quantised weights in a model's files: several tensors under bitsandbytes' names make one weight.

Of `x.weight` in 4 bits: `x.weight` (the codes), `x.weight.absmax`, `x.weight.quant_map`, with double quantisation
`x.weight.nested_absmax` and `x.weight.nested_quant_map`, and `x.weight.quant_state.bitsandbytes__nf4`, a JSON text in
bytes. Of one in 8 bits: `x.weight` and `x.SCB`. What the tables and the text say is checked against what is known.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.strict_json import loads
from deltatune.core.quantization.schemes import BLOCKS, FP4, NESTED_BLOCK, NF4, FourBit, Int8, Scheme
from deltatune.models.quantization.weight_files import FileTensor, file_tensors

FACTS = ".quant_state.bitsandbytes__"
"""Between a weight's name and its type of 4 bits, in the name of the text that says how it is stored."""
MAX_FACTS = 4096
"""Bytes of that text; bitsandbytes writes about 150."""
WEIGHT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KINDS: dict[str, type[FourBit]] = {"nf4": NF4, "fp4": FP4}


@dataclass(frozen=True)
class StoredCodes:
    """One quantised weight in a model's files; transformers carries it to its module like a tensor."""

    name: str
    """The weight's name in the files."""
    scheme: Scheme
    shape: tuple[int, int]
    """(out, in)."""
    dtype: torch.dtype
    """The type that the weight had before."""
    parts: Mapping[str, FileTensor]
    """The tensors by the scheme's names; read when they are needed."""
    offset: float | None = None
    """With double quantisation, the mean of the magnitudes."""

    def __getitem__(self, index: EllipsisType) -> StoredCodes:
        return self

    def to(self, *_: Any, **__: Any) -> StoredCodes:
        """Itself: codes have no other type, and are moved when they are read."""
        return self

    def get_dtype(self) -> str:
        """The type of the stored codes, as safetensors' slices tell it."""
        return self.parts["codes"].kind

    def read(self) -> dict[str, Tensor]:
        """The scheme's tensors, from the disk."""
        tensors = {name: part[...] for name, part in self.parts.items()}
        if isinstance(self.scheme, FourBit):
            tensors["codes"] = tensors["codes"].reshape(-1).view(torch.uint8)  # they may be stored in a wider type
        if self.offset is not None:
            tensors["offset"] = torch.tensor(self.offset)
        return tensors


def gather_codes(tensors: Mapping[str, FileTensor]) -> tuple[dict[str, FileTensor], dict[str, StoredCodes]]:
    """The plain tensors of a model's files, and its quantised weights. Raises DeltatuneError listing every problem."""
    plain, codes, problems = dict(tensors), dict[str, StoredCodes](), list[str]()
    for name in tensors:
        try:
            if FACTS in name:
                weight = name.partition(FACTS)[0]
                if weight in codes:
                    raise DeltatuneError(f"{weight} has two texts that say how it is stored")
                codes[weight] = _four_bit(weight, name, tensors)
            elif name.endswith(".SCB"):
                weight = f"{name.removesuffix('.SCB')}.weight"
                codes[weight] = _eight_bit(weight, name, tensors)
        except DeltatuneError as error:
            problems.append(str(error))
    raise_all(problems[:12])
    for weight in codes:
        beside = f"{weight.removesuffix('weight')}weight_format"
        for name in [name for name in plain if name in (weight, beside) or name.startswith(f"{weight}.")]:
            del plain[name]
        plain.pop(f"{weight.removesuffix('.weight')}.SCB", None)
    lost = [name for name in plain if name.endswith((".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"))]
    raise_all([f"{name} belongs to no quantised weight: {name.partition('.weight.')[0]}.weight{FACTS}nf4 is missing"
               for name in lost[:12]])  # fmt: skip
    return plain, codes


def holds_codes(place: str) -> bool:
    """Whether the files in a folder hold quantised weights, whatever its config says; False for a name on the hub."""
    try:
        return Path(place).is_dir() and any(FACTS in name or name.endswith(".SCB") for name in file_tensors(place))
    except (DeltatuneError, OSError, SafetensorError):  # whoever loads the weights says what is wrong with the files
        return False


def schemes_in_files(place: str, paths: Collection[str]) -> dict[str, Scheme]:
    """The scheme of each of these linear maps whose weight a folder's files hold in codes.

    The paths are a model's; the files may have a prefix more or less, as those of a model with another head.
    """
    _, codes = gather_codes(file_tensors(place))
    schemes = {weight.removesuffix(".weight"): stored.scheme for weight, stored in codes.items()}
    ends = {path: [name for name in schemes if f".{name}".endswith(f".{path}") or f".{path}".endswith(f".{name}")]
            for path in paths}  # fmt: skip
    return {path: schemes[max(names, key=len)] for path, names in ends.items() if names}


def _four_bit(weight: str, text: str, tensors: Mapping[str, FileTensor]) -> StoredCodes:
    facts, kind = _facts(tensors[text]), text.partition(FACTS)[2]
    double = "nested_blocksize" in facts or f"{weight}.nested_absmax" in tensors
    names = {"codes": weight, "absmax": f"{weight}.absmax"}
    tables = {"quant_map": f"{weight}.quant_map"}
    if double:
        names["nested_absmax"] = f"{weight}.nested_absmax"
        tables["nested_quant_map"] = f"{weight}.nested_quant_map"
    missing = [name for name in [*names.values(), *tables.values()] if name not in tensors]
    raise_all([f"{name} is missing, which {weight} needs" for name in missing])
    shape, block, dtype, offset = _read_facts(weight, facts, kind, double)
    scheme = KINDS[kind](double=double, block=block)
    _check_table(tensors[tables["quant_map"]], scheme.table, kind)
    if double:
        scheme = KINDS[kind](True, block, _nested(tensors[tables["nested_quant_map"]]))
    parts = {name: tensors[key] for name, key in names.items()}
    _check_parts(weight, parts, scheme, shape)
    return StoredCodes(weight, scheme, shape, dtype, parts, offset)


def _eight_bit(weight: str, scales: str, tensors: Mapping[str, FileTensor]) -> StoredCodes:
    if weight not in tensors:
        raise DeltatuneError(f"{weight} is missing, to which {scales} belongs")
    parts = {"codes": tensors[weight], "absmax": tensors[scales]}
    layout = tensors.get(f"{weight.removesuffix('weight')}weight_format")
    if layout is not None and math.prod(layout.shape) == 1 and int(layout[...].item()) != 0:
        raise DeltatuneError(f"{weight} is stored column by column for older GPUs, not row by row; save it again")
    shape = parts["codes"].shape
    if len(shape) != 2:
        raise DeltatuneError(f"{weight} has the shape {shape}, not (out, in)")
    _check_parts(weight, parts, Int8(), (shape[0], shape[1]))
    return StoredCodes(weight, Int8(), (shape[0], shape[1]), torch.float32, parts)


def _facts(text: FileTensor) -> dict[str, Any]:
    if text.dtype is not torch.uint8 or len(text.shape) != 1 or not 0 < text.shape[0] <= MAX_FACTS:
        raise DeltatuneError(f"{text.key} is no JSON text in bytes: it has the type {text.kind}, shape {text.shape}")
    facts = loads(bytes(text[...].tolist()), text.key)
    if not isinstance(facts, dict):
        raise DeltatuneError(f"{text.key} holds no JSON object")
    return facts


def _read_facts(
    weight: str, facts: Mapping[str, Any], kind: str, double: bool
) -> tuple[tuple[int, int], int, torch.dtype, float | None]:
    """(shape, block, dtype, offset) from the text of a weight; one error for all that is wrong in it."""
    shape, block, dtype, offset = (facts.get(name) for name in ("shape", "blocksize", "dtype", "nested_offset"))
    problems = []
    if kind not in KINDS or facts.get("quant_type") != kind:
        problems.append(f"its type is {facts.get('quant_type')!r} under the name {kind!r}; known: {', '.join(KINDS)}")
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) != 2 or not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
        problems.append(f"its shape is {shape!r}, not [out, in]")
    if type(block) is not int or block not in BLOCKS:
        problems.append(f"its blocksize is {block!r}; known: {', '.join(map(str, BLOCKS))}")
    if not isinstance(dtype, str) or dtype not in WEIGHT_DTYPES:
        problems.append(f"its dtype is {dtype!r}; known: {', '.join(WEIGHT_DTYPES)}")
    if double:
        nested = (facts.get("nested_blocksize"), facts.get("nested_dtype"))
        if nested != (NESTED_BLOCK, "float32"):
            problems.append(f"its magnitudes have the blocksize and dtype {nested}, not ({NESTED_BLOCK}, 'float32')")
        if type(offset) not in (int, float) or not math.isfinite(offset):  # type: ignore[arg-type]
            problems.append(f"its nested_offset is {offset!r}, not a number")
    raise_all([f"{weight}: {problem}" for problem in problems])
    mean = float(offset) if double else None  # type: ignore[arg-type]
    return (sizes[0], sizes[1]), block, WEIGHT_DTYPES[dtype], mean  # type: ignore[return-value, index]


def _check_parts(weight: str, parts: Mapping[str, FileTensor], scheme: Scheme, shape: tuple[int, int]) -> None:
    with torch.device("meta"):
        expected = scheme.empty(shape)
    problems = []
    for name, part in parts.items():
        width = 1 if part.dtype is None else part.dtype.itemsize
        packed = name == "codes" and isinstance(scheme, FourBit)
        count = math.prod(part.shape) * (width if packed else 1)
        if count != expected[name].numel():
            problems.append(
                f"{part.key} has {count:,} entries; {scheme!r} of shape {shape} needs {expected[name].numel():,}"
            )
        if part.dtype is None or (not packed and part.dtype is not expected[name].dtype):
            kind = str(expected[name].dtype).removeprefix("torch.")
            problems.append(f"{part.key} has the type {part.kind}, not {kind}")
    raise_all(problems)


def _nested(table: FileTensor) -> Any:
    """Which of the tables for magnitudes this is."""
    values = _values(table, 256)
    for nested in ("dynamic", "fp8"):
        if torch.equal(values, NF4(nested=nested).nested_table):
            return nested
    raise DeltatuneError(f"{table.key} is neither bitsandbytes' dynamic map nor that of 8-bit floats")


def _check_table(table: FileTensor, expected: Tensor, kind: str) -> None:
    if not torch.equal(_values(table, 16), expected):
        raise DeltatuneError(f"{table.key} does not hold the 16 values of {kind}")


def _values(table: FileTensor, count: int) -> Tensor:
    if table.shape != (count,) or table.dtype is not torch.float32:
        raise DeltatuneError(f"{table.key} has the type {table.kind} and shape {table.shape}, not F32 ({count},)")
    return table[...]
