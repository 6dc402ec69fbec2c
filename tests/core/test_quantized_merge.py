"""Merging into a quantised base: maps become plain with exactly their codes' values, and unmerging puts codes back."""

import copy
import json

import pytest
import torch

from deltatune import Host, dequantize_, parse, quantize_
from deltatune.core.errors import CannotMerge
from deltatune.core.quantization.plain_map import exchange_, plain_map
from deltatune.core.quantization.stored_weights import stored_weight, weight_of
from deltatune.store.fingerprint import base_identity
from deltatune.testing.fixtures import attach, outputs
from deltatune.testing.tiny_models import inputs, tiny

FAMILIES = ("bert", "gpt2", "llama", "t5")
METHODS = ["LoRA(r=3)", "DoRA(r=3)", "PiSSA(r=3)", "IA3()", "BitFit()", "VeRA(r=8)", "LoRA(r=2) + IA3()"]


def quantized_host(kind: str, scheme: str = "nf4", sites: str = "blocks") -> Host:
    model = tiny(kind, "classify", dropout=False)
    quantize_(model, scheme, sites)
    return Host(model)


def stored(host: Host) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in host.model.state_dict().items() if "deltatune" not in name}


def coded(host: Host) -> set[str]:
    return {path for path, module in host.model.named_modules() if stored_weight(module) is not None}


def quantized_modules(host: Host) -> set[str]:
    return {site.module for site in host.sites.weights.values() if site.quantized}


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        *((method, "nf4") for method in METHODS[:2]),
        *(pytest.param(method, "nf4", marks=pytest.mark.slow) for method in METHODS[2:]),
        *(("LoRA(r=2) + IA3()", scheme) for scheme in ("NF4(double=False)", "fp4", "int8")),
    ],
)
def test_merged_equals_unmerged_and_unmerging_restores_the_codes(method, scheme):
    for kind in FAMILIES if scheme == "nf4" else ("gpt2",):
        if method == "BitFit()" and kind in ("llama", "t5"):
            continue  # no biases
        host = quantized_host(kind, scheme)
        adapter = attach(host, "a", parse(method))
        batch = inputs(kind, "classify")
        before, all_coded, identity = stored(host), coded(host), base_identity(host)
        unmerged = outputs(host, batch)
        assert host.merge_("a") < 1e-4
        torch.testing.assert_close(outputs(host, batch), unmerged, rtol=1e-4, atol=1e-5)
        touched = {site.module for _, site, delta in adapter.entries() if "weight" in delta.capabilities.merges_into}
        assert all_coded - coded(host) == touched & quantized_modules(host), "other maps keep their codes"
        assert base_identity(host) == identity, "the base is still what it was"
        host.unmerge_("a")
        assert torch.equal(outputs(host, batch), unmerged)
        after = stored(host)
        assert coded(host) == all_coded
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_it_merges_onto_exactly_the_values_of_the_codes(kind):
    """The same bits as the plain model of these values, dequantised first and merged then."""
    host = quantized_host(kind)
    attach(host, "a", parse("LoRA(r=3)"))
    plain = quantized_host(kind).model
    assert dequantize_(plain)
    plain_host = Host(plain)
    attach(plain_host, "a", parse("LoRA(r=3)"))
    for each in (host, plain_host):
        each.merge_("a")
    for path in {site.module for site in host.adapters["a"].sites.values()}:
        assert torch.equal(host.model.get_submodule(path).weight, plain.get_submodule(path).weight)
    host.unmerge_("a")
    for path in quantized_modules(host):
        assert torch.equal(weight_of(host.model.get_submodule(path)), plain_host.base.tensor(f"{path}.weight"))


def test_two_adapters_merge_one_over_the_other_and_part_in_any_order():
    host = quantized_host("bert")
    attach(host, "a", parse("LoRA(r=3)"))
    attach(host, "b", parse("LoRA(r=2, sites='*.attn.{q,v}')"), seed=3)
    batch, before, identity = inputs("bert", "classify"), stored(host), base_identity(host)
    host.use("b")
    alone = outputs(host, batch)
    host.merge_("a")
    host.merge_("b", 1.0)
    assert set(host.merged) == {"a", "b"}
    host.unmerge_("a")
    host.use("b")
    torch.testing.assert_close(outputs(host, batch), alone, rtol=1e-4, atol=1e-5)
    assert base_identity(host) == identity
    host.unmerge_("b")
    assert all(torch.equal(stored(host)[name], tensor) for name, tensor in before.items())


def test_a_merged_adapter_is_saved_with_the_base_that_it_was_trained_on(tmp_path):
    host = quantized_host("bert")
    attach(host, "a", parse("LoRA(r=3)"))
    weights = {path: tensor.clone() for path, tensor in host.base.tensors()}
    host.save("a", tmp_path / "before")
    host.merge_("a")
    host.save("a", tmp_path / "merged")
    bases = [json.loads((tmp_path / name / "adapter.json").read_text())["base"] for name in ("before", "merged")]
    assert bases[0] == bases[1]
    assert bases[0]["quantized"] == ["nf4"]
    assert all(torch.equal(tensor, weights[path]) for path, tensor in host.base.tensors())
    assert host.base.bytes < sum(tensor.numel() * 4 for tensor in weights.values())


def test_a_failed_merge_puts_the_codes_back(monkeypatch):
    for place in ("rounding_tolerance", "write_adapter_"):
        host = quantized_host("bert")
        attach(host, "a", parse("LoRA(r=2)"))
        before, all_coded = stored(host), coded(host)
        with monkeypatch.context() as patch:
            if place == "rounding_tolerance":
                patch.setattr("deltatune.core.merging.rounding_tolerance", lambda unmerged, dtype: -1.0)
            else:
                patch.setattr("deltatune.core.merging.write_adapter_", lambda *_: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises((CannotMerge, MemoryError)) as error:
                host.merge_("a")
        assert place != "rounding_tolerance" or "rounding explains; it was undone" in str(error.value)
        assert not host.merged
        assert coded(host) == all_coded
        assert all(torch.equal(stored(host)[name], tensor) for name, tensor in before.items())


def test_modules_exchange_all_but_their_place():
    host = quantized_host("gpt2")
    module = host.model.get_submodule(min(quantized_modules(host)))
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    x, other = torch.randn(3, module.in_features), plain_map(module)
    expected, bias = module(x), module.bias
    exchange_(module, other)
    assert type(module).__name__ == "Conv1D"
    assert module.bias is bias
    torch.testing.assert_close(module(x), expected)
    exchange_(module, other)
    assert torch.equal(module(x), expected)
    assert len(calls) == 3
    assert torch.equal(copy.deepcopy(module)(x), expected)


def test_where_only_some_maps_are_quantised_plain_ones_are_merged_as_ever():
    host = quantized_host("llama", sites="*.ffn.*")
    attach(host, "a", parse("LoRA(r=2, sites=('*.attn.q', '*.ffn.in'))"))
    before, unmerged = stored(host), outputs(host, inputs("llama", "classify"))
    assert host.merge_("a") < 1e-4
    host.unmerge_("a")
    assert torch.equal(outputs(host, inputs("llama", "classify")), unmerged)
    assert all(torch.equal(stored(host)[name], tensor) for name, tensor in before.items())
