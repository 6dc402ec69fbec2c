"""rsLoRA, DoRA, PiSSA, VeRA, (IA)³ and LoRA on embeddings: HF PEFT as the yardstick, and what each promises beside."""

import warnings

import peft
import pytest
import torch
from test_against_peft import LORAS, TASKS, real

from deltatune import IA3, DoRA, Host, PiSSA, RsLoRA, VeRA
from support import models
from support.peft_training import losses

IA3S = [
    pytest.param("bert", "classify", ("*.attn.{k,v,heads}", "*.ffn.act"), id="bert"),  # output.dense is both
    pytest.param("gpt2", "lm", ("*.attn.qkv", "*.ffn.act"), id="gpt2"),
    pytest.param("llama", "lm", ("*.attn.{k,v}", "*.ffn.act"), id="llama"),
    pytest.param("t5", "lm", ("*.attn.{k,v}", "*.ffn.act", "*.cross.{k,v}"), id="t5"),
]


def lora_config(method, kind, head, targets):
    """PEFT's configuration of the same method."""
    named = {
        "RsLoRA": {"use_rslora": True},
        "DoRA": {"use_dora": True},
        "PiSSA": {"init_lora_weights": "pissa"},
    }
    common = {"r": method.r, "target_modules": targets, "task_type": TASKS[head], "fan_in_fan_out": kind == "gpt2"}
    if isinstance(method, VeRA):
        return peft.VeraConfig(**common)
    return peft.LoraConfig(lora_alpha=method.alpha, **common, **named[type(method).__name__])


def peft_of(kind, head, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the adapter's A and B are not trained yet, fan_in_fan_out was set, ...
        return peft.get_peft_model(models.tiny(kind, head), config).eval()


@torch.no_grad()
def pair(method, kind, head, targets, *, train=False):
    """The same base twice, with the same adapter off its start (unless it is to be trained): a Host and a PeftModel."""
    host = Host(models.tiny(kind, head))
    adapter = host.attach("a", method)
    theirs = peft_of(kind, head, lora_config(method, kind, head, targets))
    for _, site, delta in adapter.entries():
        if site.kind == "head":
            continue
        if not train:
            for parameter in delta.parameters():
                parameter.add_((0.5 if isinstance(method, VeRA) else 0.2) * torch.randn_like(parameter))
        layer = theirs.base_model.model.get_submodule(site.module)
        if isinstance(method, VeRA):
            layer.vera_lambda_d["default"].copy_(delta.d)
            layer.vera_lambda_b["default"].copy_(delta.b)
            theirs.base_model.vera_A["default"].copy_(delta.projection[0].A)
            theirs.base_model.vera_B["default"].copy_(delta.projection[0].B)
            continue
        layer.lora_A["default"].weight.copy_(delta.A)
        layer.lora_B["default"].weight.copy_(delta.B)
        if isinstance(method, DoRA):
            layer.lora_magnitude_vector["default"].weight.copy_(delta.m)
    return host, theirs


METHODS = [
    lambda sites: RsLoRA(r=4, alpha=6, sites=sites),
    lambda sites: DoRA(r=4, alpha=6, sites=sites),
    lambda sites: PiSSA(r=4, alpha=6, sites=sites),
    lambda sites: VeRA(r=6, sites=sites),
]
NAMES = ["rslora", "dora", "pissa", "vera"]


def same_outputs(host, theirs, kind, head, padding):
    batch = models.inputs(kind, head, padding=padding)
    mine = real(host.model(**batch), batch)
    host.use(None)
    bare = real(host.model(**batch), batch)
    host.use("a")
    assert not torch.allclose(mine, bare, atol=1e-2)
    torch.testing.assert_close(mine, real(theirs(**batch), batch), rtol=1e-5, atol=2e-5)


def same_weights(host, theirs):
    host.merge_("a")
    merged = dict(theirs.merge_and_unload().named_parameters())
    mine = {name: p for name, p in host.model.named_parameters() if not name.startswith("deltatune.")}
    assert mine.keys() == merged.keys()
    for name, parameter in mine.items():
        torch.testing.assert_close(
            parameter, merged[name], rtol=1e-5, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("make", METHODS, ids=NAMES)
@pytest.mark.parametrize(("kind", "head", "sites", "targets"), LORAS)
@torch.no_grad()
def test_outputs_and_merged_weights_are_theirs(make, kind, head, sites, targets):
    method = make(sites)
    host, theirs = pair(method, kind, head, targets)
    for padding in ("right", "left"):
        same_outputs(host, theirs, kind, head, padding)
    same_weights(host, theirs)


@pytest.mark.parametrize(("kind", "head", "sites"), IA3S)
@torch.no_grad()
def test_ia3_at_their_default_places(kind, head, sites):
    host = Host(models.tiny(kind, head))
    adapter = host.attach("a", IA3(sites=sites))
    theirs = peft_of(kind, head, peft.IA3Config(task_type=TASKS[head]))
    scaled = {name for name, m in theirs.base_model.model.named_modules() if hasattr(m, "ia3_l")}
    for _, site, delta in adapter.entries():
        if site.kind != "head":
            delta.l.normal_(1.0, 0.3)
            vector = theirs.base_model.model.get_submodule(site.module).ia3_l["default"]
            vector.copy_(delta.l.view_as(vector))
            scaled.remove(site.module)
    assert not scaled
    for padding in ("right", "left"):
        same_outputs(host, theirs, kind, head, padding)
    same_weights(host, theirs)


@pytest.mark.parametrize(("kind", "cross"), [("bert", False), ("gpt2", False), ("llama", False), ("t5", True)])
def test_ia3_takes_keys_values_and_activations_that_there_are(kind, cross):
    picked = {site.name for site in IA3().pick(Host(models.tiny(kind)).sites)}
    assert {name.split(".", name.count(".") - 1)[-1] for name in picked} == {"attn.k", "attn.v", "ffn.act"} | (
        {"cross.k", "cross.v"} if cross else set()
    )


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("kind", "head", "sites", "targets"),
    [
        pytest.param("bert", "classify", "*.attn.{q,v}", ["query", "value"], id="bert"),
        pytest.param("llama", "lm", "*.attn.{q,k,v,o}", ["q_proj", "k_proj", "v_proj", "o_proj"], id="llama"),
    ],
)
@pytest.mark.parametrize("make", METHODS, ids=NAMES)
def test_twenty_steps_are_theirs(make, kind, head, sites, targets):
    host, theirs = pair(make(sites), kind, head, targets, train=True)
    mine = losses(host.model, [p for _, p in host.trainable("a")], kind, head, steps=20)
    expected = losses(theirs, [p for p in theirs.parameters() if p.requires_grad], kind, head, steps=20)
    assert max(expected) - min(expected) > 0.05  # it learned something
    assert max(abs(a - b) for a, b in zip(mine, expected, strict=True)) < 1e-4
