"""Text to image: a denoiser learns to predict the noise on pictures, given their captions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltatune.core.delta import generator_for
from deltatune.core.errors import DeltatuneError, raise_all
from deltatune.core.input_validation.field_validation import check_fields
from deltatune.data import LabelKind
from deltatune.data.captions import DIGEST
from deltatune.data.media.images import read_image
from deltatune.models.architecture import Answers, Loads
from deltatune.models.pipelines import ImagePipeline
from deltatune.tasks.diffusion.noise import NoisyLatents, noise_schedule
from deltatune.tasks.metrics.corpus_score import CorpusScore, mean_score
from deltatune.tasks.row_columns import raise_listed, text_column
from deltatune.tasks.task import Encoded, Row, Task, TokenRow

if TYPE_CHECKING:
    from PIL.Image import Image

VALIDATION_TIMES = 4
"""Times at which each validation picture is scored, one from each quarter of the schedule."""


@dataclass(frozen=True)
class EncodedPictures(Encoded):
    """Pictures as latents and captions as text states: what stays the same from one epoch to the next."""

    moments: Sequence[Sequence[Tensor]] = ()
    """Mean and log-variance (2C, h, w) of each picture's latents, and of its mirror image's if it may be flipped."""
    read: Sequence[Mapping[str, Tensor]] = ()
    """What the denoiser reads of each caption, and of the picture's sizes where it does (Stable Diffusion XL)."""
    pipeline: ImagePipeline | None = field(default=None, compare=False)
    """The pipeline that encoded them."""

    def batch(self, numbers: Sequence[int], seed: int, epoch: int, min_snr: float | None) -> dict[str, Tensor]:
        """Some rows with noise at random times; what a row draws depends on seed, epoch and the row alone."""
        return self._batch([(n, generator_for(seed, f"draw.{epoch}.{n}"), None) for n in numbers], min_snr)

    def fixed_batch(self, number: int) -> dict[str, Tensor]:
        """One row at `VALIDATION_TIMES` times, with noise that depends on its picture alone: the same in every run."""
        digest = self.rows[number]["picture"]
        drawn = [(number, generator_for(0, f"validation.{digest}.{k}"), k) for k in range(VALIDATION_TIMES)]
        return self._batch(drawn, None)

    def _batch(
        self, drawn: Sequence[tuple[int, torch.Generator, int | None]], gamma: float | None
    ) -> dict[str, Tensor]:
        pipeline = self.pipeline
        assert pipeline is not None
        clean, noise, times = [], [], []
        for number, generator, part in drawn:
            versions = self.moments[number]
            uniform = torch.rand(2, generator=generator)
            # validation reads pictures as they are, at a time from its quarter of the schedule
            moments = versions[0] if part is not None else versions[int(uniform[1] * len(versions))]
            mean = moments.chunk(2)[0]
            times.append(uniform[0] if part is None else (part + uniform[0]) / VALIDATION_TIMES)
            posterior, added = (torch.randn(mean.shape, generator=generator) for _ in range(2))
            clean.append(pipeline.latents(moments[None], posterior[None])[0])
            noise.append(added)
        noisy: NoisyLatents = noise_schedule(pipeline).noisy(
            torch.stack(clean), torch.stack(noise), torch.stack(times), gamma
        )
        rows = [self.read[number] for number, _, _ in drawn]
        read = {f"read.{name}": torch.stack([row[name] for row in rows]) for name in rows[0]}
        weights = noisy.weights
        return {"noisy": noisy.noisy, "times": noisy.times, "labels": noisy.target, "weights": weights, **read}


@dataclass(frozen=True)
class TextToImage(Task):
    """The squared error of the predicted noise, mean over a picture's latents, at random times.

    What is predicted (noise, v, the clean latents, a flow's velocity) is what the pipeline's scheduler says. The VAE
    encodes each picture once; in every epoch its latents are drawn anew from the posterior. Text encoders are frozen.
    """

    name: ClassVar[str] = "image"
    answers: ClassVar[Answers] = "noise"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)
    label_kind: ClassVar[LabelKind] = "image"
    loads: ClassVar[Loads] = "pipeline"
    dynamic: ClassVar[bool] = True

    text: tuple[str, ...] = ("text",)
    """The column of captions."""
    label: str = "image"
    """The column of the pictures' paths."""
    resolution: int = 512
    """Pixels of a side: pictures are scaled so that the shorter side has as many, and cut to a square."""
    crop: Literal["center", "none"] = "center"
    """center cuts the middle out of the scaled picture; none squeezes the picture into the square."""
    flip: bool = False
    """Mirror a picture from left to right in half of the steps; off, because letters and faces are no mirror images."""
    min_snr: float | None = None
    """Gamma of the min-SNR weights (5 in their paper), not for a flow; None: every time weighs the same."""
    samples: int = 4
    """Pictures that a run draws at its end without the adapter and with it; 0 for none."""
    sample_prompts: tuple[str, ...] = ()
    """Their prompts; empty for the first captions of the validation pictures."""
    metric: str = "loss"
    """Primary metric: the mean loss on fixed noise at fixed times, without weights; lower is better."""

    def __post_init__(self) -> None:
        check_fields(self)
        problems = self.metric_problems("text to image") + self.text_problems("captions")
        if self.resolution < 8:
            problems.append(f"resolution must be at least 8 pixels, not {self.resolution}")
        if self.min_snr is not None and self.min_snr <= 0:
            problems.append(f"min_snr must be above 0, not {self.min_snr:g}")
        if self.samples < 0:
            problems.append(f"samples must not be negative, not {self.samples}")
        if 0 <= self.samples < len(self.sample_prompts):
            problems.append(f"sample_prompts has {len(self.sample_prompts)} prompts, and samples is {self.samples}")
        raise_all(problems)

    def encode(
        self,
        rows: Sequence[Row],
        tokenizer: Any,
        *,
        positions: int | None = None,
        positions_taken: int = 0,
        labelled: bool = True,
        joined: bool = True,
    ) -> EncodedPictures:
        """Encode pictures with the VAE and captions with the text encoders; `tokenizer` is an ImagePipeline.

        Raises DeltatuneError listing pictures that cannot be read or are smaller than the resolution, and for min_snr
        with a flow.
        """
        if not isinstance(tokenizer, ImagePipeline):
            raise DeltatuneError("pictures are encoded by a pipeline: deltatune.load_pipeline(folder)")
        if self.resolution % tokenizer.multiple:
            near = max(1, round(self.resolution / tokenizer.multiple)) * tokenizer.multiple
            raise DeltatuneError(
                f"resolution {self.resolution}: this model takes multiples of {tokenizer.multiple}, such as {near}"
            )
        if self.min_snr is not None and tokenizer.prediction == "flow":
            raise DeltatuneError(
                f"min_snr={self.min_snr:g}: this model predicts a flow, whose times all weigh the same; leave it out"
            )
        captions = text_column(rows, self.text[0])
        sizes, moments, problems = [], [], []
        tokens: list[TokenRow] = []
        for row, caption in zip(rows, captions, strict=True):  # no two pictures' pixels are in memory at once
            try:
                picture, place = self._square(row)
            except DeltatuneError as error:
                problems.append(str(error))
            if problems:
                continue
            versions = [picture, picture.flip(-1)] if self.flip else [picture]
            moments.append([tokenizer.moments(version) for version in versions])
            sizes.append(place)
            digest = _digest(row, picture)
            tokens.append({"input_ids": [0], "attention_mask": [1], "caption": caption, "picture": digest})
        raise_listed(problems)
        texts = {caption: tokenizer.texts(tokenizer.pipe, [caption])[0] for caption in dict.fromkeys(captions)}
        read = [{**texts[caption], "sizes": size} for caption, size in zip(captions, sizes, strict=True)]
        return EncodedPictures(tokens, row_references=(), moments=moments, read=read, pipeline=tokenizer)

    def _square(self, row: Row) -> tuple[Tensor, Tensor]:
        """A row's picture as pixels (3, S, S) in [-1, 1], and its sizes (6,): height and width before the cut, top and
        left of the cut, height and width after it (Podell et al. 2023, https://arxiv.org/abs/2307.01952)."""
        if self.label not in row:
            raise DeltatuneError(f"a row has no column {self.label!r}; its columns: {', '.join(map(repr, row))}")
        path, side = str(row[self.label]), self.resolution
        image: Image = read_image(path)
        if min(image.size) < side:
            raise DeltatuneError(
                f"the picture {path} has {image.width} x {image.height} pixels, fewer than --resolution {side} on a "
                f"side: leave it out, or lower the resolution"
            )
        width, height = image.size
        top = left = 0
        if self.crop == "center":
            scale = side / min(width, height)
            wide, high = max(side, round(width * scale)), max(side, round(height * scale))
            top, left = (high - side) // 2, (wide - side) // 2
            image = image.resize((wide, high), 1)  # Lanczos
            image = image.crop((left, top, left + side, top + side))
        else:
            image = image.resize((side, side), 1)
        values = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float() / 127.5 - 1
        return values, torch.tensor([height, width, top, left, side, side], dtype=torch.float32)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared errors, mean over each row's latents and summed over rows: (B, C, h, w) both -> scalar."""
        return self.row_losses(logits, labels).sum()

    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean squared error of each row (B,)."""
        return (predicted.float() - target.float()).square().flatten(1).mean(1)

    def collect(self, pieces: Sequence[NDArray[Any]], encoded: Encoded) -> list[float]:
        """The loss of each row."""
        return [float(np.mean(piece)) for piece in pieces]

    def decode(self, answers: list[float]) -> list[dict[str, Any]]:
        """`{"loss"}` per row."""
        return [{"loss": loss} for loss in answers]

    def corpus_scores(
        self, answers: list[float], references: Any = None, names: Sequence[str] | None = None
    ) -> Mapping[str, CorpusScore]:
        """The mean loss; references are not needed."""
        return {"loss": mean_score(answers)}

    def describe(self) -> str:
        """One line."""
        cut = "cut from the middle" if self.crop == "center" else "squeezed"
        return (
            f"the noise on pictures of {self.resolution} x {self.resolution} pixels, {cut}, given their {self.text[0]}"
        )


def _digest(row: Row, pixels: Tensor) -> str:
    """What identifies a picture: the hash of its file, of rows made by hand that of the pixels' values."""
    digest = row.get(DIGEST)
    return str(digest) if digest else hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
