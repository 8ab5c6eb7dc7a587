"""Textures of frost, made by a formula for each image in place of the photographs that ImageNet-C was made with.

The published code crops one of five photographs, of which two are the same picture and none has a stated licence. Here
each picture is a :class:`Look`: its colours are those of the photograph, and on it are noise in octaves of length,
overlapping crystals with barbs like those of feathers, and creases, in such strength that a crop has the mean, the
contrast, the histogram and the power spectrum of one of the photograph. All of it is a function of the place, so that
it may be sampled at any scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import product

import torch
from torch import Tensor

from mae_bench.degradations.severity import LARGE, SMALL
from mae_bench.randomness import random_uniform

_OCTAVES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Distances in pixels of a photograph between the points of each octave of noise."""

_SMALL_SCALE = 0.2
"""To what share of their size the published code shrinks the photographs for images of 32 pixels."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """What one photograph looks like. Lengths are in pixels of the photograph, values in shares of their range.

    ``share`` of the images get it. Its colour is ``mean``, plus ``slope`` times the relief, plus a cast of standard
    deviation ``cast``. The relief is noise, of standard deviation ``noise`` per octave, and two generations of
    ``crystals`` and creases of depth ``crease``, all stronger in some places than in others by ``patchiness`` of
    themselves; its histogram of standard deviation ``deviation`` is made steeper on one side by ``skew``.

    Crystals are (cell, length, width, angle, spacing, indent, cover, facet, barb, bevel). There is one in each square
    cell, ``length`` long and ``width`` wide from its middle. Barbs leave its axis at ``angle`` degrees, one every
    ``spacing`` pixels, and its rim recedes between them by ``indent`` of its width. It is lighter than what is below
    by ``cover``, differs from others by ``facet``, between its two sides by ``bevel`` and along its barbs by ``barb``.
    """

    share: float
    mean: Numbers
    slope: Numbers
    cast: Numbers
    noise: Numbers
    crystals: tuple[Numbers, Numbers]
    crease: float
    patchiness: float
    deviation: float
    skew: float


LOOKS = (
    Look(
        share=0.2, mean=(0.303, 0.575, 0.648), slope=(1.392, 0.863, 0.676), cast=(0.0365, -0.013, -0.03),
        noise=(0.041, 0, 0, 0.007, 0.011, 0.02, 0.03, 0, 0.057),
        crystals=((34, 32, 14, 0, 7, 0, 0, 0.02, 0, 0.03), (12, 11, 2.5, 0, 4, 0, 0, 0, 0, 0.08)),
        crease=0.04, patchiness=0.7, deviation=0.068, skew=0.04,
    ),
    Look(
        share=0.4, mean=(0.764, 0.782, 0.82), slope=(0.973, 1.004, 1.038), cast=(0.005, -0.001, -0.0065),
        noise=(0, 0.033, 0.027, 0.019, 0, 0, 0, 0.042, 0.012),
        crystals=((44, 43, 11, 5, 3, 0.5, 0.03, 0.12, 0.06, 0.14), (20, 19, 3.5, 4, 3, 0.5, -0.03, 0.14, 0.04, 0.14)),
        crease=0, patchiness=0.4, deviation=0.076, skew=-0.15,
    ),
    Look(
        share=0.2, mean=(0.554, 0.613, 0.665), slope=(0.99, 0.994, 1.038), cast=(0.004, 0.002, -0.012),
        noise=(0.037, 0.051, 0, 0.019, 0.019, 0, 0, 0.036, 0.025),
        crystals=((28, 27, 8, 25, 3.5, 0.7, 0, 0.11, 0.05, 0.18), (6, 5.5, 1.6, 0, 4, 0, 0, 0.22, 0, 0.25)),
        crease=0, patchiness=0.4, deviation=0.105, skew=-0.06,
    ),
    Look(
        share=0.2, mean=(0.306, 0.351, 0.4), slope=(1.01, 0.997, 0.974), cast=(0.0033, -0.0005, -0.0055),
        noise=(0, 0.065, 0.04, 0, 0.032, 0.02, 0, 0, 0.069),
        crystals=((42, 41, 11, 55, 3.5, 0.7, 0.1, 0.08, 0.04, 0.16), (18, 18, 5, 55, 3.2, 0.7, 0.1, 0.08, 0.035, 0.16)),
        crease=0, patchiness=0.4, deviation=0.142, skew=0,
    ),
)  # fmt: skip
"""Of the photographs that the published code calls 1, 2 and 3, 4, and 5: teal ice, white needles, grey rime, ferns."""


def photograph_scale(side: int) -> float:
    """Pixels of an image of ``side`` pixels per pixel of a photograph: 1 at 224 and, as published, 0.2 at 32 and below;
    between them by the logarithm of the side, and beyond 224 in proportion to it.

    >>> photograph_scale(224), photograph_scale(28), photograph_scale(448)
    (1.0, 0.2, 2.0)
    """
    if side >= LARGE:
        return side / LARGE
    share = max(0.0, math.log(side / SMALL) / math.log(LARGE / SMALL))
    return float(_SMALL_SCALE ** (1 - share))


def frost_texture(keys: Tensor, seed: int, size: tuple[int, int], scale: float) -> Tensor:
    """(B, 3, H, W) in [0, 1]: for each image a texture of ``size`` (H, W), ``scale`` of its pixels per pixel of a
    photograph. Where that is below 1, single points are taken, as the published code does.
    """
    shares = torch.tensor([look.share for look in LOOKS], device=keys.device).cumsum(0)
    which = torch.bucketize(random_uniform(keys, 1, seed, "frost")[:, 0], shares[:-1], right=True)
    mean, slope, cast, noise, crystals, crease, patchiness, deviation, skew = (
        torch.tensor([getattr(look, field.name) for look in LOOKS], device=keys.device)[which][..., None, None]
        for field in fields(Look)[1:]
    )
    octaves = torch.stack([_octave(keys, seed, size, scale, spacing) for spacing in _OCTAVES], 1)
    detail = crease * (_creases(octaves[:, 2:5].mean(1)) + _creases(octaves[:, 3:6].mean(1)))
    for generation, numbers in enumerate(crystals.unbind(1)):
        detail = detail + _crystals(keys, seed, size, scale, generation, numbers, octaves[:, 4])
    patches = (1 + patchiness * octaves[:, 6:8].sum(1) / math.sqrt(2)).clamp(min=0)
    relief = torch.einsum("bo,bohw->bhw", noise[..., 0, 0], octaves) + patches * detail
    relief = relief + skew * (relief**2 / deviation - deviation)
    # upside down, the same noise has nothing to do with the relief
    tint = octaves[:, 4:8].sum(1).flip(1) / 2
    return (mean + slope * relief[:, None] + cast * tint[:, None]).clamp(0, 1)


def _places(side: int, scale: float, unit: Tensor | float, device: torch.device) -> Tensor:
    """Centres of the pixels of a line, in ``unit`` pixels of a photograph."""
    return (torch.arange(side, device=device) + 0.5) / scale / unit


def _octave(keys: Tensor, seed: int, size: tuple[int, int], scale: float, spacing: int) -> Tensor:
    """(B, H, W) smooth noise of mean 0 and standard deviation 1: random values at points ``spacing`` pixels of a
    photograph apart, and between them by Hermite's cubic.
    """
    rows, columns = (_places(side, scale, spacing, keys.device) for side in size)
    weights = []
    for side, place in zip(size, (rows, columns), strict=True):
        points = torch.arange(math.ceil(side / scale / spacing) + 1, device=keys.device)
        distance = (place[:, None] - points).abs().clamp(max=1)
        weights.append(1 - distance**2 * (3 - 2 * distance))
    height, width = (weight.shape[1] for weight in weights)
    values = 2 * random_uniform(keys, height * width, seed, f"frost_octave_{spacing}").view(-1, height, width) - 1
    # the variance of a value is 1/3, the sum of squared weights along each direction 26/35 on average
    return weights[0] @ values @ weights[1].mT * (math.sqrt(3) * 35 / 26)


def _creases(fold: Tensor) -> Tensor:
    """Light on one side and dark on the other of the lines along which ``fold`` crosses zero."""
    steep = fold / 0.06
    return steep * (0.5 - steep**2 / 2).exp()


def _crystals(
    keys: Tensor, seed: int, size: tuple[int, int], scale: float, generation: int, numbers: Tensor, bend: Tensor
) -> Tensor:
    """(B, H, W) relief of one generation of crystals, as the ``numbers`` (B, 10, 1, 1) of their looks say, with barbs
    that are displaced by ``bend`` (B, H, W) pixels.
    """
    cell, length, width, angle, spacing, indent, cover, facet, barb, bevel = numbers.unbind(1)
    smallest = min(look.crystals[generation][0] for look in LOOKS)
    # a cell and up to another one around what is seen, whose crystals reach into it
    cells = [math.floor(side / scale / smallest) + 4 for side in size]
    draws = random_uniform(keys, 2 + 4 * cells[0] * cells[1], seed, f"frost_crystals_{generation}")
    rows, columns = (
        1 + draws[:, axis, None] + _places(side, scale, cell[:, 0], keys.device) for axis, side in enumerate(size)
    )
    along, across, tone = _uppermost(draws[:, 2:].view(-1, 4, *cells), rows, columns, cell / length, cell / width)
    phase = (across.abs() * width * angle.deg2rad().cos() - along * length * angle.deg2rad().sin()) / spacing
    # crystals differ in the spacing of their barbs and in where these begin
    wave = torch.cos(2 * math.pi * (phase * (0.75 + 0.5 * tone) + 0.7 * bend / spacing + 7 * tone))
    covered = (4 * (1 - along**2 - across**2 - indent * (1 - wave) / 2)).clamp(0, 1)
    side = (3 * across).clamp(-1, 1)
    return covered * (cover * (0.5 + tone) + (facet + bevel * side) * (tone - 0.5) + barb * wave)


def _uppermost(
    draws: Tensor, rows: Tensor, columns: Tensor, per_length: Tensor, per_width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How far along and across the uppermost crystal each place lies, in shares of its length and width, and that
    crystal's tone in [0, 1], each (B, H, W). Of those in the cells around, it is the crystal whose rim is farthest out
    of the place, light ones above dark ones.

    Args:
        draws: (B, 4, N, M) uniform numbers for each cell: where in it its crystal is, where that points, and its tone.
        rows, columns: (B, H) and (B, W) places in cells.
        per_length, per_width: (B, 1, 1) the side of a cell in lengths and widths of a crystal.
    """
    down, right, turn, tone = draws.unbind(1)
    cosine, sine = (2 * math.pi * turn).cos(), (2 * math.pi * turn).sin()
    batch = torch.arange(len(draws), device=draws.device)[:, None, None]
    row, column = rows.long(), columns.long()
    y, x = rows - row, columns - column
    nearest = torch.full((), math.inf, device=draws.device)
    cell = torch.zeros((), dtype=torch.long, device=draws.device)
    for above, before in product((-1, 0, 1), repeat=2):
        # along = a0 + a1 * x and across = b0 + b1 * x for each place of a row in each cell of a row of cells
        chosen = (batch[..., 0], row + above)
        y0 = (y[..., None] - above) - down[chosen]
        x0 = before + right[chosen]
        a1, b1 = cosine[chosen] * per_length, -sine[chosen] * per_width
        a0 = sine[chosen] * per_length * y0 - a1 * x0
        b0 = cosine[chosen] * per_width * y0 - b1 * x0
        rim = torch.cat((a0**2 + b0**2 - 0.7 * tone[chosen], 2 * (a0 * a1 + b0 * b1), a1**2 + b1**2), 2)
        # a product with zeros and a one looks up the cell of each column
        here = (column[..., None] + before == torch.arange(tone.shape[2], device=x.device)).float()
        powers = torch.cat((here, here * x[..., None], here * x[..., None] ** 2), 2)
        distance = rim @ powers.mT
        candidate = (row + above)[:, :, None] * tone.shape[2] + (column + before)[:, None]
        cell = torch.where(distance < nearest, candidate, cell)
        nearest = torch.minimum(distance, nearest)
    down, right, cosine, sine, tone = (
        number.flatten(1).gather(1, cell.flatten(1)).view_as(cell) for number in (down, right, cosine, sine, tone)
    )
    y = rows[:, :, None] - cell // draws.shape[3] - down
    x = columns[:, None] - cell % draws.shape[3] - right
    return (cosine * x + sine * y) * per_length, (cosine * y - sine * x) * per_width, tone
