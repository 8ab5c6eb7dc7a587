"""Blurs of image batches: kernels in pixels with reflected borders, and the blurs that ImageNet-C was made with.

Images are (B, C, H, W) in [0, 1]; computation is in float32 and the dtype is kept. :func:`degrade` applies
``gaussian_blur``, ``box_blur``, ``motion_blur`` and ``defocus_blur``, whose kernels are normalised, so that a constant
image stays constant. :func:`corrupt` applies what the published severities mean (Hendrycks and Dietterich 2019, arXiv
1903.12261, and the code that made the set): ``gaussian_filter``, ``disk_blur``, ``glass_blur``, ``directional_blur``
and ``zoom_blur``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from mae_bench.cells import Level
from mae_bench.degradations import Setting
from mae_bench.degradations.convolution import (
    Method,
    Size,
    correlation,
    correlation_method,
    separable,
    separable_method,
)
from mae_bench.degradations.parts import by_parts, parts
from mae_bench.degradations.severity import LARGE, SEVERITIES
from mae_bench.randomness import random_uniform, random_words

_TRUNCATION = 4.0
"""Standard deviations after which a Gaussian kernel is cut."""

_SMALLEST_SIGMA = 0.05
"""Below this the weight of a neighbouring pixel, exp(-200), vanishes in float32."""

_DOUBLINGS = 6
"""How often the length of the chain of pixels is doubled along which glass blur copies: up to 64 links."""


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


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:
    """Blur ``name`` of ImageNet-C with the ``parameters`` of a severity, in the order of their table."""
    pixels, keys, seed = images.float(), setting.keys, setting.seed
    if name == "gaussian_blur":
        (sigma,) = parameters
        blurred = gaussian_filter(pixels, sigma, "nearest", _TRUNCATION)
    elif name == "defocus_blur":
        radius, alias = parameters
        blurred = disk_blur(pixels, radius, alias)
    elif name == "glass_blur":
        sigma, max_delta, iterations = parameters
        size = (images.shape[-2], images.shape[-1])
        right, below = glass_offsets(keys, seed, int(max_delta), int(iterations), size)
        blurred = glass_blur(pixels, sigma, int(max_delta), right, below)
    elif name == "motion_blur":
        radius, sigma = parameters
        angle = 90 * random_uniform(keys, 1, seed, "motion_blur")[:, 0] - 45
        blurred = directional_blur(pixels, radius, sigma, angle)
    else:
        stop, step = parameters
        blurred = zoom_blur(pixels, np.arange(1, stop, step).tolist())
    return _pixels(blurred, images)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of standard deviation ``sigma`` pixels, cut at four of them.

    Raises:
        ValueError: ``sigma`` is negative.

    >>> gaussian_blur(torch.full((1, 1, 8, 8), 0.25), 1.5).mean()
    tensor(0.2500)
    """
    if _is_identity("sigma", sigma) or sigma < _SMALLEST_SIGMA:
        return images
    kernel = gaussian_kernel(sigma, _radius(_TRUNCATION * sigma, _size(images)))
    return _pixels(separable(images.float(), kernel, "mirror", separable_method(images.device, "kornia")), images)


def box_blur(images: Tensor, side: float) -> Tensor:
    """Mean over a square of ``side`` pixels; where the square ends within a pixel, that pixel counts in part.

    Raises:
        ValueError: ``side`` is negative.
    """
    if _is_identity("side", side) or side <= 1:
        return images
    radius = _radius((side - 1) / 2, _size(images))
    offset = np.abs(np.arange(-radius, radius + 1))
    kernel = _normalised((side / 2 + 0.5 - offset).clip(0, 1))
    return _pixels(separable(images.float(), kernel, "mirror", separable_method(images.device, "kornia")), images)


def defocus_blur(images: Tensor, radius: float) -> Tensor:
    """Mean over a disk of ``radius`` pixels, the point-spread function of a lens out of focus; its rim is
    weighted linearly over one pixel.

    Raises:
        ValueError: ``radius`` is negative.
    """
    if _is_identity("radius", radius):
        return images
    kernel = _rimmed_disk(radius, _size(images))
    return _pixels(_disk_correlation(images.float(), kernel, "kornia"), images)


def _rimmed_disk(radius: float, size: Size) -> Tensor:
    extent = _radius(radius + 0.5, size)
    offset = torch.arange(-extent, extent + 1, dtype=torch.float32)
    kernel = (radius + 0.5 - torch.hypot(offset[:, None], offset)).clamp(0, 1)
    return kernel / kernel.sum()


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
    extent = _radius(half + 1, _size(images))
    samples = 8 * math.ceil(length) + 1
    position = torch.linspace(-half, half, samples, device=images.device)
    x = (angle.cos()[:, None] * position).clamp(-extent, extent)
    y = (angle.sin()[:, None] * position).clamp(-extent, extent)
    offset = torch.arange(-extent, extent + 1, device=images.device, dtype=torch.float32)
    along_x = (1 - (x[..., None] - offset).abs()).clamp(min=0)
    along_y = (1 - (y[..., None] - offset).abs()).clamp(min=0)
    kernel = torch.einsum("bsy,bsx->byx", along_y, along_x)
    kernel /= kernel.sum((1, 2), keepdim=True)
    method = correlation_method(_weights_of_line(extent), True, _size(images), images.device, "kornia")
    return _pixels(correlation(images.float(), kernel, "mirror", method), images)


def _weights_of_line(extent: int) -> int:
    """How many pixels at most share a line that reaches ``extent`` pixels to either side."""
    return 3 * (2 * extent + 1)


def method_of(name: str, level: Level, size: Size, device: torch.device, reference_size: int = LARGE) -> Method | None:
    """By which method the pixels around each are summed when ``name`` blurs images of ``size`` (H, W) at ``level``: the
    plain kernel in pixels of an image of ``reference_size``, or ImageNet-C's blur of a severity. None where nothing is
    summed that way.

    >>> method_of("gaussian_blur", Level(4.0), (224, 224), torch.device("cpu"))
    'toeplitz'
    >>> method_of("motion_blur", Level(3.0, severity=True), (224, 224), torch.device("cpu"))
    'shift-and-add'
    """
    if level.severity:
        parameters = SEVERITIES[name].at(level.value, min(size))
        if name == "defocus_blur":
            kernel = _softened_disk(parameters[0], parameters[1])
            return correlation_method(int(kernel.count_nonzero()), False, size, device, "fft")
        if name == "motion_blur":
            return correlation_method(_steps_ahead(parameters[0]) + 1, True, size, device, "fft")
        return "toeplitz" if name in ("gaussian_blur", "glass_blur") else None
    pixels = level.value * min(size) / reference_size
    if name == "defocus_blur":
        kernel = _rimmed_disk(pixels, size)
        return correlation_method(int(kernel.count_nonzero()), False, size, device, "kornia")
    if name == "motion_blur":
        weights = _weights_of_line(_radius((pixels - 1) / 2 + 1, size))
        return correlation_method(weights, True, size, device, "kornia")
    return separable_method(device, "kornia") if name in ("gaussian_blur", "box_blur") else None


def gaussian_kernel(sigma: float, radius: int) -> tuple[float, ...]:
    """The weights of ``2 * radius + 1`` pixels, which sum to 1.

    >>> [round(weight, 4) for weight in gaussian_kernel(0.5, 1)]
    [0.1065, 0.787, 0.1065]
    """
    return _normalised(np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2))


def _normalised(weights: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple((weights / weights.sum()).tolist())


def gaussian_filter(images: Tensor, sigma: float, border: str, truncate: float) -> Tensor:
    """What ``scipy.ndimage.gaussian_filter`` makes of each channel of float32 ``images``, of whatever range: kernels
    cut at ``truncate`` standard deviations, borders ``nearest``, ``reflect`` or ``mirror`` in scipy's naming.

    >>> gaussian_filter(torch.eye(3)[None, None], 0.5, "nearest", 1.0)[0, 0, 0]
    tensor([0.8097, 0.1790, 0.0113])
    """
    if sigma <= 1e-15:
        return images.clone()
    return separable(images, gaussian_kernel(sigma, int(truncate * sigma + 0.5)), border, "toeplitz")


def disk_blur(images: Tensor, radius: float, alias: float) -> Tensor:
    """The defocus blur of ImageNet-C: mean over the pixels of a disk of ``radius``, its rim softened by a Gaussian of
    standard deviation ``alias`` over 3 x 3 pixels, or 5 x 5 beyond a radius of 8; borders mirrored.
    """
    return _disk_correlation(images, _softened_disk(radius, alias), "fft")


def _softened_disk(radius: float, alias: float) -> Tensor:
    extent, reach = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    offset = torch.arange(-extent, extent + 1)
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).float()
    # a kernel of `reach` taps to each side, whatever its deviation
    return gaussian_filter((disk / disk.sum())[None, None], alias, "mirror", reach / alias)[0, 0]


def _disk_correlation(images: Tensor, kernel: Tensor, elsewhere: Method) -> Tensor:
    method = correlation_method(int(kernel.count_nonzero()), False, _size(images), images.device, elsewhere)
    return correlation(images, kernel[None].to(images.device), "mirror", method)


def glass_offsets(
    keys: Tensor, seed: int, max_delta: int, iterations: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How far right of and below each pixel another one is taken, in each iteration: (B, iterations, H, W) integers
    uniform on -max_delta to max_delta - 1.
    """
    right, below = torch.empty(2, len(keys), iterations, *size, dtype=torch.int32, device=keys.device)
    for part in parts(right):
        # a fraction times the choices: its integer part is one number, and what is left of it gives the next
        words = random_words(keys[part], iterations * size[0] * size[1], seed, "glass_blur").mul_(2 * max_delta)
        right[part].flatten(1).copy_(words >> 32).sub_(max_delta)
        words.bitwise_and_(0xFFFFFFFF).mul_(2 * max_delta).bitwise_right_shift_(32)
        below[part].flatten(1).copy_(words).sub_(max_delta)
    return right, below


def glass_blur(images: Tensor, sigma: float, max_delta: int, right: Tensor, below: Tensor) -> Tensor:
    """The glass blur of ImageNet-C: a Gaussian blur, cut to 8 bits, pixels replaced by others near them, once for each
    iteration, of which there is one at least, of the offsets ``right`` and ``below`` (B, iterations, H, W), and blurred
    again.
    """
    # the little that is added keeps a surface of one colour the same, however its weighted sum is rounded
    levels = gaussian_filter(images, sigma, "nearest", _TRUNCATION).mul_(255).add_(1e-4).floor_()

    def replaced(part: slice) -> Tensor:
        first, *others = (_sources(max_delta, right[part, turn], below[part, turn]) for turn in range(right.shape[1]))
        # where the pixels of the last iteration come from in the end
        sources = reduce(lambda before, source: before.index_select(0, source), others, first)
        channels = levels[part].transpose(0, 1)
        return channels.flatten(1).index_select(1, sources).view_as(channels).transpose(0, 1).div_(255)

    return gaussian_filter(by_parts(levels, replaced), sigma, "nearest", _TRUNCATION)


def _sources(margin: int, right: Tensor, below: Tensor) -> Tensor:
    """(B * H * W,) int32: of which pixel of all images each one is a copy when one pixel after the other, from the last
    to the first, but for a ``margin`` has become a copy of that ``right`` of and ``below`` it (B, H, W).

    The published code means to swap the two, but its assignment between views of one array copies. What is taken from
    a later pixel is what that one has become by then, and so on along a chain, which is followed in steps of doubling
    length. Fewer than half of all offsets lead to a later pixel: a longer chain than is followed has a probability
    below 2**-64.
    """
    height, width = right.shape[1:]
    row, column = (torch.arange(side, device=right.device) for side in (height, width))
    rows, columns = ((line > margin) & (line <= side - margin) for line, side in ((row, height), (column, width)))
    offset = (below * width).add_(right).mul_(rows[:, None] & columns).int().flatten()
    place = torch.arange(len(offset), device=right.device, dtype=torch.int32)
    source = offset.add_(place)
    # what does not change is its own source, and ends a chain as an earlier source does
    end = torch.maximum(source, place)
    for _ in range(_DOUBLINGS):
        end = end.index_select(0, end)
    return source.index_select(0, end)


def directional_blur(images: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """The motion blur of ImageNet-C, which is ImageMagick's: the mean of each pixel and of twice ``radius`` pixels
    ahead of it along a line at ``angle`` (B,) degrees, clockwise from the right, weighted by one half of a Gaussian of
    standard deviation ``sigma``; borders repeated.

    ImageMagick cuts its result to 8 bits, which is not done here.
    """
    extent = _steps_ahead(radius)
    taps = torch.arange(extent + 1, device=images.device)
    weight = (-0.5 * (taps.double() / sigma) ** 2).exp()
    weight = (weight / weight.sum()).float().expand(len(images), -1)
    radians, side = angle.double().deg2rad()[:, None], 2 * extent + 1
    x, y = ((taps * step - 0.5).ceil().long() + extent for step in (radians.cos(), radians.sin()))
    kernel = torch.zeros(len(images), side * side, device=images.device).scatter_add_(1, y * side + x, weight)
    method = correlation_method(extent + 1, True, _size(images), images.device, "fft")
    return correlation(images, kernel.view(-1, side, side), "nearest", method)


def _steps_ahead(radius: float) -> int:
    return 2 * math.ceil(radius)


def zoom_blur(images: Tensor, factors: Sequence[float]) -> Tensor:
    """The zoom blur of ImageNet-C: mean of the image and of its copies enlarged by ``factors``."""

    def mean(part: slice) -> Tensor:
        total = images[part].clone()
        for factor in factors:
            total += clipped_zoom(images[part], factor)
        return total.div_(len(factors) + 1)

    return by_parts(images, mean)


def clipped_zoom(images: Tensor, factor: float) -> Tensor:
    """The middle of ``images`` enlarged ``factor`` times, at least 1, to their own size: bilinearly, from the centre of
    the first to that of the last pixel, as ``scipy.ndimage.zoom`` of order 1.
    """
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    crops = [math.ceil(side / factor) for side in (height, width)]
    top, left = (height - crops[0]) // 2, (width - crops[1]) // 2
    middle = images[..., top : top + crops[0], left : left + crops[1]]
    size = [round(crop * factor) for crop in crops]
    zoomed = interpolate(middle, size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return zoomed[..., top : top + height, left : left + width]


def _is_identity(name: str, value: float) -> bool:
    if value < 0:
        raise ValueError(f"{name} is {value}: a blur needs a length of at least 0 pixels")
    return value == 0


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]


def _radius(extent: float, size: Size) -> int:
    """Whole pixels that hold ``extent``, no more than reflection at the border allows."""
    return min(max(1, math.ceil(extent)), min(size) - 1)


def _pixels(blurred: Tensor, images: Tensor) -> Tensor:
    """``blurred``, which nobody else holds, in the range and the dtype of ``images``."""
    return blurred.clamp_(0, 1).to(images.dtype)
