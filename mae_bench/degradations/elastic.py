"""The elastic transform of ImageNet-C: a random affine map, then every pixel moved by a smooth random field.

Images are (B, C, H, W) in [0, 1]; computation is in float32 and the dtype is kept. Source: Hendrycks and Dietterich
2019, arXiv 1903.12261, and the code that made the set; the field is that of Simard et al. 2003, ICDAR.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from mae_bench.degradations import Setting
from mae_bench.degradations.blur import gaussian_filter
from mae_bench.degradations.parts import by_parts
from mae_bench.randomness import random_uniform

_TRUNCATION = 3.0
"""Standard deviations after which the Gaussian that smooths the field is cut."""


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:
    """Elastic transform with the ``parameters`` of a severity, in the order of their table."""
    alpha, sigma, affine = parameters
    height, width = images.shape[-2:]
    corners = _symmetric(setting, 6, f"{name}_affine").view(len(images), 3, 2)
    noise = _symmetric(setting, 2 * height * width, name).view(len(images), 2, height, width)
    field, shifts = displacement(noise, alpha, sigma), affine * corners
    return by_parts(
        images, lambda part: displaced(affine_mapped(images[part].float(), shifts[part]), field[part]).clamp_(0, 1)
    )


def _symmetric(setting: Setting, count: int, stream: str) -> Tensor:
    """(B, count) uniform on [-1, 1)."""
    return random_uniform(setting.keys, count, setting.seed, stream).mul_(2).sub_(1)


def affine_mapped(images: Tensor, shifts: Tensor) -> Tensor:
    """``images`` under the affine maps that move three points, two thirds of a side apart, by ``shifts`` (B, 3, 2)
    pixels in x and y; bilinear, borders mirrored.

    OpenCV before its fifth version, which the published set was made with, rounds the places that pixels are taken
    from to 1/32 pixel; these are exact. On a photograph of 224 pixels that is 0.1 of 255 levels on average.
    """
    height, width = images.shape[-2:]
    # as published, half the height is taken for the middle in x, too, which is so for square images
    middle, reach = torch.tensor([height // 2, width // 2], device=images.device), min(height, width) // 3
    signs = torch.tensor([[1, 1], [1, -1], [-1, -1]], device=images.device)
    first, second, third = (middle + reach * signs + shifts.double()).unbind(1)
    down_x, down_y = (first - second)[:, :, None, None].unbind(1)
    left_x, left_y = (third - second)[:, :, None, None].unbind(1)
    columns, rows = (
        places - start[:, None, None] for places, start in zip(_pixel_places(images), second.unbind(1), strict=True)
    )
    # a place is a sum of the two sides at the second point, and comes from the same sum before they were moved; each
    # is as much further along a row as it is along another
    area = down_x * left_y - down_y * left_x
    x = middle[0] + reach * (1 - 2 * (down_x * rows) / area) + (2 * reach * down_y * columns) / area
    y = middle[1] - reach * (1 + 2 * (left_x * rows) / area) + (2 * reach * left_y * columns) / area
    return _bilinear(images, x, y, "mirror")


def displacement(noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """(B, 2, H, W) pixels in x and y: ``noise`` smoothed with a Gaussian of ``sigma`` pixels, times ``alpha``."""
    return gaussian_filter(noise, sigma, "reflect", _TRUNCATION).mul_(alpha)


def displaced(images: Tensor, displacement: Tensor) -> Tensor:
    """``images`` whose pixels are taken from ``displacement`` (B, 2, H, W) pixels away in x and y; bilinear, borders
    reflected.
    """
    x, y = (places + moved for places, moved in zip(_pixel_places(images), displacement.unbind(1), strict=True))
    return _bilinear(images, x, y, "reflect")


def _pixel_places(images: Tensor) -> tuple[Tensor, Tensor]:
    """(1, W) and (H, 1): x and y of every pixel."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    return columns[None], rows[:, None]


def _bilinear(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """Values of ``images`` at the places ``x`` and ``y`` (B, H, W) in pixels; borders ``reflect`` or ``mirror`` in
    scipy's naming.
    """
    height, width = images.shape[-2:]
    # from -1 to 1 between the outer pixels' centres, about which is mirrored, or their edges, about which is reflected
    centres = border == "mirror"
    grid = torch.empty(*x.shape, 2, device=images.device)
    for axis, (place, side) in enumerate(((x, width), (y, height))):
        grid[..., axis] = 2 * place / (side - 1) - 1 if centres else (2 * place + 1) / side - 1
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=centres)
