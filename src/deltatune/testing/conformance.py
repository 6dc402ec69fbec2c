"""The law of compiling: an adapter leaves the model one graph. Slow, so it is not among the quick laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deltatune.core.errors import DeltatuneError
from deltatune.core.method import Method
from deltatune.core.sites.discovery import find_sites
from deltatune.testing import conformance as compiling
from deltatune.testing.fixtures import assert_close, attach, forward, gradients, make_host, outputs, probe_loss
from deltatune.testing.laws import adapter_laws as laws
from deltatune.testing.laws import generation_laws as generating
from deltatune.testing.laws import mixing_laws as mixing
from deltatune.testing.tiny_models import Kind, inputs, tiny


def compiled_equals_eager(method: Method, kind: Kind) -> None:
    """Law 14: `torch.compile(fullgraph=True)` takes the model with the adapter; outputs and gradients are the same."""
    host, batch = make_host(kind), inputs(kind)
    if not attach(host, "a", method).capabilities.compiles:
        host.finish_("a")
    wanted = outputs(host, batch)
    torch.compiler.reset()
    # The backend without code generation: what may break is tracing, and no compiler has to be there.
    compiled: Any = torch.compile(host.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(**batch)[0], wanted, "compiled and eager", within=1e-5)
    loss = probe_loss(list(forward(host.model, batch)))
    if not loss.requires_grad:  # a probe of a model without a head trains nothing
        return
    loss.backward()  # type: ignore[no-untyped-call]
    expected = gradients(host, "a")
    probe_loss(list(forward(compiled, batch))).backward()  # type: ignore[no-untyped-call]
    for name, found in gradients(host, "a").items():
        assert_close(found, expected[name], f"gradient of {name}, compiled and eager", within=1e-4)


Law = Callable[[Method, Kind], None]

LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        laws.starts_as_the_base,
        laws.only_its_own_gets_gradients,
        laws.detaching_restores_the_base,
        laws.files_keep_it,
        laws.merging_equals_live,
        mixing.mixed_rows_equal_rows_alone,
        mixing.mixed_gradients_equal_rows_alone,
        mixing.checkpointing_changes_no_gradient,
        generating.cached_equals_uncached,
        generating.padding_changes_nothing,
        generating.rows_keep_their_routes,
        laws.counts_what_it_trains,
        laws.a_budget_is_met_from_below,
        laws.steps_move_everything,
        mixing.the_order_of_attaching_is_free,
        laws.gradients_are_exact,
    )
}
"""The laws by name. Each takes a method and the kind of a tiny model, and raises AssertionError where it is broken."""

SLOW_LAWS: dict[str, Law] = {compiling.compiled_equals_eager.__name__: compiling.compiled_equals_eager}
"""Laws that take seconds each; `check_method(..., slow=True)` tries them too."""

MODELS: tuple[Kind, ...] = ("bert", "gpt2", "llama", "t5")
"""An encoder, a decoder with fused and transposed projections, one with grouped key-value heads, an encoder-decoder."""


def check_method(method: Method | type[Method], models: Sequence[Kind] | None = None, *, slow: bool = False) -> None:
    """Hold a method (a class: with its defaults) to every law on every model that it applies to.

    Raises AssertionError listing each broken law with the model and the reason, also when no model has the sites.
    """
    made = method if isinstance(method, Method) else method()
    broken: list[str] = []
    refusals: list[str] = []
    for kind in MODELS if models is None else models:
        refusal = applies(made, kind)
        if refusal is not None:
            refusals.append(f"{kind}: {refusal}")
            continue
        for name in {**LAWS, **(SLOW_LAWS if slow else {})}:
            try:
                demand(name, made, kind)
            except Exception as error:
                broken.append(f"{name} on {kind}: {type(error).__name__}: {str(error).strip()}")
    if len(refusals) == len(MODELS if models is None else models):
        broken = [f"{made!r} applies to none of the models", *refusals]
    if broken:
        raise AssertionError(f"{made!r} breaks {len(broken)} laws:\n" + "\n".join(f"- {line}" for line in broken))


def applies(method: Method, kind: Kind) -> str | None:
    """Return None if a tiny model has the sites that a method wants, else the method's own refusal."""
    try:
        method.pick(find_sites(tiny(kind)))
    except DeltatuneError as error:
        return str(error)
    return None


def demand(law: str, method: Method, kind: Kind) -> None:
    """Try one law. Raises AssertionError, or whatever the method raises, where it is broken."""
    {**LAWS, **SLOW_LAWS}[law](method, kind)
