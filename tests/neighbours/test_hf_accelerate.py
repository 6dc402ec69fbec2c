"""accelerate: a user's own loop around `prepare`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import deltatune
from support import models
from support.neighbours import assert_only_the_adapter_moved, base_of, hosted, logits, randomize_, values, works

NAME = "accelerate"
PACKAGES = ("accelerate",)
NOT_APPLICABLE = {"serve": "it only trains"}


@pytest.fixture
def accelerator():
    import accelerate

    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@works()
def test_attach(accelerator):
    host = hosted()
    wanted = logits(host.model)
    assert torch.equal(logits(accelerator.prepare(host.model)), wanted)


@works()
def test_train(accelerator):
    host = hosted()
    base, before = base_of(host), values(host)
    optimizer = torch.optim.SGD([parameter for _, parameter in host.trainable("mine")], lr=0.05)
    model, optimizer = accelerator.prepare(host.model, optimizer)
    batch, losses = models.inputs("llama"), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_only_the_adapter_moved(host, base, before)


@works("host.register_with(accelerator)")
def test_save(accelerator, tmp_path):
    """The adapter alone; without the line, `save_state` writes the whole model with the adapter in it."""
    host = hosted()
    accelerator.prepare(host.model)
    accelerator.save_state(tmp_path / "whole")
    host.register_with(accelerator)
    accelerator.save_state(tmp_path / "state")
    assert (tmp_path / "state" / "mine" / "adapter.safetensors").is_file()
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "state")]
    assert sizes[1] < sizes[0] / 2


@works(but=("a model without the adapter", "Unexpected key"))
def test_reload(accelerator, base, refusal, tmp_path):
    host = deltatune.Host(AutoModelForCausalLM.from_pretrained(base))
    host.attach("mine", deltatune.LoRA(r=2))
    randomize_(host)
    accelerator.prepare(host.model)
    wanted = logits(host.model)
    accelerator.save_state(tmp_path / "state")
    randomize_(host, seed=4)
    accelerator.load_state(tmp_path / "state")
    assert torch.equal(logits(host.model), wanted)
    host.detach("mine")
    with refusal():
        accelerator.load_state(tmp_path / "state")
