"""The figure of `deltatune inspect`: norms by layer and site, singular values, and overlaps, as one SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.comparison.report.figures.svg import (
    COLOURS,
    Axis,
    bottom_axis,
    fit,
    left_axis,
    linear,
    logarithmic,
    path,
    standalone,
    svg,
    tag,
    text,
)

CELL = 26.0
"""Pixels of a cell of a heat map."""
SIDE = 150.0
"""Pixels for the names beside a heat map."""
PANEL = 300.0
"""Width of a panel of singular values."""
HUES = ("#2a6fbb", "#d95f02", "#1b9e77", "#7570b3", "#c2185b", "#66a61e", "#b8860b", "#555555", "#17becf", "#8c564b")
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:13px}.tick,.note{fill:#666;"
    "font-size:10px}.grid{stroke:#e3e3e3}.ground{stroke:#888}.line{fill:none;stroke-width:1.2;opacity:.75}"
    ".cell{stroke:#fff}.paper{fill:#fff}.value{font-size:8.5px}"
)
Rows = Sequence[Mapping[str, Any]]


def change_figure(analysis: Mapping[str, Any]) -> str:
    """A standalone SVG of the plain data that `deltatune inspect --json` prints."""
    blocks = []
    for adapter in analysis["adapters"]:
        rows = [row for row in adapter["changes"] if row["form"] != "tensor"] or adapter["changes"]
        blocks.append([_norms(adapter["adapter"], rows), *_spectrum(rows)])
    blocks += [[_overlap(pair)] for pair in analysis["pairs"] if any(row["inputs"] for row in pair["sites"])]
    height, width, parts = 16.0, 0.0, []
    for block in blocks:
        left = 16.0
        for content, wide, _ in block:
            parts.append(tag("g", content, transform=f"translate({left:.0f},{height:.0f})"))
            left += wide + 24
        width = max(width, left)
        height += max(high for _, _, high in block) + 24
    paper = tag("rect", width=width, height=height, class_="paper")
    return standalone(svg(width, height, f"<style>{STYLE}</style>{paper}{''.join(parts)}", "Changes of adapters"))


Panel = tuple[str, float, float]
"""Content, width and height."""


def _norms(name: str, rows: Rows) -> Panel:
    """A heat map of norms: a row for each kind of site, a column for each layer."""
    relative = all(row["relative"] is not None for row in rows)
    cells = {}
    for row in rows:
        layer, site = _place(row)
        cells[site, layer] = row["relative"] if relative else row["norm"]
    sites = list(dict.fromkeys(site for site, _ in cells))
    layers = sorted({layer for _, layer in cells})
    most = max(cells.values(), default=0.0) or 1.0
    what = "norm of the change / norm of the weight" if relative else "norm of the change"
    parts = [text(0, 12, name, class_="title"), text(0, 28, f"{what}, at most {most:.3g}", class_="note")]
    for i, site in enumerate(sites):
        y = 40 + i * CELL
        parts.append(text(SIDE - 8, y + CELL * 0.65, fit(site, 11, SIDE - 10), "end"))
        for j, layer in enumerate(layers):
            value = cells.get((site, layer))
            if value is not None:
                where = site if layer < 0 else f"layer {layer}, {site}"
                parts.append(_cell(SIDE + j * CELL, y, value / most, f"{where}: {value:.4g}"))
    bottom = 40 + len(sites) * CELL
    for j, layer in enumerate(layers):
        parts.append(text(SIDE + (j + 0.5) * CELL, bottom + 14, str(layer) if layer >= 0 else "–", "middle", "tick"))
    width = SIDE + max(len(layers) * CELL, 90.0)
    parts.append(text(SIDE, bottom + 28, "layer", class_="note"))
    return "".join(parts), width, bottom + 30


def _spectrum(rows: Rows) -> list[Panel]:
    """Singular values of every site, a colour for each kind of site."""
    shown = [(_place(row)[1], [v for v in row["singular_values"] if v > 0]) for row in rows if row["singular_values"]]
    shown = [(site, values) for site, values in shown if values]
    if not shown:
        return []
    sites = list(dict.fromkeys(site for site, _ in shown))
    longest = max(len(values) for _, values in shown)
    floor = max(max(values) for _, values in shown) * 1e-6  # what is below is rounding
    shown = [(site, [max(value, floor) for value in values]) for site, values in shown]
    up = logarithmic([v for _, values in shown for v in values], 190.0, 44.0)
    across = (
        linear([1.0, float(longest)], 44.0, PANEL - 8, pad=0.02) if longest > 1 else Axis(0.5, 1.5, 44.0, PANEL - 8)
    )
    parts = [
        text(0, 12, "singular values", class_="title"),
        text(0, 28, "of each site, by their number", class_="note"),
    ]
    parts.append(left_axis(up, 44.0, PANEL - 8, {value: f"{value:.2g}" for value in up.ticks(4)}))
    whole = {value: f"{value:g}" for value in across.ticks(5) if value == int(value)}
    parts.append(bottom_axis(across, 190.0, whole or {1.0: "1"}))
    for site, values in shown:
        points = [(across.at(i + 1), up.at(value)) for i, value in enumerate(values)]
        hue = HUES[sites.index(site) % COLOURS]
        drawn = path(points) if len(points) > 1 else tag("circle", cx=points[0][0], cy=points[0][1], r=2.0)
        parts.append(tag("g", drawn, stroke=hue, fill=hue))
    for i, site in enumerate(sites[:COLOURS]):
        x, y = 44 + (i % 2) * (PANEL / 2 - 20), 226 + (i // 2) * 15
        parts.append(tag("rect", x=x, y=y - 8, width=9, height=9, fill=HUES[i]))
        parts.append(text(x + 14, y, fit(site, 11, PANEL / 2 - 40)))
    return [("".join(parts), PANEL, 232 + (len(sites[:COLOURS]) + 1) // 2 * 15)]


def _overlap(pair: Mapping[str, Any]) -> Panel:
    """A heat map of φ(i, j), the mean over all sites, of the directions that are read."""
    grids = [row["inputs"] for row in pair["sites"] if row["inputs"]]
    rows, columns = min(len(grid) for grid in grids), min(len(grid[0]) for grid in grids)
    one, other = pair["adapters"]
    parts = [text(0, 12, "overlap of subspaces φ(i, j)", class_="title")]
    parts.append(text(0, 28, f"rows: {one}, columns: {other}; mean of {len(grids)} sites, 0 to 1", class_="note"))
    for i in range(rows):
        parts.append(text(30, 40 + (i + 0.65) * CELL, str(i + 1), "end", "tick"))
        for j in range(columns):
            value = sum(grid[i][j] for grid in grids) / len(grids)
            parts.append(
                _cell(36 + j * CELL, 40 + i * CELL, value, f"φ({i + 1}, {j + 1}) = {value:.3f}", f"{value:.2f}")
            )
    bottom = 40 + rows * CELL
    parts += [text(36 + (j + 0.5) * CELL, bottom + 14, str(j + 1), "middle", "tick") for j in range(columns)]
    return "".join(parts), max(36 + columns * CELL, 340.0), bottom + 18


def _cell(x: float, y: float, share: float, title: str, value: str = "") -> str:
    """A square, from white to blue."""
    tone = [round(255 + (end - 255) * min(1.0, max(0.0, share))) for end in (16, 78, 139)]
    colour = f"#{tone[0]:02x}{tone[1]:02x}{tone[2]:02x}"
    square = tag("title", title) + tag("rect", x=x, y=y, width=CELL, height=CELL, fill=colour, class_="cell")
    ink = "#fff" if share > 0.5 else "#222"
    number = tag(
        "text", value, x=x + CELL / 2, y=y + CELL * 0.62, text_anchor="middle", style=f"fill:{ink}", class_="value"
    )
    return tag("g", square + (number if value else ""))


def _place(row: Mapping[str, Any]) -> tuple[int, str]:
    """The layer of a change, −1 outside of all, and its site without the layer; a bias or tensor is named."""
    site, parameter = str(row["site"]), str(row["parameter"])
    layer = re.search(r"(?:^|\.)(?:\w+\.)?(\d+)(?=\.|$)", site)  # `layers.3`, or `h.3` in a model's own names
    plain = site if layer is None else f"{site[: layer.start()]}{site[layer.end() :]}".strip(".")
    named = plain if parameter == "weight" or plain.endswith(parameter) else f"{plain}.{parameter}"
    return (-1 if layer is None else int(layer[1])), named
