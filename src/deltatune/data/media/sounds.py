"""Sound in files: which files are sounds, and how each is read as one channel of samples at the rate of a model."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor, gcd, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError, first_line
from deltatune.core.input_validation.regular_files import check_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
"""Suffixes of sound files in lower case."""
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG")
"""What such a file may hold, by its content."""
CROSSINGS = 16
"""Zero crossings of the resampling filter on each side."""
ROLLOFF = 0.95
"""Where the resampling filter begins to cut, as a share of the lower of the two Nyquist frequencies."""
BLOCK = 128
"""Outputs whose kernels are one matrix: rates without a common divisor have as many kernels as the rate has Hz."""
MOST_RATE = 768_000
"""Highest rate in Hz that is read; the kernels grow with it."""
INSTALL = "pip install 'deltatune[media]'"


def is_sound(path: str | Path) -> bool:
    """Whether a file's suffix is that of a sound."""
    return Path(path).suffix.lower() in SOUND_SUFFIXES


def sound_seconds(path: str | Path) -> float:
    """Length in seconds, from the file's header.

    Raises DeltatuneError, which names the file, as `read_sound` does for files that cannot be opened.
    """
    with _opened(Path(path)) as sound:
        return float(sound.frames / sound.samplerate)


def read_sound(path: str | Path, rate: int, seconds: float | None = None) -> Samples:
    """The samples (N,) of a file at `rate` Hz, at most the first `seconds` of them, in [-1, 1].

    Several channels are mixed to their mean. Other rates are converted by `resampled`.
    Raises DeltatuneError, which names the file, for a missing or broken file, for one without samples or with samples
    that are not finite, for other formats, and where soundfile is not installed.
    """
    import numpy as np  # help screens do without it

    path = Path(path)
    with _opened(path) as sound:
        given = int(sound.samplerate)
        most = -1 if seconds is None else ceil(seconds * given)
        try:
            channels: Samples = sound.read(most, dtype="float32", always_2d=True)  # (N, channels)
        except (RuntimeError, ValueError, MemoryError) as error:  # soundfile's own; headers of impossible lengths
            raise DeltatuneError(f"cannot read the sound {path}: it is broken: {first_line(error)}") from None
    if not len(channels):
        raise DeltatuneError(f"the sound {path} has no samples: it is 0 seconds long")
    if not np.isfinite(channels).all():
        bad = int((~np.isfinite(channels)).any(1).sum())
        raise DeltatuneError(f"the sound {path} has {bad:,} samples that are not finite (NaN or infinite); mend it")
    samples = resampled(channels.mean(1), given, rate)
    return samples if seconds is None else samples[: max(1, round(seconds * rate))]


def resampled(samples: Samples, given: int, wanted: int) -> Samples:
    """Samples (N,) at another rate: ceil(N · wanted / given) values of the band-limited interpolation.

    The kernel is a sinc under a Hann window with CROSSINGS zero crossings a side, cut off at ROLLOFF times the lower
    Nyquist frequency; behind the ends are zeros.
    """
    import numpy as np  # help screens do without it

    if given == wanted:
        return samples
    up, down = wanted // gcd(given, wanted), given // gcd(given, wanted)
    blocks, reach = _kernels(up, down)
    count = -(-len(samples) * up // down)
    frames = -(-count // up)  # of `down` inputs and `up` outputs
    padded = np.zeros(frames * down + 2 * reach + 1, np.float32)
    padded[reach : reach + len(samples)] = samples
    parts = []
    for start, kernels in blocks:
        windows = np.lib.stride_tricks.sliding_window_view(padded[start:], len(kernels))[::down]
        parts.append(windows[:frames] @ kernels)  # (frames, width) (width, at most BLOCK)
    return np.ascontiguousarray(np.concatenate(parts, 1).reshape(-1)[:count])


@lru_cache(maxsize=4)
def _kernels(up: int, down: int) -> tuple[list[tuple[int, Samples]], int]:
    """The weights (width, outputs) of the inputs around each block of a frame's outputs, and their reach.

    Beside the weights is where their block begins among the frame's inputs; `reach` of them come before it.
    """
    import numpy as np  # help screens do without it

    cutoff = ROLLOFF * min(up, down) / down  # in half-cycles an input sample
    reach = ceil(CROSSINGS / cutoff)
    blocks = []
    for first in range(0, up, BLOCK):
        places = np.arange(first, min(first + BLOCK, up)) * down / up  # of the outputs among the frame's inputs
        start, end = floor(places[0]), ceil(places[-1])
        inputs = np.arange(start - reach, end + reach + 1)[:, None]  # (width, 1)
        distance = cutoff * (inputs - places[None])
        window = np.where(np.abs(distance) < CROSSINGS, np.cos(pi * distance / CROSSINGS / 2) ** 2, 0)
        blocks.append((start, (cutoff * np.sinc(distance) * window).astype(np.float32)))
    return blocks, reach


def _opened(path: Path) -> Any:
    """The open file of soundfile."""
    try:
        import soundfile  # type: ignore[import-untyped]
    except ImportError:
        raise DeltatuneError(f"sound needs soundfile. Install it: {INSTALL}") from None
    check_regular(path, "sound")
    try:
        sound = soundfile.SoundFile(str(path))
    except Exception as error:
        reason = first_line(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
        raise DeltatuneError(f"cannot read the sound {path}: {reason}") from None
    if sound.format not in FORMATS:
        sound.close()
        raise DeltatuneError(f"cannot read the sound {path}: it holds {sound.format}, not WAV, FLAC or OGG; convert it")
    if sound.samplerate > MOST_RATE:
        rate = f"{sound.samplerate:,} Hz"
        sound.close()
        raise DeltatuneError(f"cannot read the sound {path}: its rate is {rate}, more than {MOST_RATE:,}; resample it")
    return sound
