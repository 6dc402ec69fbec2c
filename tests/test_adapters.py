"""Bottlenecks and their kin against their papers' formulas, written out in plain torch."""

import pytest
import torch
from torch.nn import functional as F

import models
from deltatune import Bottleneck, DeltatuneError, Host, parse
from deltatune.methods.adapterdrop import AdapterDrop, RobustAdapterDrop
from deltatune.methods.bottleneck import TwoLayer
from deltatune.methods.compacter import PHM, Compacter, CompacterPlusPlus, Rule

BERT_BASE = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def attached(kind, method, head=None, **config):
    """A Host with the method's adapter, its tensors moved off their initial values."""
    host = Host(models.tiny(kind, head, dropout=False, **config))
    adapter = host.attach("a", method)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return host, adapter


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- bottlenecks


@pytest.mark.parametrize(
    ("text", "each", "total"), [("Houlsby(64, norms=False)", 99_136, 2_379_264), ("Pfeiffer(48)", 74_544, 894_528)]
)
def test_bottleneck_counts_of_bert_base(text, each, total):
    method, sites = parse(text), Host(models.tiny("bert", **BERT_BASE)).sites
    assert method.cost(sites["layers.0.ffn"]) == each
    assert method.count(sites) == total


def test_dropout_acts_behind_the_activation_in_training_only():
    delta = TwoLayer(6, 6, 50, "parallel", "relu", 2.0, "identity", dropout=0.5)
    torch.nn.init.zeros_(delta.down)
    torch.nn.init.ones_(delta.down_bias)
    torch.nn.init.ones_(delta.up)
    torch.nn.init.zeros_(delta.up_bias)
    x = torch.zeros(4, 6)
    torch.testing.assert_close(delta.eval()(x, x), torch.full((4, 6), 100.0))
    torch.manual_seed(0)
    out = delta.train()(x, x)
    assert (out % 4 == 0).all()  # each of 50 units is 0 or 2, times s = 2
    assert not (out == 100).all()
    assert (out[:, :1] == out).all()  # not behind U


def test_a_learned_scale_starts_at_one_and_multiplies():
    host, adapter = attached("bert", Bottleneck(size=3, form="parallel", scale="learned"))
    delta = adapter.deltas["bottleneck/layers/1/ffn"]
    assert Bottleneck(size=3, scale="learned").build(host.sites["layers.0.ffn"]).scale == 1
    x = normal(2, 32)
    change = F.linear(torch.relu(F.linear(x, delta.down, delta.down_bias)), delta.up, delta.up_bias)
    torch.testing.assert_close(delta(x, x), delta.scale * change)
    assert adapter.count == Bottleneck(size=3, form="parallel").count(host.sites) + 2


# ---- Compacter


def kron_sum(A, s, t):
    """H (in, out) with torch.kron, as the paper writes it."""
    return sum(torch.kron(A[i], s[i] @ t[i]) for i in range(len(A)))


@pytest.mark.parametrize(("n", "width_in", "width_out"), [(4, 16, 8), (4, 8, 16), (3, 6, 9), (1, 5, 2)])
def test_phm_is_the_sum_of_kronecker_products(n, width_in, width_out):
    phm, A = PHM(width_in, width_out, n).double(), normal(n, n, n).double()
    with torch.no_grad():
        phm.s.copy_(normal(*phm.s.shape, seed=1))
        phm.t.copy_(normal(*phm.t.shape, seed=2))
    x = normal(2, 3, width_in, seed=3).double()
    torch.testing.assert_close(phm(x, A), x @ kron_sum(A, phm.s, phm.t))


def test_phm_counts():
    """A11: factors 768 + 24, bias 24, one rule of 64 for all."""
    phm = PHM(768, 24, 4)
    assert phm.s.numel() == 768
    assert phm.t.numel() == 24
    assert Rule(4).A.numel() == 64
    sites = Host(models.tiny("bert", **BERT_BASE)).sites
    assert Compacter(norms=False).cost(sites["layers.0.ffn"]) == 768 + 24 + 24 + 24 + 768 + 768
    assert Compacter(norms=False).count(sites) == 64 + 24 * (2 * (768 + 24) + 24 + 768)


def test_compacter_is_the_formula():
    _, adapter = attached("bert", Compacter(size=8, norms=False, activation="gelu_new"))
    A = adapter.tensors()["shared.compacter.A"]
    delta, h = adapter.deltas["compacter/layers/1/attn"], normal(2, 5, 32)
    D, U = (kron_sum(A, part.s, part.t) for part in (delta.down, delta.up))
    wanted = F.gelu(h @ D + delta.down_bias, approximate="tanh") @ U + delta.up_bias
    torch.testing.assert_close(delta(h, h), wanted)
    assert len([site for site in adapter.sites if site.endswith((".attn", ".ffn"))]) == 4


def test_all_compacter_layers_have_one_rule_and_its_gradient():
    host, adapter = attached("t5", Compacter(size=4, norms=False))
    rules = {id(delta.rule[0]) for _, _, delta in adapter.entries()}
    assert rules == {id(adapter.shared["compacter"])}
    host.model(**models.inputs("t5"))[0].square().sum().backward()
    assert adapter.shared["compacter"].A.grad.abs().min() > 0


def test_compacter_plus_plus_is_after_the_ffn_alone():
    _, adapter = attached("gpt2", CompacterPlusPlus())
    assert {site.name for _, site, _ in adapter.entries() if site.kind != "norm"} == {"layers.0.ffn", "layers.1.ffn"}
    assert (CompacterPlusPlus().label, Compacter().label) == ("Compacter++", "Compacter")


def test_compacter_sizes_are_multiples_of_n():
    assert Compacter().sized(1).size == 4
    assert Compacter().sized(9).size == 12
    with pytest.raises(DeltatuneError, match=r"multiple of n=4, such as 8 or 12"):
        Compacter(size=10)
    with pytest.raises(DeltatuneError, match=r"width 32 .* no multiple of n=3; choose n among 1, 2, 4, 8, 16"):
        Host(models.tiny("bert")).attach("a", Compacter(n=3))


# ---- AdapterDrop


def entering(host):
    """Whether the hidden state that entered each block in the last forward has a graph below it."""
    seen, blocks = [], host.model.get_submodule(host.sites["layers.0.residual"].module.rpartition(".")[0])
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    return seen


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("drop", [0, 1, 3])
def test_specialised_adapters_begin_above_and_so_does_the_graph(kind, drop):
    host = Host(models.tiny(kind, num_hidden_layers=4))
    adapter = host.attach("a", AdapterDrop(size=4, drop=drop))
    seen = entering(host)
    host.model.train()(**models.inputs(kind))[0].sum().backward()
    assert {site.layer for _, site, _ in adapter.entries()} == set(range(drop, 4))
    assert seen == [layer > drop for layer in range(4)]
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_robust_training_draws_how_many_are_left_out_each_step(kind):
    host = Host(models.tiny(kind, num_hidden_layers=4))
    adapter = host.attach("a", RobustAdapterDrop(size=4))
    seen, drawn = entering(host), []
    host.model.train()
    torch.manual_seed(0)
    for _ in range(200):
        seen.clear()
        adapter.zero_grad()
        host.model(**models.inputs(kind))[0].sum().backward()
        k = adapter.shared["adapterdrop"].dropped(4)
        assert seen == [layer > k for layer in range(4)]
        with_gradient = {site.layer for _, site, delta in adapter.entries() if delta.up.grad is not None}
        assert with_gradient == set(range(k, 4))
        drawn.append(k)
    assert all(30 <= drawn.count(k) <= 70 for k in range(4)), [drawn.count(k) for k in range(4)]


def test_a_robust_adapter_in_use_leaves_out_what_its_field_says():
    batch = models.inputs("bert")
    states, outputs = {}, {}
    for drop in (0, 1, 2):
        host, adapter = attached("bert", RobustAdapterDrop(size=4, drop=drop), num_hidden_layers=3)
        states[drop] = adapter.tensors()
        outputs[drop] = host.model(**batch)[0]
        special = Host(models.tiny("bert", dropout=False, num_hidden_layers=3))
        same = special.attach("a", AdapterDrop(size=4, drop=drop))
        same.load_tensors(states[drop])
        assert torch.equal(special.model(**batch)[0], outputs[drop])
    assert not torch.equal(outputs[0], outputs[1])


def test_checkpointing_recomputes_with_the_layers_that_were_drawn():
    host, adapter = attached("bert", RobustAdapterDrop(size=4), num_hidden_layers=4)
    host.model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = "activation_checkpointing_enable"  # transformers 5.0 knows the older name alone
            known = enable if hasattr(host.model, enable) else "gradient_checkpointing_enable"
            getattr(host.model, known)({"use_reentrant": False})
        adapter.zero_grad()
        torch.manual_seed(0)
        host.model(**models.inputs("bert"))[0].square().sum().backward()
        found.append([p.grad for p in adapter.parameters()])
    assert any(grad is None for grad in found[0])
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(again, plain)


def test_robust_stacks_leave_out_the_same_share():
    host = Host(models.tiny("t5", num_decoder_layers=4))
    adapter = host.attach("a", RobustAdapterDrop(size=4))
    draw = adapter.train().shared["adapterdrop"]
    torch.manual_seed(0)
    for _ in range(50):
        draw.begin()
        assert (draw.dropped(4) >= 2) == (draw.dropped(2) == 1)


def test_too_many_layers_left_out():
    host = Host(models.tiny("bert"))
    with pytest.raises(DeltatuneError, match="which has 2 in a stack; leave out at most 1"):
        host.attach("a", AdapterDrop(drop=2))
    with pytest.raises(DeltatuneError, match="all of the 1 sites chosen are in the first 1 layers"):
        host.attach("a", AdapterDrop(drop=1, sites="layers.0.ffn"))
