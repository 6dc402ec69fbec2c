"""Save calls of a hosted model: while adapters are on it, what users call to save it writes the adapters too.

`from_pretrained` of a folder with the base alone, or with keys that it does not know, would give a model without them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltatune.core.adapter_formats import own_format
from deltatune.core.errors import DeltatuneError
from deltatune.core.host_parts.adapter_module import refuse_peft
from deltatune.core.host_parts.bank import BankedAdapter

if TYPE_CHECKING:
    from deltatune.core.host import Host

PREFIX = "deltatune."
"""Beginning of the names of all adapters' tensors in the model's state dict."""
DELTAS = "deltas."
"""Beginning of the names of an adapter's Deltas among its own; a head's differ."""
OF_SENTENCES = re.compile(r"\d+\.(auto_)?model\.deltatune\.")
"""Beginning of these names in the state dict of a SentenceTransformer, of which the model is a part."""


class SaveCalls:
    """Stands in for `save_pretrained` and `push_to_hub` of one model while it has adapters.

    The methods are set on the instances, the model's and those of its parts that could be saved alone (`model.bert`);
    its class stays as it is, and with the last adapter they go. They are bound methods, so that a deep copy of the
    model saves the copy's adapters.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.installed: list[nn.Module] = []
        self.hooks: list[Any] = []

    def follow_(self, hosted: bool) -> None:
        """Take over the model's calls, or give them back."""
        if hosted and not self.hooks:
            for module in self.host.model.modules():
                if hasattr(type(module), "save_pretrained") and hasattr(type(module), "from_pretrained"):
                    vars(module).update(save_pretrained=self.save_pretrained, push_to_hub=self.push_to_hub)
                    self.installed.append(module)
            model: Any = self.host.model
            self.hooks = [
                model.register_forward_pre_hook(self.before_forward),
                model.register_state_dict_pre_hook(self.before_state),
                model.register_state_dict_post_hook(partial(self.after_state)),  # torch sets an attribute on it
                model.register_load_state_dict_pre_hook(self.before_load),
                model.register_load_state_dict_post_hook(self.after_load),
            ]
        elif not hosted and self.hooks:
            for module in self.installed:
                vars(module).pop("save_pretrained", None)
                vars(module).pop("push_to_hub", None)
            for hook in self.hooks:
                hook.remove()
            self.installed.clear()
            self.hooks.clear()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        base: bool = False,
        **options: Any,
    ) -> None:
        """Write the adapters into a folder; with `base`, also the base without them, into its folder `base_model`.

        Trainers call it, with the values to store in `state_dict`. Reload: `Host(base).load(folder)`, for several
        adapters with `name=`. `options` are those of transformers' `save_pretrained`, for the base. Raises
        DeltatuneError for a folder that holds a model, and where adapters cannot be written.
        """
        if push_to_hub:
            raise DeltatuneError(
                "save_pretrained(push_to_hub=True) would upload a model, and this one is a base with adapters on it; "
                f"upload an adapter: host.push_to_hub({options.get('repo_id', 'user/name')!r})"
            )
        refuse_peft(self.host.model)
        if is_main_process:
            with self._values(state_dict):
                own_format().save_hosted(self.host, Path(save_directory), options if base else None)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the adapter, as `Host.push_to_hub` does."""
        known = {key: value for key, value in options.items() if key not in ("max_shard_size", "safe_serialization")}
        return self.host.push_to_hub(repo_id, **known)

    def before_forward(self, model: nn.Module, args: object) -> None:
        """Refuse adapters that PEFT put on the model beside ours: neither library would save those of the other."""
        if hasattr(model, "peft_config"):
            refuse_peft(model)

    def before_state(self, model: nn.Module, prefix: str, keep_vars: bool) -> None:
        """Refuse a `save_pretrained` that is not the one above: of the class, or of a model around this one.

        The tensors of the adapters would be in its files, and its `from_pretrained` would leave them out.
        """
        owner = _saved_model()
        if owner is None:
            return
        names = ", ".join(self.host.adapters)
        if owner is model:
            raise DeltatuneError(
                f"{type(owner).__name__}.save_pretrained(model, folder) would write a model that from_pretrained loads "
                f"without its adapters ({names}); call it on the model, model.save_pretrained(folder), and it writes "
                "them"
            )
        part = prefix.strip(".") or type(model).__name__
        raise DeltatuneError(
            f"{type(owner).__name__}.save_pretrained would write a model that from_pretrained loads without the "
            f"adapters ({names}) of the Host on its part {part}. Save them by host.save(name, folder), and detach them "
            f"before {type(owner).__name__} is saved; or make the Host of the whole model"
        )

    def after_state(self, model: nn.Module, state: MutableMapping[str, Tensor], prefix: str, metadata: object) -> None:
        """Leave merged adapters out of a state dict: they are in the base's weights, and would act twice."""
        for name in self.host.merged:
            for key in [key for key in state if key.startswith(f"{prefix}{PREFIX}{name}.{DELTAS}")]:
                del state[key]

    def before_load(self, model: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
        """Leave out the tensor without values that keeps `save_pretrained`'s file of adapters from being a model."""
        for key in self._base_keys():
            if prefix + key in state and not state[prefix + key].numel():
                del state[prefix + key]

    def after_load(self, model: nn.Module, keys: Any) -> None:
        """Check what `load_state_dict` found: adapters alone are enough, those that are not here are refused.

        A trainer resumes from a file with the adapters' tensors alone, with `strict=False`, under which torch leaves
        out what it does not know.
        """
        foreign = sorted({_adapter_of(key) for key in keys.unexpected_keys if key.startswith(PREFIX)})
        if foreign:
            raise DeltatuneError(
                f"the state has tensors of {', '.join(map(repr, foreign))} that no adapter here takes; attached: "
                f"{', '.join(self.host.adapters)}. Attach adapters of the same names and methods first, or load them "
                "from their folders: host.load(folder)"
            )
        if any(map(OF_SENTENCES.match, keys.missing_keys)):
            raise DeltatuneError(
                "sentence-transformers loads a checkpoint as a model of its own, in which the adapters that are on "
                "this one have no place, so that its trainer can neither resume nor load the best model. Give a new "
                "model the adapter, Host(model[0].auto_model).load(CHECKPOINT), and train the steps that are left"
            )
        for name in self.host.merged:  # its state dict has none of them
            inside = f"{PREFIX}{name}.{DELTAS}"
            keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(inside)]
        own = [key for key in keys.missing_keys if key.startswith(PREFIX)]
        rest = [key for key in keys.missing_keys if not key.startswith(PREFIX)]
        if rest and not own and len(rest) == len(self._base_keys()):
            keys.missing_keys.clear()

    def _base_keys(self) -> list[str]:
        """Names of the base's tensors in the state dict."""
        return [key for key in self.host.model.state_dict(keep_vars=True) if not key.startswith(PREFIX)]

    @contextmanager
    def _values(self, state: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Within this block the adapters have the values of a state dict: averaged ones, or those that were gathered.

        Raises DeltatuneError for a state without them, and for parameters that are in pieces on several devices.
        """
        if state is None:
            yield
            return
        state = {key.removeprefix("_orig_mod.").removeprefix("module."): tensor for key, tensor in state.items()}
        own = {
            f"{PREFIX}{name}.{key}": tensor
            for name, adapter in self.host.adapters.items()
            if not isinstance(adapter, BankedAdapter)
            for key, tensor in adapter.state_dict().items()
        }
        missing = [key for key in own if key not in state]
        if missing:
            raise DeltatuneError(
                f"the state_dict lacks tensors of the adapters, such as {missing[0]}: from_pretrained of the folder "
                "would give the base without them. Save without state_dict=; to write these tensors as a model all "
                "the same: type(model).save_pretrained(model, folder, state_dict=...)"
            )
        pieces = [key for key, tensor in own.items() if tensor.shape != state[key].shape or hasattr(tensor, "to_local")]
        if pieces:
            raise DeltatuneError(
                f"{len(pieces)} tensors of the adapters, such as {pieces[0]}, are in pieces on several devices; gather "
                "the parameters and call host.save(name, folder)"
            )
        before = {key: tensor.clone() for key, tensor in own.items()}
        try:
            _copy_(own, state)
            yield
        finally:
            _copy_(own, before)


def register_with_(accelerator: Any, host: Host) -> None:
    """accelerate's `save_state`, `load_state` and `save_model` with the adapters of a host in place of its model."""

    def index(hosted: list[nn.Module]) -> int | None:
        own = (i for i, model in enumerate(hosted) if accelerator.unwrap_model(model) is host.model)
        return next(own, None)

    def save(hosted: list[nn.Module], weights: list[Any], folder: str) -> None:
        place = index(hosted)
        if place is not None and weights:  # the processes beside the main one have none
            own_format().save_hosted(host, Path(folder), None)
            del weights[place]

    def load(hosted: list[nn.Module], folder: str) -> None:
        place = index(hosted)
        if place is not None:
            host.model.load_state_dict(own_format().read_hosted(Path(folder)))
            del hosted[place]

    save_model = accelerator.save_model

    def save_adapters(hosted: nn.Module, save_directory: str, *options: Any, **more: Any) -> None:
        if accelerator.unwrap_model(hosted) is not host.model:
            save_model(hosted, save_directory, *options, **more)
        elif accelerator.is_main_process:
            own_format().save_hosted(host, Path(save_directory), None)

    accelerator.save_model = save_adapters
    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _saved_model() -> nn.Module | None:
    """The model whose `save_pretrained` asks for a state dict at present; None if it is ours, or none does."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "save_pretrained":
            owner = frame.f_locals.get("self")
            return owner if isinstance(owner, nn.Module) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


@torch.no_grad()
def _copy_(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values that differ, so that tensors which did not change keep their versions."""
    for key, tensor in tensors.items():
        if not torch.equal(tensor, values[key].to(tensor)):
            tensor.copy_(values[key])


def _adapter_of(key: str) -> str:
    """The adapter that a tensor of the state dict belongs to."""
    return key.removeprefix(PREFIX).partition(".")[0]
