"""Budgets: the largest size of a method that fits into a number of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deltatune.core.errors import DeltatuneError
from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.memory import check_parameters
from deltatune.core.method import Method
from deltatune.core.sites.site import Sites


@dataclass(frozen=True)
class Budget:
    """A number of trainable parameters, heads left out, with the text that gave it."""

    text: str
    params: int


def read_budget(budget: str | int, sites: Sites) -> Budget:
    """Read `"0.5%"` (of the base's parameters), `"300k"`, `"1.2M"` or a number.

    Raises DeltatuneError for anything else, for less than one parameter, and for more than the memory of this machine.
    """
    text = (budget if isinstance(budget, str) else shortened(budget)).strip()
    number, unit = _read_size(text)
    scale = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "%": sites.base_params / 100}[unit]
    check_parameters(f"the budget {shortened(text)}", number * scale)
    params = int(number * scale)
    if params < 1:
        raise DeltatuneError(
            f"the budget {text!r} is {number * scale:.2f} parameters of {sites.base_params:,}; give a larger one"
        )
    return Budget(text, params)


def _read_size(text: str) -> tuple[float, str]:
    """The number of a budget and its unit in lower case: `0.5%`, `300k`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kKmMgG%]?)", text.replace(",", "").replace("_", ""))
    if not match:
        raise DeltatuneError(
            f"cannot read the budget {shortened(text)}; write a share of the base such as 0.5% or a number such as 300k"
        )
    return float(match.group(1)), match.group(2).lower()


def split_budget(text: str) -> tuple[str, str | None]:
    """Split `"Houlsby()@3%"` into the method's text and its own budget, None if it has none.

    The budget stands at the end and holds for the whole method, a union included. An @ in quotes is the method's own.
    Raises DeltatuneError for two budgets, a part that is missing, and a budget that cannot be read.
    """
    places = _signs(text)
    if not places:
        return text, None
    method, budget = text[: places[0][0]].strip(), text[places[-1][0] + 1 :].strip()
    about = f"cannot read the budget of {shortened(text)}"
    example = "write the method, @ and a size, such as LoRA()@0.5% or Houlsby()@300k"
    if any(depth for _, depth in places):
        raise DeltatuneError(
            f"{about}: the @ is inside the parentheses; a budget is of the whole method and stands behind it, "
            "as in Cloze(LoRA())@3%"
        )
    if len(places) > 1:
        raise DeltatuneError(f"{about}: it has {len(places)} budgets; a method, or a union of several, has one")
    if not method or not budget:
        raise DeltatuneError(f"{about}: there is no {'size behind' if method else 'method before'} the @; {example}")
    try:
        _read_size(budget)
    except DeltatuneError:
        union = " A union has one budget, which stands behind its last method." if "+" in budget else ""
        raise DeltatuneError(f"{about}: {shortened(budget)} is no size; {example}.{union}") from None
    return method, budget


def check_sized(method: Method, budget: str) -> None:
    """Raise DeltatuneError for a method with a budget of its own and no size that it could set."""
    if method.size is None:
        raise DeltatuneError(f"{method!r} has no size that the budget {budget} could set; leave @{budget} out")


def _signs(text: str) -> list[tuple[int, int]]:
    """Places of every @ outside of quotes, and how many brackets are open there."""
    places: list[tuple[int, int]] = []
    depth, quote, escaped = 0, "", False
    for place, character in enumerate(text):
        if quote:
            quote, escaped = ("" if character == quote and not escaped else quote), character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        elif character == "@":
            places.append((place, depth))
        else:
            depth += (character in "([{") - (character in ")]}")
    return places


def fit_budget(method: Method, sites: Sites, budget: str | int) -> Method:
    """Return the method with the largest size whose closed-form count fits the budget.

    Methods without a size are returned unchanged. Raises DeltatuneError when even the smallest size is too large.
    """
    if method.size is None:
        return method
    allowed = read_budget(budget, sites)
    smallest = method.sized(1)
    if smallest.count(sites) > allowed.params:
        number = "" if allowed.text.isdigit() else f" = {allowed.params:,}"
        raise DeltatuneError(
            f"{smallest!r} already trains {smallest.count(sites):,} parameters, more than the budget "
            f"{allowed.text}{number}; raise the budget or give the method fewer sites"
        )
    low, high = 1, max(1, method.limit(sites))
    while low < high:
        middle = (low + high + 1) // 2
        if method.sized(middle).count(sites) <= allowed.params:
            low = middle
        else:
            high = middle - 1
    return method.sized(low)
