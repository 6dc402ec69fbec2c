"""Errors as answers in OpenAI's form: what the client can change is 4xx, what it can only wait for 503."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deltatune.core.errors import DeltatuneError, is_out_of_memory
from deltatune.serving.server.guard.refusals import Refusal, unavailable
from deltatune.serving.server.guard.request_log import RequestLog, call_of
from deltatune.serving.serving_errors import (
    AdapterUnavailable,
    CannotServe,
    EngineStopped,
    QueueFull,
    RequestTimeout,
    RequestTooLong,
    UnknownAdapter,
)
from deltatune.serving.texts.invalid_request import InvalidRequest


def refusal_of(error: Exception) -> Refusal:
    """The answer to a request that ended with this error; its message is for the client."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InvalidRequest):
        return Refusal(error.status, str(error), code=error.code, param=error.param)
    if isinstance(error, UnknownAdapter):
        message = "The model does not exist; GET /v1/models lists those that do"  # removed a moment ago
        return Refusal(404, message, code="model_not_found", param="model")
    if isinstance(error, AdapterUnavailable):  # its message names folders of the server, which are for the log
        return Refusal(
            503,
            "The adapter cannot be served: its files are damaged, or do not fit the base. The server's log says more.",
            type="server_error",
            code="adapter_unavailable",
            param="model",
        )
    if isinstance(error, RequestTooLong):
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, CannotServe):
        return Refusal(400, str(error), code="cannot_serve", param="model")
    if isinstance(error, QueueFull):
        return unavailable(f"The server is overloaded: {error}.")
    if isinstance(error, EngineStopped):
        return unavailable(str(error), 5.0)
    if isinstance(error, RequestTimeout):
        return Refusal(504, str(error), type="server_error", code="timeout")  # 408: clients would ask again
    if is_out_of_memory(error):
        return unavailable("The server has no memory left for this request; send a shorter one, or try again later.")
    if isinstance(error, DeltatuneError):
        return Refusal(400, str(error), code="invalid_value")
    return Refusal(500, "The server had an error while it answered.", type="server_error")


def answer_of(refusal: Refusal) -> Response:
    """A refusal as a response."""
    response = Response(refusal.body, refusal.status)
    for name, value in refusal.headers:
        response.headers[name.decode()] = value.decode()
    return response


def add_error_answers(app: FastAPI, log: RequestLog | None = None) -> None:
    """Answer every error of the routes in OpenAI's form; `log` gets what is not for clients."""

    async def answer(request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        call = call_of(request.scope)
        call.error = refusal.code or type(error).__name__
        if log is not None and isinstance(error, AdapterUnavailable):
            log.event("adapter", id=call.id, model=call.model, problem=str(error))
        return answer_of(refusal)

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method[:20]} {request.scope['path'][:200]}"
        message = {404: f"There is no route {what}.", 405: f"The route does not take {what}."}
        refusal = Refusal(error.status_code, message.get(error.status_code, str(error.detail)), code="unknown_url")
        call_of(request.scope).error = "unknown_url"
        response = answer_of(refusal)
        response.headers.update(error.headers or {})
        return response

    for kind in (DeltatuneError, Refusal, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, no_route)
