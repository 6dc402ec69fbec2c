"""Summary of a Host: base, adapters, storage and the active route."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from deltatune.core.adapter import Adapter
from deltatune.core.html_table import html_table
from deltatune.core.route import Route
from deltatune.core.sites.site import Sites, generic


def describe(
    sites: Sites, adapters: Mapping[str, Adapter], route: Route, merged: Mapping[str, float], size: int
) -> str:
    """Base (of `size` bytes), adapters with their sites and parameters, storage, active route, merged adapters."""
    base = sites.base_params
    lines = [f"{sites.facts.architecture}: {base:,} frozen parameters, {len(adapters)} adapters"]
    for name, adapter in adapters.items():
        count, head = adapter.count, adapter.head_count
        share = f"{100 * count / base:.2f} %" if base else "-"
        where = sorted({generic(site.name) for site in adapter.acting_sites if site.kind != "weight"})
        weights = sum(site.kind == "weight" for site in adapter.acting_sites)
        places = where + ([f"{weights} weight tensors"] if weights else [])
        lines.append(f"  {name}: {adapter.method!r}")
        lines.append(f"    {count:,} parameters ({share} of the base)" + (f", head {head:,}" if head else ""))
        lines.append(f"    at {', '.join(places) or 'no site: only the head is trained'}")
        if name in merged:
            lines.append(f"    merged into the weights; largest difference on verification inputs {merged[name]:.1e}")
        if adapter.dropped:
            lines.append(f"    disabled in the first {adapter.dropped} layers")
    lines += _storage(size, adapters)
    lines.append(f"active: {route_text(route)}")
    return "\n".join(lines)


def trainable_line(model: nn.Module, sites: Sites, adapters: Mapping[str, Adapter], route: Route) -> str:
    """PEFT's line of `print_trainable_parameters`, with its numbers: heads and tied weights are counted as there.

    A quantised weight counts as many parameters as it has values.
    """
    coded = {site.module: site.params for site in sites.weights.values() if site.quantized}
    own = {
        id(parameter): parameter.numel()
        for path, module in model.named_modules()
        if path.partition(".")[0] != "deltatune"
        for name, parameter in module.named_parameters(recurse=False)
        if not (path in coded and name == "weight")
    }
    everything = sum(own.values()) + sum(coded.values())
    everything += sum(parameter.numel() for adapter in adapters.values() for parameter in adapter.parameters())
    active = [adapters[name] for name in sorted(route.names)]
    trained = sum(adapter.count + adapter.head_count for adapter in active)
    share = 100 * trained / everything
    return f"trainable params: {trained:,} || all params: {everything:,} || trainable%: {share:.4f}"


def describe_html(sites: Sites, adapters: Mapping[str, Adapter], route: Route, merged: Mapping[str, float]) -> str:
    """What `describe` says, as a table for notebooks."""
    rows = [
        (
            name,
            repr(adapter.method),
            f"{adapter.count:,}",
            f"{100 * adapter.count / sites.base_params:.2f} %" if sites.base_params else "-",
            f"{adapter.head_count:,}",
            "merged" if name in merged else "active" if name in route.names else "",
        )
        for name, adapter in adapters.items()
    ]
    caption = f"{sites.facts.architecture}: {sites.base_params:,} frozen parameters"
    header = ("adapter", "method", "parameters", "of the base", "head", "")
    return html_table(caption, header, rows, f"active: {route_text(route)}")


def _storage(base: int, adapters: Mapping[str, Adapter]) -> list[str]:
    """Size of the adapters beside one base, and of as many fine-tuned copies of the model."""
    if not adapters:
        return []
    size = sum(adapter.bytes for adapter in adapters.values())
    n = len(adapters)
    return [
        f"storage: {_bytes(size)} for {n} adapter{'s' * (n > 1)} beside one base of {_bytes(base)}; "
        f"{n} tuned cop{'ies' if n > 1 else 'y'} of the model: {_bytes(n * base)}"
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def route_text(route: Route) -> str:
    """`a`, `0.7 a + 0.3 b`, row by row, or `the bare base`."""
    if route.order:
        return "stacked: " + ", then ".join(route.order)
    if route.rows is not None:
        return "by row: " + ", ".join(_row_text(row) for row in route.rows)
    return _row_text(route.uniform)


def _row_text(row: object) -> str:
    weights = dict(row)  # type: ignore[call-overload]
    if not weights:
        return "the bare base"
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())
