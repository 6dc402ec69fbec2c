"""What all routes share: who calls, which adapters are asked for, and JSON answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deltatune.core.input_validation.field_validation import shortened
from deltatune.core.input_validation.strict_json import dumps
from deltatune.serving.served_base import ServedBase
from deltatune.serving.server.guard.request_log import Call, call_of
from deltatune.serving.server.routes.request_fields import RequestFields
from deltatune.serving.service import Caller, Service
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.serving.texts.model_names import BASE, model_text, read_model, read_weights, unknown_model
from deltatune.serving.texts.served_adapter import kind_of


def json_answer(content: Any, status: int = 200) -> Response:
    """A JSON answer; numbers that are not finite are null."""
    return Response(dumps(content, nonfinite="null"), status, media_type="application/json")


def caller_of(call: Call, timeout: float) -> Caller:
    """On whose behalf a request is answered."""
    return Caller(call.key.cache_key if call.key is not None else "", timeout)


async def read_adapters(fields: RequestFields, call: Call, service: Service) -> dict[str, float]:
    """The adapters that `model` or `adapters` name, with weights; every one is known and may be used.

    Raises InvalidRequest; what the caller may not use does not exist for it.
    """
    model, adapters = fields.raw("model"), fields.raw("adapters")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model must be a text, not {shortened(model)}", "model")
    if model is not None and len(model) > 2000:
        raise InvalidRequest(f"model has {len(model):,} characters; a model's name has fewer", "model")
    if model is None and adapters is None:
        raise InvalidRequest("you must provide a model parameter: an adapter's name, or base", "model")
    named = (
        read_model(str(model), service.base.name)
        if adapters is None
        else read_weights(adapters, model, service.base.name)
    )
    for name in named:
        await check_exists(name, call, service)
    if not any(named.values()) and not call.may_use(BASE):  # adapters at weight 0 are the bare model
        raise unknown_model(BASE if named else str(model), [])
    call.model = model_text(named)
    call.kind = "base" if not named else await _kind(named, service)
    return named


async def check_exists(name: str, call: Call, service: Service) -> None:
    """Raise InvalidRequest (404) for an adapter that there is none of, or that the caller may not use."""
    if not call.may_use(name) or not await service.files(lambda: service.adapters.has(name)):
        names = [each for each in await service.files(service.store.names) if call.may_use(each)]
        raise unknown_model(name, names)


def answer_model(adapters: Mapping[str, float], fields: RequestFields, base: ServedBase) -> str:
    """What an answer calls the model: as the request did, or as `model` would say it."""
    model = fields.content.get("model")
    return model if isinstance(model, str) and "adapters" not in fields.content else model_text(adapters)


async def _kind(adapters: Mapping[str, float], service: Service) -> str:
    kinds = {kind_of((await service.adapter(name)).task) for name in adapters}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def call_in(request: Request) -> Call:
    """The record of a request."""
    return call_of(request.scope)
