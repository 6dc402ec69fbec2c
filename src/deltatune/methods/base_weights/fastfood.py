"""Fastfood: a dense random projection that is never materialised, made of two Hadamard transforms."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.delta import Rng

FACTOR = 6
"""H is applied as Kronecker factors of up to 2^6 rows: 32 to 128 were equally fast, 16 and 256 slower by half."""


class Fastfood(nn.Module):
    """P(v) = crop(H G Π H B pad(v)) / (√(LL ΣG²) √(D/LL))     Le et al. 2013, https://arxiv.org/abs/1408.3060

    From d numbers to D, linear, dense, and E‖P(v)‖² = ‖v‖² whatever D is. B: random signs, Π: a random permutation,
    G: N(0, 1), H: the Walsh-Hadamard matrix of size LL, a power of two. With LL below d, v is cropped to LL numbers.
    """

    B: Tensor
    G: Tensor
    index: Tensor

    def __init__(self, d: int, D: int, LL: int) -> None:
        super().__init__()
        self.d, self.D, self.LL = min(d, LL), D, LL
        self.narrow = 2 ** math.ceil(math.log2(self.d))
        """Of pad(v) only the first d numbers are not 0, so H B pad(v) repeats a vector of this length."""
        self.register_buffer("B", torch.empty(self.d), persistent=False)
        self.register_buffer("G", torch.empty(LL), persistent=False)
        # Π into the repeated vector: 32 bits are enough, and half the memory
        self.register_buffer("index", torch.empty(LL, dtype=torch.int32), persistent=False)
        self.scale = 1.0
        self.check = 0.0
        """A checksum of the random numbers."""

    @torch.no_grad()
    def draw_(self, rng: Rng) -> None:
        """Draw B, Π and G; they need not be stored, as the generators draw the same again."""
        signs = torch.randint(0, 2, (self.d,), generator=rng("B"))
        permuted = torch.randperm(self.LL, generator=rng("Π"), dtype=torch.int32)
        drawn = torch.randn(self.LL, generator=rng("G"))
        self.B.copy_(2 * signs - 1)
        self.index.copy_(permuted.remainder_(self.narrow))
        self.G.copy_(drawn)
        squares = float(torch.linalg.vector_norm(drawn, dtype=torch.float64)) ** 2  # ΣG²
        self.scale = 1 / (math.sqrt(self.LL * squares) * math.sqrt(self.D / self.LL))
        some = slice(0, 64)
        mixed = drawn[some].double() * (1 + permuted[some].double() / self.narrow)
        self.check = float(mixed.sum()) + float(signs[some].double().mean())

    def forward(self, v: Tensor) -> Tensor:
        """(d,) to (D,)."""
        if torch.compiler.is_compiling():  # the compiler differentiates it itself, and cannot trace _Map
            return self.project(v)
        projected: Tensor = _Map.apply(v, self, False)  # type: ignore[no-untyped-call]
        return projected

    def project(self, v: Tensor) -> Tensor:
        """P v (D,), without a graph."""
        narrow = hadamard(F.pad(self.B * v[: self.d], (0, self.narrow - self.d)))
        z = narrow.index_select(0, self.index).mul_(self.G)  # (LL,)
        first, _, rows = self._shape()
        return hadamard(z, columns=rows, first=first)[: self.D].mul_(self.scale)

    def transposed(self, g: Tensor, length: int) -> Tensor:
        """Pᵀ g (length,) for an input of `length` numbers; those that were cropped get 0."""
        first, block, rows = self._shape()
        padded = F.pad(g, (0, rows * block - self.D))
        z = hadamard(padded, rows=rows, first=first).mul_(self.G)  # (LL,)
        narrow = torch.zeros(self.narrow, dtype=g.dtype, device=g.device).index_add_(0, self.index, z)
        v = hadamard(narrow)[: self.d] * self.B
        return F.pad(v * self.scale, (0, length - self.d))

    def _shape(self) -> tuple[int, int, int]:
        """Rows of the first Kronecker factor, numbers in a block of it, and how many blocks D numbers fill."""
        first = factors(self.LL)[0]
        block = self.LL // first
        return first, block, -(-self.D // block)


class _Map(torch.autograd.Function):
    """P or its transpose: linear, so each is the other's derivative, to every order, and saves no tensors."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, fastfood: Fastfood, transposed: bool, length: int = 0) -> Tensor:
        ctx.fastfood, ctx.transposed, ctx.length = fastfood, transposed, len(v)
        with torch.autocast(v.device.type, enabled=False):  # in half precision the sums of H would not be exact
            return fastfood.transposed(v, length) if transposed else fastfood.project(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        back: Tensor = _Map.apply(  # type: ignore[no-untyped-call]
            grads[0].contiguous(), ctx.fastfood, not ctx.transposed, ctx.length
        )
        return back, None, None, None


def hadamard(x: Tensor, *, columns: int | None = None, rows: int | None = None, first: int | None = None) -> Tensor:
    """H x for the unnormalised Walsh-Hadamard matrix, by Kronecker factors; the size is a power of two.

    Of the first factor, of `first` rows, only `columns` are computed (the rest of the result is not needed), or only
    `rows` are given (the rest of x is 0). Each product moves its axis to the end, so that after all of them the order
    is restored.
    """
    size = x.numel() // rows * first if rows and first else x.numel()
    matrix = sylvester if torch.compiler.is_compiling() else _cached
    for i, factor in enumerate(factors(size)):
        H = matrix(factor, x.dtype, x.device)
        if i == 0:
            H = H[:rows, :columns]
        x = x.reshape(len(H), -1).T @ H
    return x.reshape(-1)


def factors(size: int) -> tuple[int, ...]:
    """Powers of two of nearly the same size, at most 2^FACTOR, whose product is `size`."""
    bits = size.bit_length() - 1
    count = max(1, math.ceil(bits / FACTOR))
    return tuple(2 ** (bits // count + (i < bits % count)) for i in range(count))


def sylvester(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H of a small size, as a matrix."""
    with torch.inference_mode(False):
        H = torch.ones(1, 1, dtype=dtype, device=device)
        while len(H) < size:
            H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


_cached = cache(sylvester)
