"""torch.compile of a hosted model."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import (
    assert_only_the_adapter_moved,
    base_of,
    hosted,
    logits,
    randomize_,
    values,
    works,
)

NAME = "`torch.compile`"
PACKAGES = ("torch",)
METHODS = ["LoRA(r=2)", "Bottleneck(size=4)", "Prefix(length=3)", "Prompt(length=3)", "LoHa(r=2)", "OFT(block=4)"]
pytestmark = pytest.mark.slow


def compiled(host):
    torch.compiler.reset()
    return torch.compile(host.model, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("method", METHODS)
@works()
def test_attach(method):
    host = hosted(method=method)
    torch.testing.assert_close(logits(compiled(host)), logits(host.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS[:3])
@works()
def test_train(method):
    host, eager = hosted(method=method), hosted(method=method)
    base, before = base_of(host), values(host)
    for each, model in ((host, compiled(host)), (eager, eager.model)):
        optimizer = torch.optim.SGD([parameter for _, parameter in each.trainable("mine")], lr=0.05)
        batch = models.inputs("llama")
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch, labels=batch["input_ids"]).loss.backward()
            optimizer.step()
    assert_only_the_adapter_moved(host, base, before)
    for name, tensor in values(eager).items():
        torch.testing.assert_close(values(host)[name], tensor, rtol=1e-3, atol=1e-5)


@works()
def test_save(tmp_path):
    host = hosted()
    model = compiled(host)
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "mine" / "adapter.safetensors").is_file()


@works()
def test_reload(tmp_path):
    first = hosted()
    first.save("mine", tmp_path / "adapter")
    host = deltatune.Host(models.tiny("llama", "lm", dropout=False))
    host.load(tmp_path / "adapter")
    torch.testing.assert_close(logits(compiled(host)), logits(first.model), rtol=1e-4, atol=1e-5)


@works()
def test_serve():
    """Another route after compilation: other adapters, weights, none."""
    host = hosted()
    host.attach("other", deltatune.LoRA(r=2))
    randomize_(host, "other", 3)
    host.use("mine")
    model = compiled(host)
    logits(model)
    for route in ("other", {"mine": 0.5, "other": -0.5}, None, "mine"):
        host.use(route)
        torch.testing.assert_close(logits(model), logits(host.model), rtol=1e-4, atol=1e-5)
