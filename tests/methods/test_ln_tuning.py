"""LN tuning: the norms of each family, and nothing else."""

import pytest
import torch

from deltatune import DeltatuneError, Host, LNTuning
from support import models


@pytest.mark.parametrize(
    ("kind", "number", "count"), [("bert", 5, 5 * 64), ("gpt2", 5, 5 * 64), ("llama", 5, 5 * 32), ("t5", 12, 12 * 32)]
)
def test_every_norm_is_trained(kind, number, count):
    host = Host(models.tiny(kind))
    norms = [name for name, m in host.model.named_modules() if "norm" in type(m).__name__.lower()]
    adapter = host.attach("a", LNTuning())
    assert sorted(site.module for _, site, _ in adapter.entries()) == sorted(norms)
    assert len(norms) == number
    assert adapter.count == LNTuning().count(host.sites) == count


@torch.no_grad()
def test_it_starts_from_the_base_and_merges_exactly():
    host = Host(models.tiny("gpt2"))
    batch = models.inputs("gpt2")
    base = host.model(**batch)[0]
    for _, _, delta in host.attach("a", LNTuning(sites="*.norm.0")).entries():
        delta.module.weight.mul_(1.5)
        delta.module.bias.add_(0.2)
    live = host.model(**batch)[0]
    assert (live - base).abs().max() > 0.1
    host.merge_("a")
    torch.testing.assert_close(host.model(**batch)[0], live, rtol=1e-5, atol=1e-5)
    host.unmerge_("a")
    host.use(None)
    assert torch.equal(host.model(**batch)[0], base)


def test_sites_that_are_no_norms_are_refused():
    with pytest.raises(DeltatuneError, match="no site"):
        LNTuning(sites="*.attn.q").pick(Host(models.tiny("bert")).sites)
