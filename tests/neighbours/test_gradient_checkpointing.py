"""transformers' gradient checkpointing under adapters."""

import pytest
import torch

from support import models
from support.neighbours import hosted, works

NAME = "gradient checkpointing"
PACKAGES = ("transformers",)
METHODS = ["LoRA(r=2)", "Bottleneck(size=4)", "Prefix(length=3)", "Prompt(length=3)", "OFT(block=4)", "VBLoRA(r=2)"]
ELSEWHERE = "it changes training alone"
NOT_APPLICABLE = {"save": ELSEWHERE, "reload": ELSEWHERE, "serve": ELSEWHERE}
# its name in transformers before 5.20
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def gradients(host):
    batch = models.inputs("llama")
    host.model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    return {name: parameter.grad for name, parameter in host.trainable("mine")}


@works()
def test_attach():
    """Before the adapter comes, or after."""
    wanted = gradients(hosted())
    host = hosted()
    host.detach("mine")
    host.model.gradient_checkpointing_enable()
    host.attach("mine", hosted().adapters["mine"].method).load_tensors(hosted().adapters["mine"].tensors())
    for name, gradient in gradients(host).items():
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", METHODS)
@works()
def test_train(method, reentrant):
    wanted = gradients(hosted(method=method))
    host = hosted(method=method)
    host.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(host)
    assert any(gradient.any() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert found[name] is not None, f"{name} has no gradient"
        torch.testing.assert_close(found[name], gradient)
