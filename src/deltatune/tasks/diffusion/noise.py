"""Noise on latents: how much at which time, what a denoiser should predict there, and the weight of the error.

Denoising diffusion: Ho et al. 2020, https://arxiv.org/abs/2006.11239; v-prediction: Salimans & Ho 2022,
https://arxiv.org/abs/2202.00512; rectified flow with logit-normal times: Esser et al. 2024,
https://arxiv.org/abs/2403.03206; min-SNR weights: Hang et al. 2023, https://arxiv.org/abs/2303.09556.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltatune.models.pipelines import ImagePipeline, Prediction


@dataclass(frozen=True)
class NoisyLatents:
    """One picture at one time, or several at theirs."""

    noisy: Tensor
    """What the denoiser reads (B, C, h, w)."""
    times: Tensor
    """Its times (B,)."""
    target: Tensor
    """What it should predict (B, C, h, w)."""
    weights: Tensor
    """Weight of each row's squared error (B,)."""


@dataclass(frozen=True)
class NoiseSchedule:
    """How noise grows with time, and what is predicted, as a pipeline's scheduler says."""

    prediction: Prediction
    """What the denoiser predicts."""
    kept: Tensor
    """Diffusion: the share of the signal's power at each time (T,), the scheduler's `alphas_cumprod`. Else empty."""
    shift: float = 1.0
    """Flow: times are shifted towards noise by this factor."""
    steps: int = 1000
    """T, the number of times."""

    def noisy(self, clean: Tensor, noise: Tensor, draws: Tensor, min_snr: float | None = None) -> NoisyLatents:
        """Latents (B, C, h, w) with noise, at times from `draws` (B,), uniform in [0, 1).

        min_snr: gamma of the min-SNR weights, None for equal ones, which a flow always has.
        """
        if self.prediction == "flow":
            return self._flow(clean, noise, draws)
        times = (draws * self.steps).long().clamp(0, self.steps - 1)
        power = self.kept[times]
        signal, amount = (part.sqrt().view(-1, 1, 1, 1) for part in (power, 1 - power))
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - amount * clean,
            "sample": clean,
        }[self.prediction]
        return NoisyLatents(signal * clean + amount * noise, times, target, self._weights(power, min_snr))

    def _flow(self, clean: Tensor, noise: Tensor, draws: Tensor) -> NoisyLatents:
        """(1 - s) x + s n with s = sigmoid of a standard normal, shifted; the target is n - x."""
        normal = torch.special.ndtri(draws.double().clamp(1e-6, 1 - 1e-6)).float()
        sigma = torch.sigmoid(normal)
        sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
        share = sigma.view(-1, 1, 1, 1)
        return NoisyLatents(
            (1 - share) * clean + share * noise, sigma * self.steps, noise - clean, torch.ones_like(sigma)
        )

    def _weights(self, power: Tensor, gamma: float | None) -> Tensor:
        """min(SNR, gamma), over SNR where noise is predicted, over SNR + 1 for v; 1 without a gamma."""
        if gamma is None:
            return torch.ones_like(power)
        snr = power / (1 - power)
        least = snr.clamp(max=gamma)
        if self.prediction == "sample":
            return least
        if self.prediction == "v_prediction":
            return least / (snr + 1)
        return torch.where(snr > 0, least / snr.clamp(min=1e-12), 1.0)


def noise_schedule(pipeline: ImagePipeline) -> NoiseSchedule:
    """The schedule of a pipeline's scheduler."""
    scheduler: Any = pipeline.pipe.scheduler
    steps = int(scheduler.config.num_train_timesteps)
    if pipeline.prediction == "flow":
        dynamic = getattr(scheduler.config, "use_dynamic_shifting", False)
        shift = 1.0 if dynamic else float(getattr(scheduler.config, "shift", 1.0) or 1.0)
        return NoiseSchedule("flow", torch.empty(0), shift, steps)
    return NoiseSchedule(pipeline.prediction, scheduler.alphas_cumprod.float().cpu(), steps=steps)
