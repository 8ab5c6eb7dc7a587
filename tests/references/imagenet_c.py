"""Slow, obvious statements of the nineteen corruptions of ImageNet-C: one uint8 image ``(H, W, 3)`` at a time, what is
random about it given as explicit arguments. The results are floats in 0 to 255 before they are truncated to uint8.

Parameters come in the order of ``mae_bench.degradations.severity.SEVERITIES``. Where the published code assumes 224 or
32 pixels, any height and width will do here. Source: Hendrycks and Dietterich 2019, arXiv 1903.12261, and the code that
made ImageNet-C and CIFAR-10-C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage import color

Array = NDArray[Any]


def truncated(result: Array) -> Array:
    """What CIFAR-10-C holds of a result in 0 to 255: its fraction is cut off, not rounded."""
    return result.astype(np.uint8)


def stored(result: Array) -> Array:
    """What ImageNet-C holds of a result in 0 to 255: truncated to uint8, then through a JPEG file of quality 85."""
    return _through_jpeg(truncated(result), quality=85, optimize=True)


def _through_jpeg(image: Array, **options: Any) -> Array:
    file = BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", **options)
    return np.array(PIL.Image.open(file))


def _in_range(unit: Array) -> Array:
    """From 0 to 1 to 0 to 255, what is outside cut off."""
    return np.clip(unit, 0, 1) * 255


def _smooth(layer: Array, sigma: float) -> Array:
    """Gaussian blur of the first two axes as scikit-image does it: border pixels repeated, cut off at four sigma."""
    return ndimage.gaussian_filter(layer, (sigma, sigma, 0)[: layer.ndim], mode="nearest", truncate=4)


# noise


def gaussian_noise(image: Array, sigma: float, normals: Array) -> Array:
    return _in_range(image / 255 + sigma * normals)


def shot_noise(image: Array, photons: float, uniforms: Array) -> Array:
    """Poisson counts of mean ``image / 255 * photons`` as quantiles: the least count whose cumulative probability
    reaches the uniform.
    """
    mean = image / 255 * photons
    counts = np.where(mean == 0, 0, stats.poisson.ppf(uniforms, np.where(mean == 0, 1, mean)))
    return _in_range(counts / photons)


def impulse_noise(image: Array, amount: float, hits: Array, salts: Array) -> Array:
    """Every channel of a pixel is hit on its own: where ``hits``, uniform in 0 to 1, are below ``amount``, it becomes
    white where ``salts``, uniform too, are below one half, else black. scikit-image's salt and pepper.
    """
    return np.where(hits < amount, np.where(salts < 0.5, 255.0, 0.0), image)


def speckle_noise(image: Array, sigma: float, normals: Array) -> Array:
    x = image / 255
    return _in_range(x + x * sigma * normals)


# blur


def gaussian_blur(image: Array, sigma: float) -> Array:
    return _in_range(_smooth(image / 255, sigma))


def glass_blur(image: Array, sigma: float, max_delta: float, iterations: float, offsets: Array) -> Array:
    """``offsets`` of shape ``(iterations, H, W, 2)`` hold the (dx, dy) of each pixel, whole numbers from
    ``-max_delta`` to ``max_delta - 1``; those of the border go unused.

    The published statement reads as if it swapped two pixels. What it exchanges are views of a pixel's three channels,
    and the first assignment has already overwritten what the second one reads: the pixel becomes a copy of its
    neighbour and the neighbour stays. As pixels are visited one after the other, from the bottom right to the top
    left, copies of copies travel.
    """
    height, width = image.shape[:2]
    delta = int(max_delta)
    x = truncated(_smooth(image / 255, sigma) * 255)
    for turn in range(int(iterations)):
        for row in range(height - delta, delta, -1):
            for column in range(width - delta, delta, -1):
                dx, dy = offsets[turn, row, column]
                x[row, column] = x[row + dy, column + dx]
    return _in_range(_smooth(x / 255, sigma))


def disk(radius: float, alias: float) -> Array:
    """A disk of sum one on a grid of at least 17 x 17 points, its rim softened by a Gaussian of 3 x 3 (beyond a radius
    of eight 5 x 5) points. At the grid's edge the Gaussian mirrors, hence the sum afterwards is only about one.
    """
    reach = 8 if radius <= 8 else math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    flat = (x**2 + y**2 <= radius**2).astype(np.float64)
    flat /= flat.sum()
    half = 1 if radius <= 8 else 2
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * alias**2))
    taps /= taps.sum()
    for axis in (0, 1):
        flat = ndimage.correlate1d(flat, taps, axis=axis, mode="mirror")
    return flat


def defocus_blur(image: Array, radius: float, alias: float) -> Array:
    """The border mirrors without repeating the outermost pixels."""
    return _in_range(ndimage.correlate(image / 255, disk(radius, alias)[..., None], mode="mirror"))


def motion_blur(image: Array, radius: float, sigma: float, angle: float) -> Array:
    """ImageMagick's motion blur; ``angle`` in degrees, published as uniform in -45 to 45."""
    return motion_blurred(image, radius, sigma, angle).astype(np.float64)


def motion_blurred(layer: Array, radius: float, sigma: float, angle: float) -> Array:
    """ImageMagick's MotionBlurImage of a uint8 layer ``(H, W)`` or ``(H, W, C)``: a one-sided Gaussian of
    ``2 * ceil(radius) + 1`` taps along the angle, border pixels repeated. It rounds to 16 bits, of
    which 8 are stored, the rest cut off.
    """
    height, width = layer.shape[:2]
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    total = np.zeros(layer.shape)
    for step, weight in zip(steps, weights, strict=True):
        dx = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        dy = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(width) + dx, 0, width - 1)
        total += weight * layer[rows][:, columns] * 257.0
    return (np.floor(total + 0.5) // 257).astype(np.uint8)


def zoom_blur(image: Array, stop: float, step: float) -> Array:
    """The mean of the image and of its zooms by ``numpy.arange(1, stop, step)``, the factor one among them. How many
    factors there are is up to the rounding of the range: 1.11 and 1.06 are themselves included, the others are not.
    """
    x = image.astype(np.float32) / np.float32(255)
    factors = np.arange(1, stop, step)
    zoomed = np.zeros_like(x)
    for factor in factors:
        zoomed += clipped_zoom(x, factor)
    return _in_range((x + zoomed) / (len(factors) + 1))


def clipped_zoom(layer: Array, factor: float) -> Array:
    """The middle ``1 / factor`` of a layer ``(H, W, C)``, enlarged linearly (corner to corner) and cut to its size."""
    sides = layer.shape[:2]
    parts = [math.ceil(side / factor) for side in sides]
    top, left = ((side - part) // 2 for side, part in zip(sides, parts, strict=True))
    middle = layer[top : top + parts[0], left : left + parts[1]]
    large = ndimage.zoom(middle, (factor, factor, 1), order=1)
    top, left = ((length - side) // 2 for length, side in zip(large.shape, sides, strict=False))
    return large[top : top + sides[0], left : left + sides[1]]


# weather


def fog(image: Array, amount: float, decay: float, uniforms: Array) -> Array:
    """``uniforms`` as :func:`plasma_fractal` takes them, of a side that is a power of two and no less than the
    image's.
    """
    x = image / 255
    brightest = x.max()
    haze = plasma_fractal(decay, uniforms)[: image.shape[0], : image.shape[1], None]
    return _in_range((x + amount * haze) * brightest / (brightest + amount))


def plasma_fractal(decay: float, uniforms: Array) -> Array:
    """A diamond-square height map in 0 to 1 that is continued periodically. ``uniforms``, in -1 to 1, hold at each
    point of the map what it deviates by from the mean of the four points around it; that of the corner is unused.

    The deviation is scaled by the square of ``100 / decay ** level``, as the published code multiplies by its
    amplitude twice.
    """
    side = len(uniforms)
    height = np.zeros((side, side))
    amplitude = 100.0
    step = side

    def at(row: int, column: int) -> float:
        return float(height[row % side, column % side])

    while step >= 2:
        half = step // 2
        for row in range(half, side, step):
            for column in range(half, side, step):
                corners = (at(row + dy, column + dx) for dy in (-half, half) for dx in (-half, half))
                height[row, column] = sum(corners) / 4 + amplitude**2 * uniforms[row, column]
        for row in range(0, side, half):
            for column in range(half if row % step == 0 else 0, side, step):
                cross = (at(row + dy, column + dx) for dy, dx in ((-half, 0), (half, 0), (0, -half), (0, half)))
                height[row, column] = sum(cross) / 4 + amplitude**2 * uniforms[row, column]
        step = half
        amplitude /= decay
    height -= height.min()
    return height / height.max()


def frost(image: Array, weight: float, frost_weight: float, texture: Array) -> Array:
    """``texture`` is a crop of a photograph of frost, uint8 and of the image's size."""
    return np.clip(weight * image + frost_weight * texture, 0, 255)


def frost_crop(texture: Array, height: int, width: int, rng: np.random.Generator) -> Array:
    """A crop at random; the outermost position is never taken. At 32 pixels the texture is first made five times
    smaller.
    """
    top = rng.integers(0, texture.shape[0] - height)
    left = rng.integers(0, texture.shape[1] - width)
    return texture[top : top + height, left : left + width]


def snow(
    image: Array,
    loc: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    mix: float,
    normals: Array,
    angle: float,
) -> Array:
    """``normals`` of shape ``(H, W)``; ``angle`` in degrees, published as uniform in -135 to -45."""
    x = image.astype(np.float32) / np.float32(255)
    flakes = clipped_zoom((loc + scale * normals)[..., None], zoom)[..., 0]
    flakes[flakes < threshold] = 0
    flakes = motion_blurred(truncated(_in_range(flakes)), radius, sigma, angle)[..., None] / 255
    grey = x @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    x = mix * x + (1 - mix) * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    return _in_range(x + flakes + flakes[::-1, ::-1])


WATER, MUD = np.array([[175, 238, 238], [63, 42, 20]], dtype=np.float32) / np.float32(255)


def spatter(
    image: Array, loc: float, scale: float, sigma: float, threshold: float, mix: float, mud: float, normals: Array
) -> Array:
    """``normals`` of shape ``(H, W)``. Where no drop is above the threshold, the published code divides zero by zero
    and its water turns the image black; here the image stays as it is.
    """
    x = image.astype(np.float32) / np.float32(255)
    liquid = _smooth(loc + scale * normals, sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = _smooth((liquid > threshold).astype(np.float32), mix)[..., None]
        cover[cover < 0.8] = 0
        return _in_range(x * (1 - cover) + MUD * cover)
    cover = _water(liquid)
    if cover.max() == 0:
        return x * 255
    return _in_range(x + np.float32(mix) * (cover / cover.max())[..., None] * WATER)


def _water(liquid: Array) -> Array:
    """Drops, brightest at one side of their rim. A layer above one, which is rare, wraps around at 256."""
    drops = (liquid * 255).astype(np.int64).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = np.minimum(distance, 20)
    distance = cv2.equalizeHist(truncated(cv2.blur(distance, (3, 3))))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
    distance = cv2.blur(cv2.filter2D(distance, cv2.CV_8U, emboss), (3, 3))
    return drops * distance.astype(np.float32)


# digital


def brightness(image: Array, added: float) -> Array:
    hsv = color.rgb2hsv(image / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return _in_range(color.hsv2rgb(hsv))


def contrast(image: Array, factor: float) -> Array:
    x = image / 255
    mean = x.mean(axis=(0, 1))
    return _in_range((x - mean) * factor + mean)


def saturate(image: Array, factor: float, added: float) -> Array:
    hsv = color.rgb2hsv(image / 255)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
    return _in_range(color.hsv2rgb(hsv))


def pixelate(image: Array, factor: float) -> Array:
    height, width = image.shape[:2]
    small = PIL.Image.fromarray(image).resize((int(width * factor), int(height * factor)), PIL.Image.Resampling.BOX)
    return np.array(small.resize((width, height), PIL.Image.Resampling.BOX)).astype(np.float64)


def jpeg_compression(image: Array, quality: float) -> Array:
    return _through_jpeg(image, quality=int(quality)).astype(np.float64)


def elastic_transform(
    image: Array,
    alpha: float,
    sigma: float,
    affine: float,
    corners: Array,
    dx: Array,
    dy: Array,
    fixed_point: bool = True,
) -> Array:
    """An affine map that moves three points by ``affine`` times ``corners``, of shape ``(3, 2)`` as (x, y), then a
    displacement by ``alpha`` times the smoothed ``dx`` and ``dy``, of shape ``(H, W)``. All draws are in -1 to 1.

    OpenCV 3 and 4, of which ImageNet-C was made, find where the affine map reads in fixed point, to 1/32 of a pixel;
    OpenCV 5 does not. The affine map mirrors without repeating the outermost pixels, the displacement with. (SciPy
    before 1.6 mixed the two up for what the displacement reads less than a pixel outside; that is not repeated here.)
    """
    height, width = image.shape[:2]
    x = image.astype(np.float32) / np.float32(255)
    # the published code takes (height, width) for (x, y)
    middle = np.array([height // 2, width // 2], dtype=np.float32)
    arm = min(height, width) // 3
    before = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]], dtype=np.float32)
    after = before + (affine * corners).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    backwards = np.linalg.solve(np.column_stack([after.astype(np.float64), np.ones(3)]), before.astype(np.float64))
    across, down = columns[..., None] * backwards[0], rows[..., None] * backwards[1] + backwards[2]
    where = across + down
    if fixed_point:
        where = np.floor((np.rint(across * 1024) + np.rint(down * 1024) + 16) / 32) / 32
    x = _sampled(x, where[..., 1], where[..., 0], mode="mirror")

    def displacement(uniforms: Array) -> Array:
        return (alpha * ndimage.gaussian_filter(uniforms, sigma, mode="reflect", truncate=3)).astype(np.float32)

    return _in_range(_sampled(x, rows + displacement(dy), columns + displacement(dx), mode="reflect"))


def _sampled(x: Array, rows: Array, columns: Array, mode: str) -> Array:
    """Linear interpolation of each channel at ``(rows, columns)``."""
    channels = (ndimage.map_coordinates(x[..., c], [rows, columns], order=1, mode=mode) for c in range(x.shape[2]))
    return np.stack(list(channels), axis=-1)


# draws


def draws(name: str, image: Array, parameters: Sequence[float], rng: np.random.Generator) -> dict[str, Any]:
    """What the corruption ``name`` draws for an image, by the name of the argument; nothing for those that are not
    random. The texture of frost is not drawn here but by :func:`frost_crop`.
    """
    height, width = layer = image.shape[:2]
    match name:
        case "gaussian_noise" | "speckle_noise":
            return {"normals": rng.standard_normal(image.shape)}
        case "shot_noise":
            return {"uniforms": rng.random(image.shape)}
        case "impulse_noise":
            return {"hits": rng.random(image.shape), "salts": rng.random(image.shape)}
        case "glass_blur":
            delta, iterations = int(parameters[1]), int(parameters[2])
            return {"offsets": rng.integers(-delta, delta, (iterations, height, width, 2))}
        case "motion_blur":
            return {"angle": rng.uniform(-45, 45)}
        case "fog":
            side = 2 ** math.ceil(math.log2(max(layer)))
            return {"uniforms": rng.uniform(-1, 1, (side, side))}
        case "snow":
            return {"normals": rng.standard_normal(layer), "angle": rng.uniform(-135, -45)}
        case "spatter":
            return {"normals": rng.standard_normal(layer)}
        case "elastic_transform":
            names = {"corners": (3, 2), "dx": layer, "dy": layer}
            return {argument: rng.uniform(-1, 1, shape) for argument, shape in names.items()}
        case _:
            return {}


def corrupted(name: str, image: Array, parameters: Sequence[float], rng: np.random.Generator, **given: Any) -> Array:
    """The corruption ``name`` of an image with draws of ``rng``; ``given`` arguments, such as frost's texture, are
    passed on.
    """
    arguments = draws(name, image, parameters, rng) | given
    result: Array = globals()[name](image, *parameters, **arguments)
    return result
