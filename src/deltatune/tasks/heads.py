"""Classification head: hidden states to logits. It is part of the adapter and is trained, saved and loaded with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.core.input_validation.option_names import NamedOptions


@dataclass(frozen=True)
class HeadConfig(NamedOptions):
    """The shape of a head.

    `pooling="pooler"` without a dense layer is the head of BertForSequenceClassification; `pooling="cls", dense=True`
    is RobertaClassificationHead.
    """

    pooling: Literal["cls", "mean", "last", "pooler", "none"] = "mean"
    """First token, mean over the tokens, last token, or the base's own pooler (frozen with the base).

    none: every token is classified, for tags and spans."""
    dense: bool = False
    """Put a D x D layer and its activation before the classifier."""
    activation: Literal["tanh", "gelu", "relu"] = "tanh"
    """Activation after the dense layer."""
    dropout: float = 0.1
    """Dropout before each of the head's layers, in training."""
    outputs: int = 2
    """C: number of classes; 1 for regression."""
    width: int = 768
    """D: the base's hidden size."""

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = {name: getattr(self, name) for name in ("outputs", "width") if getattr(self, name) < 1}
        problems = [f"a head's {name} must be at least 1, not {value}" for name, value in wrong.items()]
        if not 0 <= self.dropout < 1:
            problems.append(f"a head's dropout must be in [0, 1), not {self.dropout}")
        raise_all(problems)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `head_from_json` reads."""
        return asdict(self)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU}


class Head(nn.Module):
    """Pooling, then dropout and linear once or twice. Parameters are float32, and inputs are cast to that."""

    kind = "pooled"
    """Name under which an adapter's folder stores it (entry points `deltatune.heads`)."""
    reads_states = True
    """It reads hidden states alone, and nothing of a language-model head."""

    def __init__(self, config: HeadConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        if config.dense:
            self.dense = nn.Linear(config.width, config.width, dtype=torch.float32)
            self.activation = ACTIVATIONS[config.activation]()
        self.out = nn.Linear(config.width, config.outputs, dtype=torch.float32)
        self.reset_(seed)

    @torch.no_grad()
    def reset_(self, seed: int) -> None:
        """Weights from N(0, 0.02), biases 0. Values depend on (seed, tensor name) alone, not on creation order."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                values = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator_for(seed, f"head.{name}"))
                parameter.copy_(values)

    def pool(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Return one vector per row (B, D) in the head's dtype: `hidden` (B, T, D), `mask` (B, T), `pooled` (B, D).

        Without pooling, return the hidden states (B, T, D).
        """
        vector = pool(self.config.pooling, hidden, mask, pooled)
        return vector.to(self.out.weight.dtype)

    def classify(self, vector: Tensor) -> Tensor:
        """Return logits (B, C) for pooled vectors (B, D), or (B, T, C) for states (B, T, D)."""
        vector = self.dropout(vector)
        if self.config.dense:
            vector = self.dropout(self.activation(self.dense(vector)))
        logits: Tensor = self.out(vector)
        return logits

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Return logits (B, C) for hidden states (B, T, D) under a mask (B, T) that is 1 at real tokens."""
        return self.classify(self.pool(hidden, mask, pooled))

    def extra_repr(self) -> str:
        """The pooling, which is not a submodule."""
        return f"pooling={self.config.pooling!r}"


@dataclass(frozen=True)
class HeadsConfig:
    """The shapes of the heads of a mixture, by part."""

    parts: Mapping[str, HeadConfig]
    """The head of each part that has one; others use the language-model head."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `head_from_json` reads."""
        return {"parts": {name: config.to_json() for name, config in self.parts.items()}}


class Heads(nn.Module):
    """The heads of a mixture's parts: each reads the same hidden states."""

    kind = "pooled"
    """As of a single head: `head_from_json` tells them apart."""

    def __init__(self, config: HeadsConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        # a module's child cannot have a name such as "update", a part can
        self.parts = nn.ModuleDict({f"{name}_head": Head(part, seed) for name, part in config.parts.items()})

    def of(self, part: str) -> Head:
        """The head of one part. Raises DeltatuneError for a part without one."""
        if part not in self.config.parts:
            raise DeltatuneError(f"part {part!r} has no head{nearest(part, self.config.parts)}; heads: {self.names}")
        head = self.parts[f"{part}_head"]
        assert isinstance(head, Head)
        return head

    @property
    def names(self) -> str:
        """The parts that have a head, for messages."""
        return ", ".join(self.config.parts)


def token_head(config: PretrainedConfig, outputs: int, **over: Any) -> HeadConfig:
    """A head that classifies every token of a model with this config."""
    return HeadConfig(**{**over, "pooling": "none", "outputs": outputs, "width": config.get_text_config().hidden_size})


def head_from_json(content: dict[str, Any]) -> Head | Heads:
    """Build a stored head, or the heads of a mixture, without tensors.

    Raises DeltatuneError for unknown fields and bad values.
    """
    if set(content) == {"parts"}:
        heads = {name: head_from_json(part) for name, part in dict(content["parts"]).items()}
        return Heads(HeadsConfig({name: head.config for name, head in heads.items() if isinstance(head, Head)}))
    names = {field.name for field in fields(HeadConfig)}
    raise_all([f"the stored head has {name!r}, which is unknown" for name in content if name not in names])
    return Head(HeadConfig(**content))


def pool(kind: str, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
    """Reduce hidden states (B, T, D) to one vector per row (B, D), for padding on either side; "none" keeps them."""
    if kind == "none":
        return hidden
    if kind == "pooler":
        if pooled is None:
            raise DeltatuneError("this base has no pooler; choose pooling='mean', 'cls' or 'last'")
        return pooled
    if kind == "mean":
        weight = mask.to(hidden.dtype)[..., None]  # (B, T, 1)
        # Summed in float32: in bfloat16 a sum over a few hundred tokens loses small terms.
        total = (hidden * weight).sum(1, dtype=torch.float32)
        return total / weight.sum(1, dtype=torch.float32).clamp(min=1)
    length = mask.shape[1]
    real = mask.ne(0).int()
    position = real.argmax(1) if kind == "cls" else length - 1 - real.flip(1).argmax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), position]
