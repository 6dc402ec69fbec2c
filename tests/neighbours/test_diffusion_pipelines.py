"""diffusers: a Host on the U-Net of a tiny Stable Diffusion."""

import pytest
import torch

import deltatune
from support.neighbours import base_of, randomize_, values, works

NAME = "diffusers"
PACKAGES = ("diffusers",)
pytestmark = pytest.mark.slow
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture
def pipe():
    from support.diffusion import stable_diffusion

    return stable_diffusion()


def adapted(pipe, method="LoRA(r=3)"):
    host = deltatune.Host(pipe.unet)
    host.attach("ink", deltatune.parse(method))
    randomize_(host, "ink")
    return host


def picture(pipe):
    from support.diffusion import draw

    return draw(pipe)


@works("host = deltatune.Host(pipe.unet)")
def test_attach(pipe):
    bare = picture(pipe)
    host = deltatune.Host(pipe.unet)
    host.attach("ink", deltatune.LoRA(r=3))
    randomize_(host, "ink")
    assert not torch.equal(picture(pipe), bare)
    with host.disabled():
        assert torch.equal(picture(pipe), bare)


@pytest.mark.parametrize("method", ["LoRA(r=3)", "LoHa(r=2)", "LoKr(r=2)"])
@works()
def test_train(method, pipe):
    from support.diffusion import inputs

    host = adapted(pipe, method)
    base, before = base_of(host), values(host, "ink")
    batch, losses = inputs("unet"), []
    optimizer = torch.optim.Adam([parameter for _, parameter in host.trainable("ink")], lr=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        loss = host.model(**batch)[0].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, base[name]) for name, tensor in host.base.tensors())
    assert not [name for name, tensor in values(host, "ink").items() if torch.equal(tensor, before[name])]


@works("pipe.load_lora_weights(folder)")
def test_save(pipe, tmp_path):
    """Our folder is diffusers' too, where it has the method."""
    from support.diffusion import stable_diffusion

    host = adapted(pipe)
    folder = str(tmp_path / "ink")
    host.save("ink", folder)
    wanted, pipe = picture(pipe), stable_diffusion()
    pipe.load_lora_weights(folder)
    torch.testing.assert_close(picture(pipe), wanted, **CLOSE)


@works("host.load(folder)", but=("a U-Net with diffusers' own LoRA", "PEFT has put adapters of its own on this model"))
def test_reload(pipe, refusal, tmp_path):
    from support.diffusion import stable_diffusion

    first = adapted(pipe)
    wanted = picture(pipe)
    folder = tmp_path / "ink"
    first.save("ink", folder)
    other = stable_diffusion()
    host = deltatune.Host(other.unet)
    host.load(folder)
    torch.testing.assert_close(picture(other), wanted)
    third = stable_diffusion()
    third.load_lora_weights(str(folder))
    with refusal():
        deltatune.Host(third.unet)


@works()
def test_serve(pipe):
    """The slider of weights, and two styles at once."""
    host = adapted(pipe)
    full = picture(pipe)
    host.attach("wax", deltatune.LoRA(r=2))
    randomize_(host, "wax", 5)
    with host.using({"ink": 0.0}):
        none = picture(pipe)
    with host.using({"ink": 0.5, "wax": 0.5}):
        both = picture(pipe)
    with host.disabled():
        assert torch.equal(picture(pipe), none)
    assert not torch.equal(both, full)
    assert not torch.equal(both, none)
