"""Errors of serving: why a request is not accepted, or why it ended without an answer."""

from __future__ import annotations

from deltatune.core.errors import DeltatuneError


class QueueFull(DeltatuneError):
    """As many requests wait as the engine lets wait; the client may try again later."""


class UnknownAdapter(DeltatuneError):
    """A request names an adapter that neither the host nor the store has."""


class RequestTooLong(DeltatuneError):
    """A request with more tokens than the model has positions, or than the engine's memory can ever hold."""


class CannotServe(DeltatuneError):
    """A request that this model or this adapter cannot answer: text from an encoder, logits without a head."""


class EngineStopped(DeltatuneError):
    """The engine has been closed, is draining, or its worker has ended."""


class RequestTimeout(DeltatuneError):
    """A request took longer than it may."""


class AdapterUnavailable(DeltatuneError):
    """An adapter of the store that cannot be read, or does not fit the base; the message says why, with its folder."""
