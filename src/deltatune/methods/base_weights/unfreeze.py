"""Fine-tuning of the base's own weights: all of them, those of the top layers, or the head alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng, WeightDelta
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, short_form
from deltatune.core.sites.site import Site, Sites, require


class Weight(WeightDelta):
    """A trained value of one parameter of the base, which stands in for it while the adapter is active."""

    capabilities = Capabilities(merges=True, mixes=False)

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.attribute = attribute
        self.value = nn.Parameter(torch.empty(0))

    def init_(self, rng: Rng, base: nn.Module) -> None:
        self.value = nn.Parameter(getattr(base, self.attribute).detach().clone())

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.value.detach().to(tensor.dtype) for name, tensor in base.items()}


@dataclass(frozen=True)
class Unfreeze(Method):
    """W ← W′ for the weights of the top `layers` blocks and those above them

    Full fine-tuning (`Full()`), top-k layers (`TopLayers(2)`), a linear probe that trains the head alone (`Probe()`),
    and the vocabulary alone, for new tokens: `Embeddings()`, or `Embeddings(head=False)` for its input side.
    The base's values are kept, so the adapter detaches like any other. It runs alone: it cannot share a batch.
    """

    layers: int | None = None
    """Number of blocks from the top, of each stack; None for every weight, 0 for none (only the task's head)."""
    part: Literal["all", "embeddings", "input-embeddings"] = "all"
    """embeddings: the token embeddings and the language-model head alone; tied ones stay one tensor. input-embeddings:
    without the head, as in the first stage of Chinese-LLaMA, https://arxiv.org/abs/2304.08177."""

    view: ClassVar[View] = View("W′ x − W x", "none", "weights", "replace")

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """1e-4 for all weights, 3e-4 for the top ones, 1e-3 for embeddings, 1e-2 for a head alone."""
        if self.part != "all":
            return 1e-3
        return 1e-4 if self.layers is None else 3e-4 if self.layers else 1e-2

    @property
    def label(self) -> str:
        if self.part != "all":
            return "Embeddings" if self.part == "embeddings" else "Input embeddings"
        return "Full" if self.layers is None else f"Top {self.layers} layers" if self.layers else "Probe"

    def __repr__(self) -> str:
        if self.part != "all":
            return "Embeddings()" if self.part == "embeddings" else "Embeddings(head=False)"
        return "Full()" if self.layers is None else f"TopLayers({self.layers})" if self.layers else "Probe()"

    def check(self) -> None:
        if self.layers is not None:
            at_least(self, layers=0)
            if self.part != "all":
                raise DeltatuneError(f"embeddings belong to no layer: give part={self.part!r} without layers")

    def pick(self, sites: Sites) -> list[Site]:
        if self.layers == 0:
            return []
        if self.part != "all":
            picked = _vocabulary(sites) if self.part == "embeddings" else _input_embeddings(sites)
            require(picked, "token embeddings", sites)
            return picked
        weights = list(sites.weights.values())
        if self.layers is None:
            return weights
        depth = max((site.depth for site in weights), default=0)
        if self.layers > depth:
            raise DeltatuneError(f"{self!r}: this {sites.facts.architecture} has {depth} layers; Full() trains all")
        return [site for site in weights if site.layer is not None and site.layer >= site.depth - self.layers]

    def build(self, site: Site) -> Delta:
        return Weight(site.attribute)

    def cost(self, site: Site) -> int:
        return site.params


def _outputs(sites: Sites) -> list[Site]:
    """Maps from vectors to logits of tokens."""
    return [site for site in sites.values() if site.layer is None and site.width_out == sites.facts.vocabulary]


def _input_embeddings(sites: Sites) -> list[Site]:
    """Weights that map token ids to vectors, and nothing else. Raises DeltatuneError where the head is one of them."""
    outputs = _outputs(sites)
    if any(site.tied for site in outputs):
        raise DeltatuneError(
            f"Embeddings(head=False): the token embeddings and the language-model head of this "
            f"{sites.facts.architecture} are one tensor (tie_word_embeddings), so that neither is trained alone; "
            "Embeddings() trains it"
        )
    heads = {site.module for site in outputs}
    return [site for site in _vocabulary(sites) if site.module not in heads]


def _vocabulary(sites: Sites) -> list[Site]:
    """Weights that map token ids to vectors, or vectors to logits of tokens, each tensor once."""
    tables = [site for site in sites.values() if site.kind == "embed"] + _outputs(sites)
    outside = [site for site in sites.weights.values() if site.layer is None and site.attribute == "weight"]
    outside_modules = {site.module for site in outside}
    # Embeddings that encoder and decoder share are listed under a third name: they are recognised by size.
    sizes = {site.width_in * site.width_out for site in tables if site.module not in outside_modules}
    modules = {site.module for site in tables}
    return [site for site in outside if site.module in modules or site.params in sizes]


@short_form
def Full() -> Unfreeze:
    """Full fine-tuning: every weight of the base."""
    return Unfreeze()


@short_form
def TopLayers(layers: int = 2) -> Unfreeze:
    """The top `layers` blocks and the weights above them."""
    return Unfreeze(layers=layers)


@short_form
def Embeddings(head: bool = True) -> Unfreeze:
    """The token embeddings and the language-model head, for new tokens; without `head` the embeddings alone."""
    if not isinstance(head, bool):
        raise DeltatuneError(f"Embeddings(head={head!r}): head must be True or False")
    return Unfreeze(part="embeddings" if head else "input-embeddings")


@short_form
def Probe() -> Unfreeze:
    """Linear probe: only the task's head, on the frozen base's features."""
    return Unfreeze(layers=0)
