"""Metrics for Prometheus. Labels are routes, statuses and kinds of answers: there are few of each, whoever asks what.

No metric names an adapter, a key or a client, so that who may read them learns how busy the server is and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from deltatune.serving.server.guard.request_log import Call

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]] = dict) -> None:
        """`statistics` is asked at each scrape: the engine's numbers by their names; those in _total are counters."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deltatune_requests",
            "Requests that have ended.",
            ["method", "route", "status", "kind"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "deltatune_request_seconds",
            "Seconds from a request's arrival to its answer's end.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "deltatune_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("deltatune_requests_in_flight", "Requests that are running.", registry=self.registry)
        self.tokens_in = Counter("deltatune_tokens_in", "Tokens read.", ["kind"], registry=self.registry)
        self.tokens_out = Counter("deltatune_tokens_out", "Tokens written.", ["kind"], registry=self.registry)
        self.refused = Counter("deltatune_refused", "Requests refused, by status.", ["status"], registry=self.registry)
        self.registry.register(_Engine(statistics))

    def began(self) -> None:
        """A request has arrived."""
        self.in_flight.inc()

    def ended(self, call: Call) -> None:
        """A request has ended."""
        self.in_flight.dec()
        kind, status = call.kind or "none", str(call.status)
        self.requests.labels(call.method if call.method in METHODS else "other", call.route, status, kind).inc()
        self.seconds.labels(call.route).observe(call.seconds)
        if call.first_token_seconds is not None:
            self.first_token.observe(call.first_token_seconds)
        if call.tokens_in and call.status != 429:
            self.tokens_in.labels(kind).inc(call.tokens_in)
        if call.tokens_out:
            self.tokens_out.labels(kind).inc(call.tokens_out)
        if call.status in (401, 403, 408, 413, 421, 429, 431, 503):
            self.refused.labels(status).inc()

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class _Engine:
    """The engine's numbers, as they are at a scrape."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]]) -> None:
        self._statistics = statistics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for name, value in self._statistics().items():
            text = name.removesuffix("_total").replace("_", " ")
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"deltatune_engine_{name}", f"Engine: {text}.", value=value)
