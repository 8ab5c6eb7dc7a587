"""Weather of ImageNet-C: fog, frost, snow, brightness and, of the four extra corruptions, spatter.

Images are (B, C, H, W) in [0, 1], C = 1 or 3; computation is in float32 and the dtype is kept. What is drawn at random
(a plasma map, a texture, a layer) is a function of the image's key and the seed alone, and is then applied by functions
that draw nothing. On images of one channel a colour is its luma. Source: Hendrycks and Dietterich 2019, arXiv
1903.12261, and the code that made the set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from mae_bench.degradations import Setting
from mae_bench.degradations.blur import clipped_zoom, directional_blur, gaussian_filter
from mae_bench.degradations.frost import frost_texture, photograph_scale
from mae_bench.degradations.parts import by_parts
from mae_bench.randomness import random_normal, random_uniform

_LUMA = (0.299, 0.587, 0.114)
_PALE_TURQUOISE = (175 / 255, 238 / 255, 238 / 255)
_MUD_BROWN = (63 / 255, 42 / 255, 20 / 255)

_TRUNCATION = 4.0
"""Standard deviations after which a Gaussian kernel is cut."""


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:
    """Weather ``name`` with the ``parameters`` of a severity, in the order of their table."""
    pixels, keys, seed = images.float(), setting.keys, setting.seed
    height, width = images.shape[-2:]
    if name == "fog":
        amount, decay = parameters
        mapsize = 2 ** math.ceil(math.log2(max(height, width)))
        plasma = plasma_fractal(keys, seed, mapsize, decay)
        corrupted = by_parts(pixels, lambda part: fog(pixels[part], amount, plasma[part]))
    elif name == "frost":
        image_weight, frost_weight = parameters
        texture = frost_texture(keys, seed, (height, width), photograph_scale(min(height, width)))
        corrupted = frost(pixels, image_weight, frost_weight, texture)
    elif name == "brightness":
        (added,) = parameters
        corrupted = brightness(pixels, added)
    else:
        loc, scale = parameters[:2]
        noise = loc + scale * random_normal(keys, height * width, seed, name).view(-1, 1, height, width)
        if name == "snow":
            zoom, threshold, radius, sigma, mix = parameters[2:]
            angle = 90 * random_uniform(keys, 1, seed, "snow_angle")[:, 0] - 135
            layer = snow_layer(noise, zoom, threshold, radius, sigma, angle)
            corrupted = by_parts(pixels, lambda part: snow(pixels[part], mix, layer[part]))
        else:
            sigma, threshold, mix, mud = parameters[2:]
            layer = liquid_layer(noise, sigma, threshold)
            corrupted = spattered_mud(pixels, layer, mix) if mud else spattered_water(pixels, layer, mix)
    return corrupted.clamp_(0, 1).to(images.dtype)


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W): how bright ``images`` of one or three channels look.

    >>> luma(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).item()
    0.29899999499320984
    """
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def _colour(colour: tuple[float, ...], images: Tensor) -> Tensor:
    """(1, C, 1, 1): ``colour`` in the channels of ``images``."""
    wide = images.new_tensor(colour).view(1, 3, 1, 1)
    return luma(wide) if images.shape[1] == 1 else wide


def fog(images: Tensor, amount: float, plasma: Tensor) -> Tensor:
    """``amount`` of a ``plasma`` (B, side, side) map in [0, 1], at least as large as the images, added to them, and the
    sum scaled so that an image gets no lighter than its lightest pixel.

    >>> fog(torch.full((1, 1, 2, 2), 0.5), 1.5, torch.eye(4)[None])
    tensor([[[[0.5000, 0.1250],
              [0.1250, 0.5000]]]])
    """
    height, width = images.shape[-2:]
    highest = images.amax((1, 2, 3), keepdim=True)
    return images.add(amount * plasma[:, None, :height, :width]).mul_(highest).div_(highest + amount)


def plasma_fractal(keys: Tensor, seed: int, mapsize: int, decay: float) -> Tensor:
    """(B, mapsize, mapsize) height maps in [0, 1] by the diamond-square algorithm (Fournier et al. 1982,
    doi:10.1145/358523.358553) on a torus: a point half-way between others is their mean plus a uniform number, whose
    range is divided by the square of ``decay`` each time the points get twice as dense.

    Args:
        mapsize: a power of two.
    """
    uniform = random_uniform(keys, mapsize**2 - 1, seed, "plasma_fractal")
    corners = torch.zeros(len(keys), 1, 1, device=keys.device)
    reach, used = 1.0, 0
    while (points := corners.shape[1]) < mapsize:
        drawn = uniform[:, used : used + 3 * points**2].view(-1, 3, points, points)
        wobble = drawn.mul(2).sub_(1).mul_(reach)
        right, below = corners.roll(-1, 2), corners.roll(-1, 1)
        centres = (corners + right).add_(below).add_(right.roll(-1, 1)).div_(4).add_(wobble[:, 0])
        tops = right.add_(corners).add_(centres).add_(centres.roll(1, 1)).div_(4).add_(wobble[:, 1])
        lefts = below.add_(corners).add_(centres).add_(centres.roll(1, 2)).div_(4).add_(wobble[:, 2])
        finer = torch.empty(len(keys), 2 * points, 2 * points, device=keys.device)
        finer[:, 0::2, 0::2], finer[:, 0::2, 1::2] = corners, tops
        finer[:, 1::2, 0::2], finer[:, 1::2, 1::2] = lefts, centres
        corners = finer
        used += 3 * points**2
        # the published code multiplies a number by the range that it is drawn from
        reach /= decay**2
    lowest, highest = corners.amin((1, 2), keepdim=True), corners.amax((1, 2), keepdim=True)
    return corners.sub_(lowest).div_(highest - lowest)


def frost(images: Tensor, image_weight: float, frost_weight: float, texture: Tensor) -> Tensor:
    """Weighted sum of the images and of a ``texture`` (B, 3, H, W) of frost."""
    return image_weight * images + frost_weight * (luma(texture) if images.shape[1] == 1 else texture)


def brightness(images: Tensor, added: float) -> Tensor:
    """``added`` to the value of each pixel in HSV, its highest channel, at most to 1; hue and saturation are kept, and
    black becomes grey.

    >>> brightness(torch.tensor([0.5, 0.25, 0.0]).view(1, 3, 1, 1), 0.3).flatten()
    tensor([0.8000, 0.4000, 0.0000])
    """
    value = images.amax(1, keepdim=True)
    return torch.where(value > 0, images / value, 1.0) * (value + added).clamp(max=1)


def snow_layer(noise: Tensor, zoom: float, threshold: float, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Flakes (B, 1, H, W) in [0, 1] in steps of 1/255: the middle of ``noise`` enlarged ``zoom`` times, what is below
    ``threshold`` removed, and blurred as by motion towards ``angle`` (B,) degrees.
    """
    flakes = clipped_zoom(noise, zoom)
    # 1 where the comparison holds and 0 elsewhere: by arithmetic, which is faster than to choose where it holds
    flakes = flakes.ge(threshold).float().mul_(flakes).clamp_(0, 1)
    blurred = directional_blur(flakes.mul_(255).floor_().div_(255), radius, sigma, angle)
    # as ImageMagick, which rounds to 16 bits and stores the upper 8
    return blurred.mul_(255).add_(0.5 / 257).floor_().div_(255)


def snow(images: Tensor, mix: float, layer: Tensor) -> Tensor:
    """Images paled, 1 - ``mix`` of each pixel being as light as 1/2 plus 3/2 of its luma, with ``layer`` (B, 1, H, W)
    and the same turned by half a circle added.
    """
    paled = torch.maximum(images, 1.5 * luma(images) + 0.5).mul_(1 - mix).add_(mix * images)
    return paled.add_(layer).add_(layer.flip(-2, -1))


def liquid_layer(noise: Tensor, sigma: float, threshold: float) -> Tensor:
    """``noise`` (B, 1, H, W) smoothed by a Gaussian of ``sigma`` pixels, what is below ``threshold`` removed."""
    smoothed = gaussian_filter(noise, sigma, "nearest", _TRUNCATION)
    return torch.where(smoothed < threshold, 0, smoothed)


def spattered_mud(images: Tensor, layer: Tensor, rim: float) -> Tensor:
    """Images under brown mud wherever ``layer`` (B, 1, H, W) is not 0, softened by a Gaussian of ``rim`` pixels."""
    cover = gaussian_filter((layer > 0).float(), rim, "nearest", _TRUNCATION)
    cover = torch.where(cover < 0.8, 0, cover)
    return images * (1 - cover) + cover * _colour(_MUD_BROWN, images)


def spattered_water(images: Tensor, layer: Tensor, opacity: float) -> Tensor:
    """Images with drops of pale turquoise water where ``layer`` (B, 1, H, W) is not 0, lit from one side as told by the
    distance to their rims; ``opacity`` is that of the brightest point. Where there is no drop the image is kept.
    """
    # a layer above 1 wraps around in 8 bits, as in the published code
    levels = (layer * 255).floor() % 256
    depth = chamfer_distance(canny(levels, 50, 150), limit=20)
    depth = equalized(_mean3(depth).floor())
    relief = depth.new_tensor([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = conv2d(pad(depth, (1, 1, 1, 1), mode="reflect"), relief[None, None]).clamp(0, 255)
    drops = levels * _mean3(lit).round()
    highest = drops.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return images + drops / highest * opacity * _colour(_PALE_TURQUOISE, images)


def _mean3(images: Tensor) -> Tensor:
    """Mean over squares of 3 x 3 pixels, borders mirrored."""
    return avg_pool2d(pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)


def canny(grey: Tensor, low: float, high: float) -> Tensor:
    """(B, 1, H, W) True on the edges of ``grey`` (B, 1, H, W), whole numbers from 0 to 255, to the pixel as
    ``cv2.Canny(grey, low, high)`` finds them (Canny 1986, doi:10.1109/TPAMI.1986.4767851): local maxima, across the
    edge, of the Sobel gradient's length (the sum of its absolute components) that are above ``high``, or above ``low``
    and connected to such by no more than 8 of their like.
    """
    around = pad(grey, (1, 1, 1, 1), mode="replicate")
    across = around[..., 2:] - around[..., :-2]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down = around[..., 2:, :] - around[..., :-2, :]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    flat, steep = across.abs(), down.abs()
    length = flat + steep
    above, beside, below = _neighbours(length, 0)
    # tangent of 22.5 degrees as a fraction of 2**15, as cv2 has it; that of 67.5 degrees is 2 more
    tangent = flat * (13573 / 2**15)
    peak = torch.where(
        steep < tangent,
        (length > beside[0]) & (length >= beside[2]),
        torch.where(
            steep - 2 * flat > tangent,
            (length > above[1]) & (length >= below[1]),
            torch.where(
                (across < 0) == (down < 0),
                (length > above[0]) & (length > below[2]),
                (length > above[2]) & (length > below[0]),
            ),
        ),
    )
    candidate = peak & (length > low)
    edge = candidate & (length > high)
    for _ in range(8):
        rows = [left | centre | right for left, centre, right in _neighbours(edge, False)]
        edge = (rows[0] | rows[1] | rows[2]) & candidate
    return edge


def _neighbours(images: Tensor, border: float) -> list[list[Tensor]]:
    """The nine neighbours of each pixel, itself in the middle, by rows; outside of the image is ``border``."""
    height, width = images.shape[-2:]
    around = pad(images, (1, 1, 1, 1), value=border)
    return [[around[..., y : y + height, x : x + width] for x in range(3)] for y in range(3)]


def chamfer_distance(edges: Tensor, limit: float) -> Tensor:
    """Distance of each pixel of ``edges`` (B, 1, H, W) to the nearest that is True, at most ``limit``: along steps to
    the 5 x 5 pixels around (Borgefors 1986, doi:10.1016/S0734-189X(86)80047-0), as ``cv2.distanceTransform`` measures.

    A shortest way is the same in any order of its steps, so each direction is taken at once, at doubling lengths.
    """
    distance = torch.where(edges, 0.0, limit)
    for down, right, cost in (
        (0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.4), (1, -1, 1.4),
        (1, 2, 2.1969), (2, 1, 2.1969), (1, -2, 2.1969), (2, -1, 2.1969),
    ):  # fmt: skip
        steps = 1
        while steps * cost < limit:
            y, x = steps * down, steps * right
            nearer = torch.minimum(*(pad(distance, (a, -a, b, -b), value=limit) for a, b in ((x, y), (-x, -y))))
            distance = torch.minimum(distance, nearer + steps * cost)
            steps *= 2
    return distance


def equalized(levels: Tensor) -> Tensor:
    """``levels`` (B, 1, H, W), whole numbers from 0 to 255, spread so that all are about equally frequent in an image,
    as ``cv2.equalizeHist``: the lowest becomes 0, the highest 255, unless there is but one.
    """
    index = levels.long().flatten(1)
    frequency = torch.zeros(len(levels), 256, dtype=torch.long, device=levels.device)
    frequency = frequency.scatter_add_(1, index, torch.ones_like(index)).cumsum(1)
    lowest = torch.where(frequency > 0, frequency, index.shape[1]).amin(1, keepdim=True)
    others = (index.shape[1] - lowest).float()
    spread = ((frequency - lowest) * (torch.full_like(others, 255) / others)).round()
    spread = torch.where(others > 0, spread, torch.arange(256, device=levels.device))
    return spread.gather(1, index).view_as(levels)
