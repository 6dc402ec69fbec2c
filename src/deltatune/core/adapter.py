"""Adapters: named sets of Deltas, and for a task a head. The unit that is trained, saved and merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.capabilities import Capabilities, Needs, combine
from deltatune.core.delta import Delta, Rng, SharedModule, generator_for, relay_declarations_
from deltatune.core.errors import DeltatuneError
from deltatune.core.html_table import html_table
from deltatune.core.memory import check_memory
from deltatune.core.method import Method
from deltatune.core.module_copy import ModuleCopy
from deltatune.core.sites.base_weights import BaseWeights, check_whole
from deltatune.core.sites.site import Site, Sites, generic
from deltatune.core.trained_rows import TrainedRows


class Adapter(nn.Module):
    """Deltas by part and site, the method that built them, and the task's head and metadata."""

    def __init__(self, method: Method, head: nn.Module | None, extra: Mapping[str, Any]) -> None:
        super().__init__()
        self.method = method
        self.seed = 0
        self.sites: dict[str, Site] = {}
        """Site of each Delta, by the Delta's key `part.site.name`."""
        self.body: str | None = None
        """Of an adapter of the bare transformer (`Sites.of_body`): its path where the adapter was trained."""
        self.dropped = 0
        """Blocks of each stack, from the bottom, in which its Deltas are disabled (`Host.drop_`)."""
        self.deltas = nn.ModuleDict()
        self.shared = nn.ModuleDict()
        self.head = head
        self.extra: dict[str, Any] = dict(extra)
        """The task's metadata (labels, columns, tokenizer); saved as JSON."""
        self.trained_rows: TrainedRows | None = TrainedRows()
        """Hashes of the rows it was trained on; None where that is not known."""

    def entries(self) -> Iterator[tuple[str, Site, Delta]]:
        """(key, site, delta) in model order."""
        for key, site in self.sites.items():
            delta = self.deltas[_child(key)]
            assert isinstance(delta, Delta)
            yield key, site, delta

    def put(self, key: str, site: Site, delta: Delta) -> None:
        """Enter a Delta under its key; a Delta made of others takes over their declarations."""
        relay_declarations_(delta)
        self.sites[key] = site
        self.deltas[_child(key)] = delta

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under their stable names: `lora.layers.0.attn.q.A`, `head.out.weight`."""
        return {_stable(name): tensor.detach() for name, tensor in self.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors given by their stable names in place; the caller has checked names and shapes."""
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.copy_(tensors[_stable(name)])

    def method_at(self, key: str) -> str:
        """Name of the method that built a Delta, for errors; `head` for a copy of the model's task head."""
        label = key.partition(".")[0]
        part = labelled_parts(self.method).get(label)
        return label if part is None else type(part).__name__

    @property
    def count(self) -> int:
        """Trainable parameters of the method, heads left out."""
        return sum(p.numel() for name, p in self.named_parameters() if p.requires_grad and not _of_head(name))

    @property
    def head_count(self) -> int:
        """Trainable parameters of the task head."""
        return sum(p.numel() for name, p in self.named_parameters() if p.requires_grad and _of_head(name))

    @property
    def capabilities(self) -> Capabilities:
        """What all of its Deltas can do."""
        return combine(Capabilities, [delta.capabilities for _, _, delta in self.entries()])

    @property
    def needs(self) -> Needs:
        """What its Deltas need together."""
        return combine(Needs, [delta.needs for _, _, delta in self.entries()])

    @property
    def merges(self) -> bool:
        """Whether every Delta has an exact weight form."""
        return self.capabilities.merges

    @property
    def mixes(self) -> bool:
        """Whether the adapter may share a batch with others."""
        return self.capabilities.mixes

    @property
    def mixes_rows(self) -> bool:
        """Whether rows beside its own may have other adapters: it mixes, and its sites keep rows apart."""
        return self.mixes and not any(site.shared for site in self.acting_sites)

    @property
    def acting_sites(self) -> Sequence[Site]:
        """The sites at which it acts, in model order."""
        return tuple(self.sites.values())

    @property
    def bytes(self) -> int:
        """Bytes of its tensors, those of a head included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def acts_at(self, site: Site) -> bool:
        """Whether its Deltas at a site take part."""
        return site.layer is None or site.layer >= self.dropped

    def named_deltas(self) -> Iterator[tuple[str, Delta]]:
        """Every Delta by its module path, those inside gates and fusions included."""
        return ((path, module) for path, module in self.named_modules() if isinstance(module, Delta))

    def rates(self) -> dict[str, float]:
        """Factors on the learning rate, by parameter name as in `named_parameters`, where they are not 1."""
        rates = {}
        for path, delta in self.named_deltas():
            rates.update({f"{path}.{name}": factor for name, factor in delta.hints.rates.items()})
        return rates

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: trainable parameters by their rates; vectors do not decay."""
        rates = self.rates()
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, p in self.named_parameters():
            rate, decay = lr * rates.get(name, 1.0), weight_decay if p.dim() > 1 else 0.0
            if p.requires_grad:
                groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})["params"].append(p)
        return list(groups.values())

    def _repr_html_(self) -> str:
        """Its Deltas by the kind of their sites, for notebooks."""
        places: dict[str, int] = {}
        for _, site, delta in self.entries():
            trained = sum(parameter.numel() for parameter in delta.parameters() if parameter.requires_grad)
            places[generic(site.name)] = places.get(generic(site.name), 0) + trained
        note = f"{self.count:,} parameters" + (f", head {self.head_count:,}" if self.head_count else "")
        rows = [(place, f"{count:,}") for place, count in places.items()]
        return html_table(repr(self.method), ("site", "parameters"), rows, note)

    def drop_(self, layers: int) -> None:
        """Disable the Deltas of the first `layers` blocks of each stack. Raises DeltatuneError if none is left."""
        depth = max((site.depth for site in self.sites.values()), default=0)
        if not 0 <= layers < max(depth, 1):
            raise DeltatuneError(f"cannot drop {layers} of {depth} layers; 0 to {max(depth - 1, 0)} can go")
        if any(site.kind == "weight" for site in self.sites.values()):
            raise DeltatuneError(f"{self.method!r} changes the base's weights, where layers cannot be dropped")
        self.dropped = layers

    def penalty(self) -> Tensor | float:
        """The sum of its Deltas' penalties."""
        penalties = [penalty for _, _, delta in self.entries() if (penalty := delta.penalty()) is not None]
        return torch.stack(penalties).sum() if penalties else 0.0

    def shared_modules(self) -> Iterator[tuple[str, SharedModule]]:
        """The modules that its Deltas share, by the label of their part."""
        for label, shared in self.shared.items():
            assert isinstance(shared, SharedModule)
            yield label, shared

    def before_forward(self) -> None:
        """Tell the shared modules that a forward of the model begins."""
        for _, shared in self.shared_modules():
            shared.before_forward()

    def without_reparametrisation(self) -> Adapter:
        """The adapter to keep after training: reparametrisations replaced by the values they compute."""
        done = Adapter(self.method.without_reparametrisation(), self.head, self.extra)
        done.seed, done.body, done.dropped, done.trained_rows = self.seed, self.body, self.dropped, self.trained_rows
        for key, site, delta in self.entries():
            final = delta.without_reparametrisation()
            done.put(key, site, final)
            final.base = delta.base
            label = key.partition(".")[0]
            if final is delta and label in self.shared:
                done.shared[label] = self.shared[label]
        return done.train(self.training)


def build_adapter(
    method: Method,
    sites: Sites,
    model: nn.Module,
    init_from_model: Callable[[Adapter], None],
    *,
    seed: int,
    head: nn.Module | bool | None,
    extra: Mapping[str, Any],
) -> Adapter:
    """Build a method's Deltas on a model, in float32 (float64 on a float64 base), on the base's device.

    `head`: a module to keep as the task's head; None gives the adapter copies of the model's task heads; False none.
    `init_from_model` sets the initial values that are computed by running the model (prefixes from token ids).
    Initial values depend on (seed, tensor name) alone.
    """
    if head is not None and head is not False and not isinstance(head, nn.Module):
        raise DeltatuneError(f"head must be an nn.Module, None (the model's own task head) or False, not {head!r}")
    check_whole(model, f"attaching {method!r}", "attach all adapters before the first training")
    check_memory(method, sites, next(model.parameters()).device)
    adapter = Adapter(method, head if isinstance(head, nn.Module) else None, extra)
    adapter.seed, adapter.body = seed, sites.body
    for label, part in labelled_parts(method).items():
        _add_part_(adapter, part, label, sites)
    if head is None:
        for site in sites.values():
            if site.kind == "head":
                adapter.put(f"head.{site.name}", site, ModuleCopy())
    _initialise_(adapter, model, seed, init_from_model)
    return adapter


def outline(method: Method, sites: Sites, model: nn.Module) -> Adapter:
    """A method's adapter on a model without any values: its Deltas on the meta device, each with its base weights."""
    adapter = Adapter(method, None, {})
    with torch.device("meta"):
        for label, part in labelled_parts(method).items():
            _add_part_(adapter, part, label, sites)
    for _, site, delta in adapter.entries():
        delta.base = BaseWeights(model.get_submodule(site.module), site)
    return adapter


def labelled_parts(method: Method) -> dict[str, Method]:
    """The single methods of a method by the labels that begin the keys of their Deltas: `lora`, `prefix`, `lora2`."""
    counts: dict[str, int] = {}
    parts = {}
    for part in method.parts:
        counts[part.key] = counts.get(part.key, 0) + 1
        parts[part.key if counts[part.key] == 1 else f"{part.key}{counts[part.key]}"] = part
    return parts


def _add_part_(adapter: Adapter, part: Method, label: str, sites: Sites) -> None:
    """Build the Deltas of one single method."""
    picked = part.pick(sites)
    _check_plain(part, picked)
    shared = part.share(picked)
    if shared is not None:
        if not isinstance(shared, SharedModule):
            raise DeltatuneError(
                f"{type(part).__name__}.share returns a {type(shared).__name__}; it must be a "
                "deltatune.core.delta.SharedModule or None"
            )
        adapter.shared[label] = shared
    for site in picked:
        delta = part.build(site)
        if shared is not None:
            part.connect(delta, site, shared)
        adapter.put(f"{label}.{site.name}", site, delta)


def _check_plain(part: Method, picked: Sequence[Site]) -> None:
    """Raise DeltatuneError for a method that would train or replace quantised weights."""
    stuck = [site for site in picked if site.kind == "weight" and site.quantized]
    if stuck:
        raise DeltatuneError(
            f"{part!r} trains weights of the base itself, and {len(stuck):,} of them are stored in "
            f"{stuck[0].quantized}, such as {stuck[0].name}: codes have no gradient. Choose a method that adds to a "
            "frozen base, such as LoRA(), leave these weights plain (quantize_(model, sites=...)), or load the base "
            "without quantisation"
        )


def _initialise_(adapter: Adapter, model: nn.Module, seed: int, init_from_model: Callable[[Adapter], None]) -> None:
    for label, shared in adapter.shared_modules():
        shared.init_(_rng(seed, label))
    for key, site, delta in adapter.entries():
        module = model.get_submodule(site.module)
        delta.base = BaseWeights(module, site)
        delta.init_(_rng(seed, key), module)
    like = next(p for p in model.parameters() if p.is_floating_point())
    adapter.to(device=like.device, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)
    adapter.requires_grad_(True)
    init_from_model(adapter)
    for _, shared in adapter.shared_modules():
        shared.after_init_()
    for _, delta in adapter.named_deltas():
        for name in delta.hints.frozen:
            getattr(delta, name).requires_grad_(False)


def _rng(seed: int, key: str) -> Rng:
    return lambda name: generator_for(seed, f"{key}.{name}")


def _child(key: str) -> str:
    """Module names cannot hold dots, site names do."""
    return key.replace(".", "/")


def _stable(name: str) -> str:
    return name.removeprefix("deltas.").replace("/", ".")


def _of_head(name: str) -> bool:
    return name.startswith(("head.", "deltas.head/"))
