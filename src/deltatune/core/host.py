"""A Host: any number of Adapters on one frozen base; a Route says which of them act on which rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter import Adapter, build_adapter
from deltatune.core.adapter_formats import format_of, own_format
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.host_parts.adapter_module import adapter_module, drop_module_, refuse_peft, refuse_sequential
from deltatune.core.host_parts.bank import Bank, BankedAdapter, check_name
from deltatune.core.host_parts.base_tensors import BaseTensors
from deltatune.core.host_parts.host_merging import HostMerging
from deltatune.core.host_parts.host_summary import describe, describe_html, trainable_line
from deltatune.core.host_parts.prefix_init import init_prefixes_
from deltatune.core.host_parts.routing import Routing
from deltatune.core.host_parts.save_calls import SaveCalls, register_with_
from deltatune.core.merging import MergedAdapters
from deltatune.core.method import Method
from deltatune.core.quantization.stored_weights import protect_
from deltatune.core.route import Route, RouteSpec, unknown_adapters
from deltatune.core.seams.answer_start import first_labelled
from deltatune.core.seams.model_seams import ModelSeams
from deltatune.core.seams.soft_prompts import generate
from deltatune.core.sites.discovery import find_sites
from deltatune.core.sites.site import Sites


class Host:
    """One frozen base model and the adapters plugged into it.

    The model object stays the user's: its class, its keys and its forward are untouched. All base parameters are
    frozen; adapters live in a child module named `deltatune`, so optimisers, devices and state dicts see them.
    """

    def __init__(self, model: nn.Module, roles: Mapping[str, str] | None = None) -> None:
        """`roles` names leaves of unknown architectures, such as `{"my_q": "attn.q"}`."""
        if hasattr(model, "deltatune"):
            raise DeltatuneError("this model already has a Host with adapters; use that one, or detach them first")
        self.model = model
        refuse_peft(model)
        self.sites = find_sites(model, roles)
        refuse_sequential(model)
        protect_(model)
        self.adapters: dict[str, Adapter] = {}
        model.requires_grad_(False)
        self._seams = ModelSeams(model, self.sites)
        self._merging = MergedAdapters(model)
        self.base = BaseTensors(model, self.sites, self._merging, self._seams.weights)
        """The base's own weights: `base.tensors()`, `base.tensor(path)`, `base.bytes`."""
        follow = SaveCalls(self).follow_
        self._routing = Routing(model, self.adapters, self._seams, self._merging, follow)
        self._merges = HostMerging(self, self._routing, self._merging)
        self._bank: Bank | None = None

    @property
    def route(self) -> Route:
        """The adapters that act at present, on all rows or row by row."""
        return self._routing.route

    @property
    def merged(self) -> Mapping[str, float]:
        """Merged adapters, and the largest difference of the outputs that merging made on verification inputs."""
        return self._merging.differences

    @property
    def mask(self) -> Tensor | None:
        """Attention mask (B, T') of the last forward as the model saw it, virtual tokens included; None if none was."""
        return self._seams.context.mask

    @property
    def prompts(self) -> Mapping[str, int]:
        """Virtual tokens of each active adapter that has any."""
        return self._seams.prompts.lengths

    def prompt_lengths(self, batch: int) -> Sequence[int]:
        """Virtual tokens of each row of a batch under the current route."""
        return self._seams.prompts.of_rows(batch)

    # ---- attaching

    def attach(
        self,
        name: str,
        method: Method,
        *,
        seed: int = 0,
        head: nn.Module | bool | None = None,
        extra: Mapping[str, Any] | None = None,
        sites: Sites | None = None,
    ) -> Adapter:
        """Build a method's adapter and plug it in; it becomes the route if nothing else is active.

        `head`: a task head module to keep with it; None copies the model's own task head, if it has one; False none.
        `sites`: where it may act, all sites unless given (`Sites.of_body`). Raises DeltatuneError for a taken name,
        sites that match nothing, or a merged base.
        """
        self._routing.refuse_if_merged("attach")
        check_name(name, self.adapters)
        if not isinstance(method, Method):
            raise DeltatuneError(
                f"attach takes a method such as LoRA(r=8), not {method!r}; read text with deltatune.parse"
            )
        places, init_from_model = self.sites if sites is None else sites, partial(init_prefixes_, self.model)
        with self.using(None):  # initial values are those of the base, whatever acts on it at present
            adapter = build_adapter(
                method, places, self.model, init_from_model, seed=seed, head=head, extra=extra or {}
            )
        adapter.train(self.model.training)
        self.adapters[name] = adapter
        adapter_module(self.model)[name] = adapter
        self._seams.hooks.plug(name, adapter)
        if not self.route.names:
            self.use(name)
        return adapter

    def detach(self, name: str) -> Adapter:
        """Take an adapter out; the base is bit for bit what it was. Returns it."""
        adapter = self._adapter(name)
        if isinstance(adapter, BankedAdapter):
            self.bank().remove(name)
            return adapter
        if name in self.merged:
            self.unmerge_(name)
        self._seams.hooks.unplug(name)
        self._release(name)
        if not self.adapters:
            drop_module_(self.model)
        return adapter

    def bank(self, slots: int | None = None, dtype: torch.dtype | None = None) -> Bank:
        """The bank of this base, made at the first call: adapters in slots of stacked tensors, for routes of many.

        `slots`: most adapters in it, 64 at first; `dtype` of the stacks, the base's unless given (bfloat16 for a base
        that runs under bfloat16 autocast). Raises DeltatuneError for another dtype than it has, and too few slots.
        """
        if self._bank is None:
            self._bank = Bank(self, self._seams.hooks, self._release, dtype)
            self._routing.places = self._bank.places
        self._bank.check(slots, dtype)
        return self._bank

    def use(self, route: RouteSpec, *, stacked: bool = False) -> None:
        """Choose the active adapters: a name, names with weights, one such entry for every row of the next batches, or
        None for the bare base.

        A Route, such as an earlier value of `host.route`, is taken as it is. `using` does the same for a `with` block.

        Changes at one site add up; with `stacked`, each adapter sees `h` as the adapters named before it changed it (a
        task adapter over a language adapter). Inside attention they always add up.
        """
        self._routing.take(self._routing.checked(route, stacked))

    @contextmanager
    def using(self, route: RouteSpec, *, stacked: bool = False, training: bool | None = None) -> Iterator[None]:
        """`use` for the length of a `with` block: `with host.using("a"): ...`, `with host.using(None): ...`.

        `training` also sets the whole model to training mode (True) or evaluation mode (False). Afterwards the route
        (rows, weights and stacking order) and every module's mode are exactly what they were; adapters that were
        detached inside the block are left out. Raises DeltatuneError as `use` does, before anything has changed.
        """
        with self._routing.switched(self._routing.checked(route, stacked), training):
            yield

    def disabled(self) -> AbstractContextManager[None]:
        """The bare base for the length of a `with` block: `with host.disabled(): ...`, as `using(None)`."""
        return self.using(None)

    def trainable(self, name: str) -> list[tuple[str, nn.Parameter]]:
        """Parameters that training an adapter changes, its head included."""
        return [(n, p) for n, p in self._attached(name).named_parameters() if p.requires_grad]

    def parameter_groups(self, name: str, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: an adapter's parameters by their rates; vectors do not decay.

        Methods such as LoRA(ratio=16) train some tensors at a multiple of `lr`.
        """
        return self._attached(name).parameter_groups(lr, weight_decay)

    def drop_(self, name: str, layers: int) -> None:
        """Leave an adapter's changes out of the first `layers` blocks of each stack from now on; 0 takes all back in.

        AdapterDrop at run time, for any method: https://arxiv.org/abs/2010.11918. Not stored with the adapter.
        Raises DeltatuneError if no layer is left, and for adapters that live in the base's weights.
        """
        if name in self.merged:
            raise DeltatuneError(f"{name!r} is merged into the weights, where no layer can be dropped; unmerge it")
        self._attached(name).drop_(layers)
        self._routing.arrange()

    def remove_reparametrisation_(self, name: str) -> None:
        """Replace reparametrisations (a prefix's MLP) by the values they compute; outputs stay the same."""
        adapter = self._attached(name).without_reparametrisation()
        self.adapters[name] = adapter_module(self.model)[name] = adapter
        self._seams.hooks.unplug(name)
        self._seams.hooks.plug(name, adapter)
        self._routing.arrange()

    # ---- merging

    def merge_(self, name: str, weight: float = 1.0) -> float:
        """Write an adapter into the base's weights and return the largest difference of the outputs on random inputs.

        `weight` multiplies its changes, as `use({name: weight})` does. Maps with quantised weights that it changes
        become plain, with exactly the values of their codes, which `unmerge_` puts back. Raises CannotMerge if a Delta
        has no weight form, or if the difference exceeds what rounding explains.
        """
        return self._merges.merge_(name, self._attached(name), weight)

    def unmerge_(self, name: str) -> None:
        """Take a merged adapter out of the weights; without others merged, the base has its original bits again."""
        self._merges.unmerge_(name)

    def merge_and_unload(self) -> nn.Module:
        """Merge the active adapters for good, take all adapters out, and return the plain model.

        It is the model of this host, whose `save_pretrained` is again that of its class; of an adapter with a head of
        its own a new model, such as BertForSequenceClassification. Both are verified, as `merge_` does. Raises
        CannotMerge for what has no weight form, and for a head that no such model has; then all is as before.
        """
        return self._merges.merge_and_unload()

    # ---- files

    def save(
        self, name: str, folder: str | Path, *, extra: Mapping[str, Any] | None = None, training: bool = False
    ) -> Path:
        """Write an adapter as a folder of safetensors and JSON, whole or not at all. Returns the folder.

        With `training`, reparametrisations are kept so that training can be resumed.
        """
        self._attached(name)
        extra = {**(extra or {}), **({"training": True} if training else {})}
        own_format().save(self, name, Path(folder), extra)
        return Path(folder)

    def load(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        other_base: bool = False,
        head: nn.Module | None = None,
        revision: str | None = None,
    ) -> Adapter:
        """Attach the adapter in a folder (ours or HF PEFT's), under its folder's name unless another is given.

        `folder` may be one that `save_pretrained` wrote of a model with adapters, where `name` chooses among several,
        and a name on the hub such as `user/name`, at a `revision` (a branch, tag or commit).

        Raises DeltatuneError listing everything that does not fit: tensors missing, extra or misshapen, another base.
        `other_base` accepts a base with other weights of the same shapes; `head` receives the stored values of a head
        that is a module of your own.
        """
        place, name = own_format().find(str(folder), name, revision)
        format_of(place).load(self, place, name, other_base, head)
        return self.adapters[name]

    def push_to_hub(self, repo_id: str, name: str | None = None, **options: Any) -> str:
        """Upload an adapter's folder to the hub, with a model card of what is known, but no licence. Returns its URL.

        `name` may be left out where one adapter is attached. `options` as of transformers' `push_to_hub`: private,
        token, revision, commit_message, commit_description, create_pr, tags. A card that is there already stays.
        """
        return own_format().push(self, self._only(name), repo_id, options)

    def register_with(self, accelerator: Any) -> None:
        """Make `save_state` and `save_model` of accelerate's Accelerator write the adapters in place of the model.

        `load_state` then gives the attached adapters their values back. Call it once for an accelerator.
        """
        register_with_(accelerator, self)

    # ---- inside

    def _adapter(self, name: str) -> Adapter:
        raise_all(unknown_adapters([name], self.adapters))
        return self.adapters[name]

    def _attached(self, name: str) -> Adapter:
        adapter = self._adapter(name)
        if isinstance(adapter, BankedAdapter):
            raise DeltatuneError(
                f"adapter {name!r} is in the bank, where it only answers; for this, attach it under another name: "
                "host.load(folder, name=...)"
            )
        return adapter

    def _only(self, name: str | None) -> str:
        """The name given, or that of the only adapter that is attached."""
        if name is None:
            names = [name for name, adapter in self.adapters.items() if not isinstance(adapter, BankedAdapter)]
            if len(names) != 1:
                raise DeltatuneError(f"choose an adapter with name=; attached: {', '.join(names) or 'none'}")
            name = names[0]
        self._attached(name)
        return name

    def _release(self, name: str) -> None:
        """Take an adapter out of the route and of the adapters."""
        self._routing.forget(name)
        del self.adapters[name], adapter_module(self.model)[name]
        self._routing.arrange()

    @contextmanager
    def answers(self, labels: Tensor, mask: Tensor | None = None) -> Iterator[None]:
        """Within this block, the labelled tokens (those of `labels` (B, T) that are not -100) are a decoder's answers.

        `mask` (B, T) is the batch's attention mask, None if all tokens are real. Adapters that treat a prompt and its
        answer differently need to know, `Prefix(place="infix")` for one. Batches with `labels` of their own say it
        themselves, as does `generate`.
        """
        answers = self._seams.prompts.answers
        with answers.stating(first_labelled(labels, mask) if answers.wanted else None):
            yield

    @torch.no_grad()
    def generate(self, **inputs: Any) -> Any:
        """`model.generate` under the current route, soft prompts included; the result holds no virtual ids."""
        return generate(self.model, self._seams.prompts, inputs)

    def describe(self) -> str:
        """A table of the base, its adapters, their parameters and what is active."""
        return describe(self.sites, self.adapters, self.route, self.merged, self.base.bytes)

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: what the active adapters train, all parameters, and the share in percent."""
        print(trainable_line(self.model, self.sites, self.adapters, self.route))

    def _repr_html_(self) -> str:
        """The base and its adapters as a table, for notebooks."""
        return describe_html(self.sites, self.adapters, self.route, self.merged)
