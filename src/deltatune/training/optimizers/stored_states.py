"""The states of an optimizer in a checkpoint: written, checked and read a piece at a time, for every optimizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltatune.store.tensors import Streamed, opened_tensors, write_pieces
from deltatune.training.optimizers.bitsandbytes_paged import bitsandbytes_tensors, is_bitsandbytes, load_bitsandbytes_
from deltatune.training.optimizers.chunked_adamw import FIRST, SECOND, ChunkedAdamW, values_by_name
from deltatune.training.optimizers.moment_places import Values
from deltatune.training.optimizers.state_bytes import CHUNK

STEP = "step"
"""The number of updates of a tensor, as torch has it: a float32 of no dimensions."""
SIGNED = (FIRST,)
"""What may be below 0."""


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the optimizer's order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def write_states(path: Path, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    """Write moments, scales and step counts as `NAME|exp_avg`; `names` of the parameters in the optimizer's order."""
    tensors: dict[str, Streamed] = {}
    for name, parameter in zip(names, parameters_of(optimizer), strict=True):
        for key, tensor in _streamed(optimizer, parameter).items():
            tensors[f"{name}|{key}"] = tensor
    write_pieces(path, tensors)


def _streamed(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Streamed]:
    if not isinstance(optimizer, ChunkedAdamW):
        kept: Mapping[str, Tensor] = optimizer.state.get(parameter, {})
        tensors = bitsandbytes_tensors(optimizer, parameter) if is_bitsandbytes(optimizer) else kept
        return {key: _whole(tensor) for key, tensor in tensors.items()}
    state = optimizer.states.get(parameter)
    if state is None:
        return {}
    streamed = {STEP: _whole(torch.tensor(float(state.step)))}
    for key, values in state.values.items():
        shape = tuple(parameter.shape) if key in (FIRST, SECOND) else (values.count,)
        streamed[key] = Streamed(values.dtype, shape, partial(_pieces, values))
    return streamed


def _whole(tensor: Tensor) -> Streamed:
    return Streamed(tensor.dtype, tuple(tensor.shape), lambda: [tensor])


def _pieces(values: Values) -> Iterator[Tensor]:
    for start in range(0, values.count, CHUNK):
        yield values.window(start, min(start + CHUNK, values.count))


# --- reading ---


def state_problems(
    path: Path, optimizer: torch.optim.Optimizer, names: Sequence[str], required: Collection[str] = ()
) -> list[str]:
    """What is wrong with a file of `write_states`: of other parameters, types or shapes, incomplete, not finite.

    `required`: names of tensors that every step trains, so that there are states of them.
    """
    parameters = dict(zip(names, parameters_of(optimizer), strict=True))
    stored: dict[str, set[str]] = {name: set() for name in names}
    expected = {name: _expected(optimizer, parameter) for name, parameter in parameters.items()}
    problems = []
    with opened_tensors(path) as file:
        for entry in file.keys():  # noqa: SIM118 (it is no mapping)
            name, _, key = entry.rpartition("|")
            if key not in expected.get(name, {}):
                problems.append(f"tensor {entry} belongs to no tensor that is trained")
                continue
            stored[name].add(key)
            dtype, shape = expected[name][key]
            there = tuple(file.get_slice(entry).get_shape())
            if there != shape:
                problems.append(f"tensor {entry} has shape {there}, not {shape}")
                continue
            problems += _value_problems(entry, key, dtype, _stored_pieces(file, entry))
    return problems + [
        f"tensor {name}|{key} is missing"
        for name, keys in stored.items()
        if keys or name in required
        for key in expected[name]
        if key not in keys
    ]


def _expected(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of what is kept of a parameter, by name."""
    shape = tuple(parameter.shape)
    layout = dict.fromkeys((FIRST, SECOND), (parameter.dtype, parameter.numel()))
    if isinstance(optimizer, ChunkedAdamW):
        layout = values_by_name(parameter, optimizer.eight_bit)
    elif is_bitsandbytes(optimizer):
        layout = values_by_name(parameter.float(), optimizer.args.optim_bits == 8)  # type: ignore[attr-defined]
    expected = {k: (dtype, shape if k in (FIRST, SECOND) else (n,)) for k, (dtype, n) in layout.items()}
    return {**expected, STEP: (torch.float32, ())}


def _value_problems(entry: str, key: str, dtype: torch.dtype, pieces: Iterator[Tensor]) -> list[str]:
    count, wrong, nan, negative = 0, 0, False, False
    for piece in pieces:
        if piece.dtype != dtype:
            return [f"tensor {entry} is of {piece.dtype}, not {dtype}"]
        if not dtype.is_floating_point:
            return []
        count, wrong = count + piece.numel(), wrong + int((~torch.isfinite(piece)).sum())
        nan = nan or bool(piece.isnan().any())
        negative = negative or bool((piece < 0).any())
    problems = []
    if wrong:
        kind = "NaN" if nan else "infinity"
        problems.append(f"tensor {entry} has {wrong:,} of {count:,} values that are not finite: {kind}")
    if negative and key not in SIGNED:
        problems.append(f"tensor {entry} has values below 0")
    return problems


def _stored_pieces(file: Any, entry: str) -> Iterator[Tensor]:
    """The values of a tensor of a file, about CHUNK of them at a time."""
    stored = file.get_slice(entry)
    shape = stored.get_shape()
    if not shape:
        yield file.get_tensor(entry).reshape(-1)
        return
    rows = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield stored[start : start + rows].reshape(-1)


def load_states_(path: Path, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    """Restore what `write_states` wrote; `state_problems` has found nothing wrong with it."""
    parameters, numbers = parameters_of(optimizer), {name: i for i, name in enumerate(names)}
    with opened_tensors(path) as file:
        whole: dict[int, dict[str, Tensor]] = {}
        for entry in file.keys():  # noqa: SIM118
            name, _, key = entry.rpartition("|")
            number = numbers[name]
            if not isinstance(optimizer, ChunkedAdamW):
                whole.setdefault(number, {})[key] = file.get_tensor(entry)
                continue
            state = optimizer.state_of_(parameters[number])
            if key == STEP:
                state.step = int(file.get_tensor(entry))
                continue
            start = 0
            for piece in _stored_pieces(file, entry):
                window = state.values[key].window(start, start + len(piece)).copy_(piece)
                state.values[key].keep(start, window)
                start += len(piece)
    if is_bitsandbytes(optimizer):
        load_bitsandbytes_(optimizer, whole)
    elif not isinstance(optimizer, ChunkedAdamW):
        optimizer.load_state_dict({"state": whole, "param_groups": optimizer.state_dict()["param_groups"]})
