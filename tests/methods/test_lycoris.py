"""LoHa and LoKr: both roads of a product, factors of widths, initial values, counts; PEFT as the yardstick."""

import peft
import pytest
import torch
from peft.tuners.lokr.layer import factorization

from deltatune import DeltatuneError, Host, LoHa, LoKr, parse
from deltatune.methods.low_rank.loha import HadamardProduct
from deltatune.methods.low_rank.lokr import split
from support import models


def filled(delta, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return delta


@pytest.mark.parametrize("r", [2, 9])  # r² (in + out) below in · out, and above it
@torch.no_grad()
def test_loha_computes_the_product_of_two_low_rank_matrices(r):
    delta = filled(HadamardProduct(24, 40, r, 0.5))
    x, h = torch.randn(3, 5, 24), torch.zeros(3, 5, 40)
    expected = x @ ((delta.B1 @ delta.A1) * (delta.B2 @ delta.A2)).T * 0.5
    torch.testing.assert_close(delta(x, h), expected, rtol=1e-4, atol=1e-4)
    A, B, s = delta.low_rank_factors()
    assert A.shape == (r * r, 24)
    torch.testing.assert_close(x @ (s * B @ A).T, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_hadamard_product_has_more_rank_than_its_factors():
    delta = filled(HadamardProduct(24, 40, 3, 1.0))
    assert torch.linalg.matrix_rank(delta.matrix()) == 9


@torch.no_grad()
def test_lokr_computes_the_kronecker_product():
    for text in ("LoKr(r=2)", "LoKr(r=8, factor=4)", "LoKr(r=1, decompose='both', sites='*.ffn.in')"):
        host = Host(models.tiny("bert"))
        adapter = host.attach("a", parse(text))
        _, site, delta = next(adapter.entries())
        filled(delta)
        x, h = torch.randn(2, 7, site.width_in), torch.zeros(2, 7, site.width_out)
        matrix = torch.kron(delta.first(), delta.second()) * delta.scale
        torch.testing.assert_close(delta(x, h), x @ matrix.T, rtol=1e-4, atol=1e-4)


def test_widths_are_split_as_in_peft():
    for width in (1, 2, 7, 12, 32, 48, 96, 127, 384, 768, 1536, 3072, 11008):
        for factor in (-1, 1, 2, 3, 4, 8, 16, 100, 384):
            assert split(width, factor) == factorization(width, factor), (width, factor)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (LoHa(r=4), peft.LoHaConfig(r=4, target_modules=["q_proj", "v_proj"])),
        (LoKr(r=2), peft.LoKrConfig(r=2, target_modules=["q_proj", "v_proj"])),
        (LoKr(r=2, init="second"), peft.LoKrConfig(r=2, target_modules=["q_proj", "v_proj"], init_weights="lycoris")),
        (LoKr(r=2, factor=16, decompose="both"), peft.LoKrConfig(
            r=2, target_modules=["q_proj", "v_proj"], decompose_factor=16, decompose_both=True)),
    ],
)  # fmt: skip
def test_initial_values_spread_as_in_peft(method, config):
    adapter = Host(models.tiny("llama", "lm")).attach("a", method)
    theirs = peft.get_peft_model(models.tiny("llama", "lm"), config)
    spread = [parameter.detach() for _, parameter in adapter.named_parameters()]
    expected = [p.detach() for p in theirs.parameters() if p.requires_grad]
    assert adapter.count == sum(p.numel() for p in expected)
    shapes = {tuple(t.shape) for t in spread}
    assert shapes == {tuple(t.shape) for t in expected}
    for shape in shapes:
        ours, peers = ([t for t in each if tuple(t.shape) == shape] for each in (spread, expected))
        assert sum(not t.any() for t in ours) == sum(not t.any() for t in peers)
        largest = [max(float(t.abs().max()) for t in each) for each in (ours, peers)]
        assert largest[0] == pytest.approx(largest[1], rel=0.25)


def test_a_factor_is_whole_where_that_is_smaller():
    sites = Host(models.tiny("bert")).sites
    counts = [LoKr(r=r, sites="*.ffn.in").count(sites) for r in range(1, 12)]  # W2 (8, 8): whole from r = 4 on
    assert counts == sorted(counts)
    assert counts[3:] == [2 * (6 * 4 + 64)] * 8
    assert LoKr(sites="*.ffn.in").limit(sites) == 4


def test_wrong_options_are_named():
    sites = Host(models.tiny("bert")).sites
    for text, words in [
        ("LoKr(factor=0)", "factor must be at least 1"),
        ("LoHa(r=0)", "r must be at least 1"),
        ("LoHa(ranks=(('*.q',),))", r"ranks must be tuple\[tuple\[str, int\], ...\]"),
        ("LoHa(ranks=(('*.q', 0),))", "the rank at '.*' must be at least 1"),
        ("LoKr(decompose='first')", "decompose"),
    ]:
        with pytest.raises(DeltatuneError, match=words):
            parse(text)
    with pytest.raises(DeltatuneError, match=r"ranks: no site of this LoHa matches '\*.ffn.in'"):
        LoHa(ranks=(("*.ffn.in", 2),)).pick(sites)
