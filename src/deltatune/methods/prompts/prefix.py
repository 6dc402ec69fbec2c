"""Prefix tuning: trained keys and values in front of every attention's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.attention_call import AttentionCall
from deltatune.core.capabilities import Needs
from deltatune.core.delta import AttentionDelta, Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, short_form
from deltatune.core.sites.site import Site, Sites


class KeyValues(AttentionDelta):
    """`a = softmax(q [P_k; K]ᵀ/√d) [P_v; V]`, P_k and P_v (P, H_kv·K) as they are."""

    def __init__(self, length: int, width: int, shift: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(length, width))
        self.values = nn.Parameter(torch.empty(length, width))
        self.needs = Needs(longer_keys=True, position_shift=shift)
        self.dropout = dropout

    def init_(self, rng: Rng, base: nn.Module) -> None:
        # P-tuning v2 gets N(0, 0.02) from the model's initialiser; N(0, 1), PEFT's default, disturbs the model a lot.
        nn.init.normal_(self.keys, std=0.02, generator=rng("keys"))
        nn.init.normal_(self.values, std=0.02, generator=rng("values"))

    @torch.no_grad()
    def init_from_(self, keys: Tensor, values: Tensor) -> None:
        self.keys.copy_(keys)
        self.values.copy_(values)

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Keys and values (P, H_kv·K)."""
        return self.keys, self.values

    def attend(self, call: AttentionCall) -> Any:
        return call.prefixed(*self.placed(call)).run()

    def placed(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, P, K) for the rows of a call; each row drops others."""
        keys, values = (call.to_heads(vectors) for vectors in self.prefix())
        if self.dropout:
            keys, values = (F.dropout(vectors, self.dropout, self.training) for vectors in (keys, values))
        return keys, values


class Reparametrised(KeyValues):
    """Keys and values as one linear map of a trunk that all sites share: `[P_k P_v] = W tanh(W′ E + b′) + b`."""

    def __init__(self, length: int, width: int, shift: int, middle: int, dropout: float = 0.0) -> None:
        super().__init__(0, 0, shift, dropout)
        del self.keys, self.values
        self.weight = nn.Parameter(torch.empty(2 * width, middle))
        self.bias = nn.Parameter(torch.empty(2 * width))
        self.length, self.width = length, width
        self.trunk: list[Trunk] = []
        """The one of its kind of attention; in a list, so that it is registered once, with the adapter."""

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.normal_(self.weight, std=0.02, generator=rng("weight"))
        nn.init.zeros_(self.bias)

    def init_from_(self, keys: Tensor, values: Tensor) -> None:
        self.trunk[0].goals.append((self, torch.cat([keys, values], -1)))

    def prefix(self) -> tuple[Tensor, Tensor]:
        keys, values = self.grown(self.trunk[0]()).chunk(2, dim=-1)  # each (P, H_kv·K)
        return keys, values

    def grown(self, trunk: Tensor) -> Tensor:
        """Keys and values side by side, (P, 2·H_kv·K), of the trunk (P, middle)."""
        return F.linear(trunk, self.weight, self.bias)

    @torch.no_grad()
    def finished(self) -> Delta:
        flat = KeyValues(self.length, self.width, self.needs.position_shift, self.dropout).to(self.weight)
        keys, values = self.prefix()
        flat.keys.copy_(keys)
        flat.values.copy_(values)
        return flat.train(self.training)


class Trunk(SharedModule):
    """`tanh(W′ E + b′)` (P, middle): the part of the reparametrisation that all layers share."""

    def __init__(self, length: int, width: int, middle: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(length, width))
        self.weight = nn.Parameter(torch.empty(middle, width))
        self.bias = nn.Parameter(torch.empty(middle))
        self.now: Tensor | None = None
        """What it is in the forward that runs, with its graph."""
        self.versions: list[int] = []
        self.goals: list[tuple[Reparametrised, Tensor]] = []
        """Keys and values that the layers are to start from."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "now": None}  # what a forward has left is neither copied nor saved

    def init_(self, rng: Rng) -> None:
        nn.init.normal_(self.embedding, generator=rng("embedding"))
        nn.init.xavier_uniform_(self.weight, generator=rng("weight"))
        nn.init.zeros_(self.bias)

    @torch.enable_grad()
    def after_init_(self) -> None:
        """Fit trunk and layers to their goals, if there are any: 500 steps of Adam at 1e-4, as in the paper."""
        goals, self.goals = [(delta, goal.to(self.embedding)) for delta, goal in self.goals], []
        fitted = [*self.parameters(), *(p for delta, _ in goals for p in delta.parameters())]
        optimiser = torch.optim.Adam(fitted, lr=1e-4)
        for _ in range(500 if goals else 0):
            trunk = self.computed()
            losses = [F.mse_loss(delta.grown(trunk), goal) for delta, goal in goals]
            gradients = torch.autograd.grad(torch.stack(losses).mean(), fitted)
            for parameter, gradient in zip(fitted, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
        for parameter in fitted:
            parameter.grad = None

    def before_forward(self) -> None:
        """Compute it once for all layers, before the model runs: outside of what checkpointing computes again."""
        graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        self.now = self.computed() if graph else None
        self.versions = [p._version for p in self.parameters()]

    def forward(self) -> Tensor:
        if self.now is None or torch.compiler.is_compiling():
            return self.computed()
        if not torch.is_grad_enabled() or self.versions != [p._version for p in self.parameters()]:
            # Re-entrant checkpointing runs without gradients first, and then backward through each block on its own:
            # blocks cannot have one graph in common. Nor can steps.
            self.now = None
            return self.computed()
        return self.now

    def computed(self) -> Tensor:
        """The same from its parameters as they are."""
        return torch.tanh(F.linear(self.embedding, self.weight, self.bias))


class Trunks(SharedModule):
    """A trunk for each kind of attention: encoder-decoders have three, their encoder's, their decoder's and cross."""

    def __init__(self, trunks: Mapping[str, Trunk]) -> None:
        super().__init__()
        self.of = nn.ModuleDict(trunks)

    def init_(self, rng: Rng) -> None:
        """Each from generators of its own name."""
        for name, trunk in self.trunks():
            trunk.init_(lambda tensor, name=name: rng(f"{name}.{tensor}"))  # type: ignore[misc]

    def before_forward(self) -> None:
        """Compute each once."""
        for _, trunk in self.trunks():
            trunk.before_forward()

    def after_init_(self) -> None:
        """Fit each."""
        for _, trunk in self.trunks():
            trunk.after_init_()

    def trunks(self) -> Iterator[tuple[str, Trunk]]:
        """By kind of attention."""
        for name, trunk in self.of.items():
            assert isinstance(trunk, Trunk)
            yield name, trunk


def attention_of(site: Site) -> str:
    """The kind of attention whose layers share a trunk: `encoder_attn`, `decoder_cross`."""
    return "_".join(part for part in site.name.split(".")[:-1] if part != "layers" and not part.isdigit())


@dataclass(frozen=True)
class Prefix(Method):
    """a ← softmax(q [P_k; K]ᵀ/√d) [P_v; V] at every attention, which is (1−λ)·a + λ·softmax(q P_kᵀ/√d) P_v

    Li & Liang 2021, https://arxiv.org/abs/2101.00190; for understanding tasks, flat and with dropout, it is
    P-tuning v2, `PTuningV2(length=16)`: Liu et al. 2022, https://arxiv.org/abs/2110.07602.
    With `mlp`, keys and values are `W tanh(W′ E + b′) + b` while they are trained, W and b for each layer, E and W′
    for all layers of one kind of attention: encoder-decoders have three.
    The paper's infix, vectors between two texts at every layer, is not offered; what comes nearest is a `Prompt` in the
    middle of a `deltatune.Template`, which is the paper's embedding-only variant.
    Not the identity at the start: new keys take a share λ of the attention.
    """

    length: int = 16
    """Positions P put in front."""
    mlp: int = 0
    """Width of the reparametrising network while training (512 for GPT-2, 800 for BART); 0 trains the vectors alone."""
    shift_positions: bool = True
    """Real tokens start at position P, as in the paper, P-tuning v2 and PEFT; encoder-decoders never shift."""
    dropout: float = 0.0
    """Dropped from keys and values while training; 0.1 in P-tuning v2."""
    words: str = ""
    """A text whose keys and values in the base are what it starts from, repeated or cut to the length: better than
    random ones where there are few examples."""
    ids: tuple[int, ...] = ()
    """The same as token ids; from words they are filled in where the tokenizer is known, before training."""
    sites: str | tuple[str, ...] = "*.kv"
    """Which attentions: `*.kv`, or for encoder-decoders a part such as `decoder.*.cross.kv`."""

    size_field: ClassVar[str | None] = "length"
    learning_rate: ClassVar[float] = 5e-3
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View("softmax(x W_q P_kᵀ) P_v", "parallel", "attention output, head by head", "gated")

    def check(self) -> None:
        at_least(self, length=1, mlp=0, dropout=0)
        if self.dropout >= 1:
            raise DeltatuneError(f"Prefix(dropout={self.dropout!r}) leaves nothing; dropout is a share below 1")

    def with_token_ids(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        if not self.words or self.ids:
            return self
        ids = tuple(tokenize(self.words))
        if not ids:
            raise DeltatuneError(f"{self!r}: the tokenizer makes no tokens of these words")
        return replace(self, ids=ids)

    def pick(self, sites: Sites) -> list[Site]:
        if self.words and not self.ids:
            raise DeltatuneError(
                f"{self!r}: its words are not token ids yet on this {sites.facts.architecture}; attach "
                "deltatune.with_token_ids(method, tokenizer), as training by the command line does"
            )
        return sites.match(self.sites, kinds=("kv",))

    def build(self, site: Site) -> Delta:
        shift = self.length if self.shift_positions else 0
        delta = (
            Reparametrised(self.length, site.width_out, shift, self.mlp, self.dropout)
            if self.mlp
            else KeyValues(self.length, site.width_out, shift, self.dropout)
        )
        delta.initial_ids = (self.ids * self.length)[: self.length]
        return delta

    def share(self, picked: Sequence[Site]) -> SharedModule | None:
        if not self.mlp:
            return None
        trunks = {name: Trunk(self.length, width, self.mlp) for name, width in _widths(picked).items()}
        return Trunks(trunks) if len(trunks) > 1 else next(iter(trunks.values()))

    def connect(self, delta: Delta, site: Site, shared: SharedModule) -> None:
        assert isinstance(delta, Reparametrised)
        trunk = shared.of[attention_of(site)] if isinstance(shared, Trunks) else shared
        assert isinstance(trunk, Trunk)
        delta.trunk = [trunk]

    def cost(self, site: Site) -> int:
        return 2 * site.width_out * (self.mlp + 1 if self.mlp else self.length)

    def count(self, sites: Sites) -> int:
        picked = self.pick(sites)
        widths = _widths(picked).values() if self.mlp else ()
        trunks = sum(self.length * width + (width + 1) * self.mlp for width in widths)
        return trunks + sum(self.cost(site) for site in picked)

    def limit(self, sites: Sites) -> int:
        return max(1, (sites.facts.positions or 1024) // 2)

    def finished(self) -> Method:
        return replace(self, mlp=0)


@short_form
def PTuningV2(length: int = 16, mlp: int = 0, dropout: float = 0.1) -> Prefix:
    """P-tuning v2 of Liu et al. 2022: N(0, 0.02) at first, dropout; with an MLP for some tasks (512 in its code)."""
    return Prefix(length=length, mlp=mlp, dropout=dropout)


def _widths(picked: Sequence[Site]) -> dict[str, int]:
    """Width of what each kind of attention reads, which is that of its trunk's embedding."""
    return {attention_of(site): site.width_in for site in reversed(picked)}
