"""Names of models in requests: an adapter, several with weights, or the bare base.

german                      one adapter
german:0.7+legal:0.3        two adapters, each with the factor on its change
base                        no adapter
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deltatune.core.errors import nearest
from deltatune.core.input_validation.field_validation import shortened
from deltatune.serving.texts.invalid_request import InvalidRequest

BASE = "base"
"""The model without any adapter."""
MOST = 16
"""Adapters that act on one request together."""
LARGEST = 100.0
"""Largest weight, either way: what is beyond is a slip of the keyboard."""


def read_model(model: str, base_name: str) -> dict[str, float]:
    """Adapters with their weights; none for the base. Raises InvalidRequest for a text that is not a model's name."""
    if model in (BASE, base_name):
        return {}
    weights: dict[str, float] = {}
    for part in model.split("+"):
        name, sign, weight = part.strip().partition(":")
        name = name.strip()
        if not name:
            raise _wrong(model, "a name is missing")
        if name in (BASE, base_name):
            raise _wrong(model, f"{name!r} is always there; leave it out")
        if name in weights:
            raise _wrong(model, f"{name!r} is named twice")
        weights[name] = _number(model, name, weight) if sign else 1.0
    return _few(weights, "model")


def read_weights(value: Any, model: Any, base_name: str) -> dict[str, float]:
    """Adapters of the field `adapters`: an object of names and weights; `model` may only name the base beside it."""
    if not isinstance(value, Mapping) or not value:
        raise InvalidRequest(
            f"adapters must be an object of names and weights, such as {{'german': 0.7}}, not {shortened(value)}",
            "adapters",
        )
    if model not in (None, BASE, base_name):
        raise InvalidRequest(
            f"adapters and the model {shortened(model)} both say which adapters act; give one of them", "adapters"
        )
    wrong = [name for name, weight in value.items() if not _is_weight(weight)]
    if wrong:
        raise InvalidRequest(
            f"the weight of adapter {shortened(wrong[0])} must be a number from -{LARGEST:g} to {LARGEST:g}, not "
            f"{shortened(value[wrong[0]])}",
            f"adapters.{shortened(wrong[0], quoted=False)}",
        )
    return _few({str(name): float(weight) for name, weight in value.items()}, "adapters")


def model_text(adapters: Mapping[str, float]) -> str:
    """The name of what answers, as `read_model` reads it."""
    parts = [name if weight == 1 else f"{name}:{weight:g}" for name, weight in adapters.items()]
    return "+".join(parts) or BASE


def unknown_model(name: str, names: list[str]) -> InvalidRequest:
    """The error for an adapter that there is none of; `names` are those that the client may see."""
    near = nearest(name, names) if len(names) <= 1000 and len(name) <= 200 else ""
    return InvalidRequest(
        f"The model {shortened(name)} does not exist{near or '; GET /v1/models lists those that do'}",
        "model",
        "model_not_found",
        404,
    )


def _number(model: str, name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not _is_weight(weight) or "_" in text or not text.isascii():
        raise _wrong(model, f"the weight of {shortened(name)} must be a number from -{LARGEST:g} to {LARGEST:g}")
    return weight


def _is_weight(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= LARGEST


def _few(weights: dict[str, float], param: str) -> dict[str, float]:
    if len(weights) > MOST:
        raise InvalidRequest(f"{len(weights)} adapters for one request; at most {MOST} can act together", param)
    return weights


def _wrong(model: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{shortened(model)} is not a model: {what}. A model is an adapter's name, several with weights as in "
        "german:0.7+legal:0.3, or base",
        "model",
    )
