"""Text-to-image pipelines of diffusers: loading, and what training asks of one: latents, texts, noise, predictions."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError, first_line, nearest
from deltatune.core.input_validation.regular_files import expanded, read_text
from deltatune.core.input_validation.strict_json import loads
from deltatune.models.conditioning import CALLS, TEXTS, Calls, Texts
from deltatune.models.loading import BUILTIN, HUB_NAME, quiet

INDEX = "model_index.json"
"""The file that says which classes a pipeline consists of."""
INSTALL = "pip install 'deltatune[diffusion]'"

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a denoiser predicts: the noise, the velocity of v-prediction, the clean latents, or the velocity of a flow."""
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow")


def load_diffusers() -> Any:
    """The package diffusers. Raises DeltatuneError with the install line where it is not installed."""
    try:
        import diffusers
    except ImportError:
        raise DeltatuneError(f"--task image needs diffusers. Install it: {INSTALL}") from None
    return diffusers


@dataclass(frozen=True)
class ImagePipeline:
    """A text-to-image pipeline: a denoiser that adapters change, and the frozen parts around it."""

    pipe: Any
    """diffusers' pipeline."""
    texts: Texts
    """Captions -> what the denoiser reads of each: tensors by name, without the batch."""
    call: Calls
    """The denoiser's prediction (B, C, h, w) from noisy latents, their times and what it reads of the captions."""
    prediction: Prediction
    """What the denoiser predicts."""

    @property
    def denoiser(self) -> nn.Module:
        """The module that adapters change: the pipeline's U-Net or transformer."""
        unet = getattr(self.pipe, "unet", None)
        module: nn.Module = self.pipe.transformer if unet is None else unet
        return module

    @property
    def downsampling(self) -> int:
        """Pixels of a picture along one side of a latent."""
        return int(2 ** (len(self.pipe.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """Pixels of a side of the pictures that the denoiser was trained on, as its config says."""
        size = getattr(self.denoiser.config, "sample_size", None)
        size = size[0] if isinstance(size, (list, tuple)) else size
        return int(getattr(self.pipe, "default_sample_size", 64) if size is None else size) * self.downsampling

    @property
    def multiple(self) -> int:
        """Pixels of which a picture's sides are multiples: those of one of the denoiser's coarsest cells."""
        levels = getattr(self.denoiser.config, "block_out_channels", None)
        cells = 2 ** (len(levels) - 1) if levels else getattr(self.denoiser.config, "patch_size", 1) or 1
        return self.downsampling * max(int(cells), 2 if self.pipe.__class__.__name__.startswith("Flux") else 1)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """Mean and logarithm of the variance (2C, h, w) of a picture's latents, from pixels (3, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        posterior = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
        return torch.cat([posterior.mean[0], posterior.logvar[0]]).float().cpu()

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the denoiser reads them, drawn from the posteriors (B, 2C, h, w) with noise."""
        mean, logvar = moments.chunk(2, 1)
        config = self.pipe.vae.config
        drawn = mean + torch.exp(0.5 * logvar) * noise
        scaled: Tensor = (drawn - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
        return scaled

    def fingerprint(self) -> str:
        """Hash (32 hex digits) of what turns pictures and captions into the denoiser's inputs."""
        content = hashlib.sha256(self.pipe.__class__.__name__.encode())
        for name, part in sorted(self.pipe.components.items()):
            if name in ("unet", "transformer", "safety_checker", "feature_extractor") or part is None:
                continue
            if isinstance(part, nn.Module):
                for path, tensor in sorted(part.state_dict().items()):
                    flat = tensor.detach().flatten()
                    sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy().tobytes()
                    content.update(f"{name}.{path}{tuple(tensor.shape)}".encode() + sample)
            elif hasattr(part, "get_vocab"):
                content.update(json.dumps(sorted(part.get_vocab().items())).encode())
            else:  # the scheduler
                values = {key: value for key, value in part.config.items() if not key.startswith("_")}
                content.update(json.dumps(values, sort_keys=True, default=str).encode())
        return content.hexdigest()[:32]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within this context the pipeline shows no progress bar."""
        before = dict(getattr(self.pipe, "_progress_bar_config", {}))
        self.pipe.set_progress_bar_config(disable=True)
        try:
            yield
        finally:
            self.pipe._progress_bar_config = before


def load_pipeline(model: str, device: torch.device | str = "cpu", quantize: str | None = None) -> ImagePipeline:
    """Load a text-to-image pipeline in float32 and evaluation mode from a folder or the hub.

    Stable Diffusion, XL and 3, PixArt and Flux. Raises DeltatuneError where diffusers is not installed, for what is no
    pipeline, for pipelines of other kinds, and for parts that cannot be read. Pickles and code are never read.
    """
    if quantize is not None:
        raise DeltatuneError(f"quantize={quantize!r}: pipelines of diffusers are loaded in float32; leave it out")
    name = pipeline_class(model)
    diffusers = load_diffusers()
    place = str(expanded(model)) if expanded(model).is_dir() else model
    with quiet_diffusers():
        try:
            pipe = getattr(diffusers, name).from_pretrained(place, use_safetensors=True, torch_dtype=torch.float32)
        except Exception as error:  # of what kind depends on the part and on what is wrong with it
            raise DeltatuneError(f"the pipeline {model} cannot be loaded: {first_line(error)}") from error
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    pipe.to(device)
    return ImagePipeline(pipe, TEXTS[name], CALLS[name], prediction_of(model, pipe.scheduler))


def pipeline_class(model: str) -> str:
    """The class of a pipeline, from its model_index.json. Raises DeltatuneError for what is no pipeline known here."""
    folder = expanded(model)
    if model == BUILTIN:
        raise DeltatuneError(
            "the built-in model reads texts: name with --model the folder of a text-to-image pipeline of diffusers, or "
            "its name on the hub"
        )
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise DeltatuneError(f"{model} is no pipeline of diffusers: {_instead(folder)}")
        index = loads(read_text(folder / INDEX), folder / INDEX)
    elif folder.exists() or not HUB_NAME.fullmatch(model):
        raise DeltatuneError(
            f"--model {model}: --task image takes the folder of a text-to-image pipeline of diffusers, or its name on "
            "the hub"
        )
    else:
        load_diffusers()
        from diffusers import DiffusionPipeline

        try:
            index = DiffusionPipeline.load_config(model)
        except Exception as error:
            raise DeltatuneError(
                f"no folder here is called {model!r}, and as a name on the hub it has no {INDEX}: {first_line(error)}"
            ) from error
    name = str(index.get("_class_name", "")) if isinstance(index, Mapping) else ""
    if name not in TEXTS:
        raise DeltatuneError(
            f"{model} is a {name or 'pipeline without a class'}, which --task image does not train"
            f"{nearest(name, TEXTS)}; it trains {', '.join(TEXTS)}"
        )
    return name


def prediction_of(model: str, scheduler: Any) -> Prediction:
    """What the denoiser of a pipeline predicts, as its scheduler says."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        return "flow"
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind == "flow_prediction" or getattr(scheduler.config, "use_flow_sigmas", False):
        return "flow"
    if kind not in PREDICTIONS or not hasattr(scheduler, "alphas_cumprod"):
        raise DeltatuneError(
            f"the scheduler of {model} is {name} with prediction_type {kind!r}; known: {', '.join(PREDICTIONS)}"
        )
    return kind


def _instead(folder: Path) -> str:
    """What a folder without model_index.json is."""
    if (folder / "config.json").is_file():
        return (
            f"it has a config.json and no {INDEX}, so it is one model of transformers or one part of a pipeline; give "
            "the folder of the whole pipeline (--task image trains Stable Diffusion and others of diffusers)"
        )
    if {"adapter.json", "adapter_config.json"} & {path.name for path in folder.iterdir()}:
        return "it is an adapter; --model takes the pipeline it belongs to"
    inside = next((path for path in sorted(folder.iterdir()) if (path / INDEX).is_file()), None)
    return f"it has no {INDEX}, but {inside} has one" if inside else f"it has no {INDEX}"


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence diffusers' bars and notes while a pipeline loads; problems are errors here."""
    diffusers = load_diffusers()
    log = diffusers.utils.logging
    level, bar = log.get_verbosity(), getattr(log, "is_progress_bar_enabled", lambda: True)()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    imported = logging.getLogger("bitsandbytes")  # diffusers imports it, and it tells which kernels it does not have
    importing = imported.level
    imported.setLevel(logging.CRITICAL)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        imported.setLevel(importing)
        if bar:
            log.enable_progress_bar()
