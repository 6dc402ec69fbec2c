"""Tiny vision and speech models with their processors, and images and sounds that a program draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.1,
}  # fmt: skip
WAVES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "conv_dim": [16, 16, 16], "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 4], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "initializer_range": 0.1,
}  # fmt: skip
RATE = 16_000


def save_vit(folder: Path, **more: Any) -> Path:
    """A random ViT of two layers for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**{**VISION, **more})).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


def image_processor(**more: Any) -> Any:
    """The processor of that model."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 32, "width": 32}, **more)


def save_wav2vec2(folder: Path, masked: bool = True) -> Path:
    """A random Wav2Vec2 of two layers; `masked` is the form of the large models, whose padding has a mask."""
    torch.manual_seed(0)
    norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if masked else {}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVES, **norm)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(folder)
    return folder


def draw_bars(folder: Path, rows: int, seed: int = 0) -> Path:
    """A folder a class: bright bars on a dark ground, upright or lying."""
    generator = np.random.default_rng(seed)
    for kind in ("lying", "upright"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(rows):
            array = generator.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            place = int(generator.integers(4, 26))
            array[place : place + 4] = 230
            image = Image.fromarray(array if kind == "lying" else array.transpose(1, 0, 2))
            image.save(folder / kind / f"{number:03}.png")
    return folder


def play_tones(folder: Path, rows: int, seed: int = 0) -> Path:
    """A folder a class: low and high tones of a fifth of a second or more, with noise."""
    import soundfile

    generator = np.random.default_rng(seed)
    for kind, pitch in {"high": 2000, "low": 200}.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(rows):
            time = np.arange(int(RATE * generator.uniform(0.1, 0.2))) / RATE
            wave = 0.4 * np.sin(2 * np.pi * pitch * time * generator.uniform(0.9, 1.1))
            soundfile.write(
                folder / kind / f"{number:03}.wav", wave + 0.01 * generator.standard_normal(len(time)), RATE
            )
    return folder
