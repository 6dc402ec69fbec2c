"""Summary of a Host: base, adapters, storage and the active route."""

from __future__ import annotations

from collections.abc import Mapping

from deltatune.core.adapter import Adapter
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
        where = sorted({generic(site.name) for site in adapter.sites.values() if site.kind != "weight"})
        weights = sum(site.kind == "weight" for site in adapter.sites.values())
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


def _storage(base: int, adapters: Mapping[str, Adapter]) -> list[str]:
    """Size of the adapters beside one base, and of as many fine-tuned copies of the model."""
    if not adapters:
        return []
    size = sum(tensor.numel() * tensor.element_size() for a in adapters.values() for tensor in a.tensors().values())
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
