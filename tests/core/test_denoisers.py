"""Hosts on diffusers' denoisers: sites by rule, convolutions as linear maps of patches, and the laws of adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("diffusers")

import diffusers
from peft import LoraConfig, PeftModel

import deltatune
from deltatune import DeltatuneError, Host, LoRA, find_sites
from deltatune.core.delta import generator_for
from deltatune.core.sites.convolutions import kernel_of
from deltatune.core.sites.site import generic
from deltatune.models.quantization.quantize_model import quantize_
from deltatune.store.peft import peft_obstacles
from support.diffusion import DENOISERS, denoiser, inputs, predict, text_config

ROLES = {
    "unet": [
        "down.*.attentions.*.layers.*.attn.q",
        "mid.attentions.*.layers.*.cross.k",
        "up.*.resnets.*.conv_shortcut",
    ],
    "unet_sdxl": ["up.*.attentions.*.proj_in", "add_embedding.linear_1", "mid.attentions.*.layers.*.ffn.gate"],
    "dit": ["layers.*.attn.q", "layers.*.ffn.act", "layers.*.norm1.linear", "pos_embed.proj"],
    "pixart": ["layers.*.cross.v", "caption_projection.linear_1"],
    "sd3": ["layers.*.attn_text.o", "layers.*.attn2.q", "layers.*.ffn_text.in", "context_embedder"],
    "flux": ["single.layers.*.attn.q", "single.layers.*.ffn.in", "single.layers.*.proj_out", "layers.*.attn_text.q"],
}


def stirred(host: Host, name: str, method: str, seed: int = 0) -> Host:
    """A host with an adapter off its initial values."""
    adapter = host.attach(name, deltatune.parse(method))
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator_for(seed, f"{name}/{key}")))
    return host


# ---- sites


@pytest.mark.parametrize(
    "kind",
    ["unet", "sd3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in DENOISERS if kind not in ("unet", "sd3"))],
)
def test_every_map_is_a_site(kind: str) -> None:
    model = denoiser(kind)
    sites = find_sites(model)
    assert {generic(name) for name in sites} >= set(ROLES.get(kind, []))
    mapped = {site.module for site in sites.values() if site.kind == "linear"}
    maps = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    unread = {"transformer_blocks.1.attn.add_q_proj"} if kind == "sd3" else set()
    assert mapped == maps - unread
    assert not sites.unnamed
    assert sites.base_params == sum(parameter.numel() for parameter in model.parameters())
    for site in sites.match("*.attn*.{q,k,v}"):
        if "_text" in site.name:
            assert site.module.endswith(f"add_{site.name[-1]}_proj")
            continue
        assert site.module.endswith(f"to_{site.name[-1]}")


def test_self_attention_is_told_from_cross_attention_by_the_module() -> None:
    sites = find_sites(denoiser("unet"))
    assert {site.module.split(".")[-2] for site in sites.match("*.attn.q")} == {"attn1"}
    assert {site.module.split(".")[-2] for site in sites.match("*.cross.q")} == {"attn2"}
    assert {site.width_in for site in sites.match("*.cross.{k,v}")} == {24}
    dual = find_sites(denoiser("sd3"))  # a second self-attention, no cross-attention
    assert dual["layers.0.attn2.q"].module == "transformer_blocks.0.attn2.to_q"


@pytest.mark.slow
def test_an_autoencoder_has_sites() -> None:
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    names = {generic(name) for name in find_sites(vae)}
    assert {"encoder.mid.attentions.*.attn.q", "decoder.mid.attentions.*.attn.o", "encoder.conv_in"} <= names


def test_what_cannot_be_named_is_listed() -> None:
    class Grouped(diffusers.UNet2DConditionModel):  # type: ignore[name-defined, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.conv_out = nn.Conv2d(16, 4, 3, padding=1, groups=4)

    model = Grouped(**dict(denoiser("unet").config))
    sites = find_sites(model)
    assert sites.unnamed == ("conv_out",)
    with pytest.raises(
        DeltatuneError, match=r"no site of this Grouped matches 'conv_out'(.|\n)*without a role.*conv_out"
    ):
        Host(model).attach("a", LoRA(sites="conv_out"))

    class Empty(diffusers.ModelMixin):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(DeltatuneError, match="no linear maps and no convolutions found in Empty; modules seen: Empty"):
        Host(Empty())


def test_roles_name_modules_of_any_denoiser() -> None:
    sites = find_sites(denoiser("dit"), {"linear_1": "time.in", "proj_out_2": "out"})
    assert "layers.0.time.in" in sites
    assert "out" in sites
    with pytest.raises(DeltatuneError, match="roles names 'nothing'"):
        find_sites(denoiser("dit"), {"nothing": "attn.q"})


def test_names_of_modules_lead_to_sites() -> None:
    with pytest.raises(DeltatuneError, match=r"matches 'to_q': that is a module's name.*\*\.attn\.q"):
        find_sites(denoiser("dit")).match("to_q")


@pytest.mark.slow
def test_fused_projections_are_refused() -> None:
    model: Any = denoiser("unet")
    model.fuse_qkv_projections()
    with pytest.raises(DeltatuneError, match=r"fused.*unfuse_qkv_projections\(\)"):
        Host(model)
    model.unfuse_qkv_projections()
    stirred(Host(model), "a", "LoRA(r=2)")
    wanted = predict(model, inputs("unet"))
    model.fuse_qkv_projections()
    with pytest.raises(DeltatuneError, match="adapters there would have no effect"):
        predict(model, inputs("unet"))
    model.unfuse_qkv_projections()
    assert torch.equal(predict(model, inputs("unet")), wanted)


def test_prefixes_are_refused_in_words() -> None:
    host = Host(denoiser("dit"))
    for method in ("Prefix()", "PTuningV2()", "LongLoRA()", "MAM()", "UniPELT()"):
        with pytest.raises(DeltatuneError, match="does not run through transformers' AttentionInterface"):
            host.attach("a", deltatune.parse(method))


def test_methods_of_texts_are_refused_in_words() -> None:
    host = Host(denoiser("dit"))
    for method in ("Prompt()", "PTuning()", "IDPG()", "Embeddings()", "LoReFT()"):
        with pytest.raises(DeltatuneError, match=r"this DiTTransformer2DModel has no (token embeddings|residual)"):
            host.attach("a", deltatune.parse(method))


# ---- convolutions


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (1, 1, 0, 1), (2, 2, 0, 1), (3, 1, 2, 2)]
)
def test_a_convolution_is_a_linear_map_of_patches(size: int, stride: int, padding: int, dilation: int) -> None:
    convolution = nn.Conv2d(4, 6, size, stride, padding, dilation)
    image = torch.randn(2, 4, 9, 7)
    kernel = kernel_of(convolution)
    assert kernel is not None
    tokens = F.linear(kernel.patches(image), convolution.weight.flatten(1), convolution.bias)
    output = convolution(image)
    torch.testing.assert_close(tokens, output.flatten(2).mT)
    bare = output - convolution.bias.detach()[:, None, None]  # type: ignore[union-attr]
    torch.testing.assert_close(kernel.filtered(image, convolution.weight.flatten(1)), bare)


def test_other_convolutions_have_no_kernel() -> None:
    assert kernel_of(nn.Conv2d(4, 4, 3, groups=2)) is None
    assert kernel_of(nn.Conv2d(4, 4, 3, padding="same")) is None
    assert kernel_of(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")) is None
    assert kernel_of(nn.Conv1d(4, 4, 3)) is None


def test_lora_on_convolutions_equals_pefts() -> None:
    host, batch = (
        stirred(Host(denoiser("unet")), "a", "LoRA(r=3, sites=('*.conv1', 'conv_out', '*.downsamplers.*.conv'))"),
        inputs("unet"),
    )
    theirs: Any = denoiser("unet")
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=16, target_modules=["conv1", "conv_out", "downsamplers.0.conv"]))
    state = dict(theirs.named_parameters())
    deltas = host.adapters["a"].tensors()
    with torch.no_grad():
        for name, site in host.adapters["a"].sites.items():
            for factor in ("A", "B"):
                parameter = state[f"{site.module}.lora_{factor}.default.weight"]
                parameter.copy_(deltas[f"{name}.{factor}"].view_as(parameter))
    torch.testing.assert_close(predict(host.model, batch), predict(theirs, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["LoRA(r=3, sites='*')", "IA3()", "LoHa(sites='*.attn.*')", "OFT(block=4)", "LoKr()"]
)
def test_peft_loads_a_hosts_folder(method: str, tmp_path: Path) -> None:
    host, batch = stirred(Host(denoiser("unet")), "a", method), inputs("unet")
    theirs = PeftModel.from_pretrained(denoiser("unet"), host.save("a", tmp_path / "a"))
    _close(predict(theirs, batch), predict(host.model, batch))


def test_convolutions_that_peft_has_otherwise_are_not_written_for_it(tmp_path: Path) -> None:
    host = Host(denoiser("unet"))
    for method in ("IA3", "LoHa", "LoKr", "OFT", "BOFT", "VeRA", "FourierFT"):
        reasons = peft_obstacles(deltatune.parse(f"{method}(sites=('*.attn.q', 'conv_out'))"), host)
        assert reasons == [f"PEFT's {method} of a convolution has another form, and this one acts at conv_out"]
    (flux,) = peft_obstacles(LoRA(sites="proj_out"), Host(denoiser("flux")))
    assert flux.endswith("ends of their paths, and proj_out is that of single_transformer_blocks.0.proj_out too")


# ---- the laws

FAST = ("LoRA(r=3, sites='*')",)
SLOW = (
    "LoRA(r=2, sites='*', dropout=0.1)", "DoRA(r=2, sites='*')", "PiSSA(r=2, sites='*')", "IA3(sites='*')", "IA3()",
    "BitFit()", "LoHa(r=2, sites='*')", "LoKr(r=2, sites='*')", "OFT(block=4, sites='*')", "BOFT(sites='*')",
    "VeRA(sites='*')", "FourierFT(n=10, sites='*')", "Bottleneck(size=4)", "Parallel(size=4)",
    "Compacter(size=8, norms=False)", "LoRA(r=2) + Bottleneck(size=3)",
)  # fmt: skip
CASES = [(kind, method) for kind in ("unet", "dit") for method in FAST]
SLOW_CASES = [(kind, method) for kind in ("unet", "dit") for method in SLOW]
SLOW_CASES += [(kind, FAST[0]) for kind in DENOISERS if kind not in ("unet", "dit")]


@pytest.mark.parametrize(
    ("kind", "method"), CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES]
)
def test_an_adapter_keeps_the_laws(kind: str, method: str, tmp_path: Path) -> None:
    model, batch = denoiser(kind), inputs(kind)
    before, keys = predict(model, batch), list(model.state_dict())
    host = Host(model)
    adapter = host.attach("a", deltatune.parse(method))
    assert adapter.count == adapter.method.count(host.sites) > 0
    _close(predict(model, batch), before, 2e-6)
    host.detach("a")
    stirred(host, "a", method)
    live = predict(model, batch)
    assert (live - before).abs().max() > 1e-3
    _rows(host, batch, live, before)
    _gradients(host, batch)
    _files(host, kind, batch, live, tmp_path)
    if host.adapters["a"].merges:
        assert host.merge_("a") < 1e-4
        _close(predict(model, batch), live)
        host.unmerge_("a")
        assert torch.equal(predict(model, batch), live)
    with host.disabled():
        assert torch.equal(predict(model, batch), before)
    host.detach("a")
    assert torch.equal(predict(model, batch), before)
    assert list(model.state_dict()) == keys


def _rows(host: Host, batch: dict[str, Any], live: Tensor, before: Tensor) -> None:
    """Each row with its own adapters and weights equals that row alone."""
    host.use({"a": 0.4})
    weighted = predict(host.model, batch)
    host.use(["a", None, {"a": 0.4}])
    rows = predict(host.model, batch)
    _close(rows, torch.stack([live[0], before[1], weighted[2]]))
    with pytest.raises(DeltatuneError, match=r"classifier-free guidance.*use\(2 \* rows\)"):
        predict(host.model, {**inputs_of(batch, 2)})
    host.use("a")


def inputs_of(batch: dict[str, Any], times: int) -> dict[str, Any]:
    """The batch, doubled as guidance does."""
    return {key: _repeated(key, value, times) for key, value in batch.items()}


def _repeated(key: str, value: Any, times: int) -> Any:
    if isinstance(value, dict):
        return inputs_of(value, times)
    of_rows = isinstance(value, Tensor) and key not in ("img_ids", "txt_ids")
    return torch.cat([value] * times) if of_rows else value


def _gradients(host: Host, batch: dict[str, Any]) -> None:
    """Gradients of the adapter alone, the same under gradient checkpointing."""
    model: Any = host.model.train()
    found = []
    for checkpointed in (False, True):
        (model.enable_gradient_checkpointing if checkpointed else model.disable_gradient_checkpointing)()
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch)[0].square().sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in host.trainable("a")})
    model.disable_gradient_checkpointing()
    model.eval()
    assert all(bool(gradient.any()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        _close(found[1][name], gradient, 1e-4)
    own = {id(parameter) for _, parameter in host.trainable("a")}
    assert all(parameter.grad is None for parameter in model.parameters() if id(parameter) not in own)


def _files(host: Host, kind: str, batch: dict[str, Any], live: Tensor, folder: Path) -> None:
    host.save("a", folder / "a")
    again = Host(denoiser(kind))
    again.load(folder / "a")
    _close(predict(again.model, batch), live, 1e-6)
    other = denoiser(kind)
    next(other.parameters()).data.add_(1)
    with pytest.raises(DeltatuneError, match="other weights"):
        Host(other).load(folder / "a")


def _close(out: Tensor, wanted: Tensor, within: float = 2e-5) -> None:
    torch.testing.assert_close(out, wanted, rtol=within, atol=within * max(1.0, float(wanted.abs().max())))


def test_a_merge_that_is_wrong_is_seen() -> None:
    """The outputs of the maps are compared one by one: a denoiser's own inputs are not known here."""
    host = stirred(Host(denoiser("unet")), "a", "LoRA(r=3, sites='*.conv1')")
    delta = host.adapters["a"].deltas["lora/mid/resnets/0/conv1"]
    own = type(delta).merge
    delta.merge = lambda base: {"weight": own(delta, base)["weight"] + 0.01}  # type: ignore[assignment, arg-type]
    with pytest.raises(deltatune.core.errors.CannotMerge, match="changed the outputs"):
        host.merge_("a")
    assert not host.merged


@pytest.mark.slow
def test_merging_for_good_leaves_a_plain_model(tmp_path: Path) -> None:
    host, batch = stirred(Host(denoiser("unet")), "a", "LoRA(r=3, sites='*.{attn.q,conv1}')"), inputs("unet")
    live, keys = predict(host.model, batch), list(denoiser("unet").state_dict())
    plain: Any = host.merge_and_unload()
    assert list(plain.state_dict()) == keys
    plain.save_pretrained(tmp_path / "plain")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "plain", low_cpu_mem_usage=False)
    _close(predict(again, batch), live)


def test_a_folder_of_diffusers_is_a_base(tmp_path: Path) -> None:
    """The adapter knows its base by name and content; a saved hosted model is no silent base."""
    model: Any = denoiser("unet")
    model.save_pretrained(tmp_path / "base")
    host = Host(diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "base", low_cpu_mem_usage=False))
    stirred(host, "ink", "LoRA(r=3)")
    live = predict(host.model, inputs("unet"))
    hosted: Any = host.model
    hosted.save_pretrained(tmp_path / "hosted")
    with pytest.raises(OSError, match="no file named"):
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "hosted")
    again = Host(diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "base", low_cpu_mem_usage=False))
    again.load(tmp_path / "hosted")
    _close(predict(again.model, inputs("unet")), live, 1e-6)


def test_a_clip_text_encoder_has_a_host() -> None:
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    host = Host(CLIPTextModel(text_config()).eval())
    ids = torch.randint(2, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = host.model(ids)[0]
        stirred(host, "ink", "LoRA(r=2)")
        assert not torch.equal(host.model(ids)[0], before)


@pytest.mark.slow
def test_a_quantised_denoiser() -> None:
    model, batch = denoiser("unet"), inputs("unet")
    quantize_(model, "nf4")
    host = stirred(Host(model), "a", "LoRA(r=3, sites='*')")
    live = predict(model, batch)
    assert host.merge_("a") < 1e-4
    _close(predict(model, batch), live)
    host.unmerge_("a")
    assert torch.equal(predict(model, batch), live)


@pytest.mark.slow
def test_a_compiled_denoiser() -> None:
    host, batch = stirred(Host(denoiser("unet")), "a", "LoRA(r=3, sites='*')"), inputs("unet")
    compiled: Any = torch.compile(host.model, fullgraph=True, backend="aot_eager")
    _close(predict(compiled, batch), predict(host.model, batch), 1e-5)


@pytest.mark.slow
def test_bfloat16_and_autocast() -> None:
    batch = inputs("unet")
    host = stirred(Host(denoiser("unet")), "a", "LoRA(r=3, sites='*')")
    wanted = predict(host.model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = predict(host.model, batch)
    assert (mixed.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    half = stirred(Host(denoiser("unet", torch.bfloat16)), "a", "LoRA(r=3, sites='*')")
    low = {key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in batch.items()}
    live = predict(half.model, low)
    half.merge_("a")
    assert (predict(half.model, low) - live).abs().max() < 0.05 * live.abs().max()
