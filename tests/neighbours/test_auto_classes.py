"""`AutoModel.from_pretrained` and `save_pretrained` of a hosted model."""

import torch
from transformers import AutoModelForCausalLM

import deltatune
from support.neighbours import logits, randomize_, works

NAME = "`AutoModel.from_pretrained`"
PACKAGES = ("transformers",)
NOT_APPLICABLE = {"train": "see the trainers"}


def adapted(base, method="LoRA(r=2)"):
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.attach("mine", deltatune.parse(method))
    randomize_(host)
    return host


@works()
def test_attach(base):
    host = adapted(base)
    with host.disabled():
        assert torch.equal(logits(host.model), logits(AutoModelForCausalLM.from_pretrained(base)))


@works()
def test_save(base, tmp_path):
    adapted(base).model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "mine" / "adapter.safetensors").is_file()
    assert not (tmp_path / "out" / "config.json").exists()


@works(but=("what PEFT cannot hold", "Unrecognized model in"))
def test_reload(base, refusal, tmp_path):
    """A LoRA is loaded through PEFT; what PEFT has no form for is refused, and `host.load` loads it."""
    host = adapted(base)
    host.model.save_pretrained(tmp_path / "lora")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "lora")), logits(host.model))
    host = adapted(base, "Bottleneck(size=4)")
    host.model.save_pretrained(tmp_path / "bottleneck")
    with refusal():
        AutoModelForCausalLM.from_pretrained(tmp_path / "bottleneck")
    again = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    again.load(tmp_path / "bottleneck")
    assert torch.equal(logits(again.model), logits(host.model))


@works("model = host.merge_and_unload()")
def test_serve(base, tmp_path):
    """As a plain model for everything that loads one."""
    host = adapted(base)
    wanted = logits(host.model)
    model = host.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), wanted, rtol=1e-4, atol=1e-4
    )
