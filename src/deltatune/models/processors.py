"""Processors: images and sounds as what a vision or a speech model reads, in the place of a tokenizer."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoImageProcessor, PreTrainedModel

from deltatune.core.errors import DeltatuneError, first_line
from deltatune.data.media.images import pillow_image, read_image
from deltatune.data.media.media_files import Inputs
from deltatune.data.media.sounds import read_sound
from deltatune.models.architecture import inputs_of_model

LONGEST_SECONDS = 30.0
"""Longest sound that is read where nobody says otherwise."""
FACTS: dict[Inputs, tuple[str, ...]] = {
    "image": (
        "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
        "image_mean", "image_std", "do_pad", "pad_size", "offset",
    ),
    "audio": (
        "sampling_rate", "feature_size", "do_normalize", "padding_value", "return_attention_mask", "n_fft",
        "hop_length", "chunk_length",
        "num_mel_bins", "max_length", "mean", "std", "dither",
    ),
}  # fmt: skip
"""Settings of transformers' processors that decide what a file becomes."""
FRAME = 0.01
"""Seconds from one spectrogram frame to the next, where a processor counts its longest sound in frames."""


@dataclass(frozen=True)
class Processor:
    """What turns the files of rows into a model's input; where text has a tokenizer, images and sounds have this."""

    inputs: Inputs
    """image or audio."""
    argument: str
    """The argument of the model's forward: pixel_values, input_values or input_features."""
    settings: Any
    """transformers' image processor, on Pillow, or feature extractor."""
    channels: int = 3
    """Colour channels that the model reads: 3, or 1 for grey."""
    masked: bool = False
    """Whether shorter sounds of a batch are padded under an attention mask. Otherwise every sound is padded with zeros
    to one length, so that no row depends on the others of its batch."""
    states: int = 1
    """Hidden states that the model has of a small input; of an image there are never more."""
    shortest: int = 1
    """Samples of the shortest sound that gives the model one hidden state."""

    @property
    def rate(self) -> int:
        """The sampling rate in Hz; 0 for images."""
        return int(getattr(self.settings, "sampling_rate", 0))

    @property
    def longest_seconds(self) -> float | None:
        """Seconds of a sound that it keeps; None where it has no limit."""
        chunk, frames = getattr(self.settings, "chunk_length", None), getattr(self.settings, "max_length", None)
        if chunk:
            return float(chunk)
        return float(frames) * FRAME if frames and hasattr(self.settings, "num_mel_bins") else None

    def row(self, file: str, seconds: float | None = None) -> Tensor:
        """What a model reads of one file: pixels (C, H, W), samples (T,) or a spectrogram, in float32.

        seconds: how much of a sound is read. Raises DeltatuneError for a file that cannot be read.
        """
        if self.inputs == "image":
            image = read_image(file)
            return self.pixels(image if self.channels == 3 else image.convert("L"))
        sound = read_sound(file, self.rate, seconds)
        if len(sound) < self.shortest:
            raise DeltatuneError(
                f"of the sound {file} {len(sound)} samples at {self.rate:,} Hz are read, and the model needs at least "
                f"{self.shortest}: leave it out, or raise --max-seconds if that cuts it"
            )
        return self.samples(sound)

    def pixels(self, image: Any) -> Tensor:
        """Pixels (C, H, W) of an image of Pillow."""
        form = {} if self.channels == 3 else {"input_data_format": "channels_last", "do_convert_rgb": False}
        if form:
            import numpy as np

            image = np.asarray(image)[..., None]
        values = self.settings(images=image, return_tensors="np", **form)[self.argument]
        return torch.from_numpy(values[0]).float()

    def samples(self, sound: Any) -> Tensor:
        """What the model reads of samples (N,) at `rate`."""
        values = self.settings(sound, sampling_rate=self.rate, return_tensors="np")[self.argument]
        return torch.from_numpy(values[0]).float()

    def batch(self, rows: Sequence[Tensor], seconds: float | None = None) -> dict[str, Tensor]:
        """The model's arguments for rows of `row`: stacked, shorter sounds padded with zeros behind them.

        Raises DeltatuneError for images of several sizes.
        """
        shapes = {tuple(row.shape) for row in rows}
        if rows[0].dim() > 1 or self.inputs == "image":
            if len(shapes) > 1:
                raise DeltatuneError(
                    f"the processor gives {self.inputs} inputs of several shapes, {sorted(shapes)[:3]}, which make no "
                    "batch; set do_resize and a size in preprocessor_config.json"
                )
            return {self.argument: torch.stack(list(rows))}
        lengths = [len(row) for row in rows]
        fixed = 0 if self.masked or seconds is None else round(seconds * self.rate)
        width = max(*lengths, fixed) if fixed else max(lengths)
        padded = torch.stack([nn.functional.pad(row, (0, width - len(row))) for row in rows])  # (B, T)
        if not self.masked:
            return {self.argument: padded}
        mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]  # (B, T)
        return {self.argument: padded, "attention_mask": mask.long()}

    @property
    def fingerprint(self) -> str:
        """Hash (32 hex digits) of what determines the input that a file becomes."""
        settings = self.settings.to_dict()
        facts = {name: settings[name] for name in FACTS[self.inputs] if settings.get(name) is not None}
        facts |= {"inputs": self.inputs, "channels": self.channels, "masked": self.masked}
        text = json.dumps(facts, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor's files, as transformers reads them."""
        self.settings.save_pretrained(folder)


def _plain(value: Any) -> Any:
    """Sizes of transformers as plain data; of spectrograms the settings say all."""
    return {name: each for name, each in dict(value).items() if each is not None} if hasattr(value, "keys") else ""


def load_processor(model_name: str, place: str, model: PreTrainedModel, inputs: Inputs) -> Processor:
    """The processor of a folder or hub name, tried on a blank input of the model.

    Images are always processed by Pillow and numpy, so that an image becomes the same pixels whether torchvision is
    installed or not. Raises DeltatuneError where there is none, and where the model does not take what it gives.
    """
    if inputs == "image":
        pillow_image()
    auto: Any = AutoImageProcessor if inputs == "image" else AutoFeatureExtractor
    more = {"backend": "pil"} if inputs == "image" else {}
    try:
        settings = auto.from_pretrained(place, **more)
    except Exception as error:  # its type depends on the processor and on the missing file
        what = "image processor" if inputs == "image" else "feature extractor"
        line = shorten(first_line(error), 200, placeholder=" ...")  # transformers lists all models
        raise DeltatuneError(
            f"{model_name} has no usable {what}; copy its preprocessor_config.json there: {line}"
        ) from error
    config: Any = model.config
    channels = int(getattr(config, "num_channels", 3)) if inputs == "image" else 3
    if channels not in (1, 3):
        raise DeltatuneError(f"{model_name} reads images of {channels} channels; files of images have 3 (or 1: grey)")
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    masked = takes_mask and bool(getattr(settings, "return_attention_mask", False))
    masked = masked and hasattr(model, "_get_feature_vector_attention_mask")
    processor = Processor(inputs, str(model.main_input_name), settings, channels, masked)
    return replace(processor, states=_states(model_name, processor, model), shortest=_shortest(config, inputs))


def _shortest(config: Any, inputs: Inputs) -> int:
    """The samples that a model which convolves the wave reads for one hidden state; 1 for others, which pad."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    samples = 1
    if inputs != "audio" or not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
        return samples
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


@torch.no_grad()
def _states(model_name: str, processor: Processor, model: PreTrainedModel) -> int:
    """Hidden states of a blank input. Raises DeltatuneError where the model does not take what the processor gives."""
    import numpy as np

    shape: Any = "nothing"
    try:
        if processor.inputs == "image":
            image = pillow_image().new("RGB" if processor.channels == 3 else "L", (48, 40))
            row = processor.pixels(image)
        else:
            row = processor.samples(np.linspace(-1, 1, processor.rate // 2, dtype=np.float32))
        shape = tuple(row.shape)
        return int(model(**processor.batch([row])).last_hidden_state.shape[1])
    except DeltatuneError:
        raise
    except Exception as error:
        line = first_line(error)
        raise DeltatuneError(
            f"{model_name} does not take what its processor gives, {processor.argument} {shape}: {line}. Its "
            "preprocessor_config.json is that of another model"
        ) from error


def speech_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """A speech model as its states are read: of one with a decoder, such as Whisper, the encoder.

    What it does at random in training is turned off: SpecAugment draws from numpy's global state, and LayerDrop leaves
    out layers, whose adapters get no gradient. Models that read something else are returned as they are.
    """
    if inputs_of_model(model.config) != "audio":
        return model
    encoder = model
    if model.config.is_encoder_decoder:
        name = model.config._name_or_path
        encoder = model.get_encoder()
        encoder.config.is_encoder_decoder, encoder.config._name_or_path = False, name
    for setting, value in {"apply_spec_augment": False, "layerdrop": 0.0}.items():
        if hasattr(encoder.config, setting):
            setattr(encoder.config, setting, value)
    return encoder
