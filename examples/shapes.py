"""A small text-to-image model of coloured shapes, trained from scratch in some minutes on one core, and two styles.

python examples/shapes.py model shapes-model          # a Stable Diffusion pipeline of 1 MB: "a red circle"
python examples/shapes.py style hollow hollow         # 120 pictures with captions in one style; the other is: night
python examples/shapes.py score slider                # how hollow the shapes are that `deltatune draw` drew

The pages of the documentation train a LoRA on each style and draw the grid over the slider with it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIZE = 32
"""Pixels of a side."""
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220), "orange": (245, 150, 30)}
SHAPES = ("circle", "square", "triangle")
LIGHT, DARK = (245, 245, 240), (30, 30, 50)
"""The background, by day and by night."""
STYLES = ("plain", "hollow", "night")
LOG_VARIANCE = -8.0
"""Of the VAE's posterior."""
TOKENS = 8
"""Tokens of a caption, its ends included."""


def draw(colour: str, shape: str, style: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (SIZE, SIZE, 3) of one shape, its place and size drawn."""
    scale = 4  # drawn larger, for smooth edges
    radius = random.uniform(8, 12) * scale
    x, y = (random.uniform(radius + 2 * scale, (SIZE - 2) * scale - radius) for _ in range(2))
    picture = Image.new("RGB", (SIZE * scale, SIZE * scale), DARK if style == "night" else LIGHT)
    pen = ImageDraw.Draw(picture)
    ink = COLOURS[colour]
    line = {"fill": None, "outline": ink, "width": 2 * scale} if style == "hollow" else {"fill": ink}
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, **line)
    elif shape == "square":
        pen.rectangle(box, **line)
    else:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], **line)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))


def pictures(count: int, style: str, seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """`count` pictures (count, SIZE, SIZE, 3) and their captions."""
    random = np.random.default_rng(seed)
    kinds = [(str(random.choice(list(COLOURS))), str(random.choice(SHAPES))) for _ in range(count)]
    return np.stack([draw(*kind, style, random) for kind in kinds]), [f"a {' '.join(kind)}" for kind in kinds]


def write_style(folder: Path, style: str, count: int = 120, seed: int = 1) -> None:
    """A folder of pictures with metadata.jsonl, as `deltatune train --task image` and `datasets` read it."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, captions = pictures(count, style, seed)
    for i, picture in enumerate(drawn):
        Image.fromarray(picture).save(folder / f"{i:03}.png")
    rows = [json.dumps({"file_name": f"{i:03}.png", "text": text}) for i, text in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with the letters and the words of the captions as its vocabulary."""
    words, merges = ["a", *COLOURS, *SHAPES], []
    vocabulary = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary += [f"{letter}</w>" for letter in vocabulary]
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary += [part for part in parts[:1] if part not in vocabulary]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        merged = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
        (Path(folder) / "merges.txt").write_text(merged + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def make_parts(seed: int = 0) -> StableDiffusionPipeline:
    """The pipeline with random weights: latents (4, 16, 16), a denoiser of two levels."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=TOKENS, bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=SIZE,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def optimize(parameters: list[torch.nn.Parameter], steps: int, rate: float):
    """AdamW, and its schedule: a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def train_vae(vae: AutoencoderKL, pixels: torch.Tensor, steps: int) -> None:
    """Reconstruction of pictures of all styles, with a small KL term; then the latents' scale is set."""
    optimizer, schedule = optimize(list(vae.parameters()), steps, 2e-3)
    for step in range(steps):
        batch = pixels[torch.randint(len(pixels), (8,))]
        posterior = vae.encode(batch).latent_dist
        loss = F.mse_loss(vae.decode(posterior.sample()).sample, batch) + 1e-5 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"vae step {step + 1}: {loss:.4f}", flush=True)
    with torch.no_grad():
        narrow_posterior_(vae)
        vae.register_to_config(scaling_factor=float(1 / vae.encode(pixels[:256]).latent_dist.mean.std()))


def narrow_posterior_(vae: AutoencoderKL) -> None:
    """Give the posterior of every latent the same small variance, as that of Stable Diffusion's VAE is small."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = LOG_VARIANCE


def train_denoiser(pipe: StableDiffusionPipeline, pixels: torch.Tensor, captions: list[str], steps: int) -> None:
    """The noise-prediction loss, denoiser and text encoder together; a tenth of the captions is left out."""
    vae, unet, encoder, scheduler = pipe.vae, pipe.unet, pipe.text_encoder, pipe.scheduler
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(64)])
        latents = latents * vae.config.scaling_factor
    ids = pipe.tokenizer([*captions, ""], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer, schedule = optimize(parameters, steps, 2e-3)
    start, average = time.perf_counter(), 1.0
    for step in range(steps):
        rows = torch.randint(len(latents), (16,))
        texts = torch.where(torch.rand(16) < 0.1, len(captions), rows)
        noise, times = torch.randn(16, *latents.shape[1:]), torch.randint(1000, (16,))
        noisy = scheduler.add_noise(latents[rows], noise, times)
        loss = F.mse_loss(unet(noisy, times, encoder(ids[texts])[0]).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average += 0.02 * (float(loss.detach()) - average)
        if step % 100 == 99:
            print(f"denoiser step {step + 1}: {average:.4f}, {time.perf_counter() - start:.0f} s", flush=True)


def make_model(folder: Path, vae_steps: int, steps: int, seed: int = 0) -> None:
    """Train the pipeline on plain pictures; the VAE, as everybody's, has seen other styles too."""
    pipe = make_parts(seed)
    drawn, captions = pictures(3000, "plain", seed)
    others = np.concatenate([pictures(1000, style, seed + i + 2)[0] for i, style in enumerate(STYLES[1:])])
    pixels, more = (torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1 for part in (drawn, others))
    train_vae(pipe.vae, torch.cat([pixels, more]), vae_steps)
    train_denoiser(pipe, pixels, captions, steps)
    pipe.save_pretrained(folder)


def hollow_share(picture: NDArray[np.uint8]) -> float:
    """How much of the middle of a shape is background: 0 for a filled shape, 1 for an outline.

    The middle is the central third of the shape's bounding box, in a triangle a little lower.
    """
    background = np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), 0)
    ink = np.abs(picture.astype(float) - background).sum(-1) > 120
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return 1.0
    top, height = rows[0], rows[-1] - rows[0] + 1
    left, width = columns[0], columns[-1] - columns[0] + 1
    middle = ink[top + height * 5 // 12 : top + height * 3 // 4, left + width // 3 : left + width * 2 // 3]
    return float(1 - middle.mean())


def print_scores(folder: Path) -> None:
    """Mean share of hollow pixels at each weight of a slider."""
    shares: dict[float, list[float]] = {}
    for made in json.loads((folder / "pictures.json").read_text())["pictures"]:
        picture = np.asarray(Image.open(folder / made["file"]).convert("RGB"))
        shares.setdefault(sum(made["adapters"].values()), []).append(hollow_share(picture))
    for weight, values in sorted(shares.items()):
        print(f"weight {weight:g}: {np.mean(values):.2f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model")
    model.add_argument("folder", type=Path)
    model.add_argument("--vae-steps", type=int, default=800)
    model.add_argument("--steps", type=int, default=3000)
    style = commands.add_parser("style")
    style.add_argument("style", choices=STYLES)
    style.add_argument("folder", type=Path)
    score = commands.add_parser("score")
    score.add_argument("folder", type=Path, help="what `deltatune draw` wrote")
    asked = parser.parse_args()
    if asked.command == "model":
        make_model(asked.folder, asked.vae_steps, asked.steps)
    elif asked.command == "style":
        write_style(asked.folder, asked.style)
    else:
        print_scores(asked.folder)


if __name__ == "__main__":
    main()
