"""LN tuning as PEFT's type LN_TUNING: the trained copy of each norm."""

from __future__ import annotations

from collections.abc import Sequence

from deltatune.core.adapter import Adapter
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.registry import registry
from deltatune.store.peft.peft_format import (
    MODULE_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    deltas_by_module,
    modules_config,
)
from deltatune.store.peft.peft_modules import read_modules

_KEY = ".ln_tuning_layers."
_PARTS = {f"{_KEY}{name}": name for name in ("weight", "bias")}


class LNTuningFormat:
    """PEFT type LN_TUNING."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """None: PEFT copies any module."""
        return []

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type LN_TUNING."""
        modules = deltas_by_module(adapter)
        tensors = {
            f"{path}{_KEY}{name}": tensor.detach()
            for path, deltas in modules.items()
            for name, tensor in deltas[0][1].module.named_parameters()
        }
        return Exported(modules_config(host, "LN_TUNING", adapter, modules), tensors)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `LNTuning` and its copies."""
        modules, sites, used = read_modules(host, folder, _PARTS, [{"weight"}, {"weight", "bias"}], "norm")
        method: Method = registry()["LNTuning"](sites=tuple(sites[path].name for path in sorted(modules)))
        tensors = {
            f"lntuning.{sites[path].name}.module.{name}": tensor
            for path, parts in modules.items()
            for name, tensor in parts.items()
        }
        return Imported(method, tensors, used)
