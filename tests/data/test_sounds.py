"""Sound in files: mono samples at the rate of a model, or an error that names the file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data.media.sounds import is_sound, read_sound, resampled, sound_seconds

soundfile = pytest.importorskip("soundfile")


def test_a_sound_of_each_format_is_read(tmp_path: Path) -> None:
    wave = 0.5 * np.sin(np.arange(8000) / 20).astype(np.float32)
    for suffix, within in {"wav": 1e-4, "flac": 1e-4, "ogg": 0.05}.items():
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, wave, 16_000)
        assert is_sound(path)
        assert sound_seconds(path) == 0.5
        assert np.abs(read_sound(path, 16_000) - wave).max() < within


def test_channels_are_mixed_and_long_sounds_cut(tmp_path: Path) -> None:
    channels = np.stack([np.full(8000, 0.5), np.full(8000, -0.1)], 1)
    soundfile.write(tmp_path / "a.wav", channels, 8000, subtype="FLOAT")
    samples = read_sound(tmp_path / "a.wav", 8000, 0.25)
    assert samples.shape == (2000,)
    assert np.allclose(samples, 0.2, atol=1e-6)


@pytest.mark.parametrize(("given", "wanted"), [(44_100, 16_000), (8000, 16_000), (48_000, 16_000), (22_050, 16_000)])
def test_resampling_keeps_what_both_rates_hold_and_drops_what_would_alias(given: int, wanted: int) -> None:
    time = np.arange(given // 2) / given
    kept = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    samples = resampled(kept, given, wanted)
    assert len(samples) == wanted // 2
    middle = slice(500, -500)  # the ends meet silence
    exact = np.sin(2 * np.pi * 1000 * np.arange(wanted // 2) / wanted)
    assert np.abs(samples - exact)[middle].max() < 2e-3
    if given > wanted:
        lost = np.sin(2 * np.pi * 10_500 * time).astype(np.float32)  # beyond 8 kHz
        assert np.abs(resampled(lost, given, wanted))[middle].max() < 5e-3


def test_what_is_no_sound_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "aiff.wav", np.zeros(10), 16_000, format="AIFF")
    (tmp_path / "text.wav").write_text("no sound")
    for name, words in {
        "empty.wav": "0 seconds long",
        "nan.wav": "1 samples that are not finite",
        "aiff.wav": "holds AIFF",
        "text.wav": "cannot read",
        "missing.wav": "cannot read",
    }.items():
        with pytest.raises(DeltatuneError, match=words) as error:
            read_sound(tmp_path / name, 16_000)
        assert name in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("given", [44_100, 8000, 48_000])
def test_resampling_agrees_with_scipy(given: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    time = np.arange(given // 2) / given
    wave = (np.sin(2 * np.pi * 440 * time) + 0.3 * np.sin(2 * np.pi * 2500 * time)).astype(np.float32)
    samples = resampled(wave, given, 16_000)
    other = signal.resample_poly(wave, 16_000, given)[: len(samples)]
    assert np.abs(samples - other)[500:-500].max() < 1e-2


def test_rates_without_a_common_divisor_take_little_memory() -> None:
    """Each of 16,000 outputs has weights of its own; as one matrix they would be 700 million."""
    time = np.arange(44_101 // 2) / 44_101
    tracemalloc.start()
    try:
        samples = resampled(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 44_101, 16_000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    exact = np.sin(2 * np.pi * 1000 * np.arange(len(samples)) / 16_000)
    assert np.abs(samples - exact)[500:-500].max() < 2e-3
    assert most < 200 << 20


def test_a_header_of_an_impossible_length_is_a_broken_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", 0.1 * np.sin(np.arange(8000)), 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] |= 0x0F  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = b"\xff" * 4
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(DeltatuneError, match=r"a\.flac: it is broken"):
        read_sound(tmp_path / "a.flac", 16_000)


def test_a_rate_beyond_all_sense_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 2_000_000_000)
    with pytest.raises(DeltatuneError, match="rate is 2,000,000,000 Hz"):
        sound_seconds(tmp_path / "a.wav")
