"""How far the corruptions of ``mae_bench`` are from slow statements of the published ones: value by value where both
are given the same draws, and as distributions over many draws where each makes its own.

``PYTHONPATH=tests python -m references.fidelity --out docs/fidelity.md`` writes the page; without ``--out`` it is
printed. All values are in steps of 8 bits, from 0 to 255.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import scipy.fft
import torch
from numpy.typing import NDArray
from scipy import stats
from skimage import data
from tabulate import tabulate
from torch import Tensor

from mae_bench.cells import Level
from mae_bench.degradations import CORRUPTIONS, Setting, cbar
from mae_bench.degradations.blur import glass_offsets
from mae_bench.degradations.digital import stored
from mae_bench.degradations.frost import LOOKS, frost_texture, photograph_scale
from mae_bench.degradations.severity import SEVERITIES
from mae_bench.randomness import random_normal, random_uniform, random_words
from references import imagenet_c, imagenet_c_bar
from references.frost import PUBLISHED, STATISTICS, statistics_of

Array = NDArray[Any]
Parameters = tuple[float, ...]

SIDES = (224, 32)
SEVERITY = range(1, 6)
NAMES = tuple(CORRUPTIONS)
PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")
SEEDS = (40, 400)
"""Draws of each distribution, by side."""

NEGLIGIBLE = 0.02
"""Steps of 8 bits by which the mean or a deviation of an image may be shifted, as cutting to 8 bits does it."""

SMALLEST = 1e-4
"""Below it a chance is taken for a sign that distributions differ."""

BORDER = 10
"""Width of the outermost pixels whose error is told apart."""


# ---- images


@cache
def photographs(side: int) -> Array:
    """(5, side, side, 3) uint8: photographs that come with scikit-image, in ImageNet's view at 224 pixels (the shorter
    side resized to 256, the middle cut out), and at others the largest square of their middle, shrunk.
    """
    resized = []
    for picture in PICTURES:
        image = PIL.Image.fromarray(getattr(data, picture)())
        target = side if side < 224 else round(side * 256 / 224)
        scale = target / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BILINEAR)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        resized.append(np.asarray(image.crop((left, top, left + side, top + side))))
    return np.stack(resized)


def batch_of(images: Array) -> Tensor:
    """(B, C, H, W) in [0, 1] from (B, H, W, C) in 8 bits."""
    return torch.from_numpy(images).movedim(-1, 1).float() / 255


def levels_of(images: Tensor) -> Array:
    """(B, H, W, C) in 0 to 255 from (B, C, H, W) in [0, 1]."""
    levels: Array = images.movedim(1, -1).double().numpy() * 255
    return levels


def truncated(levels: Array) -> Array:
    """Cut to whole levels; a whole number that came out of float32 a little too small is one."""
    return np.floor(levels + 1e-4)


def setting_of(count: int, side: int) -> Setting:
    keys = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(0))
    return Setting(keys, 0, side, (0.5,))


def corrupted(name: str, images: Array, parameters: Parameters, setting: Setting) -> Tensor:
    """(B, C, S, S) in [0, 1]: what the corruption makes of ``images`` (B, S, S, C) uint8."""
    kind = CORRUPTIONS[name]
    module: Any = import_module(f"mae_bench.degradations.{kind.module or kind.family}")
    result: Tensor = module.corrupt(name, batch_of(images), parameters, setting)
    return result


def published(name: str, image: Array, parameters: Parameters, draws: dict[str, Any]) -> Array:
    """(S, S, C) in 0 to 255: what the reference makes of an ``image`` in 8 bits with ``draws``."""
    reference = imagenet_c_bar if CORRUPTIONS[name].family == "cbar" else imagenet_c
    result: Array = getattr(reference, name)(image, *parameters, **draws)
    return result


def published_draws(name: str, image: Array, parameters: Parameters, rng: np.random.Generator) -> dict[str, Any]:
    """What the reference draws for an ``image``; nothing if the corruption is not random."""
    if CORRUPTIONS[name].family == "cbar":
        return imagenet_c_bar.draws(name, len(image), rng)
    return imagenet_c.draws(name, image, parameters, rng)


# ---- the same draws


def own_draws(name: str, side: int, parameters: Parameters, setting: Setting) -> dict[str, Any]:
    """What ``mae_bench`` draws for the only image of a ``setting``, as the arguments of the reference."""
    keys, seed = setting.keys, setting.seed

    def uniform(stream: str, *shape: int, low: float = -1, high: float = 1) -> Array:
        # in float32, as they are drawn
        numbers = low + (high - low) * random_uniform(keys, math.prod(shape), seed, stream)
        return numbers.view(shape).double().numpy()

    def normal(stream: str, *shape: int) -> Array:
        return random_normal(keys, math.prod(shape), seed, stream).view(shape).double().numpy()

    match name:
        case "gaussian_noise" | "speckle_noise":
            return {"normals": normal(name, 3, side, side).transpose(1, 2, 0)}
        case "shot_noise":
            words = random_words(keys, 3 * side**2, seed, name).view(3, side, side).double().numpy()
            # the middle of what a number of 32 bits stands for
            return {"uniforms": (words.transpose(1, 2, 0) + 0.5) / 2**32}
        case "impulse_noise":
            # how near a number is to either end says whether a value is hit, and to which end, by what
            drawn = uniform(name, 3, side, side, low=0).transpose(1, 2, 0)
            return {"hits": 2 * np.minimum(drawn, 1 - drawn), "salts": 1 - drawn}
        case "glass_blur":
            offsets = glass_offsets(keys, seed, int(parameters[1]), int(parameters[2]), (side, side))
            return {"offsets": torch.stack(offsets, dim=-1)[0].numpy()}
        case "motion_blur":
            return {"angle": uniform(name, low=-45, high=45).item()}
        case "fog":
            return {"uniforms": _placed(uniform("plasma_fractal", 4 ** math.ceil(math.log2(side)) - 1))}
        case "frost":
            return {"texture": levels_of(frost_texture(keys, seed, (side, side), photograph_scale(side)))[0]}
        case "snow":
            return {"normals": normal(name, side, side), "angle": uniform("snow_angle", low=-135, high=-45).item()}
        case "spatter":
            return {"normals": normal(name, side, side)}
        case "elastic_transform":
            dx, dy = uniform(name, 2, side, side)
            return {"corners": uniform(f"{name}_affine", 3, 2), "dx": dx, "dy": dy}
        case _ if CORRUPTIONS[name].family == "cbar":
            return _own_cbar_draws(name, side, setting)
        case _:
            return {}


def _placed(drawn: Array) -> Array:
    """Diamond-square's map of what each point deviates by, from numbers that are drawn for the coarsest points first:
    for all centres of squares, then for all points right of their corners, then for all below these.
    """
    side = math.isqrt(len(drawn) + 1)
    placed = np.zeros((side, side))
    points = 1
    while points < side:
        step, half = side // points, side // points // 2
        drawn_here = drawn[points**2 - 1 : 4 * points**2 - 1].reshape(3, points, points)
        placed[half::step, half::step], placed[::step, half::step], placed[half::step, ::step] = drawn_here
        points *= 2
    return placed


def _own_cbar_draws(name: str, side: int, setting: Setting) -> dict[str, Any]:
    drawn = getattr(cbar, f"{name}_draws")(setting.keys, setting.seed, (side, side))
    first, *others = (draw[0].numpy() for draw in drawn)
    match name:
        case "blue_sample" | "brownish":
            phases = np.concatenate([first, first[:, ::-1]], axis=1).reshape(-1, side, side)
            return {"phases": phases if name == "brownish" else phases[0]}
        case "plasma":
            return {"time": first, "iterations": int(others[0]), "sharpness": others[1], "scale": others[2]}
        case "checkerboard_cutout":
            scale, numbers = others
            # squares are counted from the first pixel's, those before it from the end
            squares, middle = int(4 * side // scale), len(numbers) // 2
            count = np.arange(-min(middle, squares // 2), min(middle, (squares - 1) // 2) + 1)
            uniforms = np.ones((squares, squares))
            uniforms[np.ix_(count, count)] = numbers[np.ix_(count + middle, count + middle)]
            return {"angle": first, "scale": scale, "uniforms": uniforms}
        case "cocentric_sine":
            frequency, amplitude, width = others
            return {"centre": first[::-1], "frequency": frequency, "amplitude": amplitude, "ring_width": width}
        case "single_freq_grey":
            return {"frequency": first, "phase": others[0]}
        case "perlin":
            # the reference shuffles the gradients, too
            gradients = np.empty_like(others[0])
            gradients[first] = others[0]
            return {"permutation": first, "gradients": gradients}
        case "sparkles":
            rays, normals = others
            return {"centres": first, "ray_normals": [n[:count] for n, count in zip(normals, rays, strict=True)]}
        case "inverse_sparkles":
            rays, normals = others
            return {"centre": first, "ray_normals": normals[:rays]}
        case _:
            return {"time": first, "size": others[0]}


@dataclass(frozen=True)
class Error:
    """In steps of 8 bits: the mean, the largest, the share of values off by more than one, the mean at the border."""

    mean: float
    largest: float
    share: float
    border: float


def error(found: Array, expected: Array) -> Error:
    """Between two arrays (B, H, W, C)."""
    off = np.abs(found - expected)
    inside = off[:, BORDER:-BORDER, BORDER:-BORDER]
    border = (off.sum() - inside.sum()) / (off.size - inside.size)
    # a difference of one step in float32 is one step
    return Error(float(off.mean()), float(off.max()), float((off > 1.001).mean()), float(border))


def same_draws(name: str, severity: int, images: Array) -> tuple[Error, Error]:
    """Errors of the corrupted ``images`` (B, S, S, 3) uint8, and of what a published set holds of them: at 224 pixels
    cut to 8 bits and compressed to JPEG, below cut to 8 bits.
    """
    side = images.shape[1]
    setting, parameters = setting_of(len(images), side), SEVERITIES[name].at(severity, side)
    found = CORRUPTIONS[name].apply(batch_of(images), Level(float(severity), severity=True), setting)
    expected = []
    for image, key in zip(images, setting.keys.split(1), strict=True):
        alone = Setting(key, setting.seed, side, setting.mean)
        expected.append(published(name, image, parameters, own_draws(name, side, parameters, alone)))
    if side < 224:
        kept, wanted = truncated(levels_of(found)), [imagenet_c.truncated(each) for each in expected]
    else:
        kept, wanted = levels_of(stored(found)), [imagenet_c.stored(each) for each in expected]
    return error(levels_of(found), np.stack(expected)), error(kept, np.stack(wanted).astype(np.float64))


# ---- other draws


@dataclass(frozen=True)
class Change:
    """Of what is added to each of N images, in steps of 8 bits: the mean, the standard deviation, that within blocks of
    8 x 8 pixels, that above a quarter of a wave per pixel (N,) and those in octaves of frequency (N, octaves).
    """

    mean: Array
    deviation: Array
    local: Array
    fine: Array
    octaves: Array

    @property
    def statistics(self) -> Array:
        """(3 + octaves, N): what single images are compared by."""
        return np.stack([self.mean, self.deviation, self.fine, *self.octaves.T])

    @property
    def whole_deviation(self) -> float:
        """Of all values of all images."""
        return math.sqrt((self.deviation**2).mean() + self.mean.var())


def change(found: Array, image: Array) -> Change:
    """From the ``image`` (S, S, C) to each of those ``found`` (N, S, S, C)."""
    added = found - image
    count, side, _, channels = added.shape
    blocks = added.reshape(count, side // 8, 8, side // 8, 8, channels)
    power = (np.abs(scipy.fft.fft2(added, axes=(1, 2))) ** 2).mean(axis=3) / side**4
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    # the first octave is about one wave per side, the last holds the corners; the mean belongs to none
    octave = np.rint(np.log2(np.maximum(frequency * side, 0.5)))
    return Change(
        added.mean(axis=(1, 2, 3)),
        added.std(axis=(1, 2, 3)),
        np.sqrt(blocks.var(axis=(2, 4)).mean(axis=(1, 2, 3))),
        np.sqrt(power[:, frequency > 0.25].sum(axis=1)),
        np.sqrt(np.stack([power[:, octave == each].sum(axis=1) for each in range(int(octave.max()) + 1)], axis=1)),
    )


@dataclass(frozen=True)
class Distance:
    """Of one distribution of changes from the published one. ``mean`` is the difference of the means, in deviations of
    the published changes; ``deviation``, ``local`` (variance) and the power in the ``median`` octave and in that
    ``farthest`` from 1 are ratios. The chances are those of such different means, deviations, deviations in fine detail
    and in any octave of single images; of octaves the smallest, times their number.
    """

    mean: float
    deviation: float
    local: float
    median: float
    farthest: float
    chance_of_means: float
    chance_of_deviations: float
    chance_of_fine_detail: float
    chance_of_octaves: float


def distance(found: Change, expected: Change) -> Distance:
    powers = (found.octaves**2).mean(axis=0) / (expected.octaves**2).mean(axis=0)
    mean, deviation, fine, *octaves = map(chance, found.statistics, expected.statistics)
    return Distance(
        float(found.mean.mean() - expected.mean.mean()) / expected.whole_deviation,
        found.whole_deviation / expected.whole_deviation,
        float((found.local**2).mean() / (expected.local**2).mean()),
        float(np.median(powers)),
        float(powers[np.abs(np.log(powers)).argmax()]),
        mean,
        deviation,
        fine,
        min(1.0, len(octaves) * min(octaves)),
    )


def chance(found: Array, expected: Array) -> float:
    """Of samples that are as different if their distributions are the same but for shifts of no more than
    :data:`NEGLIGIBLE`: the test of Kolmogorov and Smirnov, to either side. Without the allowance values that are drawn
    again and again, such as the few images that a short motion makes, differ by any difference at all.
    """
    above = stats.ks_2samp(found, expected - NEGLIGIBLE, alternative="greater").pvalue
    below = stats.ks_2samp(found, expected + NEGLIGIBLE, alternative="less").pvalue
    return min(1.0, 2 * float(min(above, below)))


def other_draws(name: str, parameters: Parameters, image: Array, seeds: int) -> Distance:
    """Distance of ``seeds`` corruptions of an ``image`` (S, S, 3) uint8 from as many published ones, all cut to 8 bits,
    as some published ones are anyhow.
    """
    images = np.stack([image] * seeds)
    found = truncated(levels_of(corrupted(name, images, parameters, setting_of(seeds, len(image)))))
    rng = np.random.default_rng(zlib.crc32(repr((name, parameters, seeds)).encode()))
    expected = np.stack(
        [published(name, each, parameters, published_draws(name, each, parameters, rng)) for each in images]
    )
    return distance(change(found, image), change(np.floor(expected), image))


def _is_random(name: str) -> bool:
    image = np.zeros((32, 32, 3), np.uint8)
    return bool(published_draws(name, image, SEVERITIES[name].at(1, 32), np.random.default_rng(0)))


RANDOM = tuple(filter(_is_random, NAMES))
"""Corruptions whose published draws can be made here: those of frost, crops of photographs, cannot."""


# ---- frost


@dataclass(frozen=True)
class TextureDistance:
    """Of textures of one look from crops of the published photograph: the largest differences, in steps of 8 bits, of
    the mean colour and of a quantile of the luma, the largest difference of a correlation of two channels, and the
    ratios farthest from 1 of a channel's deviation and of the luma's deviation in an octave of frequency.
    """

    mean: float
    quantile: float
    correlation: float
    deviation: float
    octave: float


def texture_distance(look: int, side: int, count: int) -> TextureDistance:
    """Of ``count`` textures of ``side`` pixels from what is known of the published photographs, which are not here."""
    setting = setting_of(16 * count, side)
    shares = torch.tensor([each.share for each in LOOKS]).cumsum(0)[:-1]
    which = torch.bucketize(
        random_uniform(setting.keys, 3, setting.seed, "frost")[:, 0].contiguous(), shares, right=True
    )
    keys = setting.keys[which == look][:count]
    textures = [frost_texture(some, setting.seed, (side, side), photograph_scale(side)) for some in keys.split(20)]
    found = statistics_of(torch.cat(textures).movedim(1, -1).double().numpy())
    known = dict(zip(STATISTICS, map(np.array, PUBLISHED[side][look]), strict=True))

    def difference(name: str) -> float:
        return float(np.abs(found[name] - known[name]).max())

    def ratio(name: str) -> float:
        ratios = found[name][: len(known[name])] / known[name]
        return float(ratios[np.abs(np.log(ratios)).argmax()])

    return TextureDistance(
        255 * difference("mean"),
        255 * difference("quantiles"),
        difference("correlation"),
        ratio("deviation"),
        ratio("octaves"),
    )


# ---- the page

LIBRARIES = ("mae_bench", "torch", "numpy", "scipy", "scikit-image", "opencv-python-headless", "pillow")

ERRORS = ("mean", "largest", "off (%)", "border", "kept mean", "kept largest", "kept off (%)", "kept border")
DISTANCES = (
    "mean", "deviation", "local variance", "power: median", "power: farthest",
    "p: mean", "p: deviation", "p: fine", "p: octaves",
)  # fmt: skip
TEXTURES = ("mean", "quantile", "correlation", "deviation", "octave")

READING = """\
Each corruption is compared with a slow and obvious statement of the published one, written apart from it, which takes
one image in 8 bits and is told all that is random. Values are in steps of 8 bits, from 0 to 255.

**Same draws.** Both sides are given the same random numbers and the same five photographs of scikit-image: {pictures}.
*mean* and *largest* are of the absolute differences of the results, before these are cut to 8 bits; *off* is the share
of values that differ by more than one step, *border* the mean over the outermost {border} pixels. *kept* says the same
of what a published set holds: at 224 pixels the result cut to 8 bits and compressed to a JPEG of quality 85, at 32
pixels cut to 8 bits. Where a result is a whole number but for its last bits, cutting may take a step off one side and
not off the other, and JPEG spreads that step over a block: what is kept may differ although results do not. *Equal*
below means that results do not.

**Other draws.** Either side draws for itself, as often as the heading says, for the first of the photographs, and is
cut to 8 bits. Of the changes (result less image), *mean* is the difference of their means in published standard
deviations; *deviation*, *local variance* (within 8 x 8 pixels) and *power* are ratios to the published. Power spectra
are means over octaves of frequency, from one wave per side up: the median of their ratios and the ratio farthest from
1. *p* are the chances, by Kolmogorov-Smirnov tests, that the means, the deviations, the deviations in fine detail
(above a quarter of a wave per pixel) and those in any octave of single results differ as much as they do, shifts by no
more than {negligible} steps aside. Were all distributions equal, {expected:.2g} of the {tests} chances would be
expected below {smallest:g}; *equal in distribution* below means that none is.
"""

TEXTURE_READING = """\
Frost has no other published draws, since the photographs that it was made with have no stated licence. Crops of its
painted pictures, the same at every severity, {counts} of each look, are compared with what is known of crops of each
photograph: *mean* and *quantile* are the largest differences, in steps of 8 bits, of the mean colour and of a quantile
of the luma, *correlation* that of two channels; *deviation* and *octave* the ratios, of a channel's deviation and of
the luma's in an octave of frequency, that are farthest from 1.
"""


NOTES = {
    "gaussian_noise": "Equal value by value, and in distribution; only the generators of random numbers differ.",
    "shot_noise": (
        "Equal value by value where the same uniform numbers are turned into counts, as quantiles of the Poisson "
        "distribution, and equal in distribution. What is kept is equal, too."
    ),
    "impulse_noise": (
        "Equal but for single values: one number decides here whether a value is replaced and by what, for which the "
        "published code draws two, and where it lies within its last bit of the limit only one side replaces the "
        "value. Equal in distribution."
    ),
    "defocus_blur": (
        "Equal, borders included; nothing is random. What is kept differs most at severity 1 of the larger table, "
        "where the disk has so few points, all of one weight, that many means are whole numbers."
    ),
    "glass_blur": (
        "The published statement reads as if it swapped two pixels, but what it exchanges are views of one array: a "
        "pixel becomes a copy of its neighbour, which stays, and copies of copies travel. The batched version follows "
        "these chains and is equal to the sequential loop. What differs is a step at most: between its two blurs the "
        "image is cut to 8 bits, and few values, all but whole, lose a step on one side only. Equal in distribution."
    ),
    "motion_blur": (
        "Equal but for the last step: ImageMagick cuts its result to 8 bits, which is left to what is kept here, hence "
        "an error of half a step before and next to none after. It rounds to 16 bits on the way, so that single values "
        "fall on the other side of a step. Equal in distribution."
    ),
    "zoom_blur": "Equal, borders and the number of zooms included; nothing is random.",
    "snow": (
        "Equal, including the layer's cuts to 8 bits, but for few values: the layer is cut off below a threshold, and "
        "what float32 takes for one side of it or of a whole step may be on the other. Equal in distribution."
    ),
    "frost": (
        "Given a texture, equal. The textures differ by nature: the published code crops photographs without a stated "
        "licence, here of pictures that a formula paints. The last table says how near their colours, contrasts and "
        "spectra are; no chances are computed, since the photographs are not at hand."
    ),
    "fog": "Equal given the deviations of the diamond-square map, and equal in distribution.",
    "brightness": (
        "Equal; nothing is random. What is kept differs: the published code goes through HSV and back, which leaves "
        "many values all but whole, and which of them lose a step is a matter of rounding."
    ),
    "contrast": "Equal, and so is what is kept; nothing is random.",
    "pixelate": "Equal to the bit to Pillow's boxes, and so is what is kept; nothing is random.",
    "jpeg_compression": (
        "Equal to the bit to Pillow with the library that it was measured with, and so is what is kept; nothing is "
        "random."
    ),
    "elastic_transform": (
        "Equal but for a fraction of a step on average: the OpenCV that ImageNet-C was made with finds the places from "
        "which its affine map reads to 1/32 of a pixel, here they are exact. What is kept differs accordingly. Equal "
        "in distribution."
    ),
    "speckle_noise": "Equal value by value, and in distribution; only the generators of random numbers differ.",
    "gaussian_blur": "Equal, borders included; nothing is random.",
    "spatter": (
        "Equal, Canny's edges, the chamfer distances to them and the equalised histogram of water included, but for "
        "fractions of a step in few values; equal in distribution. Where no drop is left, the published code turns an "
        "image black; neither side measured here does."
    ),
    "saturate": (
        "Equal; nothing is random. What is kept differs as with brightness, and more: a colour's highest channel, "
        "which is the value of HSV, does not change, and comes back whole but for its last bits."
    ),
    "blue_sample": "Equal, given the phases, and equal in distribution.",
    "plasma": "Equal, given time, folds, sharpness and scale, and equal in distribution.",
    "checkerboard_cutout": (
        "Equal, given angle, scale and a number for each square, squares at the axes that share a number included; "
        "equal in distribution."
    ),
    "cocentric_sine": "Equal, given centre, waves and width of the rings, and equal in distribution.",
    "single_freq_grey": "Equal, given frequency and phase, and equal in distribution.",
    "brownish": "Equal, given the phases, and equal in distribution.",
    "perlin": (
        "Equal, given the order and the gradients of the lattice. Here all orders are equally likely, where the "
        "published shuffle prefers some, and gradients are half a step off, so that none is zero; the distributions "
        "are not told apart."
    ),
    "sparkles": "Equal, given centres, rays and their lengths, and equal in distribution.",
    "inverse_sparkles": "Equal, given centre, rays and their lengths, and equal in distribution.",
    "caustic": (
        "Equal, given time and size of the waves, black borders and the rounding of rays to a thousandth of a pixel "
        "included; equal in distribution."
    ),
}
"""What the tables show of each corruption, and why."""


def page(seeds: Sequence[int] = SEEDS) -> str:
    """Markdown: errors and distances of every corruption at every severity, of ``seeds`` draws by side."""
    tests = 4 * len(SIDES) * len(SEVERITY) * len(RANDOM)
    parts = [
        "# Fidelity of the corruptions",
        "Written by `PYTHONPATH=tests python -m references.fidelity --out docs/fidelity.md` with "
        + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        + ".",
        READING.format(
            pictures=", ".join(PICTURES),
            border=BORDER,
            negligible=NEGLIGIBLE,
            tests=tests,
            smallest=SMALLEST,
            expected=tests * SMALLEST,
        ).strip(),
    ]
    for side in SIDES:
        parts += [f"## Same draws, {side} pixels", _same_draws_table(side)]
    counts = " and ".join(str(2 * count) for count in seeds)
    for side, count in zip(SIDES, seeds, strict=True):
        parts += [f"## Other draws, {side} pixels, {count} each", _other_draws_table(side, count)]
    parts += ["## Textures of frost", TEXTURE_READING.format(counts=counts).strip(), _textures_table(seeds)]
    parts.append("## What is equal, what differs, and why")
    parts += [f"**{name}**: {NOTES[name]}" for name in NAMES]
    return "\n\n".join(parts) + "\n"


def _same_draws_table(side: int) -> str:
    lines = []
    for name, severity in product(NAMES, SEVERITY):
        errors = same_draws(name, severity, photographs(side))
        numbers = ((f"{e.mean:.4f}", f"{e.largest:.3f}", f"{100 * e.share:.3f}", f"{e.border:.4f}") for e in errors)
        lines.append([name, severity, *chain(*numbers)])
    return _table(("corruption", "severity", *ERRORS), lines)


def _other_draws_table(side: int, seeds: int) -> str:
    lines = []
    for name, severity in product(RANDOM, SEVERITY):
        far = other_draws(name, SEVERITIES[name].at(severity, side), photographs(side)[0], seeds)
        mean, *numbers = astuple(far)
        ratios, chances = numbers[:4], numbers[4:]
        lines.append([name, severity, f"{mean:+.3f}", *(f"{r:.3f}" for r in ratios), *(f"{p:.2g}" for p in chances)])
    return _table(("corruption", "severity", *DISTANCES), lines)


def _textures_table(seeds: Sequence[int]) -> str:
    lines = []
    for (side, count), look in product(zip(SIDES, seeds, strict=True), range(len(LOOKS))):
        mean, quantile, correlation, *ratios = astuple(texture_distance(look, side, 2 * count))
        numbers = (f"{mean:.2f}", f"{quantile:.2f}", f"{correlation:.3f}", *(f"{ratio:.3f}" for ratio in ratios))
        lines.append([f"look {look + 1}", f"{side} px", *numbers])
    return _table(("frost", "table", *TEXTURES), lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    return tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write how far the corruptions are from the published ones.")
    parser.add_argument("--out", type=Path, help="where to write the page; printed if not given")
    parser.add_argument(
        "--seeds", type=int, nargs=2, default=SEEDS, metavar=("N224", "N32"), help="draws of each, by image side"
    )
    options = parser.parse_args()
    # sums of one thread are the same each time
    torch.set_num_threads(1)
    text = page(options.seeds)
    if options.out is None:
        sys.stdout.write(text)
    else:
        # what else is in the store takes seconds to import
        from mae_bench.store import write_atomically

        write_atomically(options.out, text.encode())


if __name__ == "__main__":
    main()
