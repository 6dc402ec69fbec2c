"""An adapter merged with a weight: the same outputs as unmerged with that weight."""

import math

import pytest
import torch

from deltatune import Host, parse
from deltatune.core.errors import CannotMerge, DeltatuneError
from deltatune.testing.tiny_models import inputs, tiny

MERGING = [
    "LoRA(r=3)",
    "DoRA(r=3)",
    "VeRA(r=8)",
    "PiSSA(r=3)",
    "IA3()",
    "BitFit()",
    "LoRA(r=2) + IA3()",
    "LoRA(r=2, sites='*.attn.q') + BitFit(sites='*.attn.q')",
]


def host_with(kind: str, *methods: str) -> Host:
    """A host whose adapters a, b, ... are moved away from their start."""
    host = Host(tiny(kind))
    for name, method in zip("ab", methods, strict=False):
        host.attach(name, parse(method), head=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, parameter in host.trainable(name):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return host


def output(host: Host, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return host.model.eval()(**inputs(kind))[0]


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0])
@pytest.mark.parametrize("method", MERGING)
def test_merged_equals_unmerged_with_the_weight(method, weight):
    for kind in ("bert", "gpt2"):
        host = host_with(kind, method)
        host.use(None)
        base = output(host, kind)
        host.use({"a": weight})
        unmerged = output(host, kind)
        assert host.merge_("a", weight) < 1e-4
        host.use("a")
        torch.testing.assert_close(output(host, kind), unmerged, rtol=1e-4, atol=1e-5)
        assert (unmerged - base).abs().max() > 1e-4
        host.unmerge_("a")
        host.use(None)
        assert torch.equal(output(host, kind), base)


def test_an_adapter_that_stays_merged_keeps_its_weight():
    host = host_with("bert", "LoRA(r=3)", "BitFit()")
    host.use({"b": 0.25})
    expected = output(host, "bert")
    host.merge_("b", 0.25)
    host.merge_("a")
    host.unmerge_("a")
    host.use("b")
    torch.testing.assert_close(output(host, "bert"), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_cannot_be_are_errors():
    host = host_with("bert", "LoRA(r=3)", "Full()")
    for weight in (math.nan, math.inf):
        with pytest.raises(DeltatuneError, match="finite number"):
            host.use({"a": weight})
        with pytest.raises(DeltatuneError, match="finite number"):
            host.merge_("a", weight)
    with pytest.raises(DeltatuneError, match="replaces weights of the base"):
        host.merge_("b", 0.5)
    assert not host.merged
    with pytest.raises(CannotMerge):
        host_with("bert", "Prefix()").merge_("a", 0.5)
