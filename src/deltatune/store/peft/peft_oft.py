"""OFT and BOFT as PEFT's types OFT and BOFT, with one width of blocks for all modules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from deltatune.core.adapter import Adapter
from deltatune.core.errors import raise_all
from deltatune.core.host import Host
from deltatune.core.method import Method, hyperparameters
from deltatune.core.registry import registry
from deltatune.core.sites.site import Site
from deltatune.store.peft.peft_format import (
    MODULE_PREFIX,
    Exported,
    Imported,
    PeftFolder,
    deltas_by_module,
    modules_config,
)
from deltatune.store.peft.peft_modules import conv1d_obstacles, read_modules, slice_obstacles

_SERIES_SINCE = (0, 18)
"""The version of PEFT since which the series of OFT is as it is here."""


class OFTFormat:
    """PEFT type OFT."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT has no form for Conv1D and slices, and may choose blocks of width 1, which are no rotations."""
        return _obstacles(method, host, "OFT", lambda site, block: _adjusted(site.width_in, block))

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type OFT."""
        modules, fields = deltas_by_module(adapter), hyperparameters(adapter.method)
        config = modules_config(host, "OFT", adapter, modules) | {
            "r": 0,
            "oft_block_size": fields["block"],
            "block_share": fields["blocks"] == "shared",
            "use_cayley_neumann": fields["terms"] > 0,
            "num_cayley_neumann_terms": fields["terms"] or 5,
            "bias": "none",
            "peft_version": "0.18.0",  # without it PEFT takes the folder for one of an older series
        }
        return Exported(config, {f"{path}.oft_R.weight": deltas[0][1].Q.detach() for path, deltas in modules.items()})

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `OFT` and its upper triangles; with `coft` as far as PEFT lets them reach."""
        config = folder.config
        problems = [f"{key}: embeddings are no sites of OFT" for key in folder.tensors if ".oft_embedding_R." in key]
        series = bool(config.get("use_cayley_neumann", True))
        if "oft_block_size" not in config:
            problems.append("it was written by a PEFT before 0.14, whose OFT was another; train it again")
        elif series and _version(config.get("peft_version")) < _SERIES_SINCE:
            problems.append("it was written by a PEFT before 0.18, whose series was another; train it again")
        raise_all(problems[:8], f"cannot read the PEFT adapter {folder.path}:" if problems else "")
        modules, sites, used = read_modules(host, folder, {".oft_R.weight": "Q"}, [{"Q"}])
        # n (n − 1) / 2 numbers for a block of width n
        widths = {path: (1 + math.isqrt(1 + 8 * parts["Q"].shape[-1])) // 2 for path, parts in modules.items()}
        options = {
            "blocks": "shared" if config.get("block_share") else "own",
            "terms": int(config.get("num_cayley_neumann_terms", 5)) if series else 0,
            "sites": tuple(sites[path].name for path in sorted(modules)),
        }
        method = _with_block("OFT", options, folder, widths, sites)
        tensors = {f"oft.{sites[path].name}.Q": parts["Q"] for path, parts in modules.items()}
        if config.get("coft"):
            reach = float(config.get("eps", 6e-5))
            tensors = {name: _constrained(Q, reach) for name, Q in tensors.items()}
        return Imported(method, tensors, used)


class BOFTFormat:
    """PEFT type BOFT."""

    prefix = MODULE_PREFIX

    def obstacles(self, method: Method, host: Host, heads: Sequence[str]) -> list[str]:
        """PEFT has no form for Conv1D and slices, and one width of blocks, which must divide every input."""
        return _obstacles(method, host, "BOFT", lambda site, block: block)

    def write(self, host: Host, adapter: Adapter) -> Exported:
        """Convert to config and tensors of type BOFT."""
        modules, fields = deltas_by_module(adapter), hyperparameters(adapter.method)
        config = modules_config(host, "BOFT", adapter, modules) | {
            "boft_block_size": fields["block"],
            "boft_block_num": 0,
            "boft_n_butterfly_factor": fields["factors"],
            "bias": "none",
        }
        tensors: dict[str, Tensor] = {}
        for path, deltas in modules.items():
            delta = deltas[0][1]
            tensors |= {f"{path}.boft_R": delta.R.detach(), f"{path}.boft_s": delta.s.detach().unsqueeze(1)}
        return Exported(config, tensors)

    def read(self, host: Host, folder: PeftFolder) -> Imported:
        """Convert to `BOFT`, its blocks and scales."""
        modules, sites, used = read_modules(host, folder, {".boft_R": "R", ".boft_s": "s"}, [{"R", "s"}])
        options = {
            "factors": max(len(parts["R"]) for parts in modules.values()),  # PEFT has 1 where it finds no CUDA compiler
            "sites": tuple(sites[path].name for path in sorted(modules)),
        }
        widths = {path: parts["R"].shape[-1] for path, parts in modules.items()}
        method = _with_block("BOFT", options, folder, widths, sites)
        tensors: dict[str, Tensor] = {}
        for path, parts in modules.items():
            name = f"boft.{sites[path].name}"
            tensors |= {f"{name}.R": parts["R"], f"{name}.s": parts["s"].flatten()}
        return Imported(method, tensors, used)


def _obstacles(method: Any, host: Host, name: str, peft_block: Callable[[Site, int], int]) -> list[str]:
    """What a PEFT type cannot hold of a method; `peft_block`: the width of blocks that it has at a site."""
    return (
        conv1d_obstacles(method, host, name)
        or slice_obstacles(method, host, name)
        or [
            f"{site.module}, whose input is {site.width_in} wide, has blocks of {ours} here, "
            f"and would have blocks of {theirs} in PEFT's {name}"
            for site in method.pick(host.sites)
            if (theirs := peft_block(site, method.block)) != (ours := method.block_at(site))
        ][:4]
    )


def _with_block(
    name: str, options: Mapping[str, Any], folder: PeftFolder, widths: Mapping[str, int], sites: Mapping[str, Site]
) -> Method:
    """The method with the one width that gives every module the blocks it has. Raises DeltatuneError if none does."""
    told = int(folder.config.get("oft_block_size") or folder.config.get("boft_block_size") or 0)
    for block in dict.fromkeys(width for width in (told, *widths.values()) if width > 0):
        method: Any = registry()[name](block=block, **options)
        if all(method.block_at(sites[path]) == width for path, width in widths.items()):
            return method  # type: ignore[no-any-return]
    examples = ", ".join(f"{width} at {path}" for width, path in _first_of_each(widths))
    raise_all(
        [f"its blocks have the widths {examples}; {name} has one width here, and the nearest divisor where it must"],
        f"the PEFT adapter {folder.path} does not fit this model:",
    )
    raise AssertionError  # raise_all has raised


def _first_of_each(widths: Mapping[str, int]) -> Iterable[tuple[int, str]]:
    return {width: path for path, width in reversed(list(widths.items()))}.items()


def _adjusted(width: int, block: int) -> int:
    """The width of blocks that PEFT chooses: the nearest divisor, the smaller of two, also 1."""
    if block >= width:
        return width
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - block), n))


def _constrained(Q: Tensor, reach: float) -> Tensor:
    """Q with blocks of norm at most reach / √blocks, as PEFT's `coft` makes it before each use."""
    most = reach / math.sqrt(len(Q))
    norm = Q.norm(dim=1, keepdim=True) * math.sqrt(2)  # of the whole block: each number stands in it twice
    constrained: Tensor = Q * (most / norm).clamp(max=1.0).nan_to_num(1.0)
    return constrained


def _version(text: Any) -> tuple[int, ...]:
    """The first two numbers of a version, (0, 0) if there are none."""
    found = re.match(r"(\d+)\.(\d+)", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else (0, 0)
