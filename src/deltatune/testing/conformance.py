"""Conformance of a method: all laws, on every tiny model it applies to; and the slow law of `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.quantization.schemes import Scheme
from deltatune.core.sites.discovery import find_sites
from deltatune.core.sites.site import Sites
from deltatune.testing.fixtures import (
    assert_close,
    attach,
    forward,
    gradients,
    make_host,
    outputs,
    probe_loss,
    quantized_bases,
)
from deltatune.testing.laws import adapter_laws, bank_laws, generation_laws, mixing_laws
from deltatune.testing.tiny_models import Kind, inputs, tiny


def compiled_equals_eager(method: Method, kind: Kind) -> None:
    """Law 14: `torch.compile(fullgraph=True)` takes the model with the adapter; outputs and gradients are the same."""
    host, batch = make_host(kind), inputs(kind)
    if not attach(host, "a", method).capabilities.compiles:
        host.remove_reparametrisation_("a")
    wanted = outputs(host, batch)
    torch.compiler.reset()
    # The backend without code generation: it tests tracing and needs no compiler.
    compiled: Any = torch.compile(host.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(**batch)[0], wanted, "compiled and eager", within=1e-5)
    loss = probe_loss(list(forward(host.model, batch)))
    if not loss.requires_grad:  # Probe() on a model without a head trains nothing
        return
    loss.backward()  # type: ignore[no-untyped-call]
    expected = gradients(host, "a")
    probe_loss(list(forward(compiled, batch))).backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(host, "a").items():
        assert_close(gradient, expected[name], f"gradient of {name}, compiled and eager", within=1e-4)


Law = Callable[[Method, Kind], None]

LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        adapter_laws.starts_as_the_base,
        adapter_laws.only_its_own_gets_gradients,
        adapter_laws.detaching_restores_the_base,
        adapter_laws.files_keep_it,
        adapter_laws.merging_equals_live,
        mixing_laws.mixed_rows_equal_rows_alone,
        mixing_laws.mixed_gradients_equal_rows_alone,
        mixing_laws.checkpointing_changes_no_gradient,
        generation_laws.cached_equals_uncached,
        generation_laws.padding_changes_nothing,
        generation_laws.rows_keep_their_routes,
        adapter_laws.counts_what_it_trains,
        adapter_laws.a_budget_is_met_from_below,
        adapter_laws.steps_move_everything,
        mixing_laws.the_order_of_attaching_is_free,
        adapter_laws.gradients_are_exact,
    )
}
"""The laws by name. Each takes a method and the kind of a tiny model, and raises AssertionError if it is broken."""

BANK_LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        bank_laws.banked_rows_equal_rows_alone,
        bank_laws.banked_rows_generate_as_alone,
        bank_laws.banks_keep_nothing,
    )
}
"""Those of adapters in a bank, which methods without a bank form keep by being refused there."""

SLOW_LAWS: dict[str, Law] = {compiled_equals_eager.__name__: compiled_equals_eager}
"""Laws that take seconds each; `check_method(..., slow=True)` includes them."""

MODELS: tuple[Kind, ...] = ("bert", "gpt2", "llama", "t5")
"""An encoder, a decoder with fused and transposed projections, one with grouped key-value heads, an encoder-decoder."""


def check_method(
    method: Method | type[Method],
    models: Sequence[Kind] | None = None,
    *,
    slow: bool = False,
    quantize: str | Scheme | None = None,
) -> None:
    """Check a method (a class: with its defaults) against every law on every model that it applies to.

    quantize: a scheme, such as "nf4", in which the models' weights are stored. Raises AssertionError listing each
    broken law with the model and the reason, also when no model has the sites.
    """
    instance = method if isinstance(method, Method) else method()
    broken: list[str] = []
    refusals: list[str] = []
    for kind in MODELS if models is None else models:
        refusal = applies(instance, kind, quantize)
        if refusal is not None:
            refusals.append(f"{kind}: {refusal}")
            continue
        for name in {**LAWS, **BANK_LAWS, **(SLOW_LAWS if slow else {})}:
            try:
                demand(name, instance, kind, quantize)
            except Exception as error:
                broken.append(f"{name} on {kind}: {type(error).__name__}: {str(error).strip()}")
    if len(refusals) == len(MODELS if models is None else models):
        broken = [f"{instance!r} applies to none of the models", *refusals]
    if broken:
        raise AssertionError(f"{instance!r} breaks {len(broken)} laws:\n" + "\n".join(f"- {line}" for line in broken))


def applies(method: Method, kind: Kind, quantize: str | Scheme | None = None) -> str | None:
    """Return None if a tiny model has the sites that a method needs, else the refusal of the method.

    On a quantised model, also the refusal of methods that train weights which are stored as codes.
    """
    try:
        method.pick(_sites(kind))
        if quantize is not None:
            with quantized_bases(quantize):
                make_host(kind).attach("a", method)
    except DeltatuneError as error:
        return str(error)
    return None


@cache
def _sites(kind: Kind) -> Sites:
    """The sites of a tiny model, found once: methods read them and change nothing."""
    return find_sites(tiny(kind))


def demand(law: str, method: Method, kind: Kind, quantize: str | Scheme | None = None) -> None:
    """Check one law. Raises AssertionError, or the method's own exception, if it is broken."""
    with quantized_bases(quantize):
        {**LAWS, **BANK_LAWS, **SLOW_LAWS}[law](method, kind)
