"""Images in files: what a camera or a program writes becomes upright RGB pixels, or an error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltatune.core.errors import DeltatuneError
from deltatune.data.media.images import image_size, is_image, read_image

Image = pytest.importorskip("PIL.Image")


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_an_image_of_each_format_is_read(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 6, 3), (200, 100, 50), np.uint8))
    for suffix in ("png", "bmp", "jpg", "jpeg", "webp"):
        path = tmp_path / f"a.{suffix}"
        image.save(path)
        assert is_image(path)
        assert image_size(path) == (6, 4)
        assert np.abs(pixels(path).astype(int) - (200, 100, 50)).max() <= 6


def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path: Path) -> None:
    array = np.zeros((4, 6, 3), np.uint8)
    array[0, 0] = 255
    image, exif = Image.fromarray(array), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    read = pixels(tmp_path / "a.png")
    assert read.shape == (6, 4, 3)
    assert read[0, 3].tolist() == [255] * 3
    assert read.sum() == 3 * 255


def test_grey_values_are_three_equal_channels_and_16_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(np.array([[0, 128 * 257, 65535]], np.uint16)).save(tmp_path / "16.png")
    assert pixels(tmp_path / "8.png").tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert pixels(tmp_path / "16.png").tolist() == pixels(tmp_path / "8.png").tolist()


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    array = np.array([[[9, 9, 9, 0], [0, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [255, 0, 127]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "p.png").tolist() == [[[255] * 3, [40, 50, 60]]]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert pixels(tmp_path / "a.jpg").min() > 250


def test_what_is_no_image_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 2)).save(tmp_path / "tiff.png", format="TIFF")
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    for name, words in {
        "cut.png": "it is broken",
        "text.png": "none of PNG, JPEG, WEBP, BMP",
        "empty.png": "none of PNG",
        "tiff.png": "none of PNG",
        "moving.webp": "2 frames",
        "missing.png": "missing.png",
    }.items():
        with pytest.raises(DeltatuneError, match=words) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)


def test_an_oversized_image_is_refused_before_its_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr("deltatune.data.media.images.MOST_PIXELS", 899)
    with pytest.raises(DeltatuneError, match="30 x 30 pixels, more than 899"):
        read_image(tmp_path / "a.png")


def test_without_pillow_the_error_has_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DeltatuneError, match=r"pip install 'deltatune\[media\]'"):
        read_image(tmp_path / "a.png")
