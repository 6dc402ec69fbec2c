"""Laws of banks: an adapter in a slot computes what it computes attached, whatever is in the others."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.core.method import Method
from deltatune.core.route import RouteSpec
from deltatune.testing.fixtures import (
    OTHER,
    assert_close,
    assert_equal,
    attach,
    make_host,
    outputs,
    real_rows,
    row_alone,
)
from deltatune.testing.laws.generation_laws import prompt, step_logits
from deltatune.testing.tiny_models import ENCODERS, RIGHT_PADDED, Head, Kind, inputs

Stored = tuple[Method, dict[str, Tensor], int]
"""What an adapter's files hold: its method, its tensors and its seed."""

ROWS: list[RouteSpec] = ["b0", "b1", None, {"b0": 0.5, "b2": -0.5}, "other", "b2", {"b1": 0.7, "other": 0.4}]
"""Three adapters of a bank, the bare base, two of them in one row, and one that is attached beside them."""
RUNS: list[RouteSpec] = ["b0", "b0", "b1", "b2", "other", None, None]
SAME: list[RouteSpec] = ["b1"] * 7


def banked_rows_equal_rows_alone(method: Method, kind: Kind) -> None:
    """Each row of a batch of adapters in a bank equals that row with the same adapter attached, alone.

    Of methods without a bank form, the bank says what to do instead, and is as before.
    """
    host, three = _filled(method, kind)
    if not host.bank().can_hold(three[0][0]):
        _must_refuse(host, three[0])
        return
    alone: dict[str, Tensor] = {}
    paddings: list[Literal["right", "none"]] = ["right"] if kind in RIGHT_PADDED else ["right", "none"]
    for padding in paddings:
        batch = inputs(kind, rows=len(ROWS), length=7, padding=padding)
        for route in (ROWS, RUNS, SAME):
            host.use(route)  # type: ignore[arg-type]
            together = real_rows(host, outputs(host, batch))
            for row, entry in enumerate(route):
                one = row_alone(batch, row)
                key = f"{entry} {[tensor.tolist() for tensor in one.values()]}"
                if key not in alone:
                    host.use(_attached(entry))
                    alone[key] = real_rows(host, outputs(host, one))[0]
                what = f"row {row}, routed {entry!r}, padding {padding}, in a bank and attached alone"
                assert_close(together[row], alone[key], what)
    host.use("b0")
    one = row_alone(batch, 0)
    in_bank = outputs(host, one)
    host.use("a0")
    assert_close(in_bank, outputs(host, one), "one adapter for all rows, in a bank and attached")


def banked_rows_generate_as_alone(method: Method, kind: Kind) -> None:
    """Generating with a cache for rows of adapters in a bank gives the logits of each row with its adapter attached."""
    if kind in ENCODERS:
        return
    host, three = _filled(method, kind, "lm")
    if not host.bank().can_hold(three[0][0]):
        return
    batch = prompt(kind)
    route: list[RouteSpec] = ["b0", None, {"b2": 0.6, "other": 0.5}]
    host.use(route)  # type: ignore[arg-type]
    together = step_logits(host, batch)
    assert_close(step_logits(host, batch, use_cache=False), together, "a bank's rows without cache and with")
    for row, entry in enumerate(route):
        host.use(_attached(entry))
        assert_close(step_logits(host, row_alone(batch, row))[0], together[row], f"row {row}, routed {entry!r}")


def banks_keep_nothing(method: Method, kind: Kind) -> None:
    """Stacks grow with their values; a slot holds nothing of an earlier adapter; empty, all is as before."""
    host, batch = make_host(kind), inputs(kind)
    names, base = list(host.model.state_dict()), outputs(host, batch)
    bank, (first, second, larger) = host.bank(), _three(method, kind)
    if not bank.can_hold(first[0]):
        return
    _put(host, "first", first)
    host.use("first")
    before, bytes_before = outputs(host, batch), bank.bytes
    for i in range(5):  # more than the first slots
        _put(host, f"more{i}", second)
    assert_equal(outputs(host, batch), before, "outputs of an adapter after its stacks have grown")
    host.use("more3")
    wanted = outputs(host, batch)
    slots = {name: bank.places[name] for name in bank.names}
    bank.remove("more3")
    _put(host, "larger", larger)  # in the same slot where it shares the stacks
    bank.remove("larger")
    _put(host, "again", second)
    if bank.places["again"] != slots["more3"]:
        raise AssertionError(f"a free slot was not used again: {bank.places['again']}, not {slots['more3']}")
    host.use("again")
    assert_equal(outputs(host, batch), wanted, "outputs of an adapter in a slot that another one had")
    _must_list_what_does_not_fit(host, first)
    for name in bank.names:
        bank.remove(name)
    if bank.bytes or bank.groups or not bytes_before >= 0:
        raise AssertionError(f"an empty bank keeps {bank.bytes} bytes")
    if list(host.model.state_dict()) != names or hasattr(host.model, "deltatune"):
        raise AssertionError("a bank leaves names in the model's state dict")
    assert_equal(outputs(host, batch), base, "outputs of the base after a bank")


def _three(method: Method, kind: Kind, head: Head = None) -> list[Stored]:
    """Three trained adapters of a method: two of other seeds, and one that is larger where the method has a size."""
    size = method.size
    try:
        larger = method if size is None else method.sized(size + 1)
        make_host(kind).attach("x", larger)
    except DeltatuneError:
        larger = method
    three = []
    for seed, each in enumerate((method, method, larger)):
        host = make_host(kind, head)
        attach(host, "x", each, seed=seed)
        if host.adapters["x"].mixes:
            host.remove_reparametrisation_("x")
        tensors = {name: tensor.clone() for name, tensor in host.adapters["x"].tensors().items()}
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        three.append((host.adapters["x"].method, own, seed))
    return three


def _filled(method: Method, kind: Kind, head: Head = None) -> tuple[Host, list[Stored]]:
    """A Host with three adapters in its bank, b0 to b2, the same attached, a0 to a2, and another one attached."""
    host, three = make_host(kind, head), _three(method, kind, head)
    attach(host, "other", OTHER, seed=7)
    if host.bank().can_hold(three[0][0]):
        for i, (each, tensors, seed) in enumerate(three):
            host.attach(f"a{i}", each, seed=seed, head=False).load_tensors(tensors)
            _put(host, f"b{i}", three[i])
    return host, three


def _put(host: Host, name: str, stored: Stored) -> None:
    method, tensors, seed = stored
    host.bank().put(name, method, tensors, seed=seed)


def _attached(entry: RouteSpec) -> RouteSpec:
    """The same entry of a route with the attached adapters."""
    if isinstance(entry, str):
        return re.sub(r"^b(?=\d)", "a", entry)
    return {re.sub(r"^b(?=\d)", "a", name): weight for name, weight in entry.items()} if entry else None  # type: ignore[union-attr]


def _must_refuse(host: Host, stored: Stored) -> None:
    adapters = list(host.adapters)
    try:
        _put(host, "b0", stored)
    except DeltatuneError as error:
        if "attach" not in str(error):
            raise AssertionError(f"the refusal of a bank says nothing about attaching: {error}") from None
    else:
        raise AssertionError("a bank says that it cannot hold a method, but takes it")
    if list(host.adapters) != adapters or host.bank().groups:
        raise AssertionError("a refused adapter is left in the bank")


def _must_list_what_does_not_fit(host: Host, stored: Stored) -> None:
    """Put an adapter with a tensor missing, one too many and one misshapen: all three are told, and nothing changes."""
    method, tensors, seed = stored
    names = sorted(tensors)
    if len(names) < 2:
        return
    broken = {**tensors, "unknown": torch.zeros(1), names[0]: torch.zeros(*tensors[names[0]].shape, 2)}
    del broken[names[1]]
    bank, adapters, places = host.bank(), list(host.adapters), dict(host.bank().places)
    try:
        bank.put("broken", method, broken, seed=seed)
    except DeltatuneError as error:
        untold = [name for name in (names[0], names[1], "unknown") if name not in str(error)]
        if untold:
            raise AssertionError(f"an error does not name {', '.join(untold)}: {error}") from None
    else:
        raise AssertionError("a bank takes an adapter with tensors missing, extra and misshapen")
    if list(host.adapters) != adapters or bank.places != places:
        raise AssertionError("an adapter that does not fit is left in the bank")
