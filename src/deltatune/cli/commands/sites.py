"""`deltatune sites MODEL`: the places of a model that methods can read and change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltatune.cli.ui.screen import print_json, show, table
from deltatune.comparison.report.number_format import count

if TYPE_CHECKING:
    from torch import nn

    from deltatune.core.sites.site import Site, Sites

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
"""Kinds of sites in words."""
GROUPS = ("attn", "cross", "ffn", "norm", "residual")
"""The order of a block's parts in the table."""


def sites(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a name on the hub, or builtin.")] = "builtin",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where methods can act in a model: names, sizes, and what share of its parameters they reach.

    Only the model's config is read; its weights are neither downloaded nor loaded. The names are what a method's option
    `sites` selects by patterns: LoRA(sites="*.attn.{q,v}").
    """
    from deltatune.core.sites.discovery import find_sites
    from deltatune.models.loading import empty_backbone

    backbone = empty_backbone(model)
    found = summarise(backbone, find_sites(backbone), model)
    if as_json:
        print_json(found)
    else:
        _show(found)


def summarise(backbone: nn.Module, found: Sites, model: str) -> dict[str, Any]:
    """Sites by generic name, and how much of the base they cover, as plain data."""
    from deltatune.core.sites.discovery import uneven
    from deltatune.core.sites.site import generic

    groups: dict[str, list[Site]] = {}
    for site in found.values():
        groups.setdefault(generic(site.name), []).append(site)
    modules = {site.module for site in found.values() if site.params}
    at_sites = {id(parameter) for path in modules for parameter in backbone.get_submodule(path).parameters()}
    rest: dict[str, int] = {}
    for weight in found.weights.values():
        if id(backbone.get_parameter(weight.name)) not in at_sites:  # by identity: tied weights have two paths
            rest[generic(weight.name)] = rest.get(generic(weight.name), 0) + weight.params
    named = found.base_params - sum(rest.values())
    return {
        "model": model,
        "architecture": found.facts.architecture,
        "params": found.base_params,
        "layers": len(
            {(site.name.partition("layers.")[0], site.layer) for site in found.values() if site.layer is not None}
        ),
        "sites": [_group(name, members, found.base_params) for name, members in groups.items()],
        "coverage": named / found.base_params if found.base_params else 0.0,
        "elsewhere": rest,
        "unnamed": list(found.unnamed),
        "uneven": {name: list(counts) for name, counts in uneven(found).items()},
    }


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


def _show(found: dict[str, Any]) -> None:
    show(f"{found['architecture']} ({found['model']}): {count(found['params'])} parameters, {found['layers']} layers\n")
    rows = [
        (
            entry["site"],
            _kind(entry),
            str(entry["count"]),
            f"{_widths(entry['width_in'])} → {_widths(entry['width_out'])}" if entry["width_out"] != [0] else "–",
            count(entry["params"]) if entry["params"] else "–",
            f"{100 * entry['share']:.1f} %" if entry["params"] else "–",
        )
        for entry in _in_order(found["sites"])
    ]
    columns = ("site", "kind", "count", "width", "parameters", "share")
    show(table(columns, rows, right=["count", "width", "parameters", "share"], whole=["site", "kind"]))
    show(f"\n{100 * found['coverage']:.1f} % of the parameters are at sites.")
    if found["elsewhere"]:
        rest = ", ".join(f"{name} {count(params)}" for name, params in found["elsewhere"].items())
        show(f"Elsewhere, reached by Unfreeze alone: {rest}.")
    for (some, of), names in _by_count(found["uneven"]).items():
        show(f"In {some} of {of} layers only: {', '.join(names)}.")
    if found["unnamed"]:
        show(
            f"Matrices without a name: {', '.join(found['unnamed'])}.\n"
            'From Python, name them with roles: find_sites(model, roles={"leaf": "attn.q"}).'
        )
    else:
        show("Every matrix has a name.")


def _kind(entry: dict[str, Any]) -> str:
    if entry["part"]:
        return "part of it"
    kind = KINDS.get(entry["kind"], entry["kind"])
    return f"{kind}, tied" if entry["tied"] and entry["kind"] == "linear" else kind


def _in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Embeddings, each stack with the parts of its blocks side by side, the rest."""
    stacks = list(dict.fromkeys(entry["site"].rpartition("layers.*.")[0] for entry in entries))

    def place(entry: dict[str, Any]) -> tuple[int, int]:
        stack, inside, name = entry["site"].rpartition("layers.*.")
        if not inside:
            return (-1 if ".embed" in f".{name}" else len(stacks)), 0
        group = name.partition(".")[0]
        return stacks.index(stack), GROUPS.index(group) if group in GROUPS else len(GROUPS)

    return sorted(entries, key=place)


def _by_count(uneven: dict[str, list[int]]) -> dict[tuple[int, int], list[str]]:
    found: dict[tuple[int, int], list[str]] = {}
    for name, (some, of) in uneven.items():
        found.setdefault((some, of), []).append(name)
    return found


def _widths(widths: list[int]) -> str:
    return "/".join(str(width) for width in widths)
