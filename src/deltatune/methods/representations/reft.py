"""ReFT: hidden states changed within a learned subspace, at every token or at the first and last ones of the prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta, bucket
from deltatune.core.capabilities import Needs, TrainingHints
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, short_form
from deltatune.core.sites.site import Site, Sites, require

Form = Literal["loreft", "direft"]


class InterventionBank(BankDelta):
    """Stacks W − R (direft: W) and R (S, r, width), b (S, r), and the numbers of first and last tokens (S,).

    Slots of either form, of any positions, share them; those without positions change all tokens.
    """

    edits: ClassVar[tuple[str, ...]] = ("",)
    """Beginnings of the names of an edit's tensors."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        for edit in self.edits:
            self.add_stack(f"{edit}inner", self.padded_rank(delta), site.width_out)
            self.add_stack(f"{edit}R", self.padded_rank(delta), site.width_out)
            self.add_stack(f"{edit}b", self.padded_rank(delta))
        for name in ("first", "last"):
            self.add_stack(name, dtype=torch.long)

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return cls.padded_rank(delta), delta.needs.padding_mask

    @staticmethod
    def padded_rank(delta: Any) -> int:
        """The rank of a Delta's stacks."""
        return bucket(len(delta.R))

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        part = getattr(delta, "prefix", delta)
        for edit in self.edits:
            R, W = tensors[f"{edit}R".replace("_", ".")], tensors[f"{edit}W".replace("_", ".")]
            if part.form == "loreft":
                R = orthonormal_rows(R.to(torch.promote_types(R.dtype, torch.float32)))
                W = W.to(R) - R
            self.write_stack_(f"{edit}inner", slot, W)
            self.write_stack_(f"{edit}R", slot, R)
            self.write_stack_(f"{edit}b", slot, tensors[f"{edit}b".replace("_", ".")])
        self.write_stack_("first", slot, delta.first)
        self.write_stack_("last", slot, delta.last)

    def edit(self, h: Tensor, name: str = "") -> Tensor:
        """One edit of every token."""
        if (slot := self.rows.only) is not None:
            inner, R, b = (self.get_buffer(f"{name}{each}")[slot] for each in ("inner", "R", "b"))
            return F.linear(h.to(R.dtype), inner, b) @ R
        step = h.shape[1] == 1
        inner, R, b = (self.of_rows(f"{name}{each}", keep=step) for each in ("inner", "R", "b"))
        return torch.bmm(torch.baddbmm(b.unsqueeze(1), h.to(R.dtype), inner.transpose(1, 2)).to(R.dtype), R)

    def chosen(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (B, T) of the first and the last tokens."""
        first, last = (self.of_rows(name).unsqueeze(1) for name in ("first", "last"))
        return chosen(h, self.mask, first, last)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        change = self.edit(h).to(h.dtype)
        if not self.needs.padding_mask:
            return change
        in_front, at_end = self.chosen(h)
        return change * (in_front | at_end).unsqueeze(-1)


class PrefixSuffixBank(InterventionBank):
    """Stacks of two edits: for the first tokens, and for the last ones."""

    edits = ("prefix_", "suffix_")

    @staticmethod
    def padded_rank(delta: Any) -> int:
        return bucket(len(delta.prefix.R))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        in_front, at_end = self.chosen(h)
        at_end = at_end & ~in_front
        change = self.edit(h, "prefix_") * in_front.unsqueeze(-1) + self.edit(h, "suffix_") * at_end.unsqueeze(-1)
        return change.to(h.dtype)


class LowRankIntervention(Delta):
    """`Δ = Rᵀ(W h + b − R h)`, R (r, width) with orthonormal rows, W (r, width); direft: `Rᵀ(W h + b)`, R free."""

    bank_form = InterventionBank

    def __init__(self, width: int, r: int, form: Form, init: str, first: int = 0, last: int = 0) -> None:
        super().__init__()
        self.R = nn.Parameter(torch.empty(r, width))
        self.W = nn.Parameter(torch.empty(r, width))
        self.b = nn.Parameter(torch.empty(r))
        self.form, self.init = form, init
        self.first, self.last = first, last
        self.needs = Needs(padding_mask=bool(first or last))

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.orthogonal_(self.R, generator=rng("R"))
        nn.init.zeros_(self.b)
        if self.init == "identity":
            self.W.copy_(self.R if self.form == "loreft" else torch.zeros_like(self.W))
        else:  # as torch initialises linear maps
            nn.init.kaiming_uniform_(self.W, a=math.sqrt(5), generator=rng("W"))
            nn.init.uniform_(self.b, -(self.W.shape[1] ** -0.5), self.W.shape[1] ** -0.5, generator=rng("b"))

    def rotation(self) -> Tensor:
        """R (r, width) with its rows made orthonormal; rows that are orthonormal stay the same."""
        return self.R if self.form == "direft" else orthonormal_rows(self.R)

    def change(self, h: Tensor) -> Tensor:
        """The change at every token."""
        R = self.rotation()
        inner = self.W - R if self.form == "loreft" else self.W  # W h − R h in one product
        return F.linear(h, inner.to(h.dtype), self.b.to(h.dtype)) @ R.to(h.dtype)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if not self.needs.padding_mask:
            return self.change(h)
        in_front, at_end = chosen(h, self.mask, self.first, self.last)
        return self.change(h) * (in_front | at_end).unsqueeze(-1)


class PrefixSuffixIntervention(Delta):
    """One edit for the prompt's first tokens, another for its last ones; a token that is both gets the first."""

    needs = Needs(padding_mask=True)
    bank_form = PrefixSuffixBank

    def __init__(self, width: int, r: int, form: Form, init: str, first: int, last: int) -> None:
        super().__init__()
        self.prefix, self.suffix = LowRankIntervention(width, r, form, init), LowRankIntervention(width, r, form, init)
        self.first, self.last = first, last

    def init_(self, rng: Rng, base: nn.Module) -> None:
        self.prefix.init_(lambda name: rng(f"prefix.{name}"), base)
        self.suffix.init_(lambda name: rng(f"suffix.{name}"), base)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        in_front, at_end = chosen(h, self.mask, self.first, self.last)
        at_end = at_end & ~in_front
        return self.prefix.change(h) * in_front.unsqueeze(-1) + self.suffix.change(h) * at_end.unsqueeze(-1)


def orthonormal_rows(R: Tensor) -> Tensor:
    """R (r, width) with its rows made orthonormal."""
    columns, triangle = torch.linalg.qr(R.T)  # (width, r), (r, r)
    rows: Tensor = (columns * torch.diagonal(triangle).sign()).T  # a QR decomposition is unique but for signs
    return rows


def chosen(h: Tensor, mask: Tensor | None, first: int | Tensor, last: int | Tensor) -> tuple[Tensor, Tensor]:
    """Masks (B, T) of the tokens of h (B, T, D) that are among the first, or the last, real ones of the prompt.

    Raises DeltatuneError where a token may belong to the prompt or to its continuation.
    """
    rows, tokens, _ = h.shape
    if mask is None:
        if tokens == 1:
            raise DeltatuneError(
                "ReFT at some positions got a single token without an attention_mask, which may be a prompt or a step "
                "after one; give the mask (B, S) of all tokens so far"
            )
        mask = torch.ones(rows, tokens, device=h.device)
    real = mask[:, -tokens:].bool()
    if mask.shape[1] > tokens:  # a step of generation with a cache: the prompt is in the cache
        return torch.zeros_like(real), torch.zeros_like(real)
    before = real.cumsum(1)  # (B, T) real tokens up to here
    return real & (before <= first), real & (before > before[:, -1:] - last)


@dataclass(frozen=True)
class ReFT(Method):
    """h ← h + Rᵀ(W h + b − R h), R with orthonormal rows

    Wu et al. 2024, https://arxiv.org/abs/2404.03592: LoReFT, in the residual stream after chosen blocks; `direft` is
    the paper's h + Rᵀ(W h + b) with a free R. The paper changes some first and last tokens of the prompt; by default
    all tokens are changed, generated ones included. Starts as the base; the paper's code starts at random.
    """

    r: int = 4
    """Dimension of the subspace."""
    form: Form = "loreft"
    """`loreft`, or `direft` without the orthonormal rows and the difference."""
    first: int = 0
    """How many of the prompt's first tokens are changed; with `last` 0 too, all tokens."""
    last: int = 0
    """How many of the prompt's last tokens are changed. Generate with a cache: without one, the whole text of each step
    counts as the prompt, and in training prompt and answer together do."""
    tied: bool = True
    """The first and the last tokens share one edit; otherwise each has its own."""
    init: Literal["identity", "random"] = "identity"
    """`identity`: W = R, b = 0 (direft: W = 0); `random`: W and b as the paper's code has them, not the base."""
    sites: str | tuple[str, ...] = ""
    """After which blocks, `layers.{3,7}.residual`; empty for all; with positions the encoder's, if there is one."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 1e-3
    view: ClassVar[View] = View("Rᵀ(W h + b − R h)", "sequential", "residual stream", "replace")

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether W = R at the start."""
        return self.init == "identity"

    def check(self) -> None:
        at_least(self, r=1, first=0, last=0)
        if not self.tied and not (self.first and self.last):
            raise DeltatuneError(f"{self!r}: an edit each for first and last tokens needs both; set first and last")

    @property
    def label(self) -> str:
        return "LoReFT" if self.form == "loreft" else "DiReFT"

    def pick(self, sites: Sites) -> list[Site]:
        if self.sites:
            picked = sites.match(self.sites, kinds=("residual",))
        else:
            picked = [site for site in sites.values() if site.kind == "residual" and not self._beyond_prompt(site)]
            require(picked, "residual stream to change", sites)
        beyond = [site.name for site in picked if self._beyond_prompt(site)]
        if beyond:
            raise DeltatuneError(
                f"{self!r}: positions are the prompt's, which this {sites.facts.architecture} reads in its encoder, "
                f"but {beyond[0]} is in the decoder; leave first and last 0 there, or choose encoder.*.residual"
            )
        narrow = min(site.width_out for site in picked)
        if self.r > narrow:
            model = sites.facts.architecture
            raise DeltatuneError(f"{self!r}: r is at most the width, which is {narrow} in this {model}")
        return picked

    def build(self, site: Site) -> Delta:
        kind = LowRankIntervention if self.tied else PrefixSuffixIntervention
        delta: Delta = kind(site.width_out, self.r, self.form, self.init, self.first, self.last)
        # After the last block a head may read none of the changed tokens: a classifier's reads only one.
        last_block = site.layer == site.depth - 1
        delta.hints = TrainingHints(skippable=delta.needs.padding_mask and last_block)
        return delta

    def cost(self, site: Site) -> int:
        return (2 * site.width_out + 1) * self.r * (1 if self.tied else 2)

    def limit(self, sites: Sites) -> int:
        return min(site.width_out for site in sites.values() if site.kind == "residual")

    def _beyond_prompt(self, site: Site) -> bool:
        """Whether a site does not see the prompt, but the method names positions in it."""
        return bool(self.first or self.last) and site.name.startswith("decoder.")


@short_form
def LoReFT(r: int = 4, first: int = 0, last: int = 0) -> ReFT:
    """LoReFT of Wu et al. 2024."""
    return ReFT(r=r, first=first, last=last)


@short_form
def DiReFT(r: int = 4, first: int = 0, last: int = 0) -> ReFT:
    """DiReFT of Wu et al. 2024: cheaper, nothing orthonormal."""
    return ReFT(r=r, form="direft", first=first, last=last)
