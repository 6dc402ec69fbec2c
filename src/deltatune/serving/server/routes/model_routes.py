"""Routes about models: /v1/models, where every adapter is one, and /v1/adapters: into memory, and out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from deltatune.core.input_validation.field_validation import shortened
from deltatune.serving.server.guard.bounds import Bounds
from deltatune.serving.server.guard.request_log import Call
from deltatune.serving.server.routes.request_fields import RequestFields
from deltatune.serving.server.routes.route_calls import call_in, check_exists, json_answer
from deltatune.serving.service import Service
from deltatune.serving.serving_errors import RequestTimeout
from deltatune.serving.texts.invalid_request import InvalidRequest
from deltatune.serving.texts.model_names import BASE, unknown_model
from deltatune.store.adapter_store.store_entry import Entry

MOST_LISTED = 10_000
"""Adapters that /v1/adapters lists at once."""


def add_model_routes(app: FastAPI, service: Service, bounds: Bounds) -> None:
    """Add the routes."""

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """The base and all adapters that the caller may use."""
        call = call_in(request)
        entries = await service.files(service.adapters.entries)
        listed = [_base(service)] if call.may_use(BASE) else []
        listed += [_model(entry, service) for entry in entries if call.may_use(entry.name)]
        return json_answer({"object": "list", "data": listed})

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        """One model."""
        call = call_in(request)
        if name in (BASE, service.base.name):
            if not call.may_use(BASE):
                raise unknown_model(name, [])
            return json_answer(_base(service))
        await check_exists(name, call, service)
        return json_answer(_model(await service.files(lambda: service.store.entry(name)), service))

    @app.get("/v1/adapters")
    async def adapters(request: Request) -> Response:
        """The adapters with their states; `search`, `task` and `limit` choose some."""
        call, query = call_in(request), request.query_params
        limit = query.get("limit", str(MOST_LISTED))
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 8):
            raise InvalidRequest(f"limit must be a whole number, not {shortened(limit)}", "limit", "invalid_value")
        most = min(int(limit), MOST_LISTED)
        search, task = query.get("search"), query.get("task")
        entries = await service.files(lambda: service.adapters.entries(search, task))
        usable = [entry for entry in entries if call.may_use(entry.name)]
        states = _states([entry.name for entry in usable[:most]], call, service)
        data = [{**_facts(entry), **states[entry.name]} for entry in usable[:most]]
        return json_answer({"object": "list", "data": data, "total": len(usable)})

    @app.get("/v1/adapters/{name}")
    async def adapter(name: str, request: Request) -> Response:
        """One adapter with its state."""
        await check_exists(name, call_in(request), service)
        return json_answer(await _described(name, call_in(request), service))

    async def moved(name: str, request: Request, verb: str) -> Response:
        call = call_in(request)
        call.require("admin")
        await check_exists(name, call, service)
        body = await request.body()
        if body.strip():
            RequestFields(body).finish()
        move = {"load": service.load, "unload": service.unload, "reload": service.reload}[verb]
        try:
            async with asyncio.timeout(bounds.request_seconds):
                await move(name)
        except TimeoutError:
            raise RequestTimeout(
                f"{name} could not be {verb}ed within {bounds.request_seconds:g} seconds; requests that run may still "
                "use it, so try again later"
            ) from None
        return json_answer(await _described(name, call_in(request), service))

    @app.post("/v1/adapters/{name}/load")
    async def load(name: str, request: Request) -> Response:
        """Bring an adapter into memory ahead of requests."""
        return await moved(name, request, "load")

    @app.post("/v1/adapters/{name}/unload")
    async def unload(name: str, request: Request) -> Response:
        """Take an adapter out of memory; the next request for it brings it back."""
        return await moved(name, request, "unload")

    @app.post("/v1/adapters/{name}/reload")
    async def reload(name: str, request: Request) -> Response:
        """Read an adapter anew from the store; requests that run finish with what they began with."""
        return await moved(name, request, "reload")


async def _described(name: str, call: Call, service: Service) -> dict[str, Any]:
    facts = _facts(await service.files(lambda: service.store.entry(name)))
    return {**facts, **_states([name], call, service)[name]}


def _states(names: Sequence[str], call: Call, service: Service) -> dict[str, dict[str, Any]]:
    """The states of adapters; how much each is used only for admins, since it tells what other keys do."""
    states = service.states(names)
    if call.key is not None and call.key.admin:
        return states
    return {name: {"state": state["state"]} for name, state in states.items()}


def _base(service: Service) -> dict[str, Any]:
    base = service.base
    return {
        "id": BASE, "object": "model", "created": base.started, "owned_by": "deltatune", "root": base.name,
        "parent": None, "max_model_len": base.positions, "generates": base.generates,
    }  # fmt: skip


def _model(entry: Entry, service: Service) -> dict[str, Any]:
    return {
        "id": entry.name, "object": "model", "created": _seconds(entry.added), "owned_by": "deltatune",
        "root": entry.name, "parent": BASE, "max_model_len": service.base.positions, "task": entry.task or None,
        "method": entry.method,
    }  # fmt: skip


def _facts(entry: Entry) -> dict[str, Any]:
    score = entry.score
    return {
        "name": entry.name, "object": "adapter", "task": entry.task or None, "method": entry.method,
        "labels": list(entry.labels), "tags": list(entry.tags), "parameters": entry.parameters, "bytes": entry.bytes,
        "added": entry.added, "revision": entry.digest,
        "score": None if score is None else {"metric": score[0], "value": score[1]},
    }  # fmt: skip


def _seconds(moment: str) -> int:
    try:
        return int(datetime.fromisoformat(moment).timestamp())
    except ValueError:
        return 0
