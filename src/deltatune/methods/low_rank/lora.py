"""LoRA: a low-rank update beside a frozen matrix. LoRAs whose sites read the same `x` share one product with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.capabilities import Capabilities, Needs, TrainingHints
from deltatune.core.delta import Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, check_dropout, short_form
from deltatune.core.sites.convolutions import Kernel, as_tokens
from deltatune.core.sites.site import Kind, Site, Sites
from deltatune.methods.low_rank.low_rank_bank import LowRankBank, LowRankTableBank
from deltatune.methods.low_rank.shared_input import SharedInput, SharedInputs, few_tokens
from deltatune.methods.low_rank.site_ranks import check_ranks, rank_at, ranked_sites, scaled_ranks

Init = Literal["kaiming", "gaussian"]
"""How A is drawn."""


class LowRank(Delta):
    """`Δ = s · B A dropout(x)`, A (r, in), B (out, r)."""

    capabilities = Capabilities(merges=True)
    bank_form = LowRankBank

    def __init__(
        self, width_in: int, width_out: int, r: int, scale: float, dropout: float = 0.0, init: Init = "kaiming"
    ) -> None:
        super().__init__()
        self.init = init
        self.A = nn.Parameter(torch.empty(r, width_in))
        self.B = nn.Parameter(torch.empty(width_out, r))
        self.scale = scale
        self.dropout = dropout
        self.input = SharedInput()

    def init_(self, rng: Rng, base: nn.Module) -> None:
        # The paper says Gaussian; its code and PEFT draw U(±1/√in). B = 0 makes the start the base itself.
        if self.init == "gaussian":
            nn.init.normal_(self.A, std=1 / len(self.A), generator=rng("A"))
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=rng("A"))
        nn.init.zeros_(self.B)

    def down(self) -> Tensor:
        """The down projection (r, in)."""
        return self.A

    def up(self) -> Tensor:
        """The up projection (out, r)."""
        return self.B

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        A, B = self.down(), self.up()
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        if few_tokens(x, A):
            return F.linear(F.linear(x.to(A.dtype), A), B).mul(self.scale).to(h.dtype)
        low = F.linear(x, A.to(x.dtype))  # (..., r)
        return F.linear(low, B.to(x.dtype)).mul(self.scale).to(h.dtype)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if isinstance(weight, Tensor) or torch.is_autocast_enabled(x.device.type):
            return super().add(h, x, weight)
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        if few_tokens(x, self.A):
            change = F.linear(F.linear(x.to(self.A.dtype), self.down()), self.up())
            return torch.add(h, change, alpha=weight * self.scale).to(h.dtype)
        low = self.input.product(self, x)  # (N, r)
        flat = torch.addmm(h.flatten(0, -2).to(x.dtype), low, self.up().to(x.dtype).T, alpha=weight * self.scale)
        return flat.view_as(h).to(h.dtype)

    def low_rank_factors(self) -> tuple[Tensor, Tensor, float]:
        return self.down().detach(), self.up().detach(), self.scale

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = self.scale * (self.B.double() @ self.A.double())
        return {"weight": (weight.double() + change).to(weight.dtype)}


class LowRankConvolution(LowRank):
    """`Δ = s · B (A ∗ dropout(x))`: A (r, in·kh·kw) are r filters of the base's kernel, B (out, r) acts on each pixel.

    That is the low-rank map of each patch; computed as two convolutions, no patches are made.
    """

    needs = Needs(image=True)

    def __init__(self, kernel: Kernel, width_in: int, width_out: int, r: int, scale: float, dropout: float, init: Init):
        super().__init__(width_in, width_out, r, scale, dropout, init)
        self.kernel = kernel

    def change(self, x: Tensor, factor: float) -> Tensor:
        """`factor · B (A ∗ x)` of an image x (B, in, H, W), as tokens (B, H'·W', out)."""
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        low = self.kernel.filtered(x, self.down().to(x.dtype))  # (B, r, H', W')
        up = (factor * self.up()).to(x.dtype)[:, :, None, None]
        return as_tokens(F.conv2d(low, up))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.change(x, self.scale).to(h.dtype)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        if isinstance(weight, Tensor):
            return h + weight * self.change(x, self.scale).to(h.dtype)
        return h + self.change(x, weight * self.scale).to(h.dtype)


class LowRankTable(Delta):
    """`Δ = s · B A[:, i]` for token i, A (r, V), B (D, r): an embedding's ΔW is (B A)ᵀ. Virtual ids get nothing.

    As in the paper's code and PEFT, here A is zero at first and B drawn from N(0, 1), and there is no dropout.
    """

    capabilities = Capabilities(merges=True)
    bank_form = LowRankTableBank

    def __init__(self, vocabulary: int, width: int, r: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(r, vocabulary))
        self.B = nn.Parameter(torch.empty(width, r))
        self.scale = scale
        self.embed_scale = 1.0
        """Factor by which some embeddings multiply their vectors (Gemma, BART), merged ones included."""

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.zeros_(self.A)
        nn.init.normal_(self.B, generator=rng("B"))
        self.embed_scale = float(getattr(base, "embed_scale", 1.0))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        vocabulary = self.A.shape[1]
        low = F.embedding(x.clamp(max=vocabulary - 1), self.A.T)  # (B, T, r)
        low = low.masked_fill((x >= vocabulary).unsqueeze(-1), 0)
        return F.linear(low, self.B).mul(self.scale * self.embed_scale).to(h.dtype)

    def low_rank_factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A.detach(), self.B.detach(), self.scale

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = base["weight"]
        change = self.scale * (self.B.double() @ self.A.double())
        return {"weight": (weight.double() + change.T).to(weight.dtype)}


@dataclass(frozen=True)
class LoRA(Method):
    """h ← h + (α/r)·B A x

    Hu et al. 2021, https://arxiv.org/abs/2106.09685
    """

    r: int = 8
    """Rank."""
    alpha: float = 16.0
    """The update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on the branch's input only; the base path never sees it."""
    sites: str | tuple[str, ...] = "*.attn.{q,v}"
    """Which matrices; any linear map, convolution or embedding: `*.attn.{q,k,v,o}`, `*.ffn.{in,out}`, `embed`."""
    ranks: tuple[tuple[str, int], ...] = ()
    """Other ranks for some of the sites, `(("*.ffn.*", 4),)`: the first glob that matches counts. Alpha is the same."""
    scaling: Literal["rank", "r"] = "rank"
    """By what alpha is divided where `ranks` differ: each site's own rank, or r at all sites, as in EVA."""
    ratio: float = 1.0
    """Factor on the learning rate of B: LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354."""
    init: Init = "kaiming"
    """How A is drawn: `kaiming`, U(±1/√in) as in the paper's code; `gaussian`, N(0, 1/r²) as the paper says, with the
    spread that PEFT's `init_lora_weights="gaussian"` has. B is zero. Of an embedding A is zero and B from N(0, 1)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("linear", "embed")
    """Kinds of sites it can act at."""
    size_field: ClassVar[str | None] = "r"
    view: ClassVar[View] = View("B A x", "parallel", "output of each chosen matrix", "scaled")

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """Recommended rate of A; with a ratio, the rates of A and B lie evenly around the usual one."""
        return 2e-3 / math.sqrt(self.ratio)

    def check(self) -> None:
        at_least(self, r=1)
        check_dropout(self)
        if not self.ratio > 0:
            raise DeltatuneError(f"{type(self).__name__}(ratio={self.ratio!r}): ratio must be above 0")
        check_ranks(self)

    def pick(self, sites: Sites) -> list[Site]:
        return ranked_sites(self, sites, self.kinds)

    def rank(self, site: Site) -> int:
        """Rank at one site."""
        return rank_at(self, site)

    def scale(self, r: int) -> float:
        """Factor on the update of rank r."""
        return self.alpha / (r if self.scaling == "rank" else self.r)

    def build(self, site: Site) -> Delta:
        r = self.rank(site)
        widths, scale = (site.width_in, site.width_out), self.scale(r)
        if site.kind == "embed":
            return self.with_rates(LowRankTable(*widths, r, scale))
        if site.kernel is not None:
            return self.with_rates(LowRankConvolution(site.kernel, *widths, r, scale, self.dropout, self.init))
        return self.with_rates(LowRank(*widths, r, scale, self.dropout, self.init))

    def with_rates(self, delta: Delta) -> Delta:
        """The same Delta, with B at its own rate."""
        if self.ratio != 1:
            delta.hints = TrainingHints(rates={"B": self.ratio})
        return delta

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        return None if self.dropout else SharedInputs()  # with dropout, the branches' inputs differ

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(shared, SharedInputs)
        if isinstance(delta, LowRank):
            delta.input = shared.join(delta, site)

    def cost(self, site: Site) -> int:
        return self.rank(site) * (site.width_in + site.width_out)

    def limit(self, sites: Sites) -> int:
        # A larger rank adds nothing: at every site it would exceed the smaller width.
        return max(
            math.ceil(min(site.width_in, site.width_out) * self.r / self.rank(site)) for site in self.pick(sites)
        )

    def sized(self, size: int) -> Method:
        """The same with r = size; the ranks of single sites keep their proportion to r, each at least 1."""
        return dataclasses.replace(self, r=size, ranks=scaled_ranks(self, size))


@short_form
def LoRAPlus(
    r: int = 8,
    ratio: float = 16.0,
    alpha: float = 16.0,
    sites: str | tuple[str, ...] = "*.attn.{q,v}",
    init: Init = "kaiming",
) -> Method:
    """LoRA with `ratio` times the learning rate for B (Hayou et al. 2024)."""
    return LoRA(r=r, alpha=alpha, sites=sites, ratio=ratio, init=init)


@dataclass(frozen=True)
class RsLoRA(LoRA):
    """h ← h + (α/√r)·B A x

    Kalajdzievski 2023, https://arxiv.org/abs/2312.03732. With α/r the update shrinks as r grows; with α/√r the
    update and its gradients keep their size.
    """

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """Below LoRA's: at the default r and alpha the factor on the update is √8 times as large."""
        return 1e-3 / math.sqrt(self.ratio)

    def scale(self, r: int) -> float:
        """Factor on the update of rank r."""
        return self.alpha / math.sqrt(r if self.scaling == "rank" else self.r)
