"""Convolutions as linear maps: of each patch of an image, as of each token of a text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernel:
    """The geometry of a convolution: which patches of an image (B, C, H, W) it maps, each of C·kh·kw values."""

    size: tuple[int, int]
    """Height kh and width kw."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def area(self) -> int:
        """Pixels of a patch."""
        return self.size[0] * self.size[1]

    def patches(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, C·kh·kw), a patch for each pixel of the output, as a weight (out, C·kh·kw) reads it.

        They take kh·kw times the memory of the image, but for a kernel of one pixel.
        """
        if self.size == self.stride == (1, 1) and self.padding == (0, 0):
            return as_tokens(image)
        return F.unfold(image, self.size, self.dilation, self.padding, self.stride).transpose(1, 2)

    def filtered(self, image: Tensor, weight: Tensor) -> Tensor:
        """The convolution of an image with a weight (out, C·kh·kw): (B, out, H', W')."""
        filters = weight.reshape(len(weight), -1, *self.size)
        return F.conv2d(image, filters, None, self.stride, self.padding, self.dilation)


def kernel_of(module: nn.Module) -> Kernel | None:
    """The geometry of a module that is such a convolution; None for others, also for those of groups of channels."""
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.padding_mode != "zeros":
        return None
    if isinstance(module.padding, str):
        return None
    size, stride, padding, dilation = (
        (int(pair[0]), int(pair[1])) for pair in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    return Kernel(size, stride, padding, dilation)


def as_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C), a view."""
    return image.flatten(2).transpose(1, 2)


def as_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, H·W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
