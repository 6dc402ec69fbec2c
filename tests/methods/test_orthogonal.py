"""OFT and BOFT: what they rotate stays as long as it was; blocks, series and permutations as in PEFT."""

import peft
import pytest
import torch
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.oft.layer import OFTLayer

from deltatune import BOFT, OFT, DeltatuneError, Host, parse
from deltatune.methods.orthogonal.boft import butterfly
from deltatune.methods.orthogonal.oft import cayley_change, nearest_divisor
from support import models


def skew(blocks, n, scale, seed=0):
    Q = scale * torch.randn(blocks, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Q - Q.mT


def test_cayley_makes_rotations():
    for terms, size in ((0, 1.0), (100, 0.1)):
        R = torch.eye(6) + cayley_change(skew(3, 6, size), terms)
        torch.testing.assert_close(R @ R.mT, torch.eye(6, dtype=torch.float64).expand(3, 6, 6), rtol=0, atol=1e-9)
        assert torch.allclose(torch.linalg.det(R), torch.ones(3, dtype=torch.float64))
    # The series turns the other way round, as in PEFT.
    Q = skew(3, 6, 0.1)
    torch.testing.assert_close(cayley_change(Q, 100), cayley_change(-Q, 0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("terms", [2, 3, 4, 5, 8])
def test_the_series_is_that_of_peft(terms):
    config = peft.OFTConfig(oft_block_size=8, target_modules=["query"], num_cayley_neumann_terms=terms)
    theirs = peft.get_peft_model(models.tiny("bert"), config).base_model.model
    rotation = theirs.get_submodule("encoder.layer.0.attention.self.query").oft_R["default"]
    delta = next(d for _, _, d in Host(models.tiny("bert")).attach("a", OFT(block=8, terms=terms)).entries())
    with torch.no_grad():
        delta.Q.normal_(std=0.2)
        rotation.weight.copy_(delta.Q)
        expected = rotation.get_weight() - torch.eye(32)
        torch.testing.assert_close(torch.block_diag(*delta.blocks(delta.Q)), expected)


@torch.no_grad()
def test_merging_keeps_the_length_of_every_neuron():
    for method in (OFT(block=8, terms=0), OFT(block=16, terms=0, blocks="shared"), BOFT(block=4, factors=3)):
        host = Host(models.tiny("bert"))
        query = host.model.encoder.layer[0].attention.self.query.weight
        before = query.clone()
        for _, _, delta in host.attach("a", method).entries():
            for name, parameter in delta.named_parameters():
                if name != "s":
                    parameter.normal_()
        host.merge_("a")
        assert (query - before).abs().max() > 0.1
        torch.testing.assert_close(query.norm(dim=1), before.norm(dim=1))


def test_blocks_have_the_width_that_peft_takes():
    for width in (32, 48, 96, 384, 768, 1536, 11008):
        for wanted in (2, 3, 5, 8, 20, 32, 100, 500, 20000):
            theirs = OFTLayer.adjust_oft_parameters(None, width, wanted) if width % wanted or wanted > width else wanted
            assert nearest_divisor(width, wanted) == theirs
    assert OFT(block=1).block_at(Host(models.tiny("bert")).sites["layers.0.attn.q"]) == 2
    assert nearest_divisor(7, 3) == 7  # one block: blocks of width 1 would not turn anything


def test_permutations_are_those_of_peft():
    for width, n, factors in ((32, 4, 3), (48, 2, 4), (64, 8, 2)):
        for i in range(factors):
            blocks = width // n // 2**i
            theirs = BOFTLayer.block_butterfly_perm(None, width, blocks, n // 2, factors - 1)
            assert torch.equal(butterfly(width, n, i, torch.device("cpu")), theirs)


def test_what_cannot_be_is_refused():
    sites = Host(models.tiny("bert")).sites
    with pytest.raises(DeltatuneError, match="32 wide, no multiple of 64"):
        BOFT(factors=6, sites="*.attn.q").pick(sites)
    for text, words in [
        ("OFT(terms=1)", "no rotation"),
        ("OFT(block=0)", "block must be at least 1"),
        ("OFT(terms=101)", "terms must be at most 100"),
        ("BOFT(factors=0)", "factors must be at least 1"),
    ]:
        with pytest.raises(DeltatuneError, match=words):
            parse(text)


def test_counts_are_those_of_peft():
    for method, config in [
        (OFT(block=8), peft.OFTConfig(oft_block_size=8, target_modules=["q_proj", "v_proj"])),
        (OFT(block=8, blocks="shared"), peft.OFTConfig(
            oft_block_size=8, target_modules=["q_proj", "v_proj"], block_share=True)),
    ]:  # fmt: skip
        theirs = peft.get_peft_model(models.tiny("llama"), config)
        assert method.count(Host(models.tiny("llama")).sites) == sum(
            p.numel() for p in theirs.parameters() if p.requires_grad
        )
