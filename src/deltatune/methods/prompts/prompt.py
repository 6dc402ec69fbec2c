"""Prompt tuning: trained vectors in front of the embedded input."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltatune.core.bank_delta import BankDelta, bucket
from deltatune.core.capabilities import Needs
from deltatune.core.delta import Delta, Rng
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.method import Method, View, at_least
from deltatune.core.sites.site import Site, Sites, require

Ids = tuple[int | tuple[int, ...], ...]
"""Token ids that initialise the vectors, one or the mean of several for each."""


DRAWN = ("uniform", "normal")
"""Initial values that are drawn without regard to any token."""


class SoftPromptBank(BankDelta):
    """The stack P (S, P, D) and the lengths (S,); slot 0 has none."""

    def __init__(self, delta: Any, site: Site, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(delta, site, capacity, dtype)
        self.vocabulary, self.length = site.width_in, bucket(delta.length)
        self.add_stack("prompt", self.length, site.width_out)
        self.add_stack("lengths", dtype=torch.long)

    @classmethod
    def shape(cls, delta: Any, site: Site) -> Hashable:
        return bucket(delta.length)

    def write_(self, slot: int, delta: Any, tensors: Mapping[str, Tensor]) -> None:
        self.write_stack_("prompt", slot, tensors["prompt"])
        self.write_stack_("lengths", slot, delta.length)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.add(h, x) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        index = x - self.vocabulary  # (B, T), negative at real tokens
        row = self.rows.index[:, None] * self.length + index.clamp(0, self.length - 1)
        vectors = F.embedding(row, self.get_buffer("prompt").flatten(0, 1)).to(h.dtype)  # (B, T, D)
        return at_virtual_tokens(h, index, vectors, self.of_rows("lengths").unsqueeze(1), weight)


class SoftPrompt(Delta):
    """`h ← P[i]` at the i-th virtual token, P (P, D); real tokens stay."""

    bank_form = SoftPromptBank

    def __init__(self, length: int, site: Site, init: str = "uniform", ids: Ids = ()) -> None:
        super().__init__()
        self.length = length
        self.needs = Needs(virtual_tokens=length)
        self.vocabulary = site.width_in
        self.prompt = nn.Parameter(torch.empty(length, site.width_out))
        self.init, self.ids = init, ids

    @torch.no_grad()
    def init_(self, rng: Rng, base: nn.Module) -> None:
        if self.init == "normal":
            nn.init.normal_(self.prompt, std=spread(base), generator=rng("prompt"))
        else:
            nn.init.uniform_(self.prompt, -0.5, 0.5, generator=rng("prompt"))
        if self.init not in DRAWN:
            self.prompt.copy_(drawn_vectors(base, self.length, self.vocabulary, rng("vocabulary")))
        for i, ids in enumerate(self.ids[: self.length]):
            given = (ids,) if isinstance(ids, int) else ids
            if given:
                self.prompt[i] = vectors_of(base, torch.tensor(given)).mean(0)

    def vectors(self) -> Tensor:
        """P (P, D)."""
        return self.prompt

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.add(h, x) - h

    def add(self, h: Tensor, x: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        index = x - self.vocabulary  # (B, T), negative at real tokens
        vectors = F.embedding(index.clamp(0, self.length - 1), self.vectors().to(h.dtype))  # (B, T, D)
        return at_virtual_tokens(h, index, vectors, self.length, weight)


@dataclass(frozen=True)
class Prompt(Method):
    """[P; E(x)]: P trained vectors in front of the embedded tokens; encoder-decoders get them at the encoder

    Lester et al. 2021, https://arxiv.org/abs/2104.08691
    Not the identity at the start: the model sees P more tokens. Trained with Adafactor at a rate of 0.3 in the paper.
    """

    length: int = 20
    """Virtual tokens P; 100 in the paper."""
    init: Literal["vocabulary", "uniform", "normal", "labels", "text", "ids"] = "vocabulary"
    """`vocabulary`: drawn from the first 5,000 rows; `uniform`: U(-0.5, 0.5); `normal`: N(0, σ²), σ the standard
    deviation of the model's token embeddings (PEFT's random start is N(0, 1), far outside them); `labels`: a vector for
    each class, the mean of its name's tokens; `text`: a text's tokens; `ids`: given ids. The others are drawn."""
    text: str = ""
    """The initial text."""
    ids: Ids = ()
    """Initial token ids, with () for a vector that is drawn; those of labels and texts are filled in before training,
    by the tokenizer."""
    template: str = ""
    """Where the virtual tokens stand in the input, for classification by label words: "{5} {text} {soft:It was} {mask}"
    has five that are drawn and two that start from words. Default: in front of the text."""

    size_field: ClassVar[str | None] = "length"
    learning_rate: ClassVar[float] = 2e-2
    starts_as_base: ClassVar[bool] = False
    view: ClassVar[View] = View("P[i] − h", "none", "input embeddings at virtual tokens", "replace")

    def check(self) -> None:
        at_least(self, length=1)
        if self.ids and self.init in ("vocabulary", *DRAWN):
            raise DeltatuneError(f"Prompt(init={self.init!r}) takes no ids; Prompt(init='ids', ids=(2023, 2003)) does")
        if self.init == "ids" and not self.ids:
            raise DeltatuneError("Prompt(init='ids') needs initial ids: Prompt(init='ids', ids=(2023, 2003))")
        if bool(self.text) != (self.init == "text"):
            raise DeltatuneError(
                "Prompt: init='text' and text='...' go together: Prompt(init='text', text='Classify:')"
            )
        if len(self.ids) > self.length:
            what = "labels" if self.init == "labels" else "tokens"
            raise DeltatuneError(f"Prompt(length={self.length}) is too short for {len(self.ids)} {what}, a vector each")

    @property
    def input_template(self) -> str:
        return self.template

    def with_virtual_tokens(self, ids: Sequence[int | None]) -> Method:
        if self.init in ("labels", "text"):
            raise DeltatuneError(
                f"{self!r}: the template says where each virtual token starts from; leave init={self.init!r} out, and "
                "write {soft:words} for those that start from words"
            )
        given = tuple(() if id is None else id for id in ids)
        known = given if any(ids != () for ids in given) else ()
        return replace(self, length=len(ids), ids=known, init=self.init if not known else "ids")

    def with_token_ids(self, tokenize: Callable[[str], Sequence[int]], labels: Sequence[str]) -> Method:
        if self.ids or self.init not in ("labels", "text"):
            return self
        if self.init == "labels" and not labels:
            raise DeltatuneError("Prompt(init='labels') needs a task with classes; this one has none")
        texts = labels if self.init == "labels" else [self.text]
        ids = [tuple(tokenize(text)) for text in texts]
        raise_all(
            [f"the tokenizer makes no tokens of {t!r}" for t, of_text in zip(texts, ids, strict=True) if not of_text]
        )
        return replace(self, ids=tuple(ids) if self.init == "labels" else ids[0])

    @property
    def size(self) -> int | None:
        """The length; None where a template sets it."""
        return None if self.template else self.length

    def sized(self, size: int) -> Method:
        """The same with another length, at least the number of initial ids."""
        return replace(self, length=max(size, len(self.ids)))

    def pick(self, sites: Sites) -> list[Site]:
        if self.init in ("labels", "text") and not self.ids:
            raise DeltatuneError(
                f"{self!r}: its initial text has no token ids yet on this {sites.facts.architecture}; attach "
                "deltatune.with_token_ids(method, tokenizer, task), as training by the command line does"
            )
        picked = at_input(sites)
        flat = [i for ids in self.ids for i in ((ids,) if isinstance(ids, int) else ids)]
        wrong = [i for i in flat if not 0 <= i < picked[0].width_in]
        if wrong:
            have = f"{sites.facts.architecture} has {picked[0].width_in:,} tokens"
            raise DeltatuneError(f"Prompt: {have}, and no token {wrong[0]} to start from")
        return picked

    def build(self, site: Site) -> Delta:
        return SoftPrompt(self.length, site, self.init, self.ids)

    def cost(self, site: Site) -> int:
        return self.length * site.width_out

    def limit(self, sites: Sites) -> int:
        return longest_prompt(sites)


def at_virtual_tokens(
    h: Tensor, index: Tensor, vectors: Tensor, length: int | Tensor, weight: float | Tensor
) -> Tensor:
    """h (B, T, D), with the vectors (B, T, D) where index (B, T) is one of a prompt's virtual tokens.

    length: of the prompt, or of each row's (B, 1).
    """
    virtual = ((index >= 0) & (index < length)).unsqueeze(-1)
    return torch.where(
        virtual, vectors if isinstance(weight, float) and weight == 1.0 else h + weight * (vectors - h), h
    )


def drawn_vectors(table: nn.Module, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Vectors (length, D) of tokens drawn from the first 5,000, the most frequent ones in SentencePiece's order."""
    first = min(5000, vocabulary)
    drawn = torch.randperm(first, generator=generator).repeat(1 + length // first)[:length]
    return vectors_of(table, drawn)


def vectors_of(table: nn.Module, ids: Tensor) -> Tensor:
    """Vectors (N, D) of token ids (N,); zeros for a model without weights, of which only shapes are asked."""
    weight = table.get_parameter("weight")
    if weight.is_meta:
        return torch.zeros(len(ids), weight.shape[1])
    vectors: Tensor = table(ids.to(weight.device))
    return vectors


def spread(table: nn.Module) -> float:
    """Standard deviation of the entries of a token embedding's vectors, as the model sees them (Gemma scales them)."""
    weight = table.get_parameter("weight")
    if weight.is_meta:  # a model without weights, of which only shapes are asked
        return 1.0
    return float(weight.float().std()) * float(getattr(table, "embed_scale", 1.0))


def at_input(sites: Sites) -> list[Site]:
    """The token embeddings where a prompt is inserted: the encoder's where there is one."""
    tables = [site for site in sites.values() if site.kind == "embed"]
    require(tables, "token embeddings to put a prompt at", sites)
    if sites.facts.encoder_decoder:
        tables = [site for site in tables if site.name.startswith("encoder.")]
        require(tables, "token embeddings in its encoder", sites)
    return tables[:1]


def longest_prompt(sites: Sites) -> int:
    """The longest prompt that leaves half of the model's positions to the text."""
    return max(1, (sites.facts.positions or 1024) // 2)
