"""Pictures that a diffusion model draws with adapters: from fixed noise, at several weights, and as a labelled grid."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, first_line
from deltatune.core.host import Host
from deltatune.data.media.images import pillow_image
from deltatune.models.pipelines import ImagePipeline
from deltatune.store import run_folder
from deltatune.store.atomic_files import make_folder, write_file
from deltatune.tasks.diffusion.text_to_image import EncodedPictures, TextToImage

if TYPE_CHECKING:
    from PIL.Image import Image

STEPS = 30
"""Denoising steps of a picture."""
SAMPLE_WEIGHTS = (0.0, 1.0)
"""Weights of the sample pictures: the model without the adapter, and with it."""
MARGIN, LINE = 4, 14
"""Pixels between the pictures of a grid, and the height of a line of its labels."""
LARGEST_CELL, SMALLEST_CELL = 256, 96
"""Pixels of a side of a picture in a grid: larger ones are scaled down, smaller ones up."""


def draw_pictures(
    host: Host,
    pipeline: ImagePipeline,
    prompts: Sequence[str],
    weights: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    resolution: int | None = None,
    steps: int = STEPS,
    guidance: float | None = None,
) -> list[Image]:
    """Draw one picture of each prompt in float32; `weights` gives those of the adapters, None is the bare model.

    The noise depends on the seed and the number of the prompt alone, so pictures at other weights start from the same
    noise. `guidance` is the scale of classifier-free guidance, the pipeline's own by default. The route and the modes
    of the model are restored. Raises DeltatuneError for what the pipeline refuses, such as too many steps.
    """
    side = resolution or pipeline.resolution
    asked: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
    pictures: list[Image] = []
    active = {name: weight for name, weight in (weights or {}).items() if weight}  # some adapters have no scale but off
    with host.using(active or None, training=False), pipeline.quiet(), torch.inference_mode():
        for i, prompt in enumerate(prompts):
            try:
                drawn = pipeline.pipe(
                    prompt, height=side, width=side, num_inference_steps=steps, output_type="pil",
                    generator=generator_for(seed, f"picture.{i}"), **asked,
                )  # fmt: skip
            except ValueError as error:  # such as more steps than its scheduler has
                raise DeltatuneError(f"the pipeline does not draw {prompt!r} so: {first_line(error)}") from error
            pictures.append(drawn.images[0])
    return pictures


def slider(
    host: Host,
    pipeline: ImagePipeline,
    prompts: Sequence[str],
    adapters: Mapping[str, float],
    factors: Sequence[float],
    **options: Any,
) -> list[list[Image]]:
    """Pictures of each prompt (rows) at each factor on the adapters' weights (columns); `options`: `draw_pictures`."""
    columns = [
        draw_pictures(host, pipeline, prompts, {n: w * factor for n, w in adapters.items()}, **options)
        for factor in factors
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def picture_grid(rows: Sequence[Sequence[Image]], left: Sequence[str], top: Sequence[str]) -> Image:
    """One picture of rows of pictures, with a label at the left of each row and one above each column."""
    pillow = pillow_image()
    from PIL import ImageDraw

    width, height = rows[0][0].size
    scale = min(LARGEST_CELL / max(width, height), max(1, round(SMALLEST_CELL / max(width, height))))
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    pen = ImageDraw.Draw(pillow.new("RGB", (1, 1)))
    indent = max((int(pen.textlength(label)) for label in left), default=0) + 2 * MARGIN
    size = (indent + len(top) * (wide + MARGIN), LINE + MARGIN + len(rows) * (high + MARGIN))
    grid: Image = pillow.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for column, label in enumerate(top):
        pen.text((indent + column * (wide + MARGIN) + (wide - pen.textlength(label)) / 2, 1), label, fill="black")
    for row, (label, pictures) in enumerate(zip(left, rows, strict=True)):
        above = LINE + MARGIN + row * (high + MARGIN)
        pen.text((MARGIN, above + (high - LINE) / 2), label, fill="black")
        for column, picture in enumerate(pictures):
            resample = 0 if scale >= 1 else 1  # pixels as they are, or Lanczos
            grid.paste(picture.resize((wide, high), resample), (indent + column * (wide + MARGIN), above))
    return grid


def png(picture: Image) -> bytes:
    """A picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_samples(
    host: Host, name: str, task: TextToImage, rows: EncodedPictures, folder: Path, seed: int
) -> list[str]:
    """Draw the task's sample prompts without the adapter and with it, into `folder`/samples; returns the prompts.

    Without prompts of its own the task takes the first different captions of `rows`.
    """
    assert rows.pipeline is not None
    captions = list(dict.fromkeys(row["caption"] for row in rows))
    prompts = list(task.sample_prompts or captions)[: task.samples]
    if not prompts:
        return []
    drawn = slider(host, rows.pipeline, prompts, {name: 1.0}, SAMPLE_WEIGHTS, seed=seed, resolution=task.resolution)
    make_folder(folder / run_folder.SAMPLES)
    for i, pictures in enumerate(drawn, start=1):
        for weight, picture in zip(SAMPLE_WEIGHTS, pictures, strict=True):
            write_file(folder / run_folder.SAMPLES / f"{i:02}-weight-{weight:g}.png", png(picture))
    labels = [f"weight {weight:g}" for weight in SAMPLE_WEIGHTS]
    write_file(folder / run_folder.SAMPLES / "grid.png", png(picture_grid(drawn, prompts, labels)))
    return prompts
