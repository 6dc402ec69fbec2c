"""UniPELT: several methods at once, each with a gate, a learned factor that the layer's input decides for each text."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.attention_call import AttentionCall
from deltatune.core.bank_delta import BankDelta, bank_form
from deltatune.core.capabilities import Needs
from deltatune.core.delta import AttentionDelta, Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import REGISTRY, Method, View
from deltatune.core.sites.site import Site, Sites
from deltatune.core.union import Compound, Union
from deltatune.methods.adapters.bottleneck import Bottleneck
from deltatune.methods.low_rank.lora import LoRA
from deltatune.methods.prompts.prefix import KeyValues, Prefix
from deltatune.methods.prompts.prefix_bank import KeyValuesBank


class GateBank(BankDelta):
    """Gated Deltas of several adapters: the stacks of their inner ones, and w (S, D) and b (S,) of the gates."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        form = bank_form(delta.inner)
        assert form is not None
        self.inner = form(delta.inner, site, capacity, dtype)
        self.causal = delta.gate.causal
        self.add_stack("weight", len(delta.gate.weight))
        self.add_stack("bias")

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable | None:
        form = bank_form(delta.inner)
        if form is None or form.reads_shared or form.reads_base:
            return None
        inner = form.shape(delta.inner, site)
        return None if inner is None else (form, inner)

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        inner = {name.removeprefix("inner."): value for name, value in tensors.items() if name.startswith("inner.")}
        self.inner.write_(slot, delta.inner, inner)
        for name in ("weight", "bias"):
            self.write_stack_(name, slot, tensors[f"gate.{name}"])

    def clear_(self, slot: int) -> None:
        super().clear_(slot)
        self.inner.clear_(slot)

    def resize_(self, capacity: int) -> None:
        super().resize_(capacity)
        self.inner.resize_(capacity)

    @property
    def bytes(self) -> int:
        return super().bytes + self.inner.bytes

    def gate(self, x: Tensor) -> Tensor:
        """The gate (B, 1 or T, 1) of x (B, T, D); the inner Deltas are told their rows."""
        self.inner.rows, self.inner.offsets, self.inner.mask = self.rows, self.offsets, self.mask
        low = (x * self.vectors("weight", x).to(x.dtype)).sum(-1, keepdim=True)
        each = torch.sigmoid(low + self.factor("bias", x, 1.0).to(x.dtype))
        return each if self.causal or x.dim() < 3 else over_text(each, self.mask)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gate = self.gate(x)
        change: Tensor = gate * self.inner(x, h)
        return change


class GatedPrefixBank(GateBank):
    """Gated prefixes of several adapters."""

    inner: KeyValuesBank

    def forward(self, call: AttentionCall) -> Any:  # type: ignore[override]
        assert call.x is not None
        g = self.gate(call.x)
        keys, values = self.inner.placed(call)
        return gated_attention(call, keys, values, g, self.inner.seen(call), self.causal)


def over_text(each: Tensor, mask: Tensor | None) -> Tensor:
    """The mean (B, 1, 1) of gates (B, T, 1) over real tokens; mask (B, S) of the tokens so far, None if all are."""
    if mask is None:
        return each.mean(1, keepdim=True)
    real = mask[:, -each.shape[1] :, None].to(each.dtype)
    return (each * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


def gated_attention(
    call: AttentionCall, keys: Tensor, values: Tensor, g: Tensor, seen: Tensor | None, causal: bool
) -> Any:
    """Attention with keys and values (B, H_kv, P, K) in front, scaled by gates g (B, 1 or T, 1)."""
    if causal:
        return _gate_by_query(call, keys, values, g, seen)
    return call.prefixed(g[:, None] * keys, g[:, None] * values, seen).run()


class Gate(nn.Module):
    """`g = mean_t σ(w·x_t + b)` over a row's real tokens; with causal attention, `g_t = σ(w·x_t + b)`."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(()))
        self.causal = causal

    def init_(self, rng: Rng) -> None:
        """Half open: weights from N(0, 0.02), bias 0."""
        nn.init.normal_(self.weight, std=0.02, generator=rng("weight"))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Gate (B, 1 or T, 1) of x (B, T, D); mask (B, S) of the tokens so far, None if all are real."""
        each = torch.sigmoid(x @ self.weight.to(x.dtype) + self.bias.to(x.dtype)).unsqueeze(-1)  # (B, T, 1)
        return each if self.causal or x.dim() < 3 else over_text(each, mask)


class _GateBefore(Delta):
    """A Delta with a gate, of which each subclass makes its own use."""

    needs = Needs(padding_mask=True)

    def __init__(self, inner: Delta, width: int, causal: bool) -> None:
        super().__init__()
        self.inner = inner
        self.gate = Gate(width, causal)
        self.reads = inner.reads

    @property
    def parts(self) -> Sequence[Delta]:
        return (self.inner,)

    def init_(self, rng: Rng, base: nn.Module) -> None:
        self.inner.base = self.base
        self.inner.init_(lambda name: rng(f"inner.{name}"), base)
        self.gate.init_(lambda name: rng(f"gate.{name}"))

    def without_reparametrisation(self) -> Delta:
        inner = self.inner.without_reparametrisation()
        if inner is self.inner:
            return self
        done = type(self)(inner, self.gate.weight.shape[0], self.gate.causal)
        done.gate = self.gate
        return done.train(self.training)


class Gated(_GateBefore):
    """`g(x)·Δ(x, h)`"""

    bank_form = GateBank

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        self.inner.mask, self.inner.offsets = self.mask, self.offsets
        change: Tensor = self.gate(x, self.mask) * self.inner(x, h)
        return change


class GatedPrefix(_GateBefore, AttentionDelta):
    """`softmax(q [g·P_k; K]ᵀ/√d) [g·P_v; V]`: at g = 0 the prefix's keys are zero, but still get attention."""

    needs = Needs(padding_mask=True, longer_keys=True, attention_input=True)
    bank_form = GatedPrefixBank
    inner: KeyValues

    def attend(self, call: AttentionCall) -> Any:
        keys, values = self.inner.placed(call)  # (B, H_kv, P, K)
        self.inner.offsets = self.offsets
        seen = self.inner.seen()
        return gated_attention(call, keys, values, self.gate(call.x, self.mask), seen, self.gate.causal)


def _gate_by_query(call: AttentionCall, keys: Tensor, values: Tensor, g: Tensor, seen: Tensor | None) -> Any:
    """Attention whose prefix every query scales by its own gate g (B, T, 1), in one call with heads twice as wide.

    With q' = [q, g·q], real keys [k, 0] and prefix keys [0, P_k], q'·k' is q·k or g·q·P_k; the values likewise.
    """
    by_head = g[:, None].to(call.q.dtype)  # (B, 1, T, 1)
    wide = replace(
        call,
        q=torch.cat([call.q, by_head * call.q], -1),
        k=torch.cat([call.k, torch.zeros_like(call.k)], -1),
        v=torch.cat([call.v, torch.zeros_like(call.v)], -1),
        options={**call.options, "scaling": _scaling(call)},
    )
    keys, values = torch.cat([torch.zeros_like(keys), keys], -1), torch.cat([torch.zeros_like(values), values], -1)
    out, weights = wide.prefixed(keys, values, seen).run()
    real, prefix = out.chunk(2, -1)  # (B, T, H, K) each
    return real + g[:, :, None].to(out.dtype) * prefix, weights


def _scaling(call: AttentionCall) -> float:
    given = call.options.get("scaling")
    return float(call.q.shape[-1] ** -0.5 if given is None else given)


@dataclass(frozen=True)
class _GatedMethod(Method):
    """g(x)·Δ(x, h) for every Delta of one method"""

    method: Method = field(default_factory=lambda: REGISTRY["LoRA"]())

    @property
    def key(self) -> str:
        return f"gated_{self.method.key}"

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """The method's own."""
        return self.method.learning_rate

    @property
    def starts_as_base(self) -> bool:  # type: ignore[override]
        """Whether the method does."""
        return self.method.starts_as_base

    @property
    def view(self) -> View:  # type: ignore[override]
        """The method's own facts, gated."""
        return replace(self.method.view, composition="gated")

    @property
    def size(self) -> int | None:
        return self.method.size

    def sized(self, size: int) -> Method:
        return replace(self, method=self.method.sized(size))

    def pick(self, sites: Sites) -> list[Site]:
        picked = self.method.pick(sites)
        stuck = sorted({site.kind for site in picked if site.kind in ("weight", "embed", "head")})
        if stuck:
            raise DeltatuneError(
                f"{self.method!r} acts at sites of kind {', '.join(stuck)}, which have no input for a gate "
                f"in this {sites.facts.architecture}; gate LoRA, bottlenecks and prefixes"
            )
        return picked

    def build(self, site: Site) -> Delta:
        inner = self.method.build(site)
        if site.kind != "kv":
            return Gated(inner, self._width(site, inner), site.causal)
        if not isinstance(inner, KeyValues):
            raise DeltatuneError(f"{self.method!r} changes attention itself, which cannot be gated")
        return GatedPrefix(inner, self._width(site, inner), site.causal)

    def _width(self, site: Site, inner: Delta) -> int:
        from_input = site.kind == "kv" or inner.reads == "input"
        return site.width_in if from_input and site.kind != "input" else site.width_out

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        return self.method.share(picked)

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        self.method.connect(delta.parts[0], site, shared)

    def count(self, sites: Sites) -> int:
        with torch.device("meta"):  # its Deltas tell what a gate reads; their values are not needed
            gates = sum(self._width(site, self.method.build(site)) + 1 for site in self.pick(sites))
        return self.method.count(sites) + gates

    def limit(self, sites: Sites) -> int:
        return self.method.limit(sites)

    def without_reparametrisation(self) -> Method:
        return replace(self, method=self.method.without_reparametrisation())


def gated(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Every method with a gate at each of its sites."""
    make: Callable[[Method], Method] = _GatedMethod
    return tuple(make(method) for method in methods)


_PAPER = Prefix(length=10) + LoRA(r=8, alpha=8.0) + Bottleneck(size=48, form="pfeiffer")


@dataclass(frozen=True)
class UniPELT(Compound):
    """h ← h + Σ_i g_i(x)·Δ_i(x, h), g_i(x) = mean_t σ(w_i·x_t + b_i)

    Mao et al. 2022, https://arxiv.org/abs/2110.07577
    Any union can be gated: `UniPELT(LoRA() + Prefix())`. Each method has a gate at each site. The paper's prefix runs
    through an MLP while it is trained (`Prefix(length=10, mlp=512)`), and LoRA's gate replaces its α/r, 1 here.
    The mean is over real tokens (the reference counts padding too). In decoders a mean over the text would look into
    the future, so each token has its own gate.
    """

    methods: Method = _PAPER
    """The methods to gate."""

    learning_rate: ClassVar[float] = 2e-3
    view: ClassVar[View] = View("Σ g(x)·Δ(x, h)", "parallel", "those of its methods", "gated")

    @property
    def union(self) -> Method:
        return Union(gated(self.methods.parts))

    @property
    def size(self) -> int | None:
        return self.methods.size

    def sized(self, size: int) -> Method:
        return replace(self, methods=self.methods.sized(size))

    def with_token_ids(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        return replace(self, methods=self.methods.with_token_ids(tokenize, labels))

    def without_reparametrisation(self) -> Method:
        return replace(self, methods=self.methods.without_reparametrisation())
