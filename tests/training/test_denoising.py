"""Training on pictures: the loss falls, a run resumes bit for bit, and denoisers are called as they should be."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltatune import DeltatuneError, Host, LoRA
from deltatune.core.delta import generator_for
from deltatune.data import read
from deltatune.models import pipelines
from deltatune.models.conditioning import CALLS, TEXTS
from deltatune.models.pipelines import ImagePipeline, load_pipeline, pipeline_class
from deltatune.tasks.diffusion.text_to_image import TextToImage
from deltatune.training import Settings, predict, train
from deltatune.training.denoising import denoising_and_loader
from deltatune.training.inference.pictures import draw_pictures, picture_grid, slider
from deltatune.training.scaling.distributed import Processes
from deltatune.training.scaling.gradient_checkpointing import gradient_checkpointing
from support.pictures import write_pictures

pytest.importorskip("diffusers")

from support.diffusion import (
    CONFIGS,
    denoiser,
    inputs,
    stable_diffusion,
    stable_diffusion_3,
    text_config,
    tokenizer,
)

TASK = TextToImage(resolution=8)
METHOD = LoRA(r=4, sites="*.{q,k,v,o,conv1,conv2}")


def opened(pipe: Any, prediction: str = "epsilon") -> ImagePipeline:
    name = type(pipe).__name__
    for part in (pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    return ImagePipeline(pipe, TEXTS[name], CALLS[name], prediction)  # type: ignore[arg-type]


@pytest.fixture
def rows(tmp_path):
    return read(write_pictures(tmp_path / "pictures"), task="image").train


def hosted(pipeline: ImagePipeline, method: LoRA = METHOD, seed: int = 0) -> Host:
    host = Host(pipeline.denoiser)
    host.attach("a", method, seed=seed)
    return host


def settings(**fields: Any) -> Settings:
    return Settings(**{"max_steps": 40, "batch_size": 4, "learning_rate": 5e-3, "precision": "float32", **fields})


@pytest.mark.parametrize(
    ("make", "prediction", "sites"),
    [
        (stable_diffusion, "epsilon", "*.{q,k,v,o,conv1,conv2,proj_in,proj_out}"),
        pytest.param(stable_diffusion_3, "flow", "*.{q,k,v,o,in,out,linear}", marks=pytest.mark.slow),
    ],
)
def test_four_pictures_are_learned(make, prediction, sites, rows):
    pipeline = opened(make(), prediction)
    host = hosted(pipeline, LoRA(r=8, sites=sites))

    def loss(weight: float = 1.0) -> float:
        return float(
            TASK.score(predict(host, "a", TASK, rows, pipeline, precision="float32", weight=weight), ())["loss"]
        )

    before = loss()
    outcome = train(host, "a", TASK, rows, rows, pipeline, settings(max_steps=20, learning_rate=2e-2))
    after = outcome.evaluations[-1][1]["loss"]
    assert after < 0.85 * before
    assert after == pytest.approx(loss(), rel=1e-6)  # the same noise every time
    assert before == pytest.approx(loss(weight=0.0), rel=1e-6)


def test_a_paused_run_goes_on_bit_for_bit(rows, tmp_path):
    tensors = []
    for pauses in ((), (2,)):
        pipeline = opened(stable_diffusion())
        host = hosted(pipeline)
        out = tmp_path / f"run{len(pauses)}"
        run = settings(max_steps=4, batch_size=3, accumulation=2, checkpoint_every=1)
        for until in pauses:
            assert train(host, "a", TASK, rows, None, pipeline, run, out, until=until).paused
            host = hosted(opened(stable_diffusion()), seed=1)  # another start, which the checkpoint replaces
            host = hosted(pipeline := opened(stable_diffusion()))
        train(host, "a", TASK, rows, None, pipeline, run, out)
        tensors.append({n: p.detach().clone() for n, p in host.trainable("a")})
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_a_batch_is_summed_over_its_passes_and_weights_count(rows):
    pipeline = opened(stable_diffusion())
    host = hosted(pipeline)
    encoded = TASK.encode(rows, pipeline)
    gradients = []
    for accumulation in (1, 3):
        run = settings(accumulation=accumulation)
        model, loader = denoising_and_loader(host, "a", TASK, encoded, run, Processes())
        with host.using("a", training=True):
            for _, batches in loader.steps(1, 1):
                assert len(batches) == accumulation
                for batch in batches:
                    model(**batch.tensors, items=4.0)["loss"].backward()
        gradients.append({n: p.grad.clone() for n, p in host.trainable("a")})
        host.adapters["a"].zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)
    batch = encoded.batch([0, 1], 0, 0, None)
    with host.using("a"), torch.no_grad():
        whole = model(**batch)["loss"]
        half = model(**{**batch, "weights": torch.tensor([1.0, 0.0])})["loss"]
        alone = model(**encoded.batch([0], 0, 0, None))["loss"]
    assert float(half) == pytest.approx(float(alone) / 2, rel=1e-4)
    assert float(whole) > float(half)


def test_gradients_under_checkpointing_equal_plain_ones(rows):
    pipeline = opened(stable_diffusion())
    host = hosted(pipeline)
    encoded = TASK.encode(rows, pipeline)
    model, _ = denoising_and_loader(host, "a", TASK, encoded, settings(), Processes())
    gradients = []
    for enabled in (False, True):
        with gradient_checkpointing(host.model, enabled), host.using("a", training=True):
            assert bool(host.model.is_gradient_checkpointing) is enabled
            model(**encoded.batch([0, 1], 0, 0, None))["loss"].backward()
        gradients.append({n: p.grad.clone() for n, p in host.trainable("a")})
        host.adapters["a"].zero_grad()
    assert not host.model.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def captured(pipe: Any, denoiser: Any, **options: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """What a pipeline's own loop calls its denoiser with, and what that returns."""
    calls: list[tuple[Any, Any, Any]] = []
    handle = denoiser.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(0)
    pipe("a cat", num_inference_steps=1, output_type="latent", generator=generator, **options)
    handle.remove()
    args, kwargs, output = calls[0]
    names = ("sample", "timestep") if hasattr(pipe, "unet") else ("hidden_states",)
    return {**dict(zip(names, args, strict=False)), **kwargs}, output[0]


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_3])
def test_denoisers_are_called_as_their_pipelines_do(make):
    pipe = make()
    pipeline = opened(pipe)
    seen, want = captured(pipe, pipeline.denoiser, height=8, width=8, guidance_scale=1.0)
    latents = seen["sample" if "sample" in seen else "hidden_states"]
    read_of = {name: tensor[None] for name, tensor in pipeline.texts(pipe, ["a cat"])[0].items()}
    read_of["sizes"] = torch.zeros(1, 6)
    with torch.no_grad():
        got = pipeline.call(pipe, latents, seen["timestep"].reshape(-1), read_of)
    assert torch.equal(got, want)


@torch.no_grad()
def test_other_kinds_of_denoisers_get_what_diffusers_gives_them():
    from diffusers import FluxPipeline

    batch, model = inputs("unet_sdxl"), denoiser("unet_sdxl")
    states, added = batch["encoder_hidden_states"], batch["added_cond_kwargs"]
    read_of = {"encoder_hidden_states": states, "text_embeds": added["text_embeds"], "sizes": added["time_ids"]}
    call = CALLS["StableDiffusionXLPipeline"]
    got = call(SimpleNamespace(unet=model), batch["sample"], batch["timestep"], read_of)
    assert torch.equal(got, model(**batch)[0])

    batch, model = inputs("pixart"), denoiser("pixart")
    mask = torch.ones(3, 5)
    mask[0, 3:] = 0
    read_of = {"encoder_hidden_states": batch["encoder_hidden_states"], "encoder_attention_mask": mask}
    pipe = SimpleNamespace(transformer=model, vae_scale_factor=8)
    got = CALLS["PixArtSigmaPipeline"](pipe, batch["hidden_states"], batch["timestep"], read_of)
    assert torch.equal(got, model(**batch, encoder_attention_mask=mask)[0][:, :4])  # without the variance

    batch, model = inputs("flux"), denoiser("flux")
    latents, times = torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([9.0, 500, 900])
    read_of = {name: batch[name] for name in ("encoder_hidden_states", "pooled_projections")}
    got = CALLS["FluxPipeline"](SimpleNamespace(transformer=model), latents, times, read_of)
    packed = FluxPipeline._pack_latents(latents, 3, 1, 4, 6)
    places = FluxPipeline._prepare_latent_image_ids(3, 2, 3, torch.device("cpu"), torch.float32)
    flat = model(hidden_states=packed, timestep=times / 1000, img_ids=places, txt_ids=torch.zeros(5, 3), **read_of)[0]
    assert torch.equal(got, FluxPipeline._unpack_latents(flat, 32, 48, 8))


@pytest.mark.slow
def test_stable_diffusion_xl_learns_and_is_called_as_it_is(rows):
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    plain = stable_diffusion()
    texts = [CLIPTextModel(text_config(12)).eval(), CLIPTextModelWithProjection(text_config(12)).eval()]
    unet = type(plain.unet)(**{**dict(CONFIGS["unet_sdxl"][1]), "projection_class_embeddings_input_dim": 6 * 4 + 10})
    pipe = StableDiffusionXLPipeline(
        plain.vae, texts[0], texts[1], tokenizer(), tokenizer(), unet.eval(), plain.scheduler, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipeline = opened(pipe)
    seen, want = captured(pipe, unet, height=8, width=8, guidance_scale=1.0)
    read_of = {name: tensor[None] for name, tensor in pipeline.texts(pipe, ["a cat"])[0].items()}
    read_of["sizes"] = torch.tensor([[8.0, 8, 0, 0, 8, 8]])
    with torch.no_grad():
        got = pipeline.call(pipe, seen["sample"], seen["timestep"].reshape(-1), read_of)
    assert torch.equal(got, want)
    host = hosted(pipeline)
    outcome = train(host, "a", TASK, rows, rows, pipeline, settings(max_steps=20, learning_rate=2e-2))
    assert outcome.history[-1][1] < outcome.history[0][1]


def test_pictures_start_from_the_same_noise_at_every_weight():
    pipeline = opened(stable_diffusion())
    host = hosted(pipeline)
    with torch.no_grad():
        for n, parameter in host.trainable("a"):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator_for(0, n)))
    options: dict[str, Any] = {"steps": 2, "resolution": 8}
    table = slider(host, pipeline, ["a cat", "a cat", "a dog"], {"a": 1.0}, [0.0, 0.5, 1.0], **options)
    data = [[picture.tobytes() for picture in row] for row in table]
    bare = draw_pictures(host, pipeline, ["a cat"], None, **options)[0].tobytes()
    assert data[0][0] == bare
    assert len(set(data[0])) == 3
    assert data[0][0] != data[1][0]  # each prompt has noise of its own
    again = draw_pictures(host, pipeline, ["a cat"], {"a": 1.0}, **options)[0].tobytes()
    assert again == data[0][2]
    assert draw_pictures(host, pipeline, ["a cat"], {"a": 1.0}, seed=1, **options)[0].tobytes() != again
    grid = picture_grid(table, ["one", "two", "three"], ["0", "0.5", "1"])
    assert grid.width > 3 * 96
    assert grid.height > 3 * 96


def test_pipelines_that_cannot_be_loaded_say_why(tmp_path, monkeypatch):
    model = tmp_path / "bert"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name in ("empty", "other", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    (tmp_path / "adapter" / "adapter.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, words in (
        ("bert", "has a config.json and no model_index.json"),
        ("empty", "has no model_index.json"),
        ("other", "is a DiTPipeline, which --task image does not train.*StableDiffusionPipeline"),
        ("adapter", "it is an adapter"),
        ("file", "takes the folder of a text-to-image pipeline"),
    ):
        with pytest.raises(DeltatuneError, match=words):
            pipeline_class(str(tmp_path / name))
    with pytest.raises(DeltatuneError, match="quantize='nf4'"):
        load_pipeline(str(tmp_path / "empty"), quantize="nf4")
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(DeltatuneError, match="cannot be loaded"):
        load_pipeline(str(tmp_path / "other"))
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(DeltatuneError, match=r"pip install 'deltatune\[diffusion\]'"):
        pipelines.load_diffusers()


def test_a_pipeline_is_loaded_frozen_and_known_by_its_parts(tmp_path):
    pipe = stable_diffusion()
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    pipe.save_pretrained(tmp_path / "pipe")
    one = load_pipeline(str(tmp_path / "pipe"))
    assert one.prediction == "v_prediction"
    assert (one.resolution, one.downsampling, one.multiple) == (8, 1, 2)
    assert not any(p.requires_grad for part in (one.denoiser, one.pipe.vae) for p in part.parameters())
    known = one.fingerprint()
    assert known == load_pipeline(str(tmp_path / "pipe")).fingerprint()
    with torch.no_grad():
        next(one.pipe.vae.parameters()).add_(0.1)
    assert one.fingerprint() != known
