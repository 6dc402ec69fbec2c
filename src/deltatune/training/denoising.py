"""Denoising: a diffusion model's denoiser with its adapter as one module that returns the loss, and its batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.host import Host
from deltatune.models.hardware import uses_bfloat16
from deltatune.models.pipelines import ImagePipeline
from deltatune.tasks.diffusion.text_to_image import EncodedPictures, TextToImage
from deltatune.training.inference.batches import device_of
from deltatune.training.scaling.distributed import Processes
from deltatune.training.settings import Settings
from deltatune.training.training_loop.sampler import BatchLoader, BatchSampler

READ = "read."
"""Prefix of the tensors of a batch that the denoiser reads beside the noisy latents."""


class Denoising(nn.Module):
    """Denoiser, adapter and task as one module that returns the loss."""

    def __init__(self, host: Host, name: str, task: TextToImage, pipeline: ImagePipeline, bfloat16: bool) -> None:
        super().__init__()
        self.model = host.model
        self.host, self.name, self.task, self.pipeline, self.uses_bfloat16 = host, name, task, pipeline, bfloat16

    def forward(
        self, labels: Tensor, noisy: Tensor, times: Tensor, weights: Tensor, items: float | None = None, **read: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted loss, summed over rows and divided by `items` (by default those of this batch)."""
        losses = self.task.row_losses(self.predicted(noisy, times, read), labels)
        own_items = len(labels)
        items = own_items if items is None else items
        penalty = self.host.adapters[self.name].penalty() * (own_items / items)
        return {"loss": (losses * weights).sum() / items + penalty}

    def predicted(self, noisy: Tensor, times: Tensor, read: dict[str, Tensor]) -> Tensor:
        """The denoiser's prediction (B, C, h, w)."""
        states = {name.removeprefix(READ): tensor for name, tensor in read.items()}
        dtype = next(self.model.parameters()).dtype
        states = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in states.items()}
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.uses_bfloat16):
            return self.pipeline.call(self.pipeline.pipe, noisy.to(dtype), times, states)


def denoising_and_loader(
    host: Host, name: str, task: TextToImage, rows: EncodedPictures, settings: Settings, processes: Processes
) -> tuple[nn.Module, BatchLoader]:
    """The denoiser with its loss, and batches of pictures with noise that depends on seed, epoch and picture alone."""
    if settings.packing:
        raise DeltatuneError("packing is for texts: pictures are no sequences of tokens; leave it out")
    sampler = BatchSampler([1] * len(rows), settings.batch_size, settings.accumulation, settings.seed, False, processes)

    def make_batch(numbers: Sequence[int], epoch: int) -> dict[str, Tensor]:
        return rows.batch(numbers, settings.seed, epoch, task.min_snr)

    return Denoising(host, name, task, pipeline_of(rows), uses_bfloat16(host.model, settings.precision)), BatchLoader(
        sampler, make_batch
    )


def validation_losses(
    host: Host, name: str, task: TextToImage, rows: EncodedPictures, bfloat16: bool
) -> list[NDArray[np.float32]]:
    """The loss of each row at fixed times with fixed noise, under the host's route."""
    model, device = Denoising(host, name, task, pipeline_of(rows), bfloat16), device_of(host)
    losses = []
    for number in range(len(rows)):
        batch = {key: tensor.to(device) for key, tensor in rows.fixed_batch(number).items()}
        read = {key: tensor for key, tensor in batch.items() if key.startswith(READ)}
        predicted = model.predicted(batch["noisy"], batch["times"], read)
        losses.append(task.row_losses(predicted, batch["labels"]).cpu().numpy())
    return losses


def pipeline_of(rows: EncodedPictures) -> ImagePipeline:
    """The pipeline that encoded pictures."""
    assert rows.pipeline is not None
    return rows.pipeline
