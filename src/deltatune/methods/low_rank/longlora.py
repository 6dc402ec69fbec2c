"""LongLoRA: attention within groups of tokens while training, shifted by half a group in half of the heads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deltatune.core.attention_call import AttentionCall
from deltatune.core.bank_delta import BankDelta
from deltatune.core.capabilities import Capabilities, Needs
from deltatune.core.delta import AttentionDelta, Delta
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, check_dropout
from deltatune.core.module_copy import ModuleCopy
from deltatune.core.sites.site import Site, Sites
from deltatune.core.union import Compound, Union
from deltatune.methods.low_rank.lora import LoRA

Wrap = Literal["none", "roll"]


class FullAttentionBank(BankDelta):
    """Full attention, which S²-Attn is at inference; without stacks."""

    @classmethod
    def shape(cls, delta: Delta, site: Site) -> Hashable:
        return ()

    def write_(self, slot: int, delta: Delta, tensors: Mapping[str, Tensor]) -> None:
        pass

    def forward(self, call: AttentionCall) -> Any:
        return call.run()


class ShiftedSparse(AttentionDelta):
    """S²-Attn while training: attention within groups of G tokens, shifted by G/2 tokens in half of the heads.

    At inference, and where queries and keys are not the same tokens (a cache), it is full attention.
    Texts whose length is not a multiple of G are padded here, and the padding is masked.
    """

    bank_form = FullAttentionBank

    def __init__(self, groups: int, wrap: Wrap, factor: float) -> None:
        super().__init__()
        self.groups, self.wrap = groups, wrap
        self.needs = Needs(interpolation=factor if factor != 1 else 0.0)
        self.capabilities = Capabilities(merges=factor == 1)  # positions have no form in the weights

    def merge(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}  # at inference it changes nothing

    def attend(self, call: AttentionCall) -> Any:
        H, T = call.q.shape[1:3]
        if not self.training or call.k.shape[2] != T:
            return call.run()
        if H < 2:
            raise DeltatuneError("LongLoRA shifts the groups of half of the heads, and attention here has one head")
        G = 2 * -(-T // (2 * self.groups))  # even, so that it can be halved
        halves = _heads(call, slice(0, H // 2)), _heads(call, slice(H // 2, H))
        if halves[0] is None or halves[1] is None:  # both halves share keys
            whole = grouped(call, G, 0, self.wrap), grouped(call, G, G // 2, self.wrap)
            return torch.cat([whole[0][:, :, : H // 2], whole[1][:, :, H // 2 :]], 2), None
        return torch.cat([grouped(halves[0], G, 0, self.wrap), grouped(halves[1], G, G // 2, self.wrap)], 2), None


def _heads(call: AttentionCall, heads: slice) -> AttentionCall | None:
    """The call for some of the query heads; None if other heads share their keys."""
    H, shared = call.q.shape[1], call.k.shape[1]
    if H % 2 or shared % 2:
        return None
    key_heads = slice(heads.start * shared // H, heads.stop * shared // H)

    def cut(t: Tensor | None) -> Tensor | None:
        return t[:, heads] if isinstance(t, Tensor) and t.dim() == 4 and t.shape[1] == H else t

    options = {**call.options, "position_bias": cut(call.options.get("position_bias"))}
    options = options if "position_bias" in call.options else dict(call.options)
    q, k, v = call.q[:, heads], call.k[:, key_heads], call.v[:, key_heads]
    return replace(call, q=q, k=k, v=v, mask=cut(call.mask), options=options)


def grouped(call: AttentionCall, G: int, shift: int, wrap: Wrap) -> Tensor:
    """Attention (B, T, H, K) within groups of G tokens, the first of which begins `shift` tokens after 0.

    wrap="none": the first and the last group are halves. wrap="roll", as the reference code without flash attention:
    the last group is the text's end followed by its beginning, so that the beginning sees the end.
    """
    T = call.q.shape[2]
    rolled = shift > 0 and wrap == "roll"
    causal = _causal(call)
    if call.mask is None and not rolled and call.options.get("position_bias") is None and (causal or T % G == 0):
        return _unmasked(call, G, shift)
    before = shift if shift and not rolled else 0
    after = -(T + before) % G
    if rolled:
        after = -T % G
    place = torch.arange(-before, T + after, device=call.q.device)  # of each token of the padded text
    if rolled:
        place = place.roll(-shift)
    at, real = place.clamp(0, T - 1), (place >= 0) & (place < T)
    mask = _mask(call, at, real, G, rolled)
    n = len(place) // G

    def parts(t: Tensor) -> Tensor:  # (B, H, T, K) to (B·n, H, G, K)
        B, H, _, K = t.shape
        return t.index_select(2, at).view(B, H, n, G, K).transpose(1, 2).reshape(B * n, H, G, K)

    options = dict(call.options)
    if options.get("position_bias") is not None:
        options["position_bias"] = _blocks(options["position_bias"], at, G).expand(call.q.shape[0], -1, -1, -1, -1)
        options["position_bias"] = options["position_bias"].flatten(0, 1)
    inner = replace(call, q=parts(call.q), k=parts(call.k), v=parts(call.v), mask=mask, options=options)
    out: Tensor = inner.run()[0]  # (B·n, G, H, K)
    out = out.reshape(call.q.shape[0], n * G, *out.shape[2:])
    back = torch.empty_like(at)
    back[place.remainder(len(place))] = torch.arange(len(place), device=place.device)
    return out.index_select(1, back[torch.arange(T, device=place.device)])


def _unmasked(call: AttentionCall, G: int, shift: int) -> Tensor:
    """`grouped` where the inner attention needs no mask: every group is a sequence of its own."""
    B, _, T, _ = call.q.shape
    padded = [F.pad(t, (0, 0, 0, -T % G)) for t in (call.q, call.k, call.v)]  # after the text, which no token sees

    def part(start: int, stop: int, size: int) -> Tensor:
        q, k, v = (
            t[:, :, start:stop].reshape(B, t.shape[1], -1, size, t.shape[3]).transpose(1, 2).flatten(0, 1)
            for t in padded
        )  # (B·n, H, size, K)
        out: Tensor = replace(call, q=q, k=k, v=v).run()[0]
        return out.reshape(B, stop - start, *out.shape[2:])

    end = padded[0].shape[2]
    if not shift:
        return part(0, end, G)[:, :T]
    middle = [part(shift, end - shift, G)] if end > G else []
    return torch.cat([part(0, shift, shift), *middle, part(end - shift, end, shift)], 1)[:, :T]


def _causal(call: AttentionCall) -> bool:
    """Whether the inner attention is causal without a mask."""
    option = call.options.get("is_causal")  # some image encoders pass it in each call, against their module's
    return bool(getattr(call.module, "is_causal", True) if option is None else option)


def _mask(call: AttentionCall, at: Tensor, real: Tensor, G: int, rolled: bool) -> Tensor:
    """Attention mask of each group, (B·n, 1 or H, G, G), boolean or additive."""
    B, n = call.q.shape[0], len(at) // G
    itself = torch.eye(G, dtype=torch.bool, device=at.device)
    allowed = real.view(n, 1, 1, G) | itself  # padding sees itself
    if call.mask is None:
        return (allowed & (itself.new_ones(G, G).tril() if _causal(call) else True)).repeat(B, 1, 1, 1)
    mask = call.mask.expand(B, -1, -1, -1)
    if rolled and getattr(call.module, "is_causal", False):
        # The reference's mask follows the order within a group; the last token's row shows which keys are padding.
        keys = (mask[:, :, -1:, :] if mask.dtype == torch.bool else mask[:, :, -1:, :] >= 0).index_select(3, at)
        in_group = keys.view(B, keys.shape[1], 1, n, G).permute(0, 3, 1, 2, 4)  # (B, n, 1, 1, G)
        whole = (in_group & itself.new_ones(G, G).tril() & allowed).flatten(0, 1)
        return whole if mask.dtype == torch.bool else _additive(whole, mask.dtype)
    blocks, padding = _blocks(mask, at, G), itself & ~real.view(n, 1, 1, G)
    if mask.dtype == torch.bool:
        return ((blocks & allowed) | padding).flatten(0, 1)
    # An additive mask may hold more: Swin's has a learned bias.
    return blocks.masked_fill(~allowed, torch.finfo(mask.dtype).min).masked_fill(padding, 0).flatten(0, 1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as an additive one."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _blocks(square: Tensor, at: Tensor, G: int) -> Tensor:
    """The blocks (B, n, H, G, G) on the diagonal of (B, H, T, T), its tokens taken in the order `at`."""
    square = square.expand(-1, -1, square.shape[-1], -1)  # some masks have one row for all queries
    groups = at.view(-1, G)
    rows = square[:, :, groups[:, :, None], groups[:, None, :]]  # (B, H, n, G, G)
    return rows.transpose(1, 2)


@dataclass(frozen=True)
class _Sparse(Method):
    """a ← attention within groups, while training"""

    groups: int = 4
    wrap: Wrap = "none"
    factor: float = 1.0

    @property
    def key(self) -> str:
        return "sparse"

    def pick(self, sites: Sites) -> list[Site]:
        rotary = any("rotary" in path for path in sites.facts.position_modules)
        if self.factor != 1 and not rotary:
            raise DeltatuneError(
                f"LongLoRA(factor={self.factor:g}) interpolates the positions of rotary embeddings, and this "
                f"{sites.facts.architecture} has none; leave factor at 1"
            )
        return [site for site in sites.match("*.kv", kinds=("kv",)) if ".cross." not in site.name]

    def build(self, site: Site) -> Delta:
        return ShiftedSparse(self.groups, self.wrap, self.factor)

    def cost(self, site: Site) -> int:
        return 0


@dataclass(frozen=True)
class _Trained(Method):
    """Trained copies of norms and embeddings in place of the base's"""

    norms: bool = True
    embeddings: bool = True

    @property
    def key(self) -> str:
        return "trained"

    def pick(self, sites: Sites) -> list[Site]:
        wanted = [kind for kind, on in (("norm", self.norms), ("embed", self.embeddings)) if on]
        picked = [site for site in sites.values() if site.kind in wanted]
        missing = [kind for kind in wanted if not any(site.kind == kind for site in picked)]
        if missing:
            raise DeltatuneError(
                f"this {sites.facts.architecture} has no {' and no '.join(missing)} to train; LongLoRA(norms=False, "
                "embeddings=False) leaves them out"
            )
        return picked

    def build(self, site: Site) -> Delta:
        return ModuleCopy()

    def cost(self, site: Site) -> int:
        return site.params


@dataclass(frozen=True)
class LongLoRA(Compound):
    """a ← softmax(q kᵀ/√d) v within groups while training, in full afterwards; h ← h + (α/r)·B A x

    Chen et al. 2023, https://arxiv.org/abs/2309.12307: LoRA at all maps of attention, trained norms and embeddings, and
    S²-Attn: the text is cut into groups, in half of the heads shifted by half a group, so that information passes
    between neighbouring groups. `wrap="none"` is the paper's flash-attention code; its other code rolls the text
    (`wrap="roll"`), so that the first tokens see the last ones. `factor` interpolates positions (Chen et al. 2023,
    https://arxiv.org/abs/2306.15595): 8 for a context eight times as long.
    Embeddings that are tied to the language-model head are untied: the head keeps the base's.
    """

    r: int = 8
    """Rank."""
    alpha: float = 16.0
    """The update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on LoRA's input."""
    sites: str | tuple[str, ...] = "*.attn.{q,k,v,o}"
    """LoRA's matrices."""
    groups: int = 4
    """Number of groups per text; 4 in the paper."""
    wrap: Wrap = "none"
    """Shifted groups at both ends of the text: two half groups (`none`), or one group of both ends (`roll`)."""
    norms: bool = True
    """Train the norms."""
    embeddings: bool = True
    """Train the token embeddings."""
    factor: float = 1.0
    """Positions are divided by it; needs rotary embeddings. To merge, leave it at 1 and scale them in the config."""

    size_field: ClassVar[str | None] = "r"
    learning_rate: ClassVar[float] = 5e-4
    view: ClassVar[View] = View("attention in groups; B A x", "parallel", "attention, norms, embeddings", "scaled")

    def check(self) -> None:
        at_least(self, r=1, groups=1, factor=1)
        check_dropout(self)

    @property
    def union(self) -> Method:
        lora = LoRA(r=self.r, alpha=self.alpha, dropout=self.dropout, sites=self.sites)
        parts: Sequence[Method] = (lora, _Sparse(self.groups, self.wrap, self.factor))
        more = (_Trained(self.norms, self.embeddings),) if self.norms or self.embeddings else ()
        return Union((*parts, *more))

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """At inference, and unless positions are interpolated."""
        return self.factor == 1

    def limit(self, sites: Sites) -> int:
        return LoRA(sites=self.sites).limit(sites)
