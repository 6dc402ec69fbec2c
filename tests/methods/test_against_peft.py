"""Hugging Face PEFT as the yardstick: the same tensors give the same outputs, training and merged weights."""

import peft
import pytest
import torch
from torch import nn

from deltatune import Host, LoRA, Prefix, Prompt
from support import models
from support.peft_training import losses

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVERYWHERE = ("*.attn.{q,k,v,o}", "*.ffn.{gate,in,out}")

LORAS = [
    pytest.param("bert", "classify", "*.attn.{q,v}", ["query", "value"], id="bert"),
    pytest.param("bert", None, ("*.attn.{q,k,v,o}", "*.ffn.{in,out}"), "all-linear", id="bert-all"),
    pytest.param("llama", "lm", "*.attn.{q,v}", ["q_proj", "v_proj"], id="llama"),
    pytest.param("llama", "lm", EVERYWHERE, LLAMA, id="llama-all"),
    pytest.param("gpt2", "lm", "*.attn.qkv", ["c_attn"], id="gpt2"),
    pytest.param("t5", "lm", ("*.attn.{q,v}", "*.cross.{q,v}"), ["q", "v"], id="t5"),
]
TASKS = {"classify": "SEQ_CLS", "lm": None, None: None}


def lora_pair(kind, head, sites, targets, *, train=False):
    """The same base twice, with the same LoRA (B not zero unless it is to be trained): our Host and a PeftModel."""
    host = Host(models.tiny(kind, head))
    adapter = host.attach("a", LoRA(r=4, alpha=6, sites=sites))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, task_type=TASKS[head], fan_in_fan_out=kind == "gpt2"
    )
    theirs = peft.get_peft_model(models.tiny(kind, head), config).eval()
    copied = set()
    with torch.no_grad():
        for _, site, delta in adapter.entries():
            if site.kind == "head":
                continue
            if not train:
                nn.init.normal_(delta.B, std=0.2)
            layer = theirs.base_model.model.get_submodule(site.module)
            layer.lora_A["default"].weight.copy_(delta.A)
            layer.lora_B["default"].weight.copy_(delta.B)
            copied.add(site.module)
    wrapped = {name for name, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")}
    unwanted = {"pooler.dense"} & wrapped  # all-linear takes BERT's pooler too; its B is zero
    assert wrapped - unwanted == copied
    return host, theirs


def first(output):
    return output.logits if "logits" in output else output.last_hidden_state


def real(output, batch):
    """Outputs at real tokens (N, ...); all of a classifier's and of a decoder's beside an encoder."""
    values = first(output)
    if values.dim() == 2 or "decoder_input_ids" in batch:
        return values
    return values[batch["attention_mask"].bool()]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize(("kind", "head", "sites", "targets"), LORAS)
@torch.no_grad()
def test_lora_gives_the_same_outputs(kind, head, sites, targets, padding):
    host, theirs = lora_pair(kind, head, sites, targets)
    batch = models.inputs(kind, head, padding=padding)
    mine = real(host.model(**batch), batch)
    host.use(None)
    bare = real(host.model(**batch), batch)
    assert not torch.allclose(mine, bare, atol=1e-2)
    torch.testing.assert_close(mine, real(theirs(**batch), batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "head", "sites", "targets"), LORAS)
@torch.no_grad()
def test_merged_weights_are_their_merged_weights(kind, head, sites, targets):
    host, theirs = lora_pair(kind, head, sites, targets)
    host.merge_("a")
    merged = dict(theirs.merge_and_unload().named_parameters())
    mine = {name: p for name, p in host.model.named_parameters() if not name.startswith("deltatune.")}
    assert mine.keys() == merged.keys()
    for name, parameter in mine.items():
        torch.testing.assert_close(
            parameter, merged[name], rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("kind", "head", "sites", "targets"),
    [
        pytest.param("bert", "classify", "*.attn.{q,v}", ["query", "value"], id="bert"),
        pytest.param("llama", "lm", EVERYWHERE, LLAMA, id="llama"),
        pytest.param("gpt2", "lm", "*.attn.qkv", ["c_attn"], id="gpt2"),
    ],
)
def test_training_follows_the_same_trajectory(kind, head, sites, targets):
    host, theirs = lora_pair(kind, head, sites, targets, train=True)
    mine = losses(host.model, [p for _, p in host.trainable("a")], kind, head)
    expected = losses(theirs, [p for p in theirs.parameters() if p.requires_grad], kind, head)
    assert max(expected) - min(expected) > 0.1  # it learned something
    assert max(abs(a - b) for a, b in zip(mine, expected, strict=True)) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_prompt_tuning_gives_the_same_outputs(kind):
    host = Host(models.tiny(kind, "lm"))
    adapter = host.attach("a", Prompt(length=5, init="uniform"))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    theirs = peft.get_peft_model(models.tiny(kind, "lm"), config).eval()
    prompt = next(delta.prompt for _, _, delta in adapter.entries())
    theirs.prompt_encoder["default"].embedding.weight.copy_(prompt)
    batch = models.inputs(kind, "lm")
    mine, expected = first(host.model(**batch)), first(theirs(**batch))
    assert mine.shape == expected.shape
    torch.testing.assert_close(mine[:, :5], expected[:, :5], rtol=0, atol=1e-6)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(mine[:, 5:][mask], expected[:, 5:][mask], rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_prefix_tuning_gives_the_same_outputs(kind, padding):
    head, task = (None, "FEATURE_EXTRACTION") if kind == "bert" else ("lm", "CAUSAL_LM")
    host = Host(models.tiny(kind, head))
    adapter = host.attach("a", Prefix(length=5))
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5, prefix_projection=False)
    theirs = peft.get_peft_model(models.tiny(kind, head), config).eval()
    both = []
    for _, _, delta in adapter.entries():
        nn.init.normal_(delta.keys)
        nn.init.normal_(delta.values)
        both += [delta.keys, delta.values]
    theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(both, dim=1))  # (P, L * 2 * D)
    batch = models.inputs(kind, head, padding=padding)
    mine = real(host.model(**batch), batch)
    torch.testing.assert_close(mine, real(theirs(**batch), batch), rtol=1e-5, atol=1e-5)
