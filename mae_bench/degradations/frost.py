"""Textures of frost: crops of pictures that a formula paints in place of the photographs that ImageNet-C was made with.

The published code crops one of five photographs, of which two are the same picture and none has a stated licence. Here
each picture is a :class:`Look`: its colours are those of the photograph, and on it are noise in octaves of length,
overlapping crystals with barbs like those of feathers, and creases, in such strength that a crop has the mean, the
contrast, the histogram and the power spectrum of one of the photograph. All of it is a function of the place, so that
it may be sampled at any scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from mae_bench.degradations.convolution import inside
from mae_bench.degradations.severity import LARGE, SMALL
from mae_bench.randomness import random_uniform

_OCTAVES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Distances in pixels of a photograph between the points of each octave of noise."""

_SMALL_SCALE = 0.2
"""To what share of their size the published code shrinks the photographs for images of 32 pixels."""

_PICTURE = 1024
"""Pixels of a photograph along each side of a picture: about as many as the published ones have."""

_BAND = 32
"""Rows of a picture that are painted at a time, so that what is worked on stays in the cache."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Look:
    """What one photograph looks like. Lengths are in pixels of the photograph, values in shares of their range.

    ``share`` of the images get a crop of its picture, that of many by their ``key`` whose crops are most like those of
    the photograph. Its colour is ``mean``, plus ``slope`` times the relief, plus a cast of standard
    deviation ``cast``. The relief is noise, of standard deviation ``noise`` per octave, and two generations of
    ``crystals`` and creases of depth ``crease``, all stronger in some places than in others by ``patchiness`` of
    themselves; its histogram of standard deviation ``deviation`` is made steeper on one side by ``skew``.

    Crystals are (cell, length, width, angle, spacing, indent, cover, facet, barb, bevel). There is one in each square
    cell, ``length`` long and ``width`` wide from its middle. Barbs leave its axis at ``angle`` degrees, one every
    ``spacing`` pixels, and its rim recedes between them by ``indent`` of its width. It is lighter than what is below
    by ``cover``, differs from others by ``facet``, between its two sides by ``bevel`` and along its barbs by ``barb``.
    """

    share: float
    key: int
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
        share=0.2, key=20, mean=(0.303, 0.575, 0.648), slope=(1.392, 0.863, 0.676), cast=(0.0365, -0.013, -0.03),
        noise=(0.041, 0, 0, 0.007, 0.011, 0.02, 0.03, 0, 0.057),
        crystals=((34, 32, 14, 0, 7, 0, 0, 0.02, 0, 0.03), (12, 11, 2.5, 0, 4, 0, 0, 0, 0, 0.08)),
        crease=0.04, patchiness=0.7, deviation=0.068, skew=0.04,
    ),
    Look(
        share=0.4, key=77, mean=(0.764, 0.782, 0.82), slope=(0.973, 1.004, 1.038), cast=(0.005, -0.001, -0.0065),
        noise=(0, 0.033, 0.027, 0.019, 0, 0, 0, 0.042, 0.012),
        crystals=((44, 43, 11, 5, 3, 0.5, 0.03, 0.12, 0.06, 0.14), (20, 19, 3.5, 4, 3, 0.5, -0.03, 0.14, 0.04, 0.14)),
        crease=0, patchiness=0.4, deviation=0.076, skew=-0.15,
    ),
    Look(
        share=0.2, key=94, mean=(0.554, 0.613, 0.665), slope=(0.99, 0.994, 1.038), cast=(0.004, 0.002, -0.012),
        noise=(0.037, 0.051, 0, 0.019, 0.019, 0, 0, 0.036, 0.025),
        crystals=((28, 27, 8, 25, 3.5, 0.7, 0, 0.11, 0.05, 0.18), (6, 5.5, 1.6, 0, 4, 0, 0, 0.22, 0, 0.25)),
        crease=0, patchiness=0.4, deviation=0.105, skew=-0.06,
    ),
    Look(
        share=0.2, key=35, mean=(0.306, 0.351, 0.4), slope=(1.01, 0.997, 0.974), cast=(0.0033, -0.0005, -0.0055),
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
    """(B, 3, H, W) in [0, 1]: for each image a crop of ``size`` (H, W) of a picture, with ``scale`` of its pixels per
    pixel of a photograph. Where that is below 1, single points are taken, as the published code does. A crop that is
    longer than the picture goes on in its mirror image.
    """
    painted = pictures(scale, keys.device)
    side_of_picture = painted.shape[2]
    room = [max(1, side_of_picture - side + 1) for side in size]
    which, above, before = random_uniform(keys, 3, seed, "frost").T.contiguous()
    limits = torch.tensor([look.share for look in LOOKS], device=keys.device).cumsum(0)[:-1]
    which = torch.bucketize(which, limits, right=True)
    rows, columns = (
        inside((share * free).long()[:, None] + torch.arange(side, device=keys.device), side_of_picture, "reflect")
        for share, free, side in zip((above, before), room, size, strict=True)
    )
    place = (which[:, None, None] * side_of_picture + rows[:, :, None]) * side_of_picture + columns[:, None]
    # colours come last, so that each pixel is one piece of memory
    crops = painted.movedim(1, -1).reshape(-1, 3).index_select(0, place.flatten()).view(*place.shape, 3)
    return crops.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


@lru_cache(maxsize=4)
def pictures(scale: float, device: torch.device) -> Tensor:
    """(4, 3, N, N) uint8: a picture of each look, with ``scale`` of its pixels per pixel of a photograph.

    >>> pictures(0.2, torch.device("cpu")).shape
    torch.Size([4, 3, 204, 204])
    """
    # what is kept may be used in another mode than the one that it is made in, and is the same on every device
    with torch.inference_mode(False):
        # centres of the pixels, in pixels of a photograph
        places = (torch.arange(int(_PICTURE * scale)) + 0.5) / scale
        painted = torch.cat([_picture(look, places) for look in range(len(LOOKS))])
        return painted.contiguous(memory_format=torch.channels_last).to(device)


def _picture(look: int, places: Tensor) -> Tensor:
    """(1, 3, N, N) uint8: the picture of a look at so many ``places`` (N,) down and across."""
    key = torch.tensor([LOOKS[look].key])
    mean, slope, cast, noise, crystals, crease, patchiness, deviation, skew = (
        torch.tensor([getattr(LOOKS[look], field.name)])[..., None, None] for field in fields(Look)[2:]
    )
    lattices = [_lattice(key, spacing, places) for spacing in _OCTAVES]
    crystals_drawn = [_crystal_draws(key, generation) for generation in (0, 1)]
    painted = []
    for rows in torch.split(places, _BAND):
        octaves = torch.stack(
            [_octave(lattice, rows / spacing) for lattice, spacing in zip(lattices, _OCTAVES, strict=True)], 1
        )
        detail = crease * (_creases(octaves[:, 2:5].mean(1)) + _creases(octaves[:, 3:6].mean(1)))
        for drawn, numbers in zip(crystals_drawn, crystals.unbind(1), strict=True):
            detail = detail + _crystals(drawn, rows, places, numbers, octaves[:, 4])
        patches = (1 + patchiness * octaves[:, 6:8].sum(1) / math.sqrt(2)).clamp(min=0)
        relief = torch.einsum("bo,bohw->bhw", noise[..., 0, 0], octaves) + patches * detail
        relief = relief + skew * (relief**2 / deviation - deviation)
        # upside down, the same noise has nothing to do with the relief
        tint = torch.stack([_octave(lattices[i], (_PICTURE - rows) / _OCTAVES[i]) for i in range(4, 8)]).sum(0) / 2
        colours = mean + slope * relief[:, None] + cast * tint[:, None]
        painted.append(colours.clamp(0, 1).mul(255).round().byte())
    return torch.cat(painted, 2)


def _lattice(key: Tensor, spacing: int, columns: Tensor) -> Tensor:
    """(1, N, W) smooth noise along lines that are ``spacing`` pixels of a photograph apart, at the places ``columns``
    (W,): of a standard deviation that leaves 1 between the lines.
    """
    points = math.ceil(_PICTURE / spacing) + 1
    drawn = random_uniform(key, points * points, 0, f"frost_octave_{spacing}").view(1, points, points)
    # the variance of a value is 1/3, the sum of squared weights along each direction 26/35 on average
    return ((2 * drawn - 1) @ _hermite(columns / spacing, range(points)).mT).mul_(math.sqrt(3) * 35 / 26)


def _octave(lattice: Tensor, rows: Tensor) -> Tensor:
    """(B, H, W) smooth noise of mean 0 and standard deviation 1 at the places ``rows`` (H,), in lines of the lattice:
    random values at its points, and between them Hermite's cubic.
    """
    lines = range(int(rows.min()), int(rows.max()) + 2)
    return _hermite(rows, lines) @ lattice[:, lines.start : lines.stop]


def _hermite(places: Tensor, points: range) -> Tensor:
    """(H, points): the weight of each point at each place."""
    distance = (places[:, None] - torch.arange(points.start, points.stop)).abs().clamp(max=1)
    return 1 - distance**2 * (3 - 2 * distance)


def _creases(fold: Tensor) -> Tensor:
    """Light on one side and dark on the other of the lines along which ``fold`` crosses zero."""
    steep = fold / 0.06
    return steep * (0.5 - steep**2 / 2).exp()


def _crystal_draws(key: Tensor, generation: int) -> Tensor:
    """(1, 2 + 4 * cells) uniform numbers: where the cells begin, and four for each of them. They are a cell and up to
    another one around the picture, whose crystals reach into it.
    """
    smallest = min(look.crystals[generation][0] for look in LOOKS)
    return random_uniform(key, 2 + 4 * (math.floor(_PICTURE / smallest) + 4) ** 2, 0, f"frost_crystals_{generation}")


def _crystals(draws: Tensor, rows: Tensor, columns: Tensor, numbers: Tensor, bend: Tensor) -> Tensor:
    """(B, H, W) relief of one generation of crystals at the places ``rows`` (H,) and ``columns`` (W,), as the ``draws``
    and the ``numbers`` (B, 10, 1, 1) of their looks say, with barbs that are displaced by ``bend`` (B, H, W) pixels.
    """
    cell, length, width, angle, spacing, indent, cover, facet, barb, bevel = numbers.unbind(1)
    rows, columns = (1 + draws[:, axis, None] + places / cell[:, 0] for axis, places in enumerate((rows, columns)))
    cells = math.isqrt((draws.shape[1] - 2) // 4)
    crystals = draws[:, 2:].view(-1, 4, cells, cells)[..., : int(rows.max()) + 2, : int(columns.max()) + 2]
    along, across, tone = _uppermost(crystals, rows, columns, cell / length, cell / width)
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
    width = draws.shape[3]
    down, right, turn, tone = (number.flatten(1) for number in draws.unbind(1))
    cosine, sine = (2 * math.pi * turn).cos(), (2 * math.pi * turn).sin()
    row, column = rows.long(), columns.long()
    y, x = rows - row, columns - column
    above, before = torch.meshgrid(*(2 * (torch.arange(-1, 2, device=x.device),)), indexing="ij")
    above, before = above.reshape(9, 1, 1), before.reshape(9, 1, 1)
    # along = a0 + a1 * x and across = b0 + b1 * x in each of nine cells (B, 9, H, M) around each row of each cell
    beside = (torch.arange(width, device=x.device) + before).clamp(0, width - 1)
    chosen = (row[:, None, :, None] + above) * width + beside
    place, towards, cosines, sines, tones = (
        number.gather(1, chosen.flatten(1)).view_as(chosen) for number in (down, right, cosine, sine, tone)
    )
    y0 = (y[:, None, :, None] - above) - place
    x0 = before + towards
    a1, b1 = cosines * per_length[:, None], -sines * per_width[:, None]
    a0 = sines * per_length[:, None] * y0 - a1 * x0
    b0 = cosines * per_width[:, None] * y0 - b1 * x0
    rim = torch.cat((a0**2 + b0**2 - 0.7 * tones, 2 * (a0 * a1 + b0 * b1), a1**2 + b1**2), 3)
    # a product with zeros and a one looks up the cell of each column
    here = (column[..., None] == torch.arange(width, device=x.device)).float()
    powers = torch.cat((here, here * x[..., None], here * x[..., None] ** 2), 2)
    distances = (rim.flatten(1, 2) @ powers.mT).view(len(draws), 9, rows.shape[1], columns.shape[1])
    nearest = distances[:, 0].clone()
    which = torch.zeros_like(nearest)
    for cell, distance in enumerate(distances.unbind(1)):
        # by arithmetic, which is faster than to fill where a comparison holds
        is_nearer = (nearest - distance).sign_().clamp_(min=0)
        which.lerp_(torch.full((), float(cell), device=x.device), is_nearer)
        torch.minimum(distance, nearest, out=nearest)
    index = which.int().long()
    above, before = above.take(index), before.take(index)
    chosen = ((row[:, :, None] + above) * width + column[:, None] + before).flatten(1)
    down, right, cosine, sine, tone = (
        number.gather(1, chosen).view_as(index) for number in (down, right, cosine, sine, tone)
    )
    y0 = (y[:, :, None] - above) - down
    x0 = (x[:, None] - before) - right
    return (cosine * x0 + sine * y0) * per_length, (cosine * y0 - sine * x0) * per_width, tone
