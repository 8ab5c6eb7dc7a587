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
from mae_bench.randomness import random_uniform

_TRUNCATION = 3.0
"""Standard deviations after which the Gaussian that smooths the field is cut."""


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:
    """Elastic transform with the ``parameters`` of a severity, in the order of their table."""
    alpha, sigma, affine = parameters
    height, width = images.shape[-2:]
    corners = _symmetric(setting, 6, f"{name}_affine").view(len(images), 3, 2)
    noise = _symmetric(setting, 2 * height * width, name).view(len(images), 2, height, width)
    moved = displaced(affine_mapped(images.float(), affine * corners), displacement(noise, alpha, sigma))
    return moved.clamp(0, 1).to(images.dtype)


def _symmetric(setting: Setting, count: int, stream: str) -> Tensor:
    """(B, count) uniform on [-1, 1)."""
    return 2 * random_uniform(setting.keys, count, setting.seed, stream) - 1


def affine_mapped(images: Tensor, shifts: Tensor) -> Tensor:
    """``images`` under the affine maps that move three points, two thirds of a side apart, by ``shifts`` (B, 3, 2)
    pixels in x and y; bilinear, borders mirrored.

    OpenCV before its fifth version, which the published set was made with, rounds the places that pixels are taken
    from to 1/32 pixel; these are exact. On a photograph of 224 pixels that is 0.1 of 255 levels on average.
    """
    height, width = images.shape[-2:]
    # as published: half the height is taken for the middle in x, too, which is so for square images
    middle, reach = torch.tensor([height // 2, width // 2], device=images.device), min(height, width) // 3
    signs = torch.tensor([[1, 1], [1, -1], [-1, -1]], device=images.device)
    first, second, third = (middle + reach * signs + shifts.double()).unbind(1)
    down, left = (first - second)[:, None, None], (third - second)[:, None, None]
    from_second = _pixel_places(images).double() - second[:, None, None]
    # a place is a sum of the two sides at the second point, and comes from the same sum before they were moved
    area = _cross(down, left)
    share_down, share_left = _cross(from_second, left) / area, _cross(down, from_second) / area
    x = middle[0] + reach * (1 - 2 * share_left)
    y = middle[1] + reach * (2 * share_down - 1)
    return _bilinear(images, x, y, "mirror")


def displacement(noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """(B, 2, H, W) pixels in x and y: ``noise`` smoothed with a Gaussian of ``sigma`` pixels, times ``alpha``."""
    return alpha * gaussian_filter(noise, sigma, "reflect", _TRUNCATION)


def displaced(images: Tensor, displacement: Tensor) -> Tensor:
    """``images`` whose pixels are taken from ``displacement`` (B, 2, H, W) pixels away in x and y; bilinear, borders
    reflected.
    """
    x, y = (_pixel_places(images) + displacement.movedim(1, -1)).unbind(-1)
    return _bilinear(images, x, y, "reflect")


def _pixel_places(images: Tensor) -> Tensor:
    """(H, W, 2): x and y of every pixel."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)


def _cross(one: Tensor, other: Tensor) -> Tensor:
    """(...): the area that two vectors (..., 2) span."""
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]


def _bilinear(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """Values of ``images`` at the places ``x`` and ``y`` (B, H, W) in pixels; borders ``reflect`` or ``mirror`` in
    scipy's naming.
    """
    height, width = images.shape[-2:]
    # from -1 to 1 between the outer pixels' centres, about which is mirrored, or their edges, about which is reflected
    centres = border == "mirror"
    grid = torch.stack(
        [
            2 * place / (side - 1) - 1 if centres else (2 * place + 1) / side - 1
            for place, side in ((x, width), (y, height))
        ],
        dim=-1,
    )
    return grid_sample(images, grid.float(), mode="bilinear", padding_mode="reflection", align_corners=centres)
