"""VB-LoRA: mixtures of the bank's vectors as PEFT makes them, one length for all widths, one bank for all sites."""

import peft
import pytest
import torch
from safetensors.torch import load_file

from deltatune import DeltatuneError, Host, VBLoRA, combine, parse
from support import models


@torch.no_grad()
def test_the_factors_are_those_of_peft():
    config = peft.VBLoRAConfig(r=3, num_vectors=9, vector_length=16, topk=4, target_modules=["query", "value"])
    theirs = peft.get_peft_model(models.tiny("bert"), config).base_model
    adapter = Host(models.tiny("bert")).attach("a", VBLoRA(r=3, vectors=9, length=20, k=4))
    bank = adapter.shared["vblora"].vectors
    assert bank.shape == (9, 16)
    theirs.vblora_vector_bank["default"].copy_(bank)
    for _, site, delta in adapter.entries():
        layer = theirs.model.get_submodule(site.module)
        layer.vblora_logits_A["default"].copy_(delta.logits_A)
        layer.vblora_logits_B["default"].copy_(delta.logits_B)
        A, B, _ = delta.low_rank_factors()
        torch.testing.assert_close(B @ A, layer.get_delta_weight("default"))


def test_initial_values_and_counts_are_those_of_peft():
    config = peft.VBLoRAConfig(num_vectors=50, vector_length=16, target_modules=["query", "value"])
    theirs = peft.get_peft_model(models.tiny("bert"), config)
    method = VBLoRA(vectors=50, length=16)
    adapter = Host(models.tiny("bert")).attach("a", method)
    assert adapter.count == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    bank = adapter.shared["vblora"].vectors
    assert 0.019 < bank.abs().max() < 0.02
    logits = torch.cat([delta.logits_A.flatten() for _, _, delta in adapter.entries()])
    assert logits.detach().std() == pytest.approx(0.1, rel=0.05)


def test_one_length_divides_all_widths():
    sites = Host(models.tiny("bert")).sites
    lengths = {
        n: VBLoRA(length=n, sites=("*.attn.q", "*.ffn.in")).common_length(sites.match(("*.attn.q", "*.ffn.in")))
        for n in (1, 5, 15, 16, 17, 256)
    }
    assert lengths == {1: 1, 5: 4, 15: 8, 16: 16, 17: 16, 256: 16}  # widths of 32 and 48


def test_the_bank_is_saved_once(tmp_path):
    host = Host(models.tiny("bert"))
    host.attach("a", VBLoRA(vectors=5))
    host.save("a", tmp_path / "a")
    names = list(load_file(tmp_path / "a/adapter.safetensors"))
    assert [name for name in names if "logits" not in name] == ["shared.vblora.vectors"]


def test_a_sum_of_two_is_exact():
    host = Host(models.tiny("bert"))
    for seed, name in enumerate("ab"):
        host.attach(name, VBLoRA(vectors=5, length=16), seed=seed, head=False)
        torch.nn.init.normal_(host.adapters[name].shared["vblora"].vectors)
    batch = models.inputs("bert")
    with torch.no_grad():
        host.use({"a": 0.3, "b": 0.7})
        expected = host.model(**batch)[0]
        combine(host, "c", {"a": 0.3, "b": 0.7})
        host.use("c")
        torch.testing.assert_close(host.model(**batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_fewer_vectors_than_k():
    host = Host(models.tiny("bert"))
    (delta, *_) = (delta for _, _, delta in host.attach("a", VBLoRA(vectors=1, k=3)).entries())
    assert delta.k == 1
    with pytest.raises(DeltatuneError, match="k must be at least 1"):
        parse("VBLoRA(k=0)")
