"""The application: OpenAI's routes, and those for labels, tags and answers, behind the guard."""

from __future__ import annotations

from dataclasses import fields

from fastapi import FastAPI

from deltatune.serving.server.guard.guards import Guard, Guarding
from deltatune.serving.server.guard.metrics import Metrics
from deltatune.serving.server.page.page_files import add_page
from deltatune.serving.server.routes.error_answers import add_error_answers
from deltatune.serving.server.routes.generation_routes import add_generation_routes
from deltatune.serving.server.routes.model_routes import add_model_routes
from deltatune.serving.server.routes.row_routes import add_row_routes
from deltatune.serving.server.routes.status_routes import add_status_routes
from deltatune.serving.service import Service

COUNTERS = {
    "requests", "refused", "failed", "cancelled", "timed_out", "tokens_in", "tokens_out", "cached_tokens",
    "prompt_cache_hits", "passes", "rows_read", "loads", "evictions", "loading_seconds", "attaching_seconds",
}  # fmt: skip
"""The engine's numbers that only grow."""


def create_app(service: Service, guarding: Guarding | None = None) -> Guard:
    """The ASGI application of a service; `guarding` says who may call and how much. Its routes are in `.app`."""
    guarding = guarding or Guarding()
    app = FastAPI(openapi_url=None, redirect_slashes=False)  # without its documentation, which loads foreign scripts
    guard = Guard(app, guarding, Metrics(lambda: engine_numbers(service)))
    add_error_answers(app, guarding.log)
    add_model_routes(app, service, guarding.bounds)
    add_generation_routes(app, service, guarding.bounds)
    add_row_routes(app, service, guarding.bounds)
    add_status_routes(app, guard, lambda: service.engine.alive)
    add_page(app)
    return guard


def engine_numbers(service: Service) -> dict[str, float]:
    """The engine's numbers by name, for metrics; what it lists is counted."""
    numbers: dict[str, float] = {}
    statistics = service.engine.statistics()
    for field in fields(statistics):
        value = getattr(statistics, field.name)
        name = f"{field.name}_total" if field.name in COUNTERS else field.name
        numbers[name] = len(value) if isinstance(value, tuple) else value
    return numbers
