"""Models of images and sounds of transformers."""

import pytest
import torch

import deltatune
from support import models
from support.neighbours import assert_only_the_adapter_moved, base_of, hosted, randomize_, values, works

NAME = "ViT, CLIP's image encoder and Whisper (transformers)"
PACKAGES = ("transformers",)
KINDS = ["vit", "clip_vision_model", "whisper"]
METHODS = ["LoRA(r=2)", "Bottleneck(size=4)", "Prefix(length=3)", "OFT(block=4)"]


def states(kind, model):
    with torch.no_grad():
        return model.eval()(**models.inputs(kind))[0]


def adapted(kind, method="LoRA(r=2)"):
    return hosted(kind, None, method)


each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@works()
def test_attach(kind):
    host = adapted(kind)
    with host.disabled():
        bare = states(kind, host.model)
    assert not torch.equal(states(kind, host.model), bare)
    assert torch.equal(bare, states(kind, models.tiny(kind, dropout=False)))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@each_kind
@works()
def test_train(kind, method):
    host = adapted(kind, method)
    base, before = base_of(host), values(host)
    optimizer = torch.optim.Adam([parameter for _, parameter in host.trainable("mine")], lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (host.model(**models.inputs(kind))[0] - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_only_the_adapter_moved(host, base, before)


@each_kind
@works()
def test_save(kind, tmp_path):
    adapted(kind).model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "mine" / "adapter.safetensors").is_file()
    assert not (tmp_path / "out" / "config.json").exists()


@each_kind
@works("host.load(folder)")
def test_reload(kind, tmp_path):
    first = adapted(kind)
    folder = tmp_path / "adapter"
    first.model.save_pretrained(folder)
    host = deltatune.Host(models.tiny(kind, dropout=False))
    host.load(folder)
    assert torch.equal(states(kind, host.model), states(kind, first.model))


@pytest.mark.slow
@each_kind
@works()
def test_serve(kind):
    """Rows with adapters of their own in one batch."""
    host = adapted(kind)
    host.attach("other", deltatune.Bottleneck(size=4))
    randomize_(host, "other", 3)
    alone = {}
    for name in ("mine", "other", None):
        host.use(name)
        alone[name] = states(kind, host.model)
    rows = len(alone[None])
    route = [("mine", "other", None)[row % 3] for row in range(rows)]
    host.use(route)
    for row, name in enumerate(route):
        torch.testing.assert_close(states(kind, host.model)[row], alone[name][row], rtol=1e-4, atol=1e-5)
