"""Vision transformers of transformers."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import assert_only_the_adapter_moved, base_of, hosted, randomize_, values, works

NAME = "ViT (transformers)"
PACKAGES = ("transformers",)
METHODS = ["LoRA(r=2)", "Bottleneck(size=4)", "Prefix(length=3)", "OFT(block=4)"]


def states(model):
    with torch.no_grad():
        return model.eval()(**models.inputs("vit"))[0]


def adapted(method="LoRA(r=2)"):
    return hosted("vit", None, method)


@works()
def test_attach():
    host = adapted()
    with host.disabled():
        bare = states(host.model)
    assert not torch.equal(states(host.model), bare)
    assert torch.equal(bare, states(models.tiny("vit", dropout=False)))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@works()
def test_train(method):
    host = adapted(method)
    base, before = base_of(host), values(host)
    optimizer = torch.optim.Adam([parameter for _, parameter in host.trainable("mine")], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (host.model(**models.inputs("vit"))[0] - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_only_the_adapter_moved(host, base, before)


@works()
def test_save(tmp_path):
    adapted().model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "mine" / "adapter.safetensors").is_file()
    assert not (tmp_path / "out" / "config.json").exists()


@works("host.load(folder)")
def test_reload(tmp_path):
    first = adapted()
    folder = tmp_path / "adapter"
    first.model.save_pretrained(folder)
    host = deltatune.Host(models.tiny("vit", dropout=False))
    host.load(folder)
    assert torch.equal(states(host.model), states(first.model))


@pytest.mark.slow
@works()
def test_serve():
    """Rows with adapters of their own in one batch."""
    host = adapted()
    host.attach("other", deltatune.Bottleneck(size=4))
    randomize_(host, "other", 3)
    alone = {}
    for name in ("mine", "other", None):
        host.use(name)
        alone[name] = states(host.model)
    rows = len(alone[None])
    route = [("mine", "other", None)[row % 3] for row in range(rows)]
    host.use(route)
    for row, name in enumerate(route):
        torch.testing.assert_close(states(host.model)[row], alone[name][row], rtol=1e-4, atol=1e-5)
