"""P-tuning: virtual tokens whose vectors a small network computes during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.capabilities import Capabilities
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method, View, at_least, at_most, check_dropout
from deltatune.core.sites.site import Site, Sites
from deltatune.methods.prompts.prompt import SoftPrompt, at_input


class Encoder(nn.Module):
    """`P = W₂ relu(W₁ x + b₁) + b₂`, x = BiLSTM(E) (P, 2·hidden), or E (P, D) itself for the MLP alone."""

    def __init__(self, length: int, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(length, width))
        options = {"bidirectional": True, "dropout": dropout if layers > 1 else 0.0}
        self.lstm = nn.LSTM(width, hidden, layers, **options) if layers else None
        self.inner = nn.Linear(2 * hidden if layers else width, width)
        self.outer = nn.Linear(width, width)

    def init_(self, rng: Rng) -> None:
        """Drawn as torch does, each tensor from the generator of its name."""
        nn.init.normal_(self.embedding, generator=rng("embedding"))
        if self.lstm is not None:
            bound = self.lstm.hidden_size**-0.5
            for name, parameter in self.lstm.named_parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=rng(f"lstm.{name}"))
        for name, linear in (("inner", self.inner), ("outer", self.outer)):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=rng(f"{name}.weight"))
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.bias, -bound, bound, generator=rng(f"{name}.bias"))

    def forward(self) -> Tensor:
        """P (P, D), the virtual tokens in the order of the template."""
        x = self.embedding if self.lstm is None else self.lstm(self.embedding)[0]
        out: Tensor = self.outer(F.relu(self.inner(x)))
        return out


class EncodedPrompt(SoftPrompt):
    """A soft prompt whose vectors are an encoder's output until training is finished."""

    def __init__(self, site: Site, encoder: Encoder) -> None:
        super().__init__(len(encoder.embedding), site)
        del self.prompt
        self.site, self.encoder = site, encoder
        self.capabilities = Capabilities(compiles=encoder.lstm is None)

    def init_(self, rng: Rng, base: nn.Module) -> None:
        self.encoder.init_(lambda name: rng(f"encoder.{name}"))

    def vectors(self) -> Tensor:
        vectors: Tensor = self.encoder()
        return vectors

    @torch.no_grad()
    def without_reparametrisation(self) -> Delta:
        plain = SoftPrompt(self.length, self.site).to(self.encoder.embedding)
        training = self.encoder.training
        plain.prompt.copy_(self.encoder.eval()())
        self.encoder.train(training)
        return plain.train(self.training)


@dataclass(frozen=True)
class PTuning(Method):
    """P = MLP(BiLSTM(E)): virtual tokens, in front of the text or anywhere in a template

    Liu et al. 2021, https://arxiv.org/abs/2103.10385
    `deltatune.Template("{3} {text} {3} {mask} {3}")` places them: between words that stay words (anchors), before,
    between and after the columns of a row. Without a template they come first. After training, only their vectors
    are kept. Not the identity at the start: the model sees more tokens.
    """

    length: int = 9
    """Virtual tokens, summed over all places in a template."""
    encoder: Literal["lstm", "mlp", "none"] = "lstm"
    """`lstm`: a bidirectional LSTM and an MLP; `mlp`: the MLP alone; `none`: plain vectors."""
    hidden: int = 0
    """LSTM cells per direction; 0 for half of the model's width, as in the paper's LAMA code (full for SuperGLUE)."""
    layers: int = 2
    """LSTM layers."""
    dropout: float = 0.0
    """Dropout between LSTM layers."""
    template: str = ""
    """Where the virtual tokens stand in the input, for classification by label words: "{3} {text} {3} {mask} {3}" for
    masked models, "{3} {text} {3} {mask}" for left-to-right ones; words in it are anchors. Default: in front."""

    learning_rate: ClassVar[float] = 1e-3
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View("P[i] − h, P = MLP(BiLSTM(E))", "none", "input embeddings at virtual tokens", "replace")

    def check(self) -> None:
        at_least(self, length=1, hidden=0, layers=1)
        check_dropout(self)
        at_most(self, layers=32)

    @property
    def label(self) -> str:
        return "P-tuning"

    @property
    def input_template(self) -> str:
        return self.template

    def with_virtual_tokens(self, ids: Sequence[int | None]) -> Method:
        if any(id is not None for id in ids):
            raise DeltatuneError(
                f"{self!r}: its encoder computes the vectors, which cannot start from words; write "
                "Prompt(template=...) for {soft:words}"
            )
        return replace(self, length=len(ids))

    def pick(self, sites: Sites) -> list[Site]:
        return at_input(sites)

    def build(self, site: Site) -> Delta:
        if self.encoder == "none":
            return SoftPrompt(self.length, site)
        layers = self.layers if self.encoder == "lstm" else 0
        return EncodedPrompt(site, Encoder(self.length, site.width_out, self._hidden(site), layers, self.dropout))

    def _hidden(self, site: Site) -> int:
        return self.hidden or max(1, site.width_out // 2)

    def cost(self, site: Site) -> int:
        D, H = site.width_out, self._hidden(site)
        if self.encoder == "none":
            return self.length * D
        first, later = 4 * H * (D + H + 2), 4 * H * (2 * H + H + 2)  # an LSTM layer of one direction: four gates
        lstm = 2 * (first + (self.layers - 1) * later) if self.encoder == "lstm" else 0
        read = 2 * H if self.encoder == "lstm" else D
        return self.length * D + lstm + (read + 1) * D + (D + 1) * D

    def without_reparametrisation(self) -> Method:
        return replace(self, encoder="none")
