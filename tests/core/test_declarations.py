"""Declarations: a Delta made of others, and an Adapter, declare what their parts declare, field by field."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from deltatune import AdapterFusion, DeltatuneError, Host, LoRA, Pfeiffer, Prefix, UniPELT, parse
from deltatune.core.adapter import Adapter
from deltatune.core.capabilities import Capabilities, Needs, TrainingHints, combine
from deltatune.core.delta import AttentionDelta, Delta, relay_declarations_
from deltatune.core.method import REGISTRY, Method, View
from deltatune.core.sites.site import Site
from deltatune.methods.adapters.bottleneck import TwoLayer
from deltatune.methods.adapters.fusion import Fusion
from deltatune.methods.combinations.unipelt import Gated, GatedPrefix
from deltatune.methods.low_rank.lora import LowRank
from deltatune.methods.prompts.prefix import KeyValues
from deltatune.testing.fixtures import attach, make_host

GROUPS = {"capabilities": Capabilities, "needs": Needs, "hints": TrainingHints}
FIELDS = [(group, f.name) for group, kind in GROUPS.items() for f in fields(kind)]


def two_layer():
    return TwoLayer(8, 8, 2, "pfeiffer", "relu", 1.0, "small")


WRAPPERS = {
    Gated: lambda: Gated(LowRank(8, 8, 2, 1.0), 8, False),
    GatedPrefix: lambda: GatedPrefix(KeyValues(2, 8, 2), 8, False),
    Fusion: lambda: Fusion(8, 8, [two_layer(), two_layer()]),
}


def subclasses(kind):
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


def test_every_wrapper_is_tried():
    wrapping = {c for c in subclasses(Delta) if c.parts is not Delta.parts and c.__module__.startswith("deltatune")}
    assert {c for c in wrapping if not c.__name__.startswith("_")} == set(WRAPPERS)


@pytest.mark.parametrize(("group", "name"), FIELDS)
@pytest.mark.parametrize("kind", WRAPPERS, ids=lambda kind: kind.__name__)
def test_a_wrapper_relays_each_declaration_of_its_parts(kind, group, name):
    """The value is one that no wrapper has of its own, so that what is found is the part's."""
    delta = WRAPPERS[kind]()
    part, default = delta.parts[-1], getattr(GROUPS[group](), name)
    unusual = {bool: not default, int: 7, float: 7.0, tuple: ("values",), dict: {"values": 7.0}}[type(default)]
    setattr(part, group, replace(getattr(part, group), **{name: unusual}))
    adapter = Adapter(LoRA(), None, {})
    adapter.put("a.layers.0.ffn", Site("layers.0.ffn", "sublayer", "", "", 8, 8), delta)
    declared = getattr(getattr(delta, group), name)
    if name == "rates":
        assert any(path.endswith(".values") and rate == 7.0 for path, rate in adapter.rates().items())
    elif name == "frozen":
        assert "values" in [entry for _, each in adapter.named_deltas() for entry in each.hints.frozen]
    elif isinstance(unusual, tuple):
        assert set(unusual) <= set(declared)
    elif name != "merges":  # no wrapper has a weight form, whatever its parts have
        assert declared == unusual
    else:
        assert not declared
    for kind_of_group, together in ((Capabilities, adapter.capabilities), (Needs, adapter.needs)):
        if GROUPS[group] is kind_of_group:
            assert getattr(together, name) == declared


def test_declarations_survive_finishing_and_wrapping_twice():
    inner = LowRank(8, 8, 2, 1.0)
    inner.capabilities = Capabilities(merges=True, exact=False, compiles=False)
    inner.hints = TrainingHints(rates={"B": 16.0}, skippable=True)
    outer = Gated(Gated(inner, 8, False), 8, False)
    for _ in range(2):  # relaying again changes nothing
        relay_declarations_(outer)
        assert outer.capabilities == Capabilities(merges=False, exact=False, compiles=False)
        assert outer.needs == Needs(padding_mask=True)
        assert outer.hints == TrainingHints(skippable=True)
    host = make_host("bert")
    host.attach("a", UniPELT(Prefix(length=2, mlp=3) + LoRA(r=2, ratio=16.0)))
    before = host.adapters["a"]
    host.remove_reparametrisation_("a")
    assert host.adapters["a"].needs == before.needs
    assert before.needs.position_shift == 2
    assert before.needs.longer_keys
    assert before.rates() == host.adapters["a"].rates()
    assert set(before.rates().values()) == {16.0}


def test_initial_ids_reach_prefixes_inside_gates():
    host = make_host("gpt2")
    host.attach("plain", Prefix(words="x", ids=(3, 4), length=2))
    host.attach("gated", UniPELT(Prefix(words="x", ids=(3, 4), length=2) + LoRA(r=2)))
    (plain, *_), (gated, *_) = (
        [d for _, d in host.adapters[name].named_deltas() if isinstance(d, KeyValues)] for name in ("plain", "gated")
    )
    assert plain.keys.abs().max() > 0.1
    assert torch.equal(plain.keys, gated.keys)


def test_nothing_combined_can_do_everything_and_needs_nothing():
    assert combine(Capabilities, []) == Capabilities(merges=True, merges_into=())
    assert combine(Needs, []) == Needs()


def test_declarations_outside_their_group_are_refused():
    with pytest.raises(DeltatuneError, match=r"merges = True is written capabilities = Capabilities\(merges=True\)"):
        type("Old", (Delta,), {"merges": True})
    with pytest.raises(DeltatuneError, match=r"hints = TrainingHints\(frozen=\('a',\)\)"):
        type("Old", (Delta,), {"frozen": ("a",)})


@dataclass(frozen=True)
class _Sharing(Method):
    """A method of another package whose shared part is a plain module."""

    sites: str = "*.attn.q"
    view: ClassVar[View] = View("0", "parallel", "nothing", "add")

    def build(self, site):
        return LowRank(site.width_in, site.width_out, 2, 1.0)

    def share(self, picked):
        return nn.Linear(2, 2)


def test_a_shared_part_is_a_shared_module():
    with pytest.raises(DeltatuneError, match=r"_Sharing.share returns a Linear; it must be a .*SharedModule or None"):
        make_host("bert").attach("a", _Sharing())
    assert "_Sharing" not in REGISTRY


@pytest.mark.parametrize("text", ["LoRA(r=2)", "LoRA(r=2, sites='embed')", "PiSSA(r=2)", "VeRA(r=3)", "RsLoRA(r=2)"])
def test_low_rank_factors_are_the_change_of_the_weight(text):
    for _, site, delta in attach(make_host("bert"), "a", parse(text)).entries():
        A, B, s = delta.low_rank_factors()
        base = {"weight": delta.base.weight.detach().double()}
        change = delta.merge(base)["weight"] - base["weight"]
        product = s * (B.double() @ A.double())
        assert torch.allclose(change, product.T if site.kind == "embed" else product, atol=1e-6)
        assert not A.requires_grad
        assert not B.requires_grad


def test_most_deltas_have_no_low_rank_factors():
    assert two_layer().low_rank_factors() is None


class _Negated(AttentionDelta):
    """The whole output of attention, negated."""

    def attend(self, call):
        out, weights = call.run()
        return -out, weights


def test_an_attention_delta_is_called_as_a_module():
    """Hooks on it run (sharding needs them), and its part of a weighted mix is the difference from the plain output."""
    host = Host(make_host("gpt2").model)

    class _Negation(Method):
        view = View("−2a", "none", "attention", "replace")

        def pick(self, sites):
            return sites.match("*.kv")

        def build(self, site):
            return _Negated()

    REGISTRY.pop("_Negation", None)
    host.attach("a", _Negation())
    calls = []
    for _, _, delta in host.adapters["a"].entries():
        delta.register_forward_pre_hook(lambda module, args: calls.append(len(args)))
    ids = torch.arange(8, 14).view(1, -1)

    def out() -> Tensor:
        with torch.no_grad():
            return host.model(ids)[0]

    full = out()
    assert calls == [1, 1]
    host.use({"a": 0.0})
    plain = out()
    host.use({"a": 0.5})  # half of the negation leaves nothing of attention
    assert not torch.allclose(full, plain)
    assert not torch.allclose(out(), plain)
    with pytest.raises(NotImplementedError, match="AttentionDelta has no attend"):
        AttentionDelta()(None)
    with pytest.raises(NotImplementedError):
        Delta()(None, None)
    assert Pfeiffer() != AdapterFusion()
