"""Errors as answers in OpenAI's form: what the client can change is 4xx, what it can only wait for 503."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deltatune.core.errors import DeltatuneError, is_out_of_memory
from deltatune.serving.server.refusals import Refusal, unavailable
from deltatune.serving.server.request_log import call_of
from deltatune.serving.serving_errors import (
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
        return Refusal(404, str(error), code="model_not_found", param="model")
    if isinstance(error, RequestTooLong):
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, CannotServe):
        return Refusal(400, str(error), code="cannot_serve", param="model")
    if isinstance(error, QueueFull):
        return unavailable(f"The server is overloaded: {error}. Please try again later.")
    if isinstance(error, EngineStopped):
        return unavailable(str(error), 5.0)
    if isinstance(error, RequestTimeout):
        return Refusal(408, str(error), code="request_timeout")
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


def add_error_answers(app: FastAPI) -> None:
    """Answer every error of the routes in OpenAI's form."""

    async def answer(request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        call_of(request.scope).error = refusal.code or type(error).__name__
        return answer_of(refusal)

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method[:20]} {request.url.path[:200]}"
        message = {404: f"There is no route {what}.", 405: f"The route does not take {what}."}
        refusal = Refusal(error.status_code, message.get(error.status_code, str(error.detail)), code="unknown_url")
        call_of(request.scope).error = "unknown_url"
        response = answer_of(refusal)
        response.headers.update(error.headers or {})
        return response

    for kind in (DeltatuneError, Refusal, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, no_route)
