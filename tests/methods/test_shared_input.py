"""LoRAs that read the same input share one product: nothing but the time may change."""

import copy

import pytest
import torch
from torch import nn

from deltatune import Host, LoRA
from deltatune.methods.low_rank.shared_input import SharedInput, input_of
from support import models

SITES = ("*.attn.{q,k,v,o}", "*.ffn.{in,out}")


def hosted(kind, sites=SITES, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    host = Host(models.tiny(kind, "lm").to(dtype))
    for _, _, delta in host.attach("a", LoRA(r=4, sites=sites, **fields)).entries():
        nn.init.normal_(delta.B, std=0.2)
    return host


def alone_(host):
    for _, _, delta in host.adapters["a"].entries():
        delta.input = SharedInput()
    return host


def gradients(host, length=12):
    batch = models.inputs(host.model.config.model_type, "lm", rows=4, length=length)
    host.model.zero_grad()
    host.model(**batch).logits.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in host.trainable("a")}


def test_sites_with_one_input_are_named_alike():
    llama, t5 = Host(models.tiny("llama")).sites, Host(models.tiny("t5")).sites
    assert input_of(llama["layers.1.attn.q"]) == input_of(llama["layers.1.attn.v"]) == "layers.1.attn.k-q-v"
    assert input_of(llama["layers.1.ffn.gate"]) == input_of(llama["layers.1.ffn.in"])
    assert input_of(llama["layers.1.attn.q"]) != input_of(llama["layers.0.attn.q"])
    assert input_of(llama["layers.1.attn.o"]) == "layers.1.attn.o"
    assert input_of(t5["decoder.layers.0.cross.k"]) == input_of(t5["decoder.layers.0.cross.v"])
    assert input_of(t5["decoder.layers.0.cross.q"]) == "decoder.layers.0.cross.q"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_gradients_are_those_without_sharing(kind):
    shared = gradients(hosted(kind))
    for name, gradient in gradients(alone_(hosted(kind))).items():
        torch.testing.assert_close(
            shared[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_one_product_serves_q_k_and_v(monkeypatch):
    host, products = hosted("llama", "*.attn.{q,k,v}"), []
    plain = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, *a, **k: products.append(len(parts)) or plain(parts, *a, **k))
    gradients(host)
    assert products.count(3) == 2  # one in each of two layers


def test_what_one_forward_left_is_not_used_by_the_next():
    host = hosted("llama", "layers.0.attn.{q,k}")
    adapter = host.adapters["a"]
    q, k = (delta for _, _, delta in adapter.entries())
    x = torch.randn(2, 40, 32)
    q.add(torch.zeros(2, 40, 32), x)  # k is not reached
    with torch.no_grad():
        k.A.mul_(2)
    torch.testing.assert_close(k.add(torch.zeros(2, 40, 16), x), k(x, torch.zeros(2, 40, 16)))
    copy.deepcopy(adapter)


def test_few_tokens_in_low_precision_agree_with_many():
    host = hosted("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        for _, _, delta in host.adapters["a"].entries():
            x = torch.randn(1, 64, delta.A.shape[1]).bfloat16()
            h = torch.randn(1, 64, delta.B.shape[0]).bfloat16()
            few = torch.cat([delta.add(h[:, :32], x[:, :32]), delta.add(h[:, 32:], x[:, 32:])], dim=1)
            assert few.dtype == torch.bfloat16
            torch.testing.assert_close(few, delta.add(h, x), rtol=2e-2, atol=2e-2)


def test_a_dropout_of_its_own_shares_nothing():
    host = hosted("llama", dropout=0.1)
    assert all(not delta.input.members for _, _, delta in host.adapters["a"].entries())
