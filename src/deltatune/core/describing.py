"""The Host in words."""

from __future__ import annotations

from collections.abc import Mapping

from deltatune.core.adapter import Adapter
from deltatune.core.mixing import Route
from deltatune.core.sites import Sites, generic


def describe(sites: Sites, adapters: Mapping[str, Adapter], route: Route, folded: Mapping[str, float]) -> str:
    """Base, adapters with their sites and parameters, active route, folded adapters."""
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
        if name in folded:
            lines.append(f"    folded into the weights; largest difference on probe inputs {folded[name]:.1e}")
    lines.append(f"active: {route_text(route)}")
    return "\n".join(lines)


def route_text(route: Route) -> str:
    """`a`, `0.7 a + 0.3 b`, row by row, or `the bare base`."""
    if route.rows is not None:
        return "by row: " + ", ".join(_row_text(row) for row in route.rows)
    return _row_text(route.uniform)


def _row_text(row: object) -> str:
    weights = dict(row)  # type: ignore[call-overload]
    if not weights:
        return "the bare base"
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())
