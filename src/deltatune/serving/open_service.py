"""A service opened in one place: a store, a base, and the engine between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.quantization.schemes import scheme_text
from deltatune.models.hardware import best_device
from deltatune.models.loading import BUILTIN, ORIGIN, load_backbone
from deltatune.models.processors import Processor
from deltatune.serving.engine.engine import Engine
from deltatune.serving.engine.engine_limits import EngineLimits
from deltatune.serving.residency import Residency
from deltatune.serving.served_base import loads_for, served_base
from deltatune.serving.service import Service
from deltatune.store.adapter_store import AdapterStore
from deltatune.store.adapter_store.store_entry import Entry

SAMPLE = 8
"""Adapters of a store that say how its base is stored."""


@contextmanager
def open_service(
    store: AdapterStore,
    model: str,
    *,
    other_base: bool = False,
    quantize: str | None = None,
    precision: str = "auto",
    adapters: int = 64,
    limits: EngineLimits | None = None,
) -> Iterator[Service]:
    """Load a base and start an engine for it and the adapters of a store; both end with the `with` block.

    quantize: how the base is stored, such as nf4; None as the adapters say. precision: auto, float32 or bfloat16.
    adapters: how many are in memory at once. Raises DeltatuneError for a model that cannot be loaded, and where no
    adapter of the store is its.
    """
    scheme = quantization_of(store) if quantize is None else scheme_text(quantize)
    backbone, tokenizer = load_backbone(model, answers=loads_for(model), quantize=scheme)
    if isinstance(tokenizer, Processor):
        raise DeltatuneError(
            f"{model} reads {tokenizer.inputs} files, and requests carry texts: adapters on it answer with "
            "`deltatune predict`, or merged with transformers' pipeline"
        )
    host = Host(backbone.to(best_device()))  # type: ignore[arg-type]
    base = served_base(host, model, other_base)
    check_bases(store, model, base.fits)
    residency = Residency(host, store, adapters=adapters, other_base=other_base)
    engine = Engine(host, tokenizer, residency, limits, precision=precision)
    try:
        service = Service(engine, residency, store, tokenizer, base)
        try:
            yield service
        finally:
            service.close()
    finally:
        engine.close()


def check_bases(store: AdapterStore, model: str, fits: Callable[[Entry], bool]) -> None:
    """Raise DeltatuneError for a store all of whose adapters were trained on other bases."""
    entries = store.list()
    if entries and not any(fits(entry) for entry in entries):
        names = sorted({entry.base.name or "without a name" for entry in entries})
        raise DeltatuneError(
            f"none of the {len(entries)} adapters of {store} was trained on {model}: their bases are "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; give one of them with --model, store it "
            "as it was in training with --quantize, or accept other weights of the same shapes with --other-base"
        )


def base_of(store: AdapterStore) -> str:
    """The base that the adapters of a store name. Raises DeltatuneError where they name several, or none."""
    names = sorted({entry.base.name for entry in store.list()} - {""})
    if len(names) == 1:
        return BUILTIN if names[0] == ORIGIN else names[0]
    what = f"name {len(names)} bases ({', '.join(names[:5])})" if names else "name no base"
    raise DeltatuneError(f"the adapters of {store} {what}; say with --model which one is served")


def quantization_of(store: AdapterStore) -> str | None:
    """How the base was stored when the adapters of a store were trained, if the first ones agree; None for plain."""
    schemes = set()
    for name in store.names()[:SAMPLE]:
        with suppress(DeltatuneError):  # what is damaged is told when it is asked for
            extra = getattr(store.read(name), "extra", None) or {}
            if "task" in extra:
                schemes.add(scheme_text(extra.get("quantize")))
    return schemes.pop() if len(schemes) == 1 else None
