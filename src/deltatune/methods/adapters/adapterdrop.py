"""AdapterDrop: bottlenecks in the upper layers only, so that the backward pass stops early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deltatune.core.capabilities import TrainingHints
from deltatune.core.delta import Delta, SharedModule
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method, View, at_least, check_dropout, short_form
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.adapters.bottleneck import Activation, Bottleneck, Form, TwoLayer
from deltatune.methods.adapters.bottleneck_bank import TwoLayerBank


class DropDepth(SharedModule):
    """Number of first layers left out: the field's number, or in training one drawn for each forward."""

    def __init__(self, drop: int) -> None:
        super().__init__()
        self.drop = drop
        self.fraction: float | None = None
        """Drawn from 0 to 1: the stacks of an encoder-decoder leave out the same fraction of their layers."""

    def before_forward(self) -> None:
        """Draw k for the whole batch, from torch's CPU generator, whose state training checkpoints hold."""
        self.fraction = float(torch.rand(())) if self.training else None

    def dropped(self, depth: int) -> int:
        """Number of layers k left out, 0 to depth − 1 with equal chances while training."""
        return self.drop if self.fraction is None else int(self.fraction * depth)


class DroppableBank(TwoLayerBank):
    """Bottlenecks at one site; those of adapters that leave the site's layer out change nothing."""

    def write_(self, slot: int, delta: DroppableBottleneck, tensors: Mapping[str, Tensor]) -> None:  # type: ignore[override]
        super().write_(slot, delta, tensors)
        if delta.layer < delta.draw[0].drop:
            self.clear_(slot)


class DroppableBottleneck(TwoLayer):
    """`Δ = U f(D x + b_D) + b_U`, or nothing where k > layer. Nothing is added then, so that backward stops above."""

    bank_form = DroppableBank
    draw: list[DropDepth]
    layer: int
    depth: int

    def join(self, draw: DropDepth, layer: int, depth: int) -> None:
        """Set the position in a stack; the last layer is never left out."""
        self.draw = [draw]  # in a list, so that the shared module is registered once, with the adapter
        self.layer, self.depth = layer, depth
        self.hints = TrainingHints(skippable=layer < depth - 1)

    @property
    def skipped(self) -> bool:
        """Whether this layer is left out in this forward."""
        return self.layer < self.draw[0].dropped(self.depth)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.zeros_like(h) if self.skipped else super().forward(x, h)

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        return h if self.skipped else super().add(h, x, weight)


@dataclass(frozen=True)
class AdapterDrop(Method):
    """h ← h + U f(D x + b) + b′ in all layers but the first k

    Rücklé et al. 2021, https://arxiv.org/abs/2010.11918. Specialised: the first k layers of each stack have no
    adapters, and training does not go back below layer k. Robust: all layers have them, and k is drawn again for each
    batch in training, 0 to L − 1 with equal chances; the trained adapter works with any k.
    """

    size: int = 48
    """Bottleneck width m."""
    drop: int = 1
    """Layers k left out from the bottom; for a robust adapter at inference only."""
    robust: bool = False
    """Train for every k, by drawing it."""
    form: Form = "pfeiffer"
    """Where it reads, as in Bottleneck: `houlsby`, `pfeiffer` or `parallel`."""
    activation: Activation = "relu"
    """The non-linearity f."""
    scale: float | Literal["learned"] = 1.0
    """The multiplier of the change."""
    init: Literal["identity", "small"] = "identity"
    """`identity`: U = 0, so that the start is the base exactly; `small`: Houlsby's truncated normal, deviation 1e-3."""
    sites: str | tuple[str, ...] = ""
    """Which sublayers; empty for the form's own: `*.{attn,ffn}` for houlsby, `*.ffn` for the others."""
    dropout: float = 0.0
    """Dropout after the non-linearity."""

    size_field: ClassVar[str | None] = "size"
    learning_rate: ClassVar[float] = 1e-3
    view: ClassVar[View] = View("U f(D x)", "sequential", "output of the FFN, upper layers", "add")

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether U = 0 at the start."""
        return self.init == "identity"

    def check(self) -> None:
        at_least(self, size=1, drop=0)
        check_dropout(self)

    @property
    def label(self) -> str:
        return "Robust AdapterDrop" if self.robust else "AdapterDrop"

    @property
    def bottleneck(self) -> Bottleneck:
        """The adapters of the other layers."""
        return Bottleneck(
            size=self.size, form=self.form, activation=self.activation, scale=self.scale, init=self.init,
            sites=self.sites, dropout=self.dropout,
        )  # fmt: skip

    def pick(self, sites: Sites) -> list[Site]:
        picked, model = self.bottleneck.pick(sites), sites.facts.architecture
        raise_all(
            [
                f"{self!r}: drop={self.drop} leaves no layer of this {model}, which has {depth} in a stack; "
                f"leave out at most {depth - 1}"
                for depth in sorted({site.depth for site in picked})
                if self.drop >= depth
            ]
        )
        upper = [site for site in picked if self.robust or _layer(site) >= self.drop]
        if not upper:
            raise DeltatuneError(
                f"{self!r}: all of the {len(picked)} sites chosen are in the first {self.drop} layers; "
                "leave out fewer, or choose sites in upper layers"
            )
        return upper

    def build(self, site: Site) -> Delta:
        if not self.robust:
            return self.bottleneck.build(site)
        form, activation, scale, init = self.form, self.activation, self.scale, self.init
        return DroppableBottleneck(
            site.width_in, site.width_out, self.size, form, activation, scale, init, self.dropout
        )

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        return DropDepth(self.drop) if self.robust else None

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, DroppableBottleneck)
        assert isinstance(shared, DropDepth)
        delta.join(shared, _layer(site), site.depth)

    def cost(self, site: Site) -> int:
        return self.bottleneck.cost(site)

    def limit(self, sites: Sites) -> int:
        return self.bottleneck.limit(sites)


def _layer(site: Site) -> int:
    assert site.layer is not None  # sublayers are in blocks
    return site.layer


@short_form
def RobustAdapterDrop(size: int = 48, drop: int = 0) -> AdapterDrop:
    """AdapterDrop trained for any number of layers left out; `drop`: how many when it is used."""
    return AdapterDrop(size=size, drop=drop, robust=True)
