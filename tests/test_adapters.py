"""Bottlenecks and their kin against their papers' formulas, written out in plain torch."""

import pytest
import torch
from torch.nn import functional as F

import models
from deltatune import Bottleneck, DeltatuneError, Host, parse
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
