"""Declarations of a Delta: what it can do, what it needs of the model, and hints for training.

Every field carries the rule by which the values of several Deltas become one. So a Delta made of others (a gate, a
fusion) and an Adapter declare what their parts declare, also in a field that is added later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Rule = Callable[[Sequence[Any]], Any]
"""Makes one value of several."""


def _largest(values: Sequence[float]) -> float:
    return max(values, default=0)


def _union(values: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for value in values for item in value))


def _own(values: Sequence[Any]) -> Any:
    """For names of a Delta's own parameters: parts keep theirs, as an Adapter reads every Delta in the tree."""
    return values[0]


def _declared(default: Any, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Capabilities:
    """What a Delta can do; the laws of `deltatune.testing` hold it to these."""

    mixes: bool = _declared(True, all)
    """May share a batch with other adapters, of any method."""
    merges: bool = _declared(False, all)
    """Has an exact weight form: `merge` returns the base's parameters with the change inside."""
    merges_into: tuple[str, ...] = _declared(("weight",), _union)
    """Parameters that merging must find at the site, and must not change for another module: `weight`, `bias`."""
    exact: bool = _declared(True, all)
    """Whether its gradient is that of what it computes; some papers detach parts on purpose."""
    compiles: bool = _declared(True, all)
    """Whether `torch.compile` can trace it before it is finished (it cannot trace torch's LSTM)."""


@dataclass(frozen=True)
class Needs:
    """What a Delta needs of the model around it."""

    padding_mask: bool = _declared(False, any)
    """`mask` is set before each call."""
    answer_offsets: bool = _declared(False, any)
    """`offsets` is set before each call: where each token stands relative to its row's answer."""
    virtual_tokens: int = _declared(0, _largest)
    """Virtual tokens in front of each row (kind `embed`)."""
    prompt_ids: bool = _declared(False, any)
    """`prompt_ids` is set before each call: the tokens of each row's text, in decoders of its prompt."""
    position_shift: int = _declared(0, _largest)
    """Positions by which real tokens are moved (kind `kv`)."""
    answer_shift: int = _declared(0, _largest)
    """Positions by which the prompt's last token and the answer are moved, beside `position_shift` (kind `kv`)."""
    interpolation: float = _declared(0.0, _largest)
    """Factor by which rotary positions are divided (kind `kv`); 0 for none."""
    longer_keys: bool = _declared(False, any)
    """Puts keys in front of the model's own, so that causal masks must be written out (kind `kv`)."""
    image: bool = _declared(False, any)
    """At a convolution, `x` is the image (B, C, H, W) that it reads, not its patches (B, L, C·kh·kw)."""
    attention_input: bool = _declared(False, any)
    """The attention's input `x` (B, T, D) is part of its call (kind `kv`)."""


@dataclass(frozen=True)
class TrainingHints:
    """What the training of a Delta's parameters must respect."""

    rates: Mapping[str, float] = field(default_factory=dict, metadata={"rule": _own})
    """Factors on the learning rate of its own parameters, by name; 1 where none is given."""
    frozen: tuple[str, ...] = _declared((), _own)
    """Names of its own parameters and modules that are not trained."""
    skippable: bool = _declared(False, any)
    """A training step may leave it out, so that it gets no gradient there."""


Declarations = TypeVar("Declarations", Capabilities, Needs, TrainingHints)


def combine(kind: type[Declarations], each: Iterable[Declarations]) -> Declarations:
    """Make one declaration of several, field by field, each by its own rule."""
    declared = list(each)
    values = {f.name: f.metadata["rule"]([getattr(one, f.name) for one in declared]) for f in fields(kind)}
    return kind(**values)


def misplaced_declarations(names: Mapping[str, object]) -> list[str]:
    """How to write those class attributes that are fields of a declaration: `capabilities = Capabilities(...)`."""
    groups = {"capabilities": Capabilities, "needs": Needs, "hints": TrainingHints}
    return [
        f"{f.name} = {names[f.name]!r} is written {group} = {kind.__name__}({f.name}={names[f.name]!r})"
        for group, kind in groups.items()
        for f in fields(kind)
        if isinstance(names.get(f.name), (bool, int, float, tuple, Mapping))
    ]
