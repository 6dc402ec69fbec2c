"""Bases that other packages quantised: known ones are read, unknown ones are run, and none is taken for a plain one.

torchao, quanto, hqq and gptqmodel are tried where they are installed.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deltatune
from deltatune import Host, LoRA
from deltatune.core.errors import CannotMerge, DeltatuneError
from deltatune.core.quantization.stored_weights import is_linear, stored_weight, weight_of
from deltatune.models.hardware import uses_bfloat16
from deltatune.models.quantization.quantize_model import dequantize_
from support import models

WIDTHS = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "dropout": False}


class PackedLinear(nn.Module):
    """A layout of its own: two codes of 4 bits in a byte."""

    def __init__(self, plain, gradient=True):
        super().__init__()
        self.in_features, self.out_features, self.gradient = plain.in_features, plain.out_features, gradient
        codes = ((plain.weight.detach() / plain.weight.detach().abs().max() * 7).round() + 8).to(torch.uint8)
        self.register_buffer("weight", codes[:, ::2] | codes[:, 1::2] << 4)
        self.register_buffer("scale", plain.weight.detach().abs().max() / 7)

    def forward(self, x):
        codes = torch.stack([self.weight & 15, self.weight >> 4], -1).flatten(1)
        y = F.linear(x, (codes.float() - 8) * self.scale)
        return y if self.gradient else y.detach()


def replaced(made_of):
    """A tiny Llama whose linear maps in blocks are made by a function."""
    model = models.tiny("llama", "lm", **WIDTHS)
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and "layers" in path:
            model.set_submodule(path, made_of(module))
    return model


def test_an_unknown_layout_is_run_but_never_read(tmp_path):
    host, plain = Host(replaced(PackedLinear)), Host(models.tiny("llama", "lm", **WIDTHS))
    assert host.sites.keys() == plain.sites.keys()
    assert host.sites.base_params == plain.sites.base_params
    site = host.sites["layers.0.ffn.out"]
    assert (site.width_in, site.width_out) == (256, 128)
    assert site.quantized.endswith(" PackedLinear")
    batch = models.inputs("llama")
    for method in ("LoRA(r=2)", "Bottleneck(size=4)", "Prefix(length=2)", "Prompt(length=2)"):
        host.attach("a", deltatune.parse(method))
        optimizer = torch.optim.AdamW([parameter for _, parameter in host.trainable("a")], lr=1e-2)
        losses = []
        for _ in range(3):
            loss = host.model(**batch, labels=batch["input_ids"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        host.save("a", tmp_path / method)
        again = Host(replaced(PackedLinear))
        again.load(tmp_path / method, name="a")
        with torch.no_grad():
            assert torch.equal(host.model(**batch).logits, again.model(**batch).logits)
        if method == "LoRA(r=2)":
            with pytest.raises(CannotMerge, match="PackedLinear, which cannot be made plain in place"):
                host.merge_("a")
        host.detach("a")
    for method in ("DoRA(r=2)", "PiSSA(r=2)"):
        with pytest.raises(DeltatuneError, match="PackedLinear, whose layout is not known"):
            host.attach("a", deltatune.parse(method))
        assert not host.adapters
    with pytest.raises(DeltatuneError, match="codes have no gradient"):
        host.attach("a", deltatune.parse("Full()"))
    with pytest.raises(DeltatuneError, match="whose layout is not known"):
        dequantize_(replaced(PackedLinear))


def test_codes_in_a_plain_linear_are_no_weights():
    """Floats of 8 bits without their scales, as transformers' FP8Linear stores them."""
    module = nn.Linear(8, 4, bias=False)
    module.weight = nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    assert is_linear(module)
    assert stored_weight(module).shape == (4, 8)
    with pytest.raises(DeltatuneError, match="layout is not known"):
        weight_of(module)
    assert stored_weight(nn.Linear(8, 4)) is None
    assert stored_weight(nn.Embedding(8, 4)) is None


def test_a_dropped_gradient_is_an_error_and_running_is_none():
    host = Host(replaced(lambda plain: PackedLinear(plain, gradient=False)))
    host.attach("a", LoRA(r=2))
    batch = models.inputs("llama")
    with torch.no_grad():
        host.model(**batch)
    with pytest.raises(DeltatuneError, match="passes no gradient to what is below it"):
        host.model(**batch)


def torchao_model():
    quantization = pytest.importorskip("torchao.quantization")
    model = models.tiny("llama", "lm", **WIDTHS)
    quantization.quantize_(model.model.layers, quantization.Int8WeightOnlyConfig())
    return model


def quanto_model():
    quanto = pytest.importorskip("optimum.quanto")
    model = models.tiny("llama", "lm", **WIDTHS)
    quanto.quantize(model.model.layers, weights=quanto.qint4)
    quanto.freeze(model.model.layers)
    return model


def hqq_model():
    hqq = pytest.importorskip("hqq.core.quantize")
    config = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
    return replaced(lambda plain: hqq.HQQLinear(plain, config, compute_dtype=torch.float32, device="cpu"))


def gptq_model():
    qlinear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")

    def made_of(plain):
        rng = torch.Generator().manual_seed(plain.in_features + plain.out_features)
        module = qlinear.TorchLinear(
            bits=4, group_size=64, sym=True, desc_act=False, in_features=plain.in_features,
            out_features=plain.out_features, bias=False, pack_dtype=torch.int32,
        )  # fmt: skip
        module.qweight = torch.randint(-(2**31), 2**31 - 1, module.qweight.shape, dtype=torch.int32, generator=rng)
        module.qzeros = torch.full_like(module.qzeros, 0x77777777)
        module.scales = (0.02 + 0.02 * torch.rand(module.scales.shape, generator=rng)).to(module.scales.dtype)
        module.post_init()
        return module.eval()

    return replaced(made_of)


PACKAGES = {"torchao": torchao_model, "quanto": quanto_model, "hqq": hqq_model, "gptqmodel": gptq_model}


@pytest.mark.filterwarnings("ignore")  # the packages warn of what their own dependencies deprecate
@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_read_trained_and_made_plain(package, tmp_path):
    host = Host(PACKAGES[package]())
    batch = models.inputs("llama")
    layers = [site for site in host.sites.values() if site.kind == "linear" and site.layer is not None]
    assert all(site.quantized.startswith(package) for site in layers)
    for site in layers[:7]:  # what is read is what the module multiplies by
        module = host.model.get_submodule(site.module)
        with torch.no_grad():
            product = module(torch.eye(site.width_in))
        torch.testing.assert_close(product, weight_of(module).T.float(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        base = host.model(**batch).logits
    for method in ("LoRA(r=2)", "DoRA(r=2)", "PiSSA(r=2)", "Bottleneck(size=4)"):
        host.attach("a", deltatune.parse(method))
        optimizer = torch.optim.AdamW([parameter for _, parameter in host.trainable("a")], lr=1e-2)
        losses = []
        for _ in range(3):
            loss = host.model(**batch, labels=batch["input_ids"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        host.save("a", tmp_path / method)
        again = Host(PACKAGES[package]())
        again.load(tmp_path / method, name="a")
        with torch.no_grad():
            assert torch.equal(host.model(**batch).logits, again.model(**batch).logits)
        host.detach("a")
    with torch.no_grad():
        assert torch.equal(host.model(**batch).logits, base)
    plain = PACKAGES[package]()
    assert len(dequantize_(plain, torch.float32)) == len(layers)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits.float(), base.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("package", ["quanto", "hqq"])
def test_a_package_that_fails_under_autocast_trains_in_float32(package):
    model = PACKAGES[package]()
    assert not uses_bfloat16(model, "auto")
    with pytest.raises(DeltatuneError, match="do not train under bfloat16 autocast"):
        uses_bfloat16(model, "bfloat16")
