"""FourierFT as PEFT's type FOURIERFT: the coefficients of each module; their places follow from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, hyperparameters
from deltatune.core.registry import registry
from deltatune.store.peft.peft_format import (
    MODULE_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    deltas_by_module,
    modules_config,
)
from deltatune.store.peft.peft_modules import read_modules, slice_obstacles

_KEY = ".fourierft_spectrum"


class FourierFTFormat:
    """PEFT type FOURIERFT."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT only changes whole modules."""
        return slice_obstacles(method, host, "FourierFT")

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type FOURIERFT."""
        modules, fields = deltas_by_module(adapter), hyperparameters(adapter.method)
        tensors = {path + _KEY: deltas[0][1].c.detach() for path, deltas in modules.items()}
        config = modules_config(host, "FOURIERFT", adapter, modules) | {
            "n_frequency": fields["n"],
            # PEFT looks a module up by its path; as patterns, no path ends with another one
            "n_frequency_pattern": {path: len(deltas[0][1].c) for path, deltas in modules.items()}
            if any(len(deltas[0][1].c) != fields["n"] for deltas in modules.values())
            else {},
            "scaling": fields["alpha"],
            "random_loc_seed": fields["seed"],
            "init_weights": fields["init"] == "zero",
            "bias": "none",
        }
        return Exported(config, tensors)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `FourierFT`, its coefficients and their places."""
        modules, sites, used = read_modules(host, folder, {_KEY: "c"}, [{"c"}])
        config = folder.config
        numbers = {path: len(parts["c"]) for path, parts in modules.items()}
        method: Method = registry()["FourierFT"](
            n=max(numbers.values()),
            alpha=float(config.get("scaling", 150.0)),
            init="zero" if config.get("init_weights") else "normal",
            seed=int(config.get("random_loc_seed", 777)),
            sites=tuple(sites[path].name for path in sorted(modules)),
        )
        problems = []
        for path, number in numbers.items():
            told = _told(folder, path)
            if told != number:
                problems.append(f"n_frequency is {told} for {path} in the config, it has {number} coefficients")
            elif number != method.cost(sites[path]):
                problems.append(
                    f"{path} has {number} coefficients and another module {method.size}: FourierFT has one n"
                )
        raise_all(problems[:8], f"the PEFT adapter {folder.path} does not fit this model:" if problems else "")
        tensors = {f"fourierft.{sites[path].name}.c": parts["c"] for path, parts in modules.items()}
        shared = method.share(method.pick(host.sites))
        assert shared is not None
        shared.init_(lambda name: None)  # type: ignore[arg-type, return-value]  # it draws from its own seed
        tensors |= {f"shared.fourierft.{name}": buffer for name, buffer in shared.named_buffers()}
        return Imported(method, tensors, used)


def _told(folder: PeftFolder, path: str) -> int:
    """The number of a module's coefficients in the config, as PEFT finds it."""
    patterns = folder.config.get("n_frequency_pattern") or {}
    key = next((pattern for pattern in patterns if re.match(rf".*\.{pattern}$", path)), path)
    return int(patterns.get(key, folder.config.get("n_frequency", 1000)))
