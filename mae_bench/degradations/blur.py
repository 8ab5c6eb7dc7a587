"""Blurs of image batches: gaussian, box, motion and defocus kernels, borders reflected.

Images are (B, C, H, W) in [0, 1]; computation is in float32 and the dtype is kept. Kernels are
normalised, so a constant image stays constant.
"""

from __future__ import annotations

import math

import torch
from kornia.filters import filter2d, filter2d_separable, gaussian_blur2d
from torch import Tensor

from mae_bench.degradations import Setting
from mae_bench.randomness import random_uniform

_TRUNCATION = 4.0
"""Standard deviations after which a Gaussian kernel is cut."""

_SMALLEST_SIGMA = 0.05
"""Below this the weight of a neighbouring pixel, exp(-200), vanishes in float32."""


def degrade(name: str, images: Tensor, level: float, setting: Setting) -> Tensor:
    """Blur ``name`` at ``level`` pixels of an image whose side is the reference size."""
    pixels = level * min(images.shape[-2:]) / setting.reference_size
    if name == "gaussian_blur":
        return gaussian_blur(images, pixels)
    if name == "box_blur":
        return box_blur(images, pixels)
    if name == "defocus_blur":
        return defocus_blur(images, pixels)
    angle = random_uniform(setting.keys, 1, setting.seed, "motion_blur")[:, 0] * math.pi
    return motion_blur(images, pixels, angle)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of standard deviation ``sigma`` pixels, cut at four of them.

    Raises:
        ValueError: ``sigma`` is negative.

    >>> gaussian_blur(torch.full((1, 1, 8, 8), 0.25), 1.5).unique()
    tensor([0.2500])
    """
    if _is_identity("sigma", sigma) or sigma < _SMALLEST_SIGMA:
        return images
    radius = _radius(_TRUNCATION * sigma, images)
    blurred = gaussian_blur2d(images.float(), 2 * radius + 1, (sigma, sigma), border_type="reflect")
    return _pixels(blurred, images)


def box_blur(images: Tensor, side: float) -> Tensor:
    """Mean over a square of ``side`` pixels; where the square ends within a pixel, that pixel counts in part.

    Raises:
        ValueError: ``side`` is negative.
    """
    if _is_identity("side", side) or side <= 1:
        return images
    radius = _radius((side - 1) / 2, images)
    offset = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32).abs()
    kernel = (side / 2 + 0.5 - offset).clamp(0, 1)
    kernel = (kernel / kernel.sum())[None]
    return _pixels(filter2d_separable(images.float(), kernel, kernel, border_type="reflect"), images)


def defocus_blur(images: Tensor, radius: float) -> Tensor:
    """Mean over a disk of ``radius`` pixels, the point-spread function of a lens out of focus; its rim is
    weighted linearly over one pixel.

    Raises:
        ValueError: ``radius`` is negative.
    """
    if _is_identity("radius", radius):
        return images
    extent = _radius(radius + 0.5, images)
    offset = torch.arange(-extent, extent + 1, device=images.device, dtype=torch.float32)
    distance = torch.hypot(offset[:, None], offset[None, :])
    kernel = (radius + 0.5 - distance).clamp(0, 1)
    return _pixels(filter2d(images.float(), kernel[None], border_type="reflect", normalized=True), images)


def motion_blur(images: Tensor, length: float, angle: Tensor) -> Tensor:
    """Mean along a centred straight line of ``length`` pixels at ``angle`` (B,) radians, one per image.

    The line is sampled at least eight times per pixel and each sample is shared bilinearly by the four
    pixels around it.

    Raises:
        ValueError: ``length`` is negative.
    """
    if _is_identity("length", length) or length <= 1:
        return images
    half = (length - 1) / 2
    extent = _radius(half + 1, images)
    samples = 8 * math.ceil(length) + 1
    position = torch.linspace(-half, half, samples, device=images.device)
    x = (angle.cos()[:, None] * position).clamp(-extent, extent)
    y = (angle.sin()[:, None] * position).clamp(-extent, extent)
    offset = torch.arange(-extent, extent + 1, device=images.device, dtype=torch.float32)
    along_x = (1 - (x[..., None] - offset).abs()).clamp(min=0)
    along_y = (1 - (y[..., None] - offset).abs()).clamp(min=0)
    kernel = torch.einsum("bsy,bsx->byx", along_y, along_x) / samples
    return _pixels(filter2d(images.float(), kernel, border_type="reflect", normalized=True), images)


def _is_identity(name: str, value: float) -> bool:
    if value < 0:
        raise ValueError(f"{name} is {value}: a blur needs a length of at least 0 pixels")
    return value == 0


def _radius(extent: float, images: Tensor) -> int:
    """Whole pixels that hold ``extent``, no more than reflection at the border allows."""
    return min(max(1, math.ceil(extent)), min(images.shape[-2:]) - 1)


def _pixels(blurred: Tensor, images: Tensor) -> Tensor:
    return blurred.clamp(0, 1).to(images.dtype)
