"""Tiny random models and pipelines of diffusers, made from configs: nothing is downloaded."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = 24
"""Width of what the denoisers read of texts."""
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WORDS,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""The shape of Stable Diffusion 1.5's U-Net."""
_HEADS = {"num_attention_heads": 4, "attention_head_dim": 8}
_IMAGE = {"in_channels": 4, "num_layers": 2, "sample_size": 8}
CONFIGS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "unet": (UNet2DConditionModel, UNET),
    "unet_sd2": (UNet2DConditionModel, {**UNET, "use_linear_projection": True, "attention_head_dim": (2, 4)}),
    "unet_sdxl": (
        UNet2DConditionModel,
        {
            **UNET,
            "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 12,
        },
    ),
    "dit": (
        DiTTransformer2DModel,
        {**_HEADS, **_IMAGE, "out_channels": 8, "norm_num_groups": 4, "num_embeds_ada_norm": 10},
    ),
    "pixart": (
        PixArtTransformer2DModel,
        {**_HEADS, **_IMAGE, "cross_attention_dim": 32, "caption_channels": WORDS, "norm_num_groups": 4},
    ),
    "sd3": (
        SD3Transformer2DModel,
        {
            **_HEADS,
            **_IMAGE,
            "patch_size": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
    ),
    "flux": (
        FluxTransformer2DModel,
        {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": WORDS,
            "pooled_projection_dim": 20,
            "axes_dims_rope": (4, 4, 8),
        },
    ),
}
DENOISERS = tuple(CONFIGS)


def denoiser(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh random denoiser in evaluation mode, the same every time."""
    model = copy.deepcopy(_denoiser(kind))
    return model if dtype == torch.float32 else model.to(dtype)


@cache
def _denoiser(kind: str) -> nn.Module:
    cls, config = CONFIGS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases and norms off 0 and 1
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif not bool(parameter.any()):  # some projections start from zero
                    parameter.normal_(std=0.1)
    return model


def inputs(kind: str, rows: int = 3, seed: int = 0) -> dict[str, Any]:
    """Random latents, times and what stands for texts."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    times, image = torch.arange(rows) * 7 + 1, random(4, 8, 8)
    if kind.startswith("unet"):
        batch: dict[str, Any] = {"sample": image, "timestep": times, "encoder_hidden_states": random(5, WORDS)}
        if kind == "unet_sdxl":
            batch["added_cond_kwargs"] = {"text_embeds": random(12), "time_ids": random(6)}
        return batch
    if kind == "dit":
        return {"hidden_states": image, "timestep": times, "class_labels": torch.arange(rows)}
    if kind == "pixart":
        sizes = {"resolution": None, "aspect_ratio": None}
        texts = random(5, WORDS)
        return {"hidden_states": image, "timestep": times, "encoder_hidden_states": texts, "added_cond_kwargs": sizes}
    if kind == "sd3":
        texts, pooled = random(5, 32), random(20)
        return {
            "hidden_states": image, "timestep": times, "encoder_hidden_states": texts, "pooled_projections": pooled
        }  # fmt: skip
    return {
        "hidden_states": random(6, 4), "timestep": times / 10, "encoder_hidden_states": random(5, WORDS),
        "pooled_projections": random(20), "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip


def predict(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """What a denoiser predicts, without gradients."""
    with torch.no_grad():
        out: Tensor = model(**batch)[0]
    return out


@cache
def _tokenizer_folder() -> Path:
    folder = Path(mkdtemp())
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *[letter + "</w>" for letter in letters]]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def tokenizer() -> CLIPTokenizer:
    """Letters as tokens."""
    folder = _tokenizer_folder()
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_config(width: int = WORDS) -> CLIPTextConfig:
    """A text encoder of two layers."""
    return CLIPTextConfig(
        vocab_size=60, hidden_size=width, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=10,
    )  # fmt: skip


def stable_diffusion(kind: str = "unet") -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        ).eval()  # fmt: skip
        text = CLIPTextModel(text_config()).eval()
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(), unet=denoiser(kind),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline without its T5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), shift_factor=0.1,
            use_quant_conv=False, use_post_quant_conv=False,
        ).eval()  # fmt: skip
        texts = [CLIPTextModelWithProjection(text_config(16)).eval() for _ in range(2)]
    pipe = StableDiffusion3Pipeline(
        transformer=denoiser("sd3"), scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=texts[0],
        tokenizer=tokenizer(), text_encoder_2=texts[1], tokenizer_2=tokenizer(), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompts: list[str] | None = None, seed: int = 0, **options: Any) -> Tensor:
    """Latents of two steps for each prompt."""
    prompts = prompts or ["a red cat"]
    generator = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    given = {"num_inference_steps": 2, "height": 8, "width": 8, "output_type": "latent", "guidance_scale": 3.0}
    out: Tensor = pipe(prompts, generator=generator, **{**given, **options}).images
    return out
