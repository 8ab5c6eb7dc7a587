"""The ten corruptions of ImageNet-C-bar, chosen for being unlike those of ImageNet-C.

Images are (B, C, H, W) in [0, 1], C = 1 or 3; computation on pixels is in float32 and the dtype is kept. Patterns are
computed in float64, since many turn the last bit of a number into a visible difference. Each corruption is a pair: what
is drawn from the images' keys and the seed, the same at every magnitude, and a function that draws nothing, of images,
a magnitude from 0 to 10 and the draws. Lengths are shares of the shorter side of an image. On images of one channel a
colour is its luma. Source: Mintun et al. 2021, arXiv 2102.11273, and the code that made the set; its last step, the cut
to 8 bits, is not done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from mae_bench.degradations import Setting
from mae_bench.degradations.weather import luma
from mae_bench.randomness import random_normal, random_uniform, random_words

Size = tuple[int, int]
Draws = tuple[Tensor, ...]

_GREY = 128 / 255

_RAYS = (50, 199)
"""Fewest and most rays of a sparkle."""

_LATTICE = 256
"""Gradients of Perlin's noise, and points of its lattice after which they begin anew."""


def corrupt(name: str, images: Tensor, parameters: tuple[float, ...], setting: Setting) -> Tensor:
    """Corruption ``name`` with the magnitude of a severity, the only one of the ``parameters``."""
    (magnitude,) = parameters
    draw, apply = _CORRUPTIONS[name]
    size = (images.shape[-2], images.shape[-1])
    corrupted = apply(images.float(), magnitude, *draw(setting.keys, setting.seed, size))
    return corrupted.clamp(0, 1).to(images.dtype)


def _uniform(keys: Tensor, seed: int, stream: str, *ranges: tuple[float, float]) -> Draws:
    """A float64 number (B,) for each of the ``ranges``, uniform from its first end, included, to its second."""
    numbers = random_uniform(keys, len(ranges), seed, stream).double()
    return tuple(start + (end - start) * numbers[:, i] for i, (start, end) in enumerate(ranges))


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """(H, 1) rows and (W,) columns of the pixels."""
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(side, device=images.device, dtype=torch.float64) for side in (height, width))
    return rows[:, None], columns


def _side(images: Tensor) -> int:
    return min(images.shape[-2:])


def _over_pixels(*draws: Tensor) -> Draws:
    """Numbers (B,) as (B, 1, 1), to be combined with those of pixels."""
    return tuple(draw[:, None, None] for draw in draws)


def _layer(pattern: Tensor, images: Tensor) -> Tensor:
    """A ``pattern``, (B, H, W) or of three colours (B, 3, H, W), that may be added to the images."""
    if pattern.ndim == 3:
        return pattern.float()[:, None]
    return luma(pattern.float()) if images.shape[1] == 1 else pattern.float()


def blue_sample_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """Phases of :func:`spectral_noise`."""
    return (_phases(keys, seed, "blue_sample", 1, size),)


def blue_sample(images: Tensor, magnitude: float, phases: Tensor) -> Tensor:
    """Pixels turned black where noise, whose amplitude is in proportion to the frequency, is lowest: below 0.3 times
    the magnitude less 2.5 standard deviations.

    Args:
        phases: (B, 1, H * W // 2) radians.
    """
    noise = spectral_noise(phases, _frequencies(images))
    return images * (noise > 0.3 * magnitude - 2.5)


def brownish_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """Phases of :func:`spectral_noise`."""
    return (_phases(keys, seed, "brownish", 3, size),)


def brownish(images: Tensor, magnitude: float, phases: Tensor) -> Tensor:
    """Noise added in each colour by itself, of standard deviation 1/40 for each step of the magnitude, whose amplitude
    falls with the square of the frequency.

    Args:
        phases: (B, 3, H * W // 2) radians.
    """
    noise = spectral_noise(phases, 1 / (_frequencies(images) ** 2 + 1))
    return images + magnitude * 6.4 / 255 * _layer(noise, images)


def _phases(keys: Tensor, seed: int, stream: str, channels: int, size: Size) -> Tensor:
    numbers = random_uniform(keys, channels * (size[0] * size[1] // 2), seed, stream).double()
    return 2 * math.pi * numbers.view(len(keys), channels, -1)


def _frequencies(images: Tensor) -> Tensor:
    """(H, W) waves per shorter side, the lowest in the middle."""
    rows, columns = _places(images)
    height, width = images.shape[-2:]
    return torch.hypot(rows / height - 0.5, columns / width - 0.5) * _side(images)


def spectral_noise(phases: Tensor, amplitudes: Tensor) -> Tensor:
    """(B, C, H, W) noise of standard deviation 1 with ``amplitudes`` (H, W) of its frequencies, the lowest in the
    middle, and ``phases`` (B, C, H * W // 2) of the first half of them.

    As in the published code the second half has the phases of the first, turned by half a circle about the middle of
    the array; this is half a step beside the lowest frequency, and so the noise is the real part of a complex one.
    """
    height, width = amplitudes.shape
    middle = phases.new_zeros(*phases.shape[:-1], height * width % 2)
    mirrored = torch.cat((phases, middle, phases.flip(-1)), -1).view(*phases.shape[:-1], height, width)
    spectrum = torch.polar(amplitudes.expand_as(mirrored), mirrored).roll((height // 2, width // 2), (-2, -1))
    noise: Tensor = torch.fft.ifft2(spectrum).real
    return noise / noise.std((-2, -1), correction=0, keepdim=True)


_MOST_FOLDS = 6
"""How often a swirl of plasma is folded at most."""


def plasma_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """The time at which a swirl is looked at, how often it was folded, how sharply, and its scale in pixels."""
    ranges = ((0, 6 * math.pi), (4, _MOST_FOLDS + 1), (0.5, 1), (0.075 * min(size), 0.2 * min(size)))
    time, folds, sharpness, scale = _uniform(keys, seed, "plasma", *ranges)
    return time, folds.floor(), sharpness, scale


def plasma(images: Tensor, magnitude: float, time: Tensor, folds: Tensor, sharpness: Tensor, scale: Tensor) -> Tensor:
    """Coloured swirls from -1 to 1, in place of 2.5 % of an image for each step of the magnitude: a place is moved by
    sines of itself again and again, each time less far, and its colours are sines of where it ends.

    Args:
        time, folds, sharpness, scale: (B,) as of :func:`plasma_draws`.
    """
    rows, columns = _places(images)
    time, folds, sharpness, scale = _over_pixels(time, folds, sharpness, scale)
    x, y = (place.expand(len(images), *images.shape[-2:]) / scale for place in (columns, rows))
    share, weight = magnitude * 6.4 / 255, torch.ones_like(time)
    for fold in range(_MOST_FOLDS):
        across = torch.cos(y * 1.93**fold + time / 1.15**fold) * weight
        down = torch.sin(x * 1.93**fold + time / 1.15**fold) * weight
        x, y = x + across - 0.3 * down, y + down + 0.3 * across
        # no weight is left to an image that is not folded again
        weight = torch.where(fold + 1 < folds, weight / (2.25 - sharpness), 0)
    colours = ((x - time).sin(), ((x + y + time.sin()) / 2).sin(), (y + time).sin())
    return (1 - share) * images + share * _layer(torch.stack(colours, 1), images)


def checkerboard_cutout_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """The angle of a checkerboard, the side of its squares in pixels, and a number in [0, 1) for each square."""
    smallest = 0.1 * min(size)
    angle, scale = _uniform(keys, seed, "checkerboard_cutout", (0, 2 * math.pi), (smallest, 2.5 * smallest))
    squares = 2 * math.ceil(math.hypot(*size) / smallest) + 1
    numbers = random_uniform(keys, squares**2, seed, "checkerboard_cutout_squares")
    return angle, scale, numbers.view(-1, squares, squares)


def checkerboard_cutout(images: Tensor, magnitude: float, angle: Tensor, scale: Tensor, numbers: Tensor) -> Tensor:
    """Squares of one colour of a checkerboard turned grey, one tenth of them for each step of the magnitude.

    Args:
        angle, scale: (B,) radians and pixels.
        numbers: (B, N, N) in [0, 1), one for each square; those below a tenth of the magnitude are cut out. The square
            with the first pixel is in the middle, and to the squares left of and above it theirs count as one more, as
            in the published code, which finds a square by rounding towards zero.

    >>> angle, scale, numbers = torch.zeros(1), torch.full((1,), 2.0), torch.zeros(1, 5, 5)
    >>> checkerboard_cutout(torch.ones(1, 1, 3, 4), 10, angle, scale, numbers)
    tensor([[[[0.5020, 0.5020, 1.0000, 1.0000],
              [0.5020, 0.5020, 1.0000, 1.0000],
              [1.0000, 1.0000, 0.5020, 0.5020]]]])
    """
    rows, columns = _places(images)
    angle, scale = _over_pixels(angle, scale)
    down = (angle.cos() * rows + angle.sin() * columns) / scale
    right = (angle.cos() * columns - angle.sin() * rows) / scale
    of_one_colour = (down.floor() - right.floor()) % 2 == 0
    middle = numbers.shape[1] // 2
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    number = numbers[batch, down.long() + middle, right.long() + middle]
    return torch.where((of_one_colour & (number < magnitude / 10))[:, None], _GREY, images)


def cocentric_sine_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """Row and column of the centre of rings, the frequency and amplitude of their waves, and their width in pixels."""
    (height, width), most = size, min(size) / 10
    # the width excludes 0, by which it would be divided
    ranges = ((0, height), (0, width), (0, 10), (0, most), (most, 0))
    row, column, frequency, amplitude, ring = _uniform(keys, seed, "cocentric_sine", *ranges)
    return torch.stack((row, column), 1), frequency, amplitude, ring


def cocentric_sine(
    images: Tensor, magnitude: float, centre: Tensor, frequency: Tensor, amplitude: Tensor, ring: Tensor
) -> Tensor:
    """Grey rings added, in each of which the brightness rises outwards from -1/40 to 1/40 for each step of the
    magnitude, and whose radius goes up and down with the angle.

    Args:
        centre: (B, 2) row and column.
        frequency, amplitude, ring: (B,) waves per 2 pi, pixels, and width of a ring in pixels.
    """
    frequency, amplitude, ring = _over_pixels(frequency, amplitude, ring)
    distance, angle = _polar(images, centre)
    rings = (distance + (angle * frequency).sin() * amplitude) / ring
    return images + magnitude * 12.8 / 255 * _layer(rings - rings.floor() - 0.5, images)


def _polar(images: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, W) distance from a ``centre`` (B, 2) and angle from below it, anticlockwise as one looks at it."""
    rows, columns = _places(images)
    row, column = _over_pixels(*centre.unbind(1))
    return torch.hypot(rows - row, columns - column), torch.atan2(columns - column, rows - row)


def single_freq_grey_draws(keys: Tensor, seed: int, size: Size) -> Draws:  # noqa: ARG001 - all draw alike
    """Radians per pixel of a wave across and down, and its phase. Of the two the one that is larger is uniform."""
    ranges = ((-math.pi, math.pi), (-1, 1), (0, 1), (0, 2 * math.pi))
    larger, ratio, order, phase = _uniform(keys, seed, "single_freq_grey", *ranges)
    frequency = torch.stack((larger, ratio * larger.abs()), 1)
    return torch.where(order[:, None] < 0.5, frequency, frequency.flip(1)), phase


def single_freq_grey(images: Tensor, magnitude: float, frequency: Tensor, phase: Tensor) -> Tensor:
    """One plane wave added, of an amplitude of 1/13 for each step of the magnitude.

    Args:
        frequency: (B, 2) radians per pixel across and down.
        phase: (B,) radians.

    >>> single_freq_grey(torch.full((1, 1, 1, 4), 0.5), 5, torch.tensor([[math.pi / 2, 0]]), torch.zeros(1))
    tensor([[[[0.5000, 0.8843, 0.5000, 0.1157]]]])
    """
    rows, columns = _places(images)
    across, down, phase = _over_pixels(*frequency.unbind(1), phase)
    return images + magnitude * 19.6 / 255 * _layer((columns * across + rows * down + phase).sin(), images)


def perlin_draws(keys: Tensor, seed: int, size: Size) -> Draws:  # noqa: ARG001 - all draw alike
    """An order of the rows of a lattice and a table of gradients."""
    order = random_words(keys, _LATTICE, seed, "perlin_order").argsort(dim=1, stable=True)
    # one of 512 steps from -1 to 1 for each component, moved by half of one, so that no gradient is 0
    steps = (random_words(keys, 2 * _LATTICE, seed, "perlin") >> 23) - 255.5
    gradients = steps.double().view(-1, _LATTICE, 2)
    return order, gradients / gradients.norm(dim=2, keepdim=True)


def perlin(images: Tensor, magnitude: float, order: Tensor, gradients: Tensor) -> Tensor:
    """Turbulence (Perlin 1985, doi:10.1145/325165.325247) of five octaves in place of 5 % of an image for each step of
    the magnitude.

    The published code shuffles with a slight preference for some orders; here all are equally likely.

    Args:
        order: (B, 256) where in the table of gradients each row of the lattice begins.
        gradients: (B, 256, 2) down and right, of length 1.
    """
    share = magnitude / 20
    turbulence = sum(_lattice_noise(images, order, gradients, 2**octave).abs() / 2**octave for octave in range(5))
    return (1 - share) * images + share * _layer((0.5 + 0.5 * turbulence).clamp(0, 1), images)


def _lattice_noise(images: Tensor, order: Tensor, gradients: Tensor, octave: int) -> Tensor:
    """(B, H, W): slopes at the points of a lattice, 7 ``octave`` to a side, blended by Hermite's cubic."""
    weights, slopes, points = [], [], []
    for places in _places(images):
        place = places.flatten() * (7 * octave / _side(images))
        point = torch.arange(int(place[-1]) + 2, device=images.device)
        offset = place[:, None] - point
        distance = offset.abs().clamp(max=1)
        weights.append(1 - distance**2 * (3 - 2 * distance))
        slopes.append(weights[-1] * offset)
        points.append(point % _LATTICE)
    entry = (order[:, points[0], None] + points[1]) % _LATTICE
    down, right = gradients[torch.arange(len(images), device=images.device)[:, None, None], entry].unbind(-1)
    return 1.5 * (slopes[0] @ down @ weights[1].mT + weights[0] @ right @ slopes[1].mT)


def sparkles_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """Centres, numbers of rays and standard normal numbers for their lengths, of five sparkles."""
    return _rays(keys, seed, "sparkles", 5, size, (0, 1))


def sparkles(images: Tensor, magnitude: float, centres: Tensor, rays: Tensor, normals: Tensor) -> Tensor:
    """White light that falls off with the square of the distance from each of several centres, beyond a radius of 1 %
    of a side for each step of the magnitude.

    Args:
        centres: (B, N, 2) row and column.
        rays: (B, N) how many each has; where two of them meet it is darker.
        normals: (B, N, rays or more): where two rays meet, the radius differs from its mean by 25 % times these.
    """
    radius = 0.01 * magnitude * _side(images)
    for centre, count, spread in zip(centres.unbind(1), rays.unbind(1), normals.unbind(1), strict=True):
        lengths = (radius * (1 + 0.25 * spread)).clamp(min=1)
        images = images + _light(images, centre, count, lengths, 1) * (1 - images)
    return images


def inverse_sparkles_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """Centre, number of rays and standard normal numbers for their lengths."""
    return tuple(draw[:, 0] for draw in _rays(keys, seed, "inverse_sparkles", 1, size, (0.25, 0.75)))


def inverse_sparkles(images: Tensor, magnitude: float, centre: Tensor, rays: Tensor, normals: Tensor) -> Tensor:
    """All white but for what a sparkle with a radius of a quarter of a side lights up; beyond it the image is lost the
    faster, the higher the magnitude.

    Args:
        centre: (B, 2) row and column.
        rays: (B,) how many it has.
        normals: (B, rays or more) as for :func:`sparkles`.
    """
    lengths = 0.25 * _side(images) * (1 + 0.25 * normals)
    return 1 + _light(images, centre, rays, lengths, 0.13 * magnitude) * (images - 1)


def _rays(keys: Tensor, seed: int, stream: str, count: int, size: Size, within: tuple[float, float]) -> Draws:
    """Centres (B, count, 2), numbers of rays (B, count) and normal numbers (B, count, most rays) of sparkles."""
    fewest, most = _RAYS
    low, high = within
    centres = low + (high - low) * random_uniform(keys, 2 * count, seed, stream).double().view(-1, count, 2)
    rays = fewest + (random_words(keys, count, seed, f"{stream}_rays") * (most + 1 - fewest) >> 32)
    normals = random_normal(keys, count * most, seed, f"{stream}_lengths").double()
    return centres * centres.new_tensor(size), rays, normals.view(-1, count, most)


def _light(images: Tensor, centre: Tensor, rays: Tensor, lengths: Tensor, exponent: float) -> Tensor:
    """(B, 1, H, W) in [0, 1]: the light of one sparkle, brightest in the middle of its ``rays`` (B,) and a quarter less
    so where two meet. Up to ``lengths`` (B, rays or more), those of where two meet, it is full, and beyond it falls
    with the distance to the power of twice the ``exponent``.
    """
    distance, angle = _polar(images, centre)
    turn = (angle / (2 * math.pi) + 0.5) * rays[:, None, None]
    first = turn.floor()
    between = turn - first
    start, end = (
        lengths.gather(1, (ray.long() % rays[:, None, None]).flatten(1)).view_as(turn) for ray in (first, first + 1)
    )
    falloff = ((start + between * (end - start)) ** 2 / (distance**2 + 1e-4)) ** exponent
    return _layer((falloff * (1 - (between - 0.5) ** 2)).clamp(0, 1), images)


def caustic_draws(keys: Tensor, seed: int, size: Size) -> Draws:
    """The time at which waves are looked at and the size in pixels after which they repeat."""
    return _uniform(keys, seed, "caustic", (0.5, 2), (0.75 * min(size), 1.25 * min(size)))


def caustic(images: Tensor, magnitude: float, time: Tensor, period: Tensor) -> Tensor:
    """Images as seen through water: each pixel is taken from where a ray goes that is refracted by a surface as high as
    the caustics are bright, and is lit from one side; black where the image ends.

    Args:
        time, period: (B,) of the waves, the period in pixels.
    """
    light = pad(_smoothed(caustics(images, time, period)), (1, 1, 1, 1))
    down = light[:, 2:, 1:-1] - light[:, :-2, 1:-1]
    right = light[:, 1:-1, 2:] - light[:, 1:-1, :-2]
    # z of the normal of the surface, and of the ray that comes straight down and is refracted with an index of 4
    upright = (1 + down**2 + right**2) ** -0.5
    bend = upright * ((1 - (1 - upright**2) / 16).sqrt() - upright / 4)
    # as published, what is nearly flat refracts nothing, and rays are rounded to a thousandth of a pixel
    lens = torch.where(upright < 1 - 1e-3, magnitude / 20 * _side(images) * bend, 0)
    rows, columns = _places(images)
    grid = torch.stack(
        [
            2 * (places + (lens * slope).round(decimals=3)) / (side - 1) - 1
            for places, slope, side in ((columns, right, images.shape[-1]), (rows, down, images.shape[-2]))
        ],
        dim=-1,
    )
    refracted = grid_sample(images.double(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return refracted.float() + magnitude / 5 * _layer(down - right, images)


def caustics(images: Tensor, time: Tensor, period: Tensor) -> Tensor:
    """(B, H, W) in [0, 1]: where sine waves, each displaced by the one before, gather light."""
    time, period = _over_pixels(time, period)
    # pi as published
    rows, columns = (places / period % 1 * 6.28318530718 - 250 for places in _places(images))
    down, right = rows, columns
    total = torch.ones_like(time)
    for wave in range(5):
        now = time * (1 - 3.5 / (wave + 1))
        down, right = (
            rows + (now - down).cos() + (now + right).sin(),
            columns + (now - right).sin() + (now + down).cos(),
        )
        total = total + 200 / torch.hypot(rows / (down + now).sin(), columns / (right + now).cos())
    return (1.17 - (total / 5) ** 1.4).abs().pow(8).clamp(0, 1)


def _smoothed(pattern: Tensor) -> Tensor:
    """``pattern`` (B, H, W) after a Gaussian of 1 pixel, at every size of image as published; borders reflected."""
    rows, columns = (
        torch.from_numpy(gaussian_filter1d(np.eye(side), 1, axis=0)).to(pattern.device) for side in pattern.shape[-2:]
    )
    return rows @ pattern @ columns.mT


_CORRUPTIONS: dict[str, tuple[Callable[[Tensor, int, Size], Draws], Callable[..., Tensor]]] = {
    "blue_sample": (blue_sample_draws, blue_sample),
    "plasma": (plasma_draws, plasma),
    "checkerboard_cutout": (checkerboard_cutout_draws, checkerboard_cutout),
    "cocentric_sine": (cocentric_sine_draws, cocentric_sine),
    "single_freq_grey": (single_freq_grey_draws, single_freq_grey),
    "brownish": (brownish_draws, brownish),
    "perlin": (perlin_draws, perlin),
    "sparkles": (sparkles_draws, sparkles),
    "inverse_sparkles": (inverse_sparkles_draws, inverse_sparkles),
    "caustic": (caustic_draws, caustic),
}
"""What each draws, and what it makes of the images with that."""
