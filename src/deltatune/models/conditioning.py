"""How each kind of text-to-image pipeline reads captions, and how its denoiser is called with them.

A caption becomes tensors by name without the batch, from the pipeline's own frozen encoders; the denoiser's call takes
them stacked, and returns its prediction in the shape of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Texts = Callable[[Any, Sequence[str]], list[dict[str, Tensor]]]
"""(pipeline, captions) -> what the denoiser reads of each caption."""
Calls = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""(pipeline, noisy latents (B, C, h, w), times (B,), what it reads of the captions) -> prediction (B, C, h, w)."""
TRAIN_TIMES = 1000
"""Flux counts its times from 0 to 1."""
FLUX_GUIDANCE = 1.0
"""What a guidance-distilled Flux is told while it trains: its prediction without guidance."""


def _rows(**tensors: Tensor) -> list[dict[str, Tensor]]:
    """Tensors (B, ...) by name -> a dictionary for each row, on the CPU."""
    count = len(next(iter(tensors.values())))
    return [{name: tensor[i].detach().cpu() for name, tensor in tensors.items()} for i in range(count)]


def _device(pipe: Any) -> torch.device:
    device: torch.device = pipe.vae.device
    return device


# ---- Stable Diffusion 1 and 2


def _sd_texts(pipe: Any, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    states = pipe.encode_prompt(list(captions), _device(pipe), 1, False)[0]
    return _rows(encoder_hidden_states=states)


def _sd_call(pipe: Any, noisy: Tensor, times: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    return pipe.unet(noisy, times, read["encoder_hidden_states"], return_dict=False)[0]  # type: ignore[no-any-return]


# ---- Stable Diffusion XL: pooled states, and the sizes of the picture


def _xl_texts(pipe: Any, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    asked = {"device": _device(pipe), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    states, _, pooled, _ = pipe.encode_prompt(list(captions), **asked)
    return _rows(encoder_hidden_states=states, text_embeds=pooled)


def _xl_call(pipe: Any, noisy: Tensor, times: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    added = {"text_embeds": read["text_embeds"], "time_ids": read["sizes"]}
    states = read["encoder_hidden_states"]
    return pipe.unet(noisy, times, states, added_cond_kwargs=added, return_dict=False)[0]  # type: ignore[no-any-return]


# ---- Stable Diffusion 3


def _sd3_texts(pipe: Any, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    asked = {"device": _device(pipe), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    states, _, pooled, _ = pipe.encode_prompt(list(captions), None, None, **asked)
    return _rows(encoder_hidden_states=states, pooled_projections=pooled)


def _sd3_call(pipe: Any, noisy: Tensor, times: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    return pipe.transformer(  # type: ignore[no-any-return]
        hidden_states=noisy, timestep=times, encoder_hidden_states=read["encoder_hidden_states"],
        pooled_projections=read["pooled_projections"], return_dict=False,
    )[0]  # fmt: skip


# ---- PixArt: masked states; it may predict a variance too


def _pixart_texts(pipe: Any, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    states, mask, _, _ = pipe.encode_prompt(list(captions), do_classifier_free_guidance=False, device=_device(pipe))
    return _rows(encoder_hidden_states=states, encoder_attention_mask=mask)


def _pixart_call(pipe: Any, noisy: Tensor, times: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if (
        getattr(pipe.transformer.config, "use_additional_conditions", None)
        or pipe.transformer.config.sample_size == 128
    ):
        pixels = torch.tensor(noisy.shape[-2:], device=noisy.device) * pipe.vae_scale_factor
        added["resolution"] = pixels[None].expand(len(noisy), 2).to(noisy.dtype)
        added["aspect_ratio"] = (pixels[0] / pixels[1]).expand(len(noisy), 1).to(noisy.dtype)
    prediction: Tensor = pipe.transformer(
        noisy, encoder_hidden_states=read["encoder_hidden_states"], timestep=times,
        encoder_attention_mask=read["encoder_attention_mask"], added_cond_kwargs=added, return_dict=False,
    )[0]  # fmt: skip
    return prediction[:, : noisy.shape[1]]


# ---- Flux: latents in patches of 2 x 2


def _flux_texts(pipe: Any, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    states, pooled, _ = pipe.encode_prompt(list(captions), None, device=_device(pipe), num_images_per_prompt=1)
    return _rows(encoder_hidden_states=states, pooled_projections=pooled)


def _flux_call(pipe: Any, noisy: Tensor, times: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    rows, channels, height, width = noisy.shape
    patches = noisy.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(rows, (height // 2) * (width // 2), channels * 4)  # (B, patches, 4C)
    places = torch.zeros(height // 2, width // 2, 3, device=noisy.device)
    places[..., 1] = torch.arange(height // 2, device=noisy.device)[:, None]
    places[..., 2] = torch.arange(width // 2, device=noisy.device)[None]
    guided = pipe.transformer.config.guidance_embeds
    states = read["encoder_hidden_states"]
    prediction: Tensor = pipe.transformer(
        hidden_states=patches, timestep=times / TRAIN_TIMES,
        guidance=torch.full((rows,), FLUX_GUIDANCE, device=noisy.device) if guided else None,
        pooled_projections=read["pooled_projections"], encoder_hidden_states=states,
        txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device), img_ids=places.flatten(0, 1), return_dict=False,
    )[0]  # fmt: skip
    prediction = prediction.view(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return prediction.reshape(noisy.shape)


TEXTS: dict[str, Texts] = {
    "StableDiffusionPipeline": _sd_texts,
    "StableDiffusionXLPipeline": _xl_texts,
    "StableDiffusion3Pipeline": _sd3_texts,
    "PixArtAlphaPipeline": _pixart_texts,
    "PixArtSigmaPipeline": _pixart_texts,
    "FluxPipeline": _flux_texts,
}
"""How a pipeline reads captions, by its class."""
CALLS: dict[str, Calls] = {
    "StableDiffusionPipeline": _sd_call,
    "StableDiffusionXLPipeline": _xl_call,
    "StableDiffusion3Pipeline": _sd3_call,
    "PixArtAlphaPipeline": _pixart_call,
    "PixArtSigmaPipeline": _pixart_call,
    "FluxPipeline": _flux_call,
}
"""How a pipeline's denoiser is called, by its class."""
