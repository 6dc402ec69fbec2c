"""Images in files: which files are images, and how each is read as RGB pixels, for every task that takes images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltatune.core.errors import DeltatuneError, first_line
from deltatune.core.input_validation.regular_files import check_regular

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Suffixes of image files in lower case."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What such a file may hold, by its content: no other decoder ever sees a file of the user."""
MOST_PIXELS = 178_956_970
"""Pixels of the largest image that is read: a small file can unpack to far more than fits into memory."""
INSTALL = "pip install 'deltatune[media]'"


def is_image(path: str | Path) -> bool:
    """Whether a file's suffix is that of an image."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | Path) -> Image:
    """The image in a file, as Pillow's image of mode RGB, upright.

    An EXIF orientation is applied. Grey values become three equal channels; palettes and CMYK are converted. Images
    with 16 bits a channel are scaled to 8. What is transparent is laid over white.

    Raises DeltatuneError, which names the file, for a missing, broken, animated or oversized image, for other formats,
    and where Pillow is not installed.
    """
    path = Path(path)
    image = _opened(path)
    try:
        if getattr(image, "n_frames", 1) > 1:
            raise DeltatuneError(f"cannot read the image {path}: it has {image.n_frames} frames; save one as a file")
        return _rgb(_upright(image), path)
    except (DeltatuneError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DeltatuneError(f"cannot read the image {path}: it is broken: {first_line(error)}") from None
    finally:
        image.close()


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's first bytes; its pixels are not decoded, nor is it turned.

    Raises DeltatuneError as `read_image` does, except for damage behind the header.
    """
    with _opened(Path(path)) as image:
        width, height = image.size
        return width, height


def _opened(path: Path) -> Any:
    """Pillow's image, whose pixels are not read yet."""
    pillow = pillow_image()
    from PIL import UnidentifiedImageError

    check_regular(path, "image")
    try:
        with warnings.catch_warnings():  # the limit below is the one that counts
            warnings.simplefilter("ignore")
            image = pillow.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise DeltatuneError(
            f"cannot read the image {path}: it holds none of {', '.join(FORMATS)}; convert it to one of them"
        ) from None
    except Exception as error:
        raise DeltatuneError(f"cannot read the image {path}: {first_line(error)}") from None
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width:,} x {image.height:,} pixels"
        image.close()
        raise DeltatuneError(f"cannot read the image {path}: it has {size}, more than {MOST_PIXELS:,}; scale it down")
    return image


def _upright(image: Image) -> Image:
    """The image turned and mirrored as its EXIF orientation says."""
    from PIL import ImageOps

    with warnings.catch_warnings():  # of damaged metadata beside good pixels
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)


def _rgb(image: Image, path: Path) -> Image:
    """The image in mode RGB."""
    pillow = pillow_image()
    if image.mode.startswith("I"):  # 16 bits, of which a plain conversion would keep the lowest 255 values alone
        import numpy as np

        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise DeltatuneError(f"cannot read the image {path}: its values are beyond 16 bits; save it with 8")
        grey: Image = pillow.fromarray(((values + 128) // 257).astype(np.uint8))
        return grey.convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = pillow.new("RGBA", pixels.size, (255, 255, 255, 255))
        below: Image = pillow.alpha_composite(white, pixels)
        return below.convert("RGB")
    return image.convert("RGB")


def pillow_image() -> Any:
    """Pillow's module `Image`. Raises DeltatuneError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise DeltatuneError(f"images need Pillow. Install it: {INSTALL}") from None
    return Image
