"""FourierFT: a matrix's update is the inverse Fourier transform of a few trained coefficients."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites


class Frequencies(SharedModule):
    """Which coefficients are trained: places in a matrix (out, in), the same ones at all sites of one shape."""

    def __init__(self, sizes: Mapping[str, tuple[int, int]], seed: int) -> None:
        super().__init__()
        self.sizes, self.seed = dict(sizes), seed
        for name, (_, number) in sizes.items():
            self.register_buffer(name, torch.empty(number, dtype=torch.int64))

    def init_(self, rng: Rng) -> None:
        for name, (elements, number) in self.sizes.items():
            # The order of PEFT, so that its folders, which keep the seed alone, mean the same places.
            places = torch.randperm(elements, generator=torch.Generator().manual_seed(self.seed))[:number]
            self.get_buffer(name).copy_(places)


class SpectrumBank(BankDelta):
    """The stack α·c (S, n); the places are kept once for all sites of one shape, and are the same for all adapters."""

    reads_shared = True

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.width_in, self.width_out = delta.width_in, delta.width_out
        self.add_stack("c", len(delta.c))
        self.first: list[SpectrumBank] = []
        """The one that has the places; in a list, so that no module owns another."""

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return delta.width_in, delta.width_out, len(delta.c)

    @staticmethod
    def connect_(members: Sequence[tuple[Site, BankDelta]]) -> None:
        firsts: dict[str, SpectrumBank] = {}
        for _, delta in members:
            assert isinstance(delta, SpectrumBank)
            delta.first = [firsts.setdefault(shape_name(delta.width_out, delta.width_in), delta)]

    def own(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The places of an adapter."""
        return tensors[f"shared.{shape_name(self.width_out, self.width_in)}"].to(self.get_buffer("c").device)

    def takes(self, tensors: Mapping[str, Tensor]) -> bool:
        return self.first[0] is not self or torch.equal(self.get_buffer("places"), self.own(tensors))

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        if self.first[0] is self and not hasattr(self, "places"):
            self.register_buffer("places", self.own(tensors).clone(), persistent=False)
        self.write_stack_("c", slot, delta.alpha * tensors["c"].to(torch.float32))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            c = self.of_rows("c").float().unsqueeze(1)  # (B or 1, 1, n)
            rows = x.reshape(len(c), -1, self.width_in).float()
            return transformed(rows, c, self.first[0].get_buffer("places"), self.width_out).view_as(h).to(h.dtype)


def transformed(x: Tensor, c: Tensor, places: Tensor, width_out: int) -> Tensor:
    """Re(IDFT₂(F)) x (..., out) of vectors x (..., in), F with the coefficients c at these places."""
    width_in = x.shape[-1]
    rows, columns = places // width_in, places % width_in
    inner = torch.fft.ifft(x)[..., columns] * c  # (..., n)
    spectrum = inner.new_zeros(*x.shape[:-1], width_out).index_add(-1, rows, inner)
    change: Tensor = torch.fft.ifft(spectrum).real
    return change


class Spectrum(Delta):
    """`Δ = α·Re(IDFT₂(F)) x`, F (out, in) with the n coefficients c at its frequencies and zeros elsewhere.

    Applied to vectors it is IDFT(F IDFT(x)), which touches n elements: so for few tokens; for more of them the matrix
    is made from the vectors of the identity. In float32 at least, as no transform of bfloat16 exists.
    """

    capabilities = Capabilities(merges=True)
    bank_form = SpectrumBank

    def __init__(self, width_in: int, width_out: int, number: int, alpha: float, init: Literal["zero", "normal"]):
        super().__init__()
        self.c = nn.Parameter(torch.empty(number))
        self.width_in, self.width_out = width_in, width_out
        self.alpha, self.init = alpha, init
        self.frequencies: list[Frequencies] = []
        """The places of all sites; in a list, so that they are saved once."""

    def init_(self, rng: Rng, base: nn.Module) -> None:
        if self.init == "zero":
            nn.init.zeros_(self.c)
        else:
            nn.init.normal_(self.c, generator=rng("c"))

    def transformed(self, x: Tensor, c: Tensor) -> Tensor:
        """Re(IDFT₂(F)) x (..., out) of vectors x (..., in)."""
        places = self.frequencies[0].get_buffer(shape_name(self.width_out, self.width_in))
        return transformed(x, c, places, self.width_out)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(self.c.dtype, torch.float32)
            c = self.c.to(wide) * self.alpha
            if x.numel() < self.width_in * self.width_in:
                return self.transformed(x.to(wide), c).to(h.dtype)
            eye = torch.eye(self.width_in, dtype=wide, device=x.device)
            matrix = self.transformed(eye, c)  # (in, out)
        return F.linear(x, matrix.T.to(x.dtype)).to(h.dtype)

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        eye = torch.eye(self.width_in, dtype=torch.float64, device=weight.device)
        change = self.alpha * self.transformed(eye, self.c.double()).T
        return {"weight": (weight.double() + change).to(weight.dtype)}


def shape_name(width_out: int, width_in: int) -> str:
    """The name of the places in matrices of one shape."""
    return f"{width_out}x{width_in}"


@dataclass(frozen=True)
class FourierFT(Method):
    """h ← h + α·Re(IDFT₂(F)) x, F zero but for n trained coefficients at random places

    Gao et al. 2024, https://arxiv.org/abs/2405.03003. Starts as the base; the paper draws the coefficients from
    N(0, 1), which with its α is a visible change of the base (`init="normal"`).
    """

    n: int = 1000
    """Number of coefficients of each matrix, at most all."""
    alpha: float = 100.0
    """Factor on the update: in the paper 100 or 150 for RoBERTa, 300 for LLaMA and ViT; 150 in PEFT."""
    init: Literal["zero", "normal"] = "zero"
    """Initial coefficients: zero, or from N(0, 1) as in the paper."""
    seed: int = 777
    """Seed of the places, the same for all matrices of one shape; independent of the adapter's seed, as in PEFT."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map."""

    size_field: ClassVar[str | None] = "n"
    learning_rate: ClassVar[float] = 1e-1
    view: ClassVar[View] = View("Re(IDFT₂(F)) x", "parallel", "output of each chosen matrix", "scaled")

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether the coefficients are zero at first."""
        return self.init == "zero"

    def check(self) -> None:
        at_least(self, n=1, seed=0)
        if self.seed >= 2**63:
            raise DeltatuneError(f"FourierFT(seed={self.seed}): seed must be below 2**63")

    def pick(self, sites: Sites) -> list[Site]:
        return sites.match(self.sites, kinds=("linear",))

    def build(self, site: Site) -> Delta:
        return Spectrum(site.width_in, site.width_out, self.cost(site), self.alpha, self.init)

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        sizes = {
            shape_name(site.width_out, site.width_in): (site.width_out * site.width_in, self.cost(site))
            for site in picked
        }
        return Frequencies(sizes, self.seed)

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, Spectrum)
        assert isinstance(shared, Frequencies)
        delta.frequencies = [shared]

    def cost(self, site: Site) -> int:
        return min(self.n, site.width_in * site.width_out)

    def limit(self, sites: Sites) -> int:
        return max(site.width_in * site.width_out for site in self.pick(sites))
