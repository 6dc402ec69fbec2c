"""Routes that tell how the server is: /health, /ready and /metrics."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deltatune.serving.server.guard.guards import Guard
from deltatune.serving.server.guard.metrics import CONTENT_TYPE
from deltatune.serving.server.guard.request_log import call_of


def add_status_routes(app: FastAPI, guard: Guard, alive: Callable[[], bool]) -> None:
    """Add them. `alive`: whether the engine still works."""

    @app.api_route("/health", methods=["GET", "HEAD"], include_in_schema=False)
    async def health() -> Response:
        """Whether the process works: if not, it should be started again."""
        return JSONResponse({"status": "ok"}) if alive() else JSONResponse({"status": "the engine has died"}, 503)

    @app.api_route("/ready", methods=["GET", "HEAD"], include_in_schema=False)
    async def ready() -> Response:
        """Whether new requests should be sent here."""
        if guard.draining:
            return JSONResponse({"status": "draining"}, 503)
        return await health()

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        """Metrics for Prometheus."""
        call_of(request.scope).require("metrics")
        return Response(guard.metrics.text(), media_type=CONTENT_TYPE)
