"""The words under the figures: what was held equal, what the numbers mean, what they cannot say."""

from collections.abc import Mapping
from typing import Any

from deltatune.comparison.recommend import percent
from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.number_format import html
from deltatune.comparison.statistics import PscpConstants


def how_to_read(summary: Mapping[str, Any]) -> str:
    """The "How to read this" list as markup."""
    parts = [
        ("Held equal", html(_held_equal(summary))),
        ("The score", html(_score(summary))),
        ("The interval", html(_interval(summary))),
        ("Parameters", html(_parameters(summary))),
        ("PSCP", _pscp(summary.get("pscp_constants") or {})),
        ("What it cannot say", html(LIMITS)),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{words}</dd></div>" for name, words in parts if words)


LIMITS = (
    "How the methods rank on other data, on another model or at another budget; how they would do after a longer "
    "search. With few seeds the luck of a seed is roughly estimated, and with many methods one may seem best by "
    "chance. An interval of width 0 means only that no test row was missed. Times are of this machine alone."
)


def _held_equal(summary: Mapping[str, Any]) -> str:
    budget = summary.get("budget")
    fitted = f"the budget of {formats.count(budget['params'])} parameters that sizes were fitted to, " if budget else ""
    return (
        f"Model, rows, their order under a seed, the head, {fitted}the rule by which learning rates were tried, steps, "
        "batch size, schedule. The learning rate is each method's own, since no one rate is fair to all."
    )


def _score(summary: Mapping[str, Any]) -> str:
    seeds, test = len(summary.get("seeds") or []), (summary["data"].get("rows") or {}).get("test")
    baseline = summary.get("majority") or {}
    score = formats.number(baseline, "score")
    words = baseline.get("words") or "Always answering the most frequent label"
    known = f" {words} scores {score:.3f}." if score is not None else ""
    mean = f"the mean of {seeds} seeds" if seeds != 1 else "of one seed"
    return (
        f"{str(summary['metric']).capitalize()} on {formats.count(test)} test rows, used once, after the learning rate "
        f"was chosen on the validation rows of all its seeds; {mean}.{known}"
    )


def _interval(summary: Mapping[str, Any]) -> str:
    resamples = formats.number(summary.get("settings") or {}, "resamples")
    drawn = f"{formats.count(resamples)} times" if resamples else "many times"
    several = len(summary.get("seeds") or []) > 1
    over = "test examples and seeds" if several else "test examples; one seed cannot show the luck of the seed"
    return (
        f"Two-sided 95 %, by redrawing {over}, {drawn}. Methods see the same draws. “Tied” means that the interval of "
        "the difference to the best contains 0: this test cannot tell the two apart."
    )


def _parameters(summary: Mapping[str, Any]) -> str:
    head, base = formats.number(summary, "head_params"), formats.number(summary, "base_params")
    words = "Those the method trains."
    if head:
        words += f" The head ({formats.count(head)} parameters) is trained by all and not counted."
    if base:
        words += f" Share is of the base's {formats.count(base)}."
    budget = summary.get("budget")
    if budget and base:
        words += f" The budget is {percent(budget['params'] / base)} of the base."
    return words


def _pscp(constants: Mapping[str, Any]) -> str:
    """The formula as markup, with the constants used."""
    if not constants:
        return ""
    c = PscpConstants(**{name: float(value) for name, value in constants.items()})
    factors = "".join(
        f" · <span>(1 + {cost}/C<sub>{letter}</sub>)<sup>−{beta:g}</sup></span>"
        for cost, letter, beta in (("P", "p", c.beta_params), ("F", "f", c.beta_flops), ("M", "m", c.beta_memory))
    )
    return (
        "One published number for score and cost together "
        f'(<a href="https://arxiv.org/abs/2511.21285">Belanec et al. 2025</a>): score{factors}, with P trained '
        "parameters, F extra FLOPs of a forward pass over the bare model's, M peak memory in training. Here "
        f"C<sub>p</sub> = {formats.short_count(c.params)}, C<sub>f</sub> = {c.flops / 1e12:g} TFLOPs, "
        f"C<sub>m</sub> = {formats.size(c.memory)}. The published constants are for models of 7 to 8 billion "
        "parameters; a small model's score they hardly lower."
    )
