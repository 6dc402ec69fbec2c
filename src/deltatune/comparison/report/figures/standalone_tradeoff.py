"""Score against trained parameters as one SVG that carries its own colours, for notebooks and papers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltatune.comparison.report.figures.svg import COLOURS, standalone, tag
from deltatune.comparison.report.figures.tradeoff import score_against_parameters
from deltatune.comparison.report.method_results import MethodResult
from deltatune.core.theme import theme
from deltatune.store.atomic_files import write_file

WIDTH, HEIGHT = 860.0, 440.0
"""Pixels of the figure."""

RULES = {
    "text": "fill:ink;font:12px system-ui,sans-serif",
    ".tick": "fill:muted;font-size:11px",
    ".axis": "fill:muted;font-size:11px",
    ".label": "font-weight:550;paint-order:stroke;stroke:paper;stroke-width:3.5px;stroke-linejoin:round",
    ".grid": "stroke:line",
    ".ground": "stroke:faint",
    ".break": "stroke:faint;stroke-dasharray:1 4;stroke-linecap:round;stroke-width:1.5",
    ".budget": "stroke:muted;stroke-dasharray:4 3",
    ".front": "fill:none;stroke:muted;opacity:.4;stroke-width:2;stroke-linejoin:round",
    ".paper": "fill:paper",
}
"""The rules of the figure's classes: colours by their names in theme.css, and paper."""
METHOD_RULES = {
    ".label": "fill:method",
    ".mark": "fill:method;stroke:paper;stroke-width:1",
    ".mark.hollow": "fill:paper;stroke:method;stroke-width:1.7",
    ".whisker": "stroke:method;stroke-width:1.5;opacity:.7",
    ".leader": "stroke:method;opacity:.5",
}
"""Rules of a method's marks, in its colour."""


@dataclass(frozen=True)
class Figure:
    """A figure as SVG; a notebook shows it."""

    svg: str
    """The whole file."""

    def save(self, path: str | Path) -> Path:
        """Write it to a file. Returns the path."""
        write_file(Path(path), self.svg)
        return Path(path)

    def _repr_svg_(self) -> str:
        return self.svg


def tradeoff_figure(methods: Sequence[MethodResult], metric: str, budget: Mapping[str, Any] | None) -> Figure:
    """The report's figure, on white and in the report's colours. Without a method that has a score it says so."""
    image = score_against_parameters(methods, metric, budget, WIDTH, HEIGHT)
    if not image:
        note = tag("text", "no method has a score", x=16, y=30)
        image = tag("svg", note, viewBox="0 0 260 48", width=260, height=48, role="img", class_="wide")
    paper = tag("style", _rules()) + tag("rect", class_="paper", width="100%", height="100%")
    head, end, content = image.partition(">")
    return Figure(standalone(head + end + paper + content))


def _rules() -> str:
    """The style sheet. Each rule names this figure: others on a notebook's page stay as they are."""
    colours = dict(re.findall(r"--(\w+): (#\w+)", theme().partition("@media")[0])) | {"paper": "#ffffff"}

    def coloured(rule: str) -> str:
        return re.sub(r"(?<=:)[a-z]+[0-9]?(?=;|$)", lambda name: colours.get(name[0], name[0]), rule)

    rules = dict(RULES)
    for class_, colour in {**{f"s{i}": f"c{i}" for i in range(COLOURS)}, "ref": "ref"}.items():
        rules |= {f".{class_} {key}": rule.replace("method", colour) for key, rule in METHOD_RULES.items()}
    return "".join(f"svg.wide {selector}{{{coloured(rule)}}}" for selector, rule in rules.items())
