"""Prefix tuning: trained keys and values in front of each attention's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.attention_call import AttentionCall
from deltatune.core.capabilities import Needs
from deltatune.core.delta import AttentionDelta, Delta, Rng, SharedModule
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, check_dropout, short_form
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.prompts.prefix_bank import KeyValuesBank

Place = Literal["prefix", "infix"]
"""Where the vectors are: in front of everything, or between the prompt and its answer."""


class KeyValues(AttentionDelta):
    """`a = softmax(q [P_k; K]ᵀ/√d) [P_v; V]`, P_k and P_v (P, H_kv·K) trained directly."""

    bank_form = KeyValuesBank

    def __init__(self, length: int, width: int, shift: int, dropout: float = 0.0, place: Place = "prefix") -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(length, width))
        self.values = nn.Parameter(torch.empty(length, width))
        self.shift, self.place = shift, place
        infix = place == "infix"
        self.needs = Needs(
            longer_keys=True,
            position_shift=0 if infix else shift,
            answer_shift=shift if infix else 0,
            answer_offsets=infix,
        )
        self.dropout = dropout

    def init_(self, rng: Rng, base: nn.Module) -> None:
        # P-tuning v2 draws N(0, 0.02), as the model's initialiser does; PEFT's default N(0, 1) disturbs the model.
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
        return call.prefixed(*self.placed(call), self.seen()).run()

    def seen(self) -> Tensor | None:
        """The tokens (B, T) that attend to it; None if all do."""
        # The first word of the answer is predicted at the prompt's last token, as at the paper's separator after x.
        return None if self.place == "prefix" or self.offsets is None else self.offsets >= -1

    def placed(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, P, K) for the rows of a call, with dropout drawn for each row."""
        keys, values = (call.to_heads(vectors) for vectors in self.prefix())
        if self.dropout:
            keys, values = (F.dropout(vectors, self.dropout, self.training) for vectors in (keys, values))
        return keys, values


class Reparametrised(KeyValues):
    """Keys and values as one linear map of a trunk that all sites share: `[P_k P_v] = W tanh(W′ E + b′) + b`."""

    def __init__(
        self, length: int, width: int, shift: int, middle: int, dropout: float = 0.0, place: Place = "prefix"
    ) -> None:
        super().__init__(0, 0, shift, dropout, place)
        del self.keys, self.values
        self.weight = nn.Parameter(torch.empty(2 * width, middle))
        self.bias = nn.Parameter(torch.empty(2 * width))
        self.length, self.width = length, width
        self.trunk: list[Trunk] = []
        """The trunk of its kind of attention; in a list, so that it is registered once, with the adapter."""

    def init_(self, rng: Rng, base: nn.Module) -> None:
        nn.init.normal_(self.weight, std=0.02, generator=rng("weight"))
        nn.init.zeros_(self.bias)

    def init_from_(self, keys: Tensor, values: Tensor) -> None:
        self.trunk[0].targets.append((self, torch.cat([keys, values], -1)))

    def prefix(self) -> tuple[Tensor, Tensor]:
        keys, values = self.expanded(self.trunk[0]()).chunk(2, dim=-1)  # each (P, H_kv·K)
        return keys, values

    def expanded(self, trunk: Tensor) -> Tensor:
        """Concatenated keys and values (P, 2·H_kv·K) of the trunk (P, middle)."""
        return F.linear(trunk, self.weight, self.bias)

    @torch.no_grad()
    def without_reparametrisation(self) -> Delta:
        flat = KeyValues(self.length, self.width, self.shift, self.dropout, self.place).to(self.weight)
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
        self.cached: Tensor | None = None
        """Its output in the current forward, with its graph."""
        self.versions: list[int] = []
        self.targets: list[tuple[Reparametrised, Tensor]] = []
        """Initial keys and values of the layers."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cached": None}  # intermediate values are neither copied nor saved

    def init_(self, rng: Rng) -> None:
        nn.init.normal_(self.embedding, generator=rng("embedding"))
        nn.init.xavier_uniform_(self.weight, generator=rng("weight"))
        nn.init.zeros_(self.bias)

    @torch.enable_grad()
    def after_init_(self) -> None:
        """Fit the trunk and the layers to their targets, if any: 500 steps of Adam at 1e-4, as in the paper."""
        targets, self.targets = [(delta, target.to(self.embedding)) for delta, target in self.targets], []
        fitted = [*self.parameters(), *(p for delta, _ in targets for p in delta.parameters())]
        optimiser = torch.optim.Adam(fitted, lr=1e-4)
        for _ in range(500 if targets else 0):
            trunk = self.computed()
            losses = [F.mse_loss(delta.expanded(trunk), target) for delta, target in targets]
            gradients = torch.autograd.grad(torch.stack(losses).mean(), fitted)
            for parameter, gradient in zip(fitted, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
        for parameter in fitted:
            parameter.grad = None

    def before_forward(self) -> None:
        """Compute it once for all layers, before the model runs: outside the blocks that checkpointing recomputes."""
        graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        self.cached = self.computed() if graph else None
        self.versions = [p._version for p in self.parameters()]

    def forward(self) -> Tensor:
        if self.cached is None or torch.compiler.is_compiling():
            return self.computed()
        if not torch.is_grad_enabled() or self.versions != [p._version for p in self.parameters()]:
            # Re-entrant checkpointing runs without gradients first, and then backward through each block alone: blocks
            # cannot share one graph, nor can steps.
            self.cached = None
            return self.computed()
        return self.cached

    def computed(self) -> Tensor:
        """Its output from the current parameters."""
        return torch.tanh(F.linear(self.embedding, self.weight, self.bias))


class Trunks(SharedModule):
    """A trunk for each kind of attention: encoder-decoders have three (encoder, decoder, cross)."""

    def __init__(self, trunks: Mapping[str, Trunk]) -> None:
        super().__init__()
        self.of = nn.ModuleDict(trunks)

    def init_(self, rng: Rng) -> None:
        """Each from the generators of its name."""
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
        """(kind of attention, trunk)."""
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
    As an infix, [x; INFIX; y] of the paper's section 7.3, the vectors stand between a decoder's prompt x and its answer
    y: y attends to them, and so does the last token of x, at which the first token of y is predicted; the rest of x
    computes what the base does.
    Not the identity at the start: new keys take a share λ of the attention.
    """

    length: int = 16
    """Prefix length P."""
    mlp: int = 0
    """Width of the reparametrising network while training (512 for GPT-2, 800 for BART); 0 trains the vectors alone."""
    shift_positions: bool = True
    """Real tokens start at position P, as in the paper, P-tuning v2 and PEFT; encoder-decoders never shift."""
    dropout: float = 0.0
    """Dropout on keys and values while training; 0.1 in P-tuning v2."""
    words: str = ""
    """Initial text: the prefix starts from its keys and values in the base, repeated or cut to the length. Better than
    random values where examples are few."""
    ids: tuple[int, ...] = ()
    """Initial token ids; those of `words` are filled in before training, by the tokenizer."""
    sites: str | tuple[str, ...] = "*.kv"
    """Which attentions: `*.kv`, or for encoder-decoders a part such as `decoder.*.cross.kv`."""
    place: Place = "prefix"
    """`prefix`: in front of the text; `infix`: between prompt and answer, for decoders. With an infix an input without
    an answer, such as a text to classify, is a prompt: its last token alone attends to the vectors."""

    size_field: ClassVar[str | None] = "length"
    learning_rate: ClassVar[float] = 5e-3
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View("softmax(x W_q P_kᵀ) P_v", "parallel", "attention output, head by head", "gated")

    def check(self) -> None:
        at_least(self, length=1, mlp=0)
        check_dropout(self)

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
                f"{self!r}: its initial text has no token ids yet on this {sites.facts.architecture}; attach "
                "deltatune.with_token_ids(method, tokenizer), as training by the command line does"
            )
        picked = sites.match(self.sites, kinds=("kv",))
        self._check_place(sites)
        return picked

    def _check_place(self, sites: Sites) -> None:
        """Raise DeltatuneError for an infix in a model that has no prompt and answer in one sequence."""
        facts = sites.facts
        if self.place == "prefix" or (facts.decoder and (facts.position_modules or not self.shift_positions)):
            return
        if facts.decoder:
            raise DeltatuneError(
                f"{self!r}: an infix moves the positions of the answer, and this {facts.architecture} has no position "
                "ids that could be moved; add shift_positions=False"
            )
        instead = (
            "sites='decoder.*.attn.kv' without it puts them in front of the answer"
            if facts.encoder_decoder
            else ("leave it out, or put virtual tokens into a deltatune.Template")
        )
        raise DeltatuneError(
            f"{self!r}: an infix stands between a prompt and its answer in one sequence, which decoders read; this "
            f"{facts.architecture} is none: {instead}"
        )

    def build(self, site: Site) -> Delta:
        shift = self.length if self.shift_positions else 0
        delta = (
            Reparametrised(self.length, site.width_out, shift, self.mlp, self.dropout, self.place)
            if self.mlp
            else KeyValues(self.length, site.width_out, shift, self.dropout, self.place)
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

    def without_reparametrisation(self) -> Method:
        return replace(self, mlp=0)


@short_form
def PTuningV2(length: int = 16, mlp: int = 0, dropout: float = 0.1) -> Prefix:
    """P-tuning v2 of Liu et al. 2022: N(0, 0.02) at first, dropout; with an MLP for some tasks (512 in its code)."""
    return Prefix(length=length, mlp=mlp, dropout=dropout)


def _widths(picked: Sequence[Site]) -> dict[str, int]:
    """Width of what each kind of attention reads, which is that of its trunk's embedding."""
    return {attention_of(site): site.width_in for site in reversed(picked)}
