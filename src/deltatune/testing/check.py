"""The public conformance suite: every law over a method and some tiny models, all failures in one error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltatune.core.errors import DeltatuneError
from deltatune.core.finding import find_sites
from deltatune.core.method import Method
from deltatune.testing import compiling, generating, laws, mixing
from deltatune.testing.models import Kind, tiny

Law = Callable[[Method, Kind], None]

LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        laws.starts_as_the_base,
        laws.only_its_own_gets_gradients,
        laws.detaching_restores_the_base,
        laws.files_keep_it,
        laws.folding_equals_live,
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
