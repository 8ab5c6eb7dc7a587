"""Slow, obvious statements of the ten corruptions of ImageNet-C-bar: one square uint8 image ``(S, S, 3)`` at a time,
what is random about it given as explicit arguments. The results are floats in 0 to 255 before they are truncated to
uint8.

Every corruption takes its published magnitude, at most 10, first; of the ranges of what it draws :func:`draws` tells.
Lengths are shares of the side ``S``. Source: Mintun et al. 2021, arXiv 2102.11273, and the code that made
ImageNet-C-bar.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

OCTAVES = (1, 2, 4, 8, 16)
"""Of Perlin noise: up to its turbulence of 16."""


def _in_range(result: Array) -> Array:
    return np.clip(result, 0, 255)


def _rows_and_columns(side: int) -> Array:
    """Two float arrays ``(S, S)``: the row and the column of each pixel."""
    return np.indices((side, side)).astype(np.float64)


# noise in the frequency domain


def blue_sample(image: Array, magnitude: float, phases: Array) -> Array:
    """Blackens the pixels where blue noise of unit variance, one layer for all channels, is not above a threshold."""
    keep = _coloured_noise(_distance_from_middle(len(image)), phases) > 0.3 * magnitude - 2.5
    return _in_range(image * keep[..., None].astype(np.float64))


def brownish(image: Array, magnitude: float, phases: Array) -> Array:
    """Adds noise whose amplitude falls with the square of the frequency; ``phases`` of shape ``(3, S, S)``, since every
    channel has its own.
    """
    amplitudes = 1 / (_distance_from_middle(len(image)) ** 2 + 1)
    noise = np.stack([_coloured_noise(amplitudes, layer) for layer in phases], axis=-1)
    return _in_range(image + 6.4 * magnitude * noise)


def _distance_from_middle(side: int) -> Array:
    rows, columns = _rows_and_columns(side)
    return np.hypot(rows - side / 2, columns - side / 2)


def _coloured_noise(amplitudes: Array, phases: Array) -> Array:
    """The real part of a spectrum whose zero frequency is in the middle, divided by its standard deviation."""
    half = len(phases) // 2
    spectrum = np.roll(amplitudes * np.exp(1j * phases), (half, half), axis=(0, 1))
    noise = np.fft.ifft2(spectrum).real
    return noise / noise.std()


# patterns


def plasma(image: Array, magnitude: float, time: float, iterations: int, sharpness: float, scale: float) -> Array:
    """Mixes in a warped field of sines; ``scale`` in pixels. Not the plasma fractal of ImageNet-C's fog."""
    y, x = _rows_and_columns(len(image)) / scale
    frequency, slowness, division = 1.0, 1.0, 1.0
    for _ in range(iterations):
        across = np.cos(y * frequency + time / slowness) / division
        down = np.sin(x * frequency + time / slowness) / division
        x, y = x + across - 0.3 * down, y + down + 0.3 * across
        frequency, slowness, division = 1.93 * frequency, 1.15 * slowness, (2.25 - sharpness) * division
    noise = np.stack([np.sin(x - time), np.sin((x + y + math.sin(time)) / 2), np.sin(y + time)], axis=-1)
    intensity = 6.4 * magnitude
    return _in_range((1 - intensity / 255) * image + intensity * noise)


def checkerboard_cutout(image: Array, magnitude: float, angle: float, scale: float, uniforms: Array) -> Array:
    """Turns squares of a rotated chessboard grey, each that lies on the cut colour with a probability of a tenth of the
    magnitude. ``scale``, the side of a square, in pixels; ``uniforms`` of shape ``(n, n)`` with n = int(4 S // scale).

    The colours follow the floor, the squares' chances the integer towards zero (and, if negative, from the end), so
    that at the axes two neighbours share one chance.
    """
    result = image.astype(np.float64)
    for y, x in np.ndindex(image.shape[:2]):
        u = (math.cos(angle) * y + math.sin(angle) * x) / scale
        v = (-math.sin(angle) * y + math.cos(angle) * x) / scale
        if math.floor(u) % 2 == math.floor(v) % 2 and uniforms[int(u), int(v)] < magnitude / 10:
            result[y, x] = 128
    return result


def cocentric_sine(
    image: Array, magnitude: float, centre: Array, frequency: float, amplitude: float, ring_width: float
) -> Array:
    """Adds rings, saw-toothed in their profile and wavy along their course, about ``centre`` (x, y)."""
    rows, columns = _rows_and_columns(len(image))
    x, y = columns - centre[0], rows - centre[1]
    radius = np.hypot(x, y) + amplitude * np.sin(frequency * np.arctan2(x, y))
    return _in_range(image + 12.8 * magnitude * (radius % ring_width / ring_width - 0.5)[..., None])


def single_freq_grey(image: Array, magnitude: float, frequency: Array, phase: float) -> Array:
    """Adds one grey sine wave; ``frequency`` (x, y) in radians per pixel."""
    rows, columns = _rows_and_columns(len(image))
    wave = np.sin(frequency[0] * columns + frequency[1] * rows + phase)
    return _in_range(image + 19.6 * magnitude * wave[..., None])


def perlin(image: Array, magnitude: float, permutation: Array, gradients: Array) -> Array:
    """Mixes in the turbulence of Perlin noise: five octaves, the coarsest with seven cells along a side.
    ``permutation`` of 0 to 255, ``gradients`` of shape ``(256, 2)``, the first of the two along the rows.
    """
    y, x = _rows_and_columns(len(image)) / (32 * len(image) / 224)
    turbulence = sum(np.abs(_perlin_noise(f * y, f * x, permutation, gradients)) / f for f in OCTAVES)
    noise = np.clip(0.5 * turbulence + 0.5, 0, 1)
    share = 0.05 * magnitude
    return _in_range((1 - share) * image.astype(np.float32) + 255 * share * noise[..., None])


def _perlin_noise(y: Array, x: Array, permutation: Array, gradients: Array) -> Array:
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    dy, dx = y - row, x - column

    def corner(below: int, right: int) -> Array:
        place = permutation[(permutation[(row + below) % 256] + column + right) % 256]
        return (dy - below) * gradients[place, 0] + (dx - right) * gradients[place, 1]

    def smooth(t: Array) -> Array:
        return t**2 * (3 - 2 * t)

    left = corner(0, 0) + smooth(dy) * (corner(1, 0) - corner(0, 0))
    right = corner(0, 1) + smooth(dy) * (corner(1, 1) - corner(0, 1))
    return 1.5 * (left + smooth(dx) * (right - left))


def sparkles(image: Array, magnitude: float, centres: Array, ray_normals: list[Array]) -> Array:
    """Draws white stars one over the other. ``centres``, one per star, as (row, column); ``ray_normals`` hold one
    normal draw per ray of each star, by which the ray's length deviates: a quarter of the radius is its deviation.
    """
    radius = 0.01 * magnitude * len(image)
    result = image.astype(np.float64)
    for centre, normals in zip(centres, ray_normals, strict=True):
        below = result.astype(np.float32)
        lengths = np.maximum(1, radius + 0.25 * radius * normals)
        result = below + _star(len(image), centre, lengths, exponent=1) * (255.0 - below)
    return _in_range(result)


def inverse_sparkles(image: Array, magnitude: float, centre: Array, ray_normals: Array) -> Array:
    """Leaves the image inside one star and whitens the rest; the greater the magnitude, the steeper its edge."""
    radius = 0.25 * len(image)
    light = _star(len(image), centre, radius + 0.25 * radius * ray_normals, exponent=0.13 * magnitude)
    return _in_range(255 + light * (image - 255.0))


def _star(side: int, centre: Array, lengths: Array, exponent: float) -> Array:
    """Light in 0 to 1, of shape ``(S, S, 1)``, about ``centre`` (row, column), the rays equally spaced by angle."""
    rows, columns = _rows_and_columns(side)
    y, x = rows - centre[0], columns - centre[1]
    turn = (np.arctan2(x, y) + math.pi) / (2 * math.pi) * len(lengths)
    ray = np.floor(turn).astype(int)
    between = turn - ray
    length = (1 - between) * lengths[ray % len(lengths)] + between * lengths[(ray + 1) % len(lengths)]
    light = (length**2 / (y**2 + x**2 + 1e-4)) ** exponent
    return np.clip((1 - (between - 0.5) ** 2) * light, 0, 1)[..., None]


def caustic(image: Array, magnitude: float, time: float, size: float) -> Array:
    """Refracts the image at a wavy surface and lights its slopes (published as caustic_refraction, not
    caustic_noise); ``size`` of the periodic pattern in pixels. What is read outside the image is black.
    """
    side = len(image)
    waves = ndimage.gaussian_filter(_caustics(side, time, size), 1)
    framed = np.pad(waves, 1)
    slope = np.stack([framed[2:, 1:-1] - framed[:-2, 1:-1], framed[1:-1, 2:] - framed[1:-1, :-2]], axis=-1)
    shift = _refraction(slope, index=4.0) * (0.05 * magnitude * side)
    rows, columns = _rows_and_columns(side) + np.round(np.moveaxis(shift, -1, 0), 3)
    x = image.astype(np.float32) / np.float32(255)
    refracted = np.stack([_bilinear(x[..., c], rows, columns) for c in range(3)], axis=-1)
    light = 0.2 * magnitude * (slope[..., 0] - slope[..., 1])
    return np.clip(refracted + light[..., None], 0, 1).astype(np.float32) * np.float32(255)


def _caustics(side: int, time: float, size: float) -> Array:
    p = (_rows_and_columns(side) / size % 1) * 6.28318530718 - 250
    a, b = p
    total = np.ones((side, side))
    for turn in range(1, 6):
        t = time * (1 - 3.5 / turn)
        a, b = p[0] + np.cos(t - a) + np.sin(t + b), p[1] + np.sin(t - b) + np.cos(t + a)
        total += 1 / (0.005 * np.hypot(p[0] / np.sin(a + t), p[1] / np.cos(b + t)))
    return np.clip(np.abs(1.17 - (total / 5) ** 1.4) ** 8, 0, 1)


def _refraction(slope: Array, index: float) -> Array:
    """Where a ray along the third axis points to in the plane after it entered a medium of this refractive index whose
    surface has the normal ``(slope, 1)``. An all but level surface leaves it straight.
    """
    normal = np.concatenate([slope, np.ones_like(slope[..., :1])], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    cosine = normal[..., 2]
    outside = np.arccos(cosine)
    inside = np.arcsin(np.sin(outside) / index)[..., None]
    sideways = np.cross([0.0, 0.0, 1.0], normal)
    sideways /= np.maximum(np.linalg.norm(sideways, axis=-1, keepdims=True), 1e-300)
    ray = np.cos(inside) * normal + np.sin(inside) * np.cross(normal, sideways)
    return np.where((cosine < 1 - 1e-3)[..., None], ray[..., :2], 0)


def _bilinear(channel: Array, rows: Array, columns: Array) -> Array:
    return ndimage.map_coordinates(channel.astype(np.float64), [rows, columns], order=1, mode="grid-constant")


# draws


def draws(name: str, side: int, rng: np.random.Generator) -> dict[str, Any]:
    """What the corruption ``name`` draws for an image, by the name of the argument."""
    match name:
        case "blue_sample":
            return {"phases": mirrored_phases(side, rng)}
        case "brownish":
            return {"phases": np.stack([mirrored_phases(side, rng) for _ in range(3)])}
        case "plasma":
            return {
                "time": rng.uniform(0, 6 * math.pi),
                "iterations": int(rng.integers(4, 7)),
                "sharpness": rng.uniform(0.5, 1),
                "scale": rng.uniform(0.075, 0.2) * side,
            }
        case "checkerboard_cutout":
            scale = max(rng.uniform(0.1, 0.25) * side, 1)
            squares = int(4 * side // scale)
            return {"angle": rng.uniform(0, 2 * math.pi), "scale": scale, "uniforms": rng.random((squares, squares))}
        case "cocentric_sine":
            return {
                "centre": rng.uniform(0, side, 2),
                "frequency": rng.uniform(0, 10),
                "amplitude": rng.uniform(0, side / 10),
                "ring_width": rng.uniform(0, side / 10),
            }
        case "single_freq_grey":
            greater = rng.uniform(-math.pi, math.pi)
            lesser = rng.uniform(-abs(greater), abs(greater))
            return {"frequency": rng.permutation([greater, lesser]), "phase": rng.uniform(0, 2 * math.pi)}
        case "perlin":
            return {"permutation": shuffled(rng), "gradients": gradients(rng)}
        case "sparkles":
            rays = rng.integers(50, 200, 5)
            return {"centres": rng.uniform(0, side, (5, 2)), "ray_normals": [rng.standard_normal(n) for n in rays]}
        case "inverse_sparkles":
            rays = rng.integers(50, 200)
            return {"centre": rng.uniform(0.25, 0.75, 2) * side, "ray_normals": rng.standard_normal(rays)}
        case "caustic":
            return {"time": rng.uniform(0.5, 2), "size": rng.uniform(0.75, 1.25) * side}
        case _:
            raise ValueError(f"no corruption is named {name}")


def mirrored_phases(side: int, rng: np.random.Generator) -> Array:
    """Phases ``(S, S)``, the right half being the left one turned by 180 degrees. (That is not quite the symmetry of a
    real layer, hence a part of the noise is lost with the imaginary part.)
    """
    left = rng.uniform(0, 2 * math.pi, (side, side // 2))
    if side % 2 == 0:
        return np.concatenate([left, left[::-1, ::-1]], axis=1)
    upper = rng.uniform(0, 2 * math.pi, (side // 2, 1))
    middle = np.concatenate([upper, [[0.0]], upper[::-1]])
    return np.concatenate([left, middle, left[::-1, ::-1]], axis=1)


def shuffled(rng: np.random.Generator) -> Array:
    """0 to 255, each from the last to the first exchanged with any other: not every order is equally likely."""
    order = np.arange(256)
    for place in range(255, -1, -1):
        other = rng.integers(256)
        order[[place, other]] = order[[other, place]]
    return order


def gradients(rng: np.random.Generator) -> Array:
    """Unit vectors towards the points of a square, hence more of them along its diagonals. The published code divides
    zero by zero if it draws the middle of the square, which here becomes a gradient of zero.
    """
    points = (rng.integers(0, 512, (256, 2)) - 256) / 256
    return points / np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-300)


def corrupted(name: str, image: Array, magnitude: float, rng: np.random.Generator) -> Array:
    """The corruption ``name`` of an image with draws of ``rng``."""
    result: Array = globals()[name](image, magnitude, **draws(name, len(image), rng))
    return result
