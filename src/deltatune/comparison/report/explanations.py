"""Explanations under the figures: what was equal for all methods, what the numbers mean, and their limits."""

from collections.abc import Mapping
from typing import Any

from deltatune.comparison.report import number_format as formats
from deltatune.comparison.report.number_format import html
from deltatune.comparison.results.recommend import percent
from deltatune.comparison.statistics.score_statistics import PscpConstants


def explanations(summary: Mapping[str, Any]) -> str:
    """The "How to read this" list as HTML."""
    parts = [
        ("Equal for all methods", html(_held_equal(summary))),
        ("The score", html(_score(summary))),
        ("The interval", html(_interval(summary))),
        ("Parameters", html(_parameters(summary))),
        ("Tokens", html(_tokens(summary))),
        ("PSCP", _pscp(summary.get("pscp_constants") or {})),
        ("Limits", html(LIMITS)),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in parts if text)


LIMITS = (
    "The ranking holds for these data, this model and this budget; a longer search may change it. With few seeds the "
    "seed variance is only roughly estimated, and with many methods one may seem best by chance. An interval of width "
    "0 only means that no test row was wrong. Times were measured on one machine."
)


def _held_equal(summary: Mapping[str, Any]) -> str:
    budget = summary.get("budget")
    fitted = f"the budget of {formats.count(budget['params'])} parameters, " if budget else ""
    return (
        f"The model, the rows and their order for each seed, the head, {fitted}the search over learning rates, the "
        "number of steps, the batch size and the schedule. The learning rate is chosen for each method, because no "
        "single value is fair to all."
    )


def _score(summary: Mapping[str, Any]) -> str:
    seeds, test = len(summary.get("seeds") or []), (summary["data"].get("rows") or {}).get("test")
    baseline = summary.get("majority") or {}
    score = formats.number(baseline, "score")
    description = baseline.get("words") or "Always predicting the most frequent label"
    without_training = f" {description} scores {score:.3f}." if score is not None else ""
    mean = f"mean of {seeds} seeds" if seeds != 1 else "one seed"
    repeats = {len(row.get("seed_scores") or ()) for row in summary["methods"] if row.get("seed_scores")}
    if summary.get("decision") and len(repeats) > 1:  # some methods got more than others
        mean = "mean of a method's seeds, which were added where methods were not yet told apart"
    if summary.get("shots"):
        draws = summary.get("draws") or 1
        on = f"{draws} draws" if draws != 1 else "one draw"
        mean = f"{mean} on each of {on} of {summary['shots']} training rows a class"
    return (
        f"{str(summary['metric']).capitalize()} on {formats.count(test)} test rows, {mean}. Learning rates, sizes and "
        f"prompts were chosen on the validation rows alone, before any test row was read.{without_training}"
    )


def _interval(summary: Mapping[str, Any]) -> str:
    resamples = formats.number(summary.get("settings") or {}, "resamples")
    count = f"{formats.count(resamples)} times" if resamples else "many times"
    seeds, draws = len(summary.get("seeds") or []), summary.get("draws") or 1
    unit = "draws of training rows, each with its seeds" if draws > 1 else "seeds"
    of_seeds = f" The error of the {unit}, comes on top" if draws > 1 else f" The error of the {unit} comes on top"
    of_seeds += ": its variance is estimated from the runs of all methods, as each has few."
    if seeds <= 1 and draws <= 1:
        of_seeds = " A single seed does not measure seed variance."
    if draws > 1:
        of_seeds += " All methods were trained on the same draws."
    elif summary.get("shots"):
        of_seeds += " A single draw does not measure how much the choice of the rows matters."
    return (
        f"Two-sided 95 % interval. The test rows are resampled {count}, the same way for all methods.{of_seeds} "
        f"{_tied(summary)}"
    )


def _tied(summary: Mapping[str, Any]) -> str:
    decision = summary.get("decision") or {}
    if not decision or not summary.get("pairs"):
        return "“Tied” means that the interval of the difference to the best method contains 0."
    margin = formats.number(decision, "margin")
    equal = f"“Equal” means that the interval lies within ±{margin:g}. " if margin is not None else ""
    return (
        "“Tied” means that no verdict tells a method from the best one. Verdicts hold for all pairs and all looks at "
        f"the results together, though seeds were added after a look. {equal}"
    ).rstrip()


def _parameters(summary: Mapping[str, Any]) -> str:
    head, base = formats.number(summary, "head_params"), formats.number(summary, "base_params")
    text = "Trained parameters of the method."
    if head:
        text += f" The head ({formats.count(head)} parameters) is trained by every method and not counted."
    if base:
        text += f" The share is of the base's {formats.count(base)}."
    budget = summary.get("budget")
    if budget and base:
        text += f" The budget is {percent(budget['params'] / base)} of the base."
    return text


def _tokens(summary: Mapping[str, Any]) -> str:
    if not any(row.get("tokens") for row in summary["methods"]):
        return ""
    return (
        "By how many tokens a prompt or prefix makes each text longer for the model's attention, in training and in "
        "use: virtual tokens, and keys and values in front of the text's own. They also take positions of a model "
        "that has few. 0 for methods that change weights or hidden states only."
    )


def _pscp(constants: Mapping[str, Any]) -> str:
    """The formula as HTML, with the constants used."""
    if not constants:
        return ""
    c = PscpConstants(**{name: float(value) for name, value in constants.items()})
    factors = "".join(
        f" · <span>(1 + {cost}/C<sub>{letter}</sub>)<sup>−{beta:g}</sup></span>"
        for cost, letter, beta in (("P", "p", c.beta_params), ("F", "f", c.beta_flops), ("M", "m", c.beta_memory))
    )
    return (
        "One published number that combines score and cost "
        f'(<a href="https://arxiv.org/abs/2511.21285">Belanec et al. 2025</a>): score{factors}, with P trained '
        "parameters, F extra FLOPs of a forward pass over the bare model's, M peak memory in training. Here "
        f"C<sub>p</sub> = {formats.short_count(c.params)}, C<sub>f</sub> = {c.flops / 1e12:g} TFLOPs, "
        f"C<sub>m</sub> = {formats.size(c.memory)}. The published constants are for models of 7 to 8 billion "
        "parameters; they hardly lower the score of a small model."
    )
