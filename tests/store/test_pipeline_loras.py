"""LoRAs of diffusers' pipelines: written as `pipe.load_lora_weights` takes them, read in every dialect, strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

import diffusers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import deltatune
from deltatune import DeltatuneError, Host, LoRA, PipelineHosts
from deltatune.core.delta import generator_for
from deltatune.store.peft.pipelines.lora_file import FILE
from deltatune.store.peft.pipelines.lora_keys import first_code_names, module_names
from support.diffusion import (
    denoiser,
    draw,
    inputs,
    predict,
    stable_diffusion,
    stable_diffusion_3,
)

CLOSE = {"rtol": 1e-4, "atol": 3e-5}
"""Two steps of a pipeline multiply rounding."""
CONVOLUTIONS = "LoRA(r=4, alpha=6, sites='*', ranks=(('*.conv*', 2), ('*.ffn.*', 3)))"


def stirred(host: Host, name: str, method: str | Any, seed: int = 0) -> Host:
    """A host with an adapter off its initial values."""
    adapter = host.attach(name, deltatune.parse(method) if isinstance(method, str) else method)
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator_for(seed, f"{name}/{key}")))
    return host


@pytest.mark.parametrize(
    "method",
    [
        CONVOLUTIONS,
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in ("LoRA(r=3)", "DoRA(r=2, sites=('*.attn.q', '*.conv1'))", "PiSSA(r=2)")
        ),
    ],
)
def test_diffusers_loads_what_a_host_saves(tmp_path: Path, method: str) -> None:
    ours, theirs, again = stable_diffusion(), stable_diffusion(), stable_diffusion()
    plain = draw(ours)
    stirred(Host(ours.unet), "ink", method)
    wanted = draw(ours)
    assert (wanted - plain).abs().max() > 0.1
    folder = _host_of(ours).save("ink", tmp_path / "ink")
    theirs.load_lora_weights(str(folder))
    torch.testing.assert_close(draw(theirs), wanted, **CLOSE)
    Host(again.unet).load(folder / FILE)
    torch.testing.assert_close(draw(again), wanted, **CLOSE)


def _host_of(pipe: Any) -> Host:
    """The host that the save calls of a hosted model belong to."""
    host: Host = vars(pipe.unet)["save_pretrained"].__self__.host
    return host


@pytest.mark.slow
def test_modules_whose_paths_end_alike_keep_their_ranks(tmp_path: Path) -> None:
    method = "LoRA(r=3, sites=('*.proj_out', 'proj_out', '*.attn.q'), ranks=(('proj_out', 2),))"
    host, theirs, batch = stirred(Host(denoiser("flux")), "ink", method), denoiser("flux"), inputs("flux")
    file = host.save("ink", tmp_path / "ink") / FILE
    theirs.load_lora_adapter(str(file), prefix="transformer", use_safetensors=True)  # type: ignore[operator]
    torch.testing.assert_close(predict(theirs, batch), predict(host.model, batch), **CLOSE)


@pytest.mark.slow
def test_a_transformers_lora_reaches_its_pipeline(tmp_path: Path) -> None:
    ours, theirs = stable_diffusion_3(), stable_diffusion_3()
    host = stirred(Host(ours.transformer), "ink", LoRA(r=3, sites=("*.attn*.*", "*.ffn*.{in,out}", "proj_out")))
    theirs.load_lora_weights(str(host.save("ink", tmp_path / "ink")))
    torch.testing.assert_close(draw(theirs), draw(ours), **CLOSE)


def test_methods_that_the_format_lacks_are_kept_in_ours(tmp_path: Path) -> None:
    host = stirred(Host(denoiser("unet")), "ink", "Bottleneck(size=4)")
    folder = host.save("ink", tmp_path / "ink")
    assert not (folder / FILE).exists()
    pipe = stable_diffusion()
    hosts = PipelineHosts(pipe)
    stirred(hosts["unet"], "ink", "IA3()")
    with pytest.raises(DeltatuneError, match=r"unet: diffusers' format holds LoRA, RsLoRA, DoRA, PiSSA, not IA3"):
        hosts.save("ink", tmp_path / "no")
    assert not (tmp_path / "no").exists()


# ---- several parts of a pipeline


def test_a_text_encoder_whose_ranks_differ_keeps_its_scales(tmp_path: Path) -> None:
    """Files have a level of names, `text_model`, that the text encoders of transformers 5 have not."""
    ours, theirs, again = stable_diffusion(), stable_diffusion(), stable_diffusion()
    hosts = PipelineHosts(ours)
    stirred(hosts["text_encoder"], "ink", LoRA(r=3, alpha=7, sites="*.attn.{q,k}", ranks=(("*.k", 2),)))
    plain, wanted = draw(theirs), draw(ours)
    assert (wanted - plain).abs().max() > 1e-3
    folder = hosts.save("ink", tmp_path / "ink")
    PipelineHosts(again).load(folder)
    torch.testing.assert_close(draw(again), wanted, **CLOSE)
    theirs.load_lora_weights(str(folder))
    torch.testing.assert_close(draw(theirs), wanted, **CLOSE)


def test_files_of_any_name_are_loaded_and_modules_of_alpha_0_do_nothing(tmp_path: Path) -> None:
    host = stirred(Host(denoiser("unet")), "ink", LoRA(r=2, alpha=2, sites="*.attn.{q,v}"))
    tensors = load_file(host.save("ink", tmp_path / "ink") / FILE)
    modules = sorted({key.partition(".lora_")[0] for key in tensors})
    kept = modules[0]
    alphas = {f"{module}.alpha": torch.tensor(2.0 * (module == kept)) for module in modules}
    save_file(tensors | alphas, tmp_path / "8 bits v1.5.safetensors")
    again = Host(denoiser("unet"))
    again.load(tmp_path / "8 bits v1.5.safetensors")
    assert list(again.adapters) == ["_8_bits_v1_5"]
    acting = [site.module for _, site, delta in again.adapters["_8_bits_v1_5"].entries() if bool(delta.B.any())]
    assert acting == [kept.removeprefix("unet.")]


@pytest.mark.slow
def test_a_unet_and_a_text_encoder_share_a_file(tmp_path: Path) -> None:
    ours, theirs, again = stable_diffusion(), stable_diffusion(), stable_diffusion()
    hosts = PipelineHosts(ours)
    assert list(hosts) == ["unet", "text_encoder"]
    for part in hosts.values():
        stirred(part, "ink", LoRA(r=3, sites="*.attn.{q,k,v,o}"))
    wanted = draw(ours)
    folder = hosts.save("ink", tmp_path / "ink")
    theirs.load_lora_weights(str(folder))
    torch.testing.assert_close(draw(theirs), wanted, **CLOSE)
    loaded = PipelineHosts(again)
    assert loaded.load(folder, name="ink") == {"ink": ["unet", "text_encoder"]}
    torch.testing.assert_close(draw(again), wanted, **CLOSE)
    with pytest.raises(DeltatuneError, match=r"also holds LoRAs of text_encoder.*PipelineHosts"):
        Host(denoiser("unet")).load(folder)
    with pytest.raises(DeltatuneError, match="holds a LoRA of text_encoder, and the hosts are on unet"):
        PipelineHosts(stable_diffusion(), ["unet"]).load(folder)


@pytest.mark.slow
def test_what_diffusers_saves_is_read(tmp_path: Path) -> None:
    theirs, ours = stable_diffusion(), stable_diffusion()
    made = stirred(Host(denoiser("unet")), "ink", CONVOLUTIONS).save("ink", tmp_path / "made")
    theirs.load_lora_weights(str(made), adapter_name="ink")
    layers = get_peft_model_state_dict(theirs.unet, adapter_name="ink")
    StableDiffusionPipeline.save_lora_weights(tmp_path / "theirs", unet_lora_layers=layers)
    Host(ours.unet).load(tmp_path / "theirs")
    torch.testing.assert_close(draw(ours), draw(theirs), **CLOSE)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_slider_is_set_adapters(tmp_path: Path) -> None:
    ours, theirs = stable_diffusion(), stable_diffusion()
    hosts = PipelineHosts(ours)
    for name in ("ink", "neon"):
        for part in hosts.values():
            stirred(part, name, LoRA(r=3, sites="*.attn.{q,v}"))
        theirs.load_lora_weights(str(hosts.save(name, tmp_path / name)), adapter_name=name)
    hosts.use({"ink": 0.7})
    theirs.set_adapters("ink", 0.7)
    torch.testing.assert_close(draw(ours), draw(theirs), **CLOSE)
    hosts.use({"ink": 0.7, "neon": 0.4})
    theirs.set_adapters(["ink", "neon"], [0.7, 0.4])
    both = draw(theirs)
    torch.testing.assert_close(draw(ours), both, **CLOSE)
    with hosts.using(None):
        torch.testing.assert_close(draw(ours), draw(stable_diffusion()), rtol=0, atol=0)
    torch.testing.assert_close(draw(ours), both, **CLOSE)
    with pytest.raises(DeltatuneError, match="no adapter is called 'nean', did you mean 'neon'"):
        hosts.use({"nean": 1.0})


@pytest.mark.slow
def test_each_picture_of_a_batch_has_its_own_weights(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    host = stirred(stirred(Host(pipe.unet), "ink", LoRA(r=3)), "neon", LoRA(r=2, sites="*.{cross.k,conv1}"))
    rows: list[dict[str, float] | None] = [{"ink": 0.7}, None, {"ink": 0.5, "neon": -0.4}]
    prompts = ["a red cat", "a dog", "the sea"]
    alone = []
    for i, row in enumerate(rows):
        host.use(row)
        alone.append(draw(pipe, [prompts[i]], seed=i)[0])
    host.use(2 * rows)  # guidance runs all rows without the prompt, then all with it
    together = draw(pipe, prompts)
    torch.testing.assert_close(together, torch.stack(alone), **CLOSE)
    host.use(rows)
    with pytest.raises(DeltatuneError, match=r"for 3 rows, but the batch has 6.*use\(2 \* rows\)"):
        draw(pipe, prompts)
    torch.testing.assert_close(draw(pipe, prompts, guidance_scale=1.0)[1], draw(pipe, prompts, guidance_scale=1.0)[1])


# ---- other dialects


def kohya(tensors: Mapping[str, Tensor], alpha: float, names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """PEFT's tensors of a file as kohya's trainer writes them."""
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    written: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        component, _, rest = key.partition(".")
        module, _, factor = rest.rpartition(".lora_")
        name = prefixes[component] + (names or {}).get(module, module.replace(".", "_"))
        written[f"{name}.lora_{'down' if factor == 'A.weight' else 'up'}.weight"] = tensor
        written[f"{name}.alpha"] = torch.tensor(alpha)
    return written


@pytest.mark.slow
def test_kohyas_files_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    hosts, theirs, ours = PipelineHosts(stable_diffusion()), stable_diffusion(), stable_diffusion()
    stirred(hosts["unet"], "ink", LoRA(r=4, sites=("*.{attn,cross}.*", "*.ffn.{gate_up,out}", "*.proj_*", "*.conv1")))
    stirred(hosts["text_encoder"], "ink", LoRA(r=4, sites=("*.attn.{q,k,v,o}", "*.ffn.{in,out}")))
    tensors = load_file(hosts.save("ink", tmp_path / "ink") / FILE)
    save_file(kohya(tensors, alpha=3.0), tmp_path / "kohya.safetensors")
    theirs.load_lora_weights(str(tmp_path / "kohya.safetensors"))
    assert PipelineHosts(ours).load(tmp_path / "kohya.safetensors") == {"kohya": ["unet", "text_encoder"]}
    torch.testing.assert_close(draw(ours), draw(theirs), **CLOSE)
    assert (draw(ours) - draw(stable_diffusion())).abs().max() > 0.1


@pytest.mark.slow
def test_kohyas_files_for_sdxl_count_resolutions_in_one_list(tmp_path: Path) -> None:
    made = stirred(Host(denoiser("unet_sdxl")), "ink", LoRA(r=4, sites="*.{attn,cross}.*"))
    tensors = load_file(made.save("ink", tmp_path / "ink") / FILE)
    names = {path: name for name, path in first_code_names(made.model, module_names(made.model)).items()}
    path = tmp_path / "kohya.safetensors"
    save_file(kohya(tensors, 4.0, names), path)
    assert any("lora_unet_output_blocks_0_1_transformer_blocks_1_attn2_to_k" in key for key in load_file(path))
    theirs, batch = denoiser("unet_sdxl"), inputs("unet_sdxl")
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(str(path), unet_config=theirs.config)
    theirs.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    again = Host(denoiser("unet_sdxl"))
    again.load(path)
    torch.testing.assert_close(predict(again.model, batch), predict(theirs, batch), **CLOSE)
    torch.testing.assert_close(predict(again.model, batch), predict(made.model, batch), **CLOSE)


@pytest.mark.slow
def test_diffusers_older_names_are_read(tmp_path: Path) -> None:
    made = stirred(Host(denoiser("unet")), "ink", LoRA(r=4, sites="*.{attn,cross}.*"))
    tensors = load_file(made.save("ink", tmp_path / "ink") / FILE)
    older: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, factor = key.rpartition(".lora_")
        around, leaf = module.removesuffix(".0").rpartition(".")[::2]
        older[f"{around}.processor.{leaf}_lora.{'down' if factor == 'A.weight' else 'up'}.weight"] = tensor
    save_file(older, tmp_path / "old.safetensors")
    theirs, ours, batch = stable_diffusion(), Host(denoiser("unet")), inputs("unet")
    theirs.load_lora_weights(str(tmp_path / "old.safetensors"))
    ours.load(tmp_path / "old.safetensors")
    torch.testing.assert_close(predict(ours.model, batch), predict(theirs.unet, batch), **CLOSE)


# ---- strictness


def broken(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    key = next(key for key in tensors if key.endswith("attn1.to_q.lora_B.weight"))
    if how == "missing":
        del tensors[key]
    elif how == "unknown module":
        tensors["unet.mid_block.attn9.to_q.lora_A.weight"] = tensors[key].clone()
    elif how == "unknown name":
        tensors["unet.mid_block.strange"] = tensors[key].clone()
    elif how == "misshapen":
        tensors[key] = tensors[key][:-1].clone()
    elif how == "ranks":
        tensors[key] = tensors[key][:, :-1].clone()
    elif how == "not finite":
        tensors[key] = tensors[key] * float("nan")
    elif how == "loha":
        tensors["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"] = tensors[key].clone()
    elif how == "alpha":
        tensors[key.replace("lora_B.weight", "alpha")] = torch.tensor(float("inf"))
    elif how == "twice":
        tensors[key.replace("lora_B.weight", "lora.up.weight")] = tensors[key].clone()
    return tensors


REFUSALS = {
    "missing": "attn1.to_q has no B",
    "unknown module": "it adapts mid_block.attn9.to_q, and this UNet2DConditionModel has no such module",
    "unknown name": "unet.mid_block.strange is no tensor of a LoRA",
    "misshapen": "attn.q.B",
    "ranks": "which have no common rank",
    "not finite": "NaN",
    "loha": "belongs to LoHa of LyCORIS, which is not read here",
    "alpha": "attn1.to_q has no number as alpha",
    "twice": "is there a second time under another name",
}


def test_what_does_not_fit_is_one_error(tmp_path: Path) -> None:
    host = stirred(Host(denoiser("unet")), "ink", LoRA(r=3))
    made = host.save("ink", tmp_path / "ink")
    host.detach("ink")
    path = tmp_path / "broken.safetensors"
    for how, message in REFUSALS.items():
        save_file(broken(load_file(made / FILE), how), path)
        with pytest.raises(DeltatuneError, match=re.escape(message)):
            host.load(path)
        assert not host.adapters, how
    save_file(load_file(made / FILE), path)
    host.load(path)
    assert list(host.adapters) == ["broken"]


@pytest.mark.slow
def test_another_models_lora_is_refused(tmp_path: Path) -> None:
    made = stirred(Host(denoiser("sd3")), "ink", LoRA(r=3)).save("ink", tmp_path / "ink")
    host = Host(denoiser("unet"))
    with pytest.raises(DeltatuneError, match=r"also holds LoRAs of transformer|holds LoRAs of transformer"):
        host.load(made / FILE)
    with pytest.raises(DeltatuneError, match="it was trained on another base"):
        host.load(made)


@pytest.mark.slow
def test_the_header_is_not_trusted(tmp_path: Path) -> None:
    made = stirred(Host(denoiser("unet")), "ink", LoRA(r=3)).save("ink", tmp_path / "ink")
    for header, message in (
        ("[]", "is no object"),
        ("{", "line 1"),
        ('{"unet.r": "many"}', "r is"),
        ('{"unet.lora_alpha": 3, "unet.alpha_pattern": {"(a+)+": 1}}', "take without end"),
        ('{"unet.lora_alpha": 3, "unet.bias": "all"}', "bias"),
    ):
        path = tmp_path / "header.safetensors"
        save_file(load_file(made / FILE), path, metadata={"lora_adapter_metadata": header})
        with pytest.raises(DeltatuneError, match=message):
            Host(denoiser("unet")).load(path)


@pytest.mark.slow
def test_a_dead_module_is_left_out(tmp_path: Path) -> None:
    """Stable Diffusion 3's last block computes queries of the prompt that nothing reads; trainers adapt them too."""
    made = stirred(Host(denoiser("sd3")), "ink", LoRA(r=3, sites="*.attn_text.{q,k}"))
    tensors = load_file(made.save("ink", tmp_path / "ink") / FILE)
    assert not any("blocks.1.attn.add_q_proj" in key for key in tensors)
    for factor in ("A", "B"):
        key = f"transformer.transformer_blocks.0.attn.add_q_proj.lora_{factor}.weight"
        tensors[key.replace("blocks.0", "blocks.1")] = tensors[key].clone()
    save_file(tensors, tmp_path / "more.safetensors")
    theirs, ours, batch = denoiser("sd3"), Host(denoiser("sd3")), inputs("sd3")
    theirs.load_lora_adapter(str(tmp_path / "more.safetensors"), prefix="transformer", use_safetensors=True)  # type: ignore[operator]
    ours.load(tmp_path / "more.safetensors")
    torch.testing.assert_close(predict(ours.model, batch), predict(theirs, batch), **CLOSE)


@pytest.mark.slow
def test_models_with_pefts_layers_are_refused(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    pipe.load_lora_weights(str(stirred(Host(denoiser("unet")), "ink", LoRA(r=3)).save("ink", tmp_path / "ink")))
    with pytest.raises(DeltatuneError, match="PEFT"):
        Host(pipe.unet)
    pipe.unload_lora_weights()
    assert isinstance(Host(pipe.unet).model, nn.Module)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the page about diffusion models, on a tiny pipeline."""
    text = (Path(__file__).parents[2] / "docs/diffusion.md").read_text(encoding="utf-8").partition("\n## Train")[0]

    class Short(StableDiffusionPipeline):
        def __call__(self, prompt: Any, **options: Any) -> Any:
            return super().__call__(prompt, num_inference_steps=1, height=8, width=8, **options)

    def tiny(*names: str) -> Any:
        pipe = stable_diffusion()
        pipe.__class__ = Short
        return pipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", tiny)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert len(names["grid"]) == 3
    assert (tmp_path / "ink-with-text" / FILE).is_file()
