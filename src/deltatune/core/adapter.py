"""An Adapter: a named set of Deltas, and for a task a head. It is what one trains, saves, shares, merges and serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.delta import Delta, Own, Rng, generator_for
from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.seams.attention import inner_attention, start_from_words_
from deltatune.core.sites.base_weights import Base, check_whole
from deltatune.core.sites.site import Site, Sites


class Adapter(nn.Module):
    """Deltas by part and site, the method that built them, and what else belongs to the task."""

    def __init__(self, method: Method, head: nn.Module | None, extra: Mapping[str, Any]) -> None:
        super().__init__()
        self.method = method
        self.seed = 0
        self.sites: dict[str, Site] = {}
        """Site of each Delta, by the Delta's key `part.site.name`."""
        self.dropped = 0
        """Blocks of each stack, from the bottom, in which its Deltas rest (`Host.drop_`)."""
        self.deltas = nn.ModuleDict()
        self.shared = nn.ModuleDict()
        self.head = head
        self.extra: dict[str, Any] = dict(extra)
        """Whatever the task must remember (labels, columns, tokenizer); saved as JSON."""

    def entries(self) -> Iterator[tuple[str, Site, Delta]]:
        """(key, site, delta) in model order."""
        for key, site in self.sites.items():
            delta = self.deltas[_child(key)]
            assert isinstance(delta, Delta)
            yield key, site, delta

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under their stable names: `lora.layers.0.attn.q.A`, `head.out.weight`."""
        names = {name: tensor for name, tensor in self.state_dict().items()}
        return {_stable(name): tensor.detach() for name, tensor in names.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors given by their stable names in place; the caller has checked names and shapes."""
        with torch.no_grad():
            for name, mine in self.state_dict().items():
                mine.copy_(tensors[_stable(name)])

    @property
    def count(self) -> int:
        """Trainable parameters of the method, heads left out."""
        return sum(p.numel() for name, p in self.named_parameters() if p.requires_grad and not _of_head(name))

    @property
    def head_count(self) -> int:
        """Trainable parameters of the task head."""
        return sum(p.numel() for name, p in self.named_parameters() if p.requires_grad and _of_head(name))

    @property
    def merges(self) -> bool:
        """Whether every Delta has an exact weight form."""
        return all(delta.merges for _, _, delta in self.entries())

    @property
    def mixes(self) -> bool:
        """Whether the adapter may share a batch with others."""
        return all(delta.mixes for _, _, delta in self.entries())

    def acts_at(self, site: Site) -> bool:
        """Whether its Deltas at a site take part."""
        return site.layer is None or site.layer >= self.dropped

    def rates(self) -> dict[str, float]:
        """Factors on the learning rate, by parameter name as in `named_parameters`, where they are not 1."""
        found = {}
        for path, module in self.named_modules():
            for name, factor in getattr(module, "rates", {}).items() if path else ():
                found[f"{path}.{name}"] = factor
        return found

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: trainable parameters by their rates; vectors do not decay."""
        rates = self.rates()
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, p in self.named_parameters():
            rate, decay = lr * rates.get(name, 1.0), weight_decay if p.dim() > 1 else 0.0
            if p.requires_grad:
                groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})["params"].append(p)
        return list(groups.values())

    def drop_(self, layers: int) -> None:
        """Let the Deltas of the first `layers` blocks of each stack rest. Raises DeltatuneError if none is left."""
        depth = max((site.depth for site in self.sites.values()), default=0)
        if not 0 <= layers < max(depth, 1):
            raise DeltatuneError(f"cannot drop {layers} of {depth} layers; 0 to {max(depth - 1, 0)} can go")
        if any(site.kind == "weight" for site in self.sites.values()):
            raise DeltatuneError(f"{self.method!r} changes the base's weights, where layers cannot be dropped")
        self.dropped = layers

    def penalty(self) -> Tensor | float:
        """The sum of its Deltas' penalties."""
        found = [penalty for _, _, delta in self.entries() if (penalty := delta.penalty()) is not None]
        return torch.stack(found).sum() if found else 0.0

    def begin(self) -> None:
        """Tell what its Deltas share that a forward of the model begins."""
        for shared in self.shared.values():
            if hasattr(shared, "begin"):
                shared.begin()  # type: ignore[operator]

    def longest(self, what: str) -> Any:
        """The largest value that any Delta declares of its `tokens`, its `shift` or its `stretch`."""
        return max((getattr(delta, what) for _, _, delta in self.entries()), default=0)

    def finished(self) -> Adapter:
        """The adapter as it is kept after training: reparametrisations replaced by what they compute."""
        done = Adapter(self.method.finished(), self.head, self.extra)
        done.seed, done.dropped = self.seed, self.dropped
        for key, site, delta in self.entries():
            done.sites[key] = site
            done.deltas[_child(key)] = kept = delta.finished()
            kept.base = delta.base
            label = key.partition(".")[0]
            if kept is delta and label in self.shared:
                done.shared[label] = self.shared[label]
        return done.train(self.training)


def build_adapter(
    method: Method,
    sites: Sites,
    model: nn.Module,
    bare: Callable[[], AbstractContextManager[None]],
    *,
    seed: int,
    head: nn.Module | bool | None,
    extra: Mapping[str, Any],
) -> Adapter:
    """Build a method's Deltas on a model, in float32 (float64 on a float64 base), on the base's device.

    `head`: a module to keep as the task's head; None gives the adapter copies of the model's task heads; False none.
    `bare` is entered while the model runs to see what it makes of the words that Deltas start from.
    Initial values depend on (seed, tensor name) alone.
    """
    if head is not None and head is not False and not isinstance(head, nn.Module):
        raise DeltatuneError(f"head must be an nn.Module, None (the model's own task head) or False, not {head!r}")
    check_whole(model, f"attaching {method!r}", "attach all adapters before the first training")
    adapter = Adapter(method, head if isinstance(head, nn.Module) else None, extra)
    adapter.seed = seed
    labels: dict[str, int] = {}
    for part in method.parts:
        name = part.key
        labels[name] = labels.get(name, 0) + 1
        label = name if labels[name] == 1 else f"{name}{labels[name]}"
        picked = part.pick(sites)
        shared = part.share(picked)
        if shared is not None:
            adapter.shared[label] = shared
        for site in picked:
            delta = part.build(site)
            if shared is not None:
                part.connect(delta, site, shared)
            _put(adapter, f"{label}.{site.name}", site, delta)
    if any(site.kind == "kv" for site in adapter.sites.values()):
        inner_attention(model)  # refuse now, before anything is plugged in
    if head is None:
        for site in sites.values():
            if site.kind == "head":
                _put(adapter, f"head.{site.name}", site, Own())
    _initialise(adapter, model, seed, bare)
    return adapter


def _put(adapter: Adapter, key: str, site: Site, delta: Delta) -> None:
    adapter.sites[key] = site
    adapter.deltas[_child(key)] = delta


def _initialise(
    adapter: Adapter, model: nn.Module, seed: int, bare: Callable[[], AbstractContextManager[None]]
) -> None:
    for label, shared in adapter.shared.items():
        shared.init_(_rng(seed, label))  # type: ignore[operator]  # what a method shares has init_, as Deltas have
    for key, site, delta in adapter.entries():
        module = model.get_submodule(site.module)
        delta.base = Base(module, site)
        delta.init_(_rng(seed, key), module)
    like = next(p for p in model.parameters() if p.is_floating_point())
    adapter.to(device=like.device, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)
    adapter.requires_grad_(True)
    parts = [(site, part) for _, site, delta in adapter.entries() for part in delta.parts]
    if any(part.words for _, part in parts):
        with bare():
            start_from_words_(model, parts)
    for shared in adapter.shared.values():
        if hasattr(shared, "settle_"):
            shared.settle_()  # type: ignore[operator]
    for module in adapter.modules():
        for name in getattr(module, "frozen", ()):
            getattr(module, name).requires_grad_(False)


def _rng(seed: int, key: str) -> Rng:
    return lambda name: generator_for(seed, f"{key}.{name}")


def _child(key: str) -> str:
    """Module names cannot hold dots, site names do."""
    return key.replace(".", "/")


def _stable(name: str) -> str:
    return name.removeprefix("deltas.").replace("/", ".")


def _of_head(name: str) -> bool:
    return name.startswith(("head.", "deltas.head/"))
