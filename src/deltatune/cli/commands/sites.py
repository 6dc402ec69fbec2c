"""`deltatune sites MODEL`: the sites of a model, where methods read and change representations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.options.quantize_options import Quantize
from deltatune.cli.options.shared_options import Json
from deltatune.cli.ui.screen import print_json, show, table
from deltatune.comparison.report.number_format import count
from deltatune.comparison.report.number_format import size as size_text

if TYPE_CHECKING:
    from torch import nn

    from deltatune.core.sites.site import Site, Sites

FLOAT32 = 4
"""Bytes of a parameter that is not quantised."""
SKIPPED_SHOWN = 8
"""Matrices that are not quantised and are named on the screen; --json has all."""
KINDS = {
    "linear": "matrix",
    "input": "matrix's input",
    "sublayer": "sublayer",
    "residual": "residual stream",
    "kv": "keys and values",
    "embed": "embedding",
    "norm": "norm",
    "head": "task head",
}
"""Descriptions of the kinds of sites."""
GROUPS = ("attn", "cross", "ffn", "norm", "residual")
"""Order of the parts of a block in the table."""


def sites(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a name on the hub, or builtin.")] = "builtin",
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Show the sites of a model: names, sizes, and their share of the parameters.

    Only the config is read; weights are neither downloaded nor loaded. The option `sites` of a method selects names by
    patterns: LoRA(sites="*.attn.{q,v}"). With --quantize also which matrices would be quantised, and the bytes.
    """
    from deltatune.core.sites.discovery import find_sites
    from deltatune.models.loading import empty_backbone

    backbone = empty_backbone(model)
    summary = summarise(backbone, find_sites(backbone), model)
    summary |= quantized_part(backbone, summary["params"], quantize)
    if as_json:
        print_json(summary)
    else:
        _show(summary)


def summarise(backbone: nn.Module, all_sites: Sites, model: str) -> dict[str, Any]:
    """Group sites by generic name, and compute how much of the base they cover; plain data."""
    from deltatune.core.sites.discovery import uneven
    from deltatune.core.sites.site import generic

    groups: dict[str, list[Site]] = {}
    for site in all_sites.values():
        groups.setdefault(generic(site.name), []).append(site)
    modules = {site.module for site in all_sites.values() if site.params}
    parameters_at_sites = {id(parameter) for path in modules for parameter in backbone.get_submodule(path).parameters()}
    rest: dict[str, int] = {}
    for weight in all_sites.weights.values():
        if (
            id(backbone.get_parameter(weight.name)) not in parameters_at_sites
        ):  # by identity: tied weights have two paths
            rest[generic(weight.name)] = rest.get(generic(weight.name), 0) + weight.params
    covered = all_sites.base_params - sum(rest.values())
    return {
        "model": model,
        "architecture": all_sites.facts.architecture,
        "params": all_sites.base_params,
        "layers": len(
            {(site.name.partition("layers.")[0], site.layer) for site in all_sites.values() if site.layer is not None}
        ),
        "sites": [_group(name, members, all_sites.base_params) for name, members in groups.items()],
        "coverage": covered / all_sites.base_params if all_sites.base_params else 0.0,
        "elsewhere": rest,
        "unnamed": list(all_sites.unnamed),
        "uneven": {name: list(counts) for name, counts in uneven(all_sites).items()},
    }


def quantized_part(backbone: nn.Module, params: int, scheme: str | None) -> dict[str, Any]:
    """{"quantized": {"scheme", "modules", "skipped", "params", "bits", "bytes", "plain_bytes"}} of an empty base.

    The bytes are those of the whole base, whose other parameters stay float32. Nothing for no scheme.
    """
    from deltatune.models.quantization.quantize_model import quantize_

    done = quantize_(backbone, scheme or "none")
    if done.scheme is None:
        return {}
    whole = FLOAT32 * params
    facts = {"scheme": done.scheme.text, "modules": list(done.modules), "skipped": done.skipped, "params": done.params}
    facts |= {"bits": done.bits, "bytes": whole - FLOAT32 * done.params + done.bytes, "plain_bytes": whole}
    return {"quantized": facts}


def _group(name: str, members: list[Site], base: int) -> dict[str, Any]:
    params = sum(site.params for site in members)
    return {
        "site": name,
        "kind": members[0].kind,
        "count": len(members),
        "width_in": sorted({site.width_in for site in members}),
        "width_out": sorted({site.width_out for site in members}),
        "params": params,
        "share": params / base if base else 0.0,
        "part": members[0].slice is not None,
        "tied": members[0].tied,
    }


def _show(summary: dict[str, Any]) -> None:
    size = f"{count(summary['params'])} parameters, {summary['layers']} layers"
    show(f"{summary['architecture']} ({summary['model']}): {size}\n")
    rows = [
        (
            group["site"],
            _kind(group),
            str(group["count"]),
            f"{_widths(group['width_in'])} → {_widths(group['width_out'])}" if group["width_out"] != [0] else "–",
            count(group["params"]) if group["params"] else "–",
            f"{100 * group['share']:.1f} %" if group["params"] else "–",
        )
        for group in _in_order(summary["sites"])
    ]
    columns = ("site", "kind", "count", "width", "parameters", "share")
    show(table(columns, rows, right=["count", "width", "parameters", "share"], whole=["site", "kind"]))
    show(f"\n{100 * summary['coverage']:.1f} % of the parameters are at sites.")
    if stored := summary.get("quantized"):
        share = f"{100 * stored['params'] / summary['params']:.1f} %"
        show(
            f"In {stored['scheme']}: {count(len(stored['modules']))} matrices, {share} of the parameters, at "
            f"{stored['bits']:.3f} bits a parameter; the base takes {size_text(stored['bytes'])} instead of "
            f"{size_text(stored['plain_bytes'])}."
        )
        for path, why in list(stored["skipped"].items())[:SKIPPED_SHOWN]:
            show(f"Not quantised: {path}, {why}.")
    if summary["elsewhere"]:
        rest = ", ".join(f"{name} {count(params)}" for name, params in summary["elsewhere"].items())
        show(f"Elsewhere, only trainable with Unfreeze: {rest}.")
    for (layers, total), names in _by_count(summary["uneven"]).items():
        show(f"In {layers} of {total} layers only: {', '.join(names)}.")
    if summary["unnamed"]:
        show(
            f"Matrices without a name: {', '.join(summary['unnamed'])}.\n"
            'From Python, name them with roles: find_sites(model, roles={"leaf": "attn.q"}).'
        )
    else:
        show("Every matrix has a name.")


def _kind(group: dict[str, Any]) -> str:
    if group["part"]:
        return "slice of it"
    kind = KINDS.get(group["kind"], group["kind"])
    return f"{kind}, tied" if group["tied"] and group["kind"] == "linear" else kind


def _in_order(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort: embeddings, then each stack with the parts of its blocks, then the rest."""
    stacks = list(dict.fromkeys(group["site"].rpartition("layers.*.")[0] for group in groups))

    def position(group: dict[str, Any]) -> tuple[int, int]:
        stack, in_layers, name = group["site"].rpartition("layers.*.")
        if not in_layers:
            return (-1 if ".embed" in f".{name}" else len(stacks)), 0
        part = name.partition(".")[0]
        return stacks.index(stack), GROUPS.index(part) if part in GROUPS else len(GROUPS)

    return sorted(groups, key=position)


def _by_count(uneven: dict[str, list[int]]) -> dict[tuple[int, int], list[str]]:
    names: dict[tuple[int, int], list[str]] = {}
    for name, (layers, total) in uneven.items():
        names.setdefault((layers, total), []).append(name)
    return names


def _widths(widths: list[int]) -> str:
    return "/".join(str(width) for width in widths)
