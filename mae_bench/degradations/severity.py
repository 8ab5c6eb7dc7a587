"""Severities 1 to 5 of ImageNet-C and ImageNet-C-bar as data: what each stands for, at 224 and at 32 pixels.

Sources: Hendrycks and Dietterich 2019, arXiv 1903.12261, and the code that made ImageNet-C and CIFAR-10-C;
Mintun et al. 2021, arXiv 2102.11273, and its table of magnitudes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SMALL, LARGE = 32, 224
"""Image sides in pixels that the two published tables are meant for."""

Parameters = tuple[float, ...]


@dataclass(frozen=True)
class SeverityTable:
    """Parameters of one corruption by severity, ``large`` for images of 224 px and ``small`` for those of 32 px.

    ``names`` say what the parameters are, in order; those in ``lengths`` are pixels, and beyond 224 px grow with
    the image. ``whole`` are counts.
    """

    names: tuple[str, ...]
    large: tuple[Parameters, ...]
    small: tuple[Parameters, ...]
    lengths: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    def at(self, severity: float, side: int) -> Parameters:
        """The parameters at ``severity`` for images of ``side`` pixels. Between two severities, and between the two
        sides (by the logarithm of the side), they are interpolated linearly; below 32 px they are those of 32 px.

        Raises:
            ValueError: the severity is not in 1 to 5.

        >>> SEVERITIES["gaussian_noise"].at(3, 224), SEVERITIES["gaussian_noise"].at(1.5, 32)
        ((0.18,), (0.05,))
        """
        if not 1 <= severity <= len(self.large):
            raise ValueError(f"severity {severity} is outside 1 to {len(self.large)}")
        small, large = (_between(table, severity) for table in (self.small, self.large))
        share = min(1.0, max(0.0, math.log(side / SMALL) / math.log(LARGE / SMALL)))
        found = []
        for name, low, high in zip(self.names, small, large, strict=True):
            # the ends are taken as they are, since low + 1.0 * (high - low) may round
            value = low if share == 0 else high if share == 1 else low + share * (high - low)
            if name in self.lengths and side > LARGE:
                value *= side / LARGE
            found.append(float(round(value)) if name in self.whole else value)
        return tuple(found)


def _between(table: tuple[Parameters, ...], severity: float) -> Parameters:
    below = math.floor(severity)
    if below == severity:
        return table[below - 1]
    share = severity - below
    return tuple(
        round(low + share * (high - low), 12) for low, high in zip(table[below - 1], table[below], strict=True)
    )


def table_name(side: int) -> str:
    """Which table images of ``side`` pixels are degraded by.

    >>> table_name(224), table_name(28), table_name(96), table_name(384)
    ('224 px', '32 px', '32 to 224 px, interpolated at 96', '224 px, scaled to 384')
    """
    if side <= SMALL:
        return f"{SMALL} px"
    if side < LARGE:
        return f"{SMALL} to {LARGE} px, interpolated at {side}"
    return f"{LARGE} px" if side == LARGE else f"{LARGE} px, scaled to {side}"


def _column(name: str, large: Parameters, small: Parameters, length: bool = False) -> SeverityTable:
    """A table of a single parameter."""
    return SeverityTable((name,), tuple((v,) for v in large), tuple((v,) for v in small), (name,) if length else ())


SEVERITIES: dict[str, SeverityTable] = {
    "gaussian_noise": _column("sigma", (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": _column("photons", (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": _column("amount", (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": _column("sigma", (0.15, 0.2, 0.35, 0.45, 0.6), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": _column("sigma", (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1), length=True),
    "glass_blur": SeverityTable(
        ("sigma", "max_delta", "iterations"),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        lengths=("sigma", "max_delta"),
        whole=("max_delta", "iterations"),
    ),
    "defocus_blur": SeverityTable(
        ("radius", "alias"),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        lengths=("radius",),
    ),
    "motion_blur": SeverityTable(
        ("radius", "sigma"),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        lengths=("radius", "sigma"),
    ),
    # factors are those of numpy.arange, whose rounding lets 1.11 and 1.06 in and leaves the other stops out
    "zoom_blur": SeverityTable(
        ("stop", "step"),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": SeverityTable(
        ("loc", "scale", "zoom", "threshold", "radius", "sigma", "mix"),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        lengths=("zoom", "radius", "sigma"),
    ),
    "frost": SeverityTable(
        ("image", "frost"),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": SeverityTable(
        ("amount", "decay"),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": _column("added", (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    # water where mud is 0; the fifth is its opacity, and of mud the blur of its rim in pixels
    "spatter": SeverityTable(
        ("loc", "scale", "sigma", "threshold", "mix", "mud"),
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        lengths=("sigma",),
        whole=("mud",),
    ),
    "contrast": _column("factor", (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": SeverityTable(
        ("factor", "added"),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ),
    "elastic_transform": SeverityTable(
        ("alpha", "sigma", "affine"),
        # the published code takes 244 for the side of 224-pixel images
        tuple(
            (244 * a, 244 * s, 244 * t)
            for a, s, t in (
                (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
            )
        ),
        tuple(
            (32 * a, 32 * s, 32 * t)
            for a, s, t in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
        ),
        lengths=("alpha", "sigma", "affine"),
    ),
    "pixelate": _column("factor", (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": SeverityTable(
        ("quality",),
        ((25,), (18,), (15,), (10,), (7,)),
        ((80,), (65,), (58,), (50,), (40,)),
        whole=("quality",),
    ),
    # of these, five are in CIFAR-10-C-bar, too, with magnitudes of their own
    "blue_sample": _column("magnitude", (0.8, 1.6, 2.4, 4, 5.6), (0.7, 1.4, 2.1, 3.5, 4.2)),
    "checkerboard_cutout": _column("magnitude", (2, 3, 4, 5, 6), (1, 2, 3, 4, 5)),
    "brownish": _column("magnitude", (1, 2, 3, 4, 5), (2.5, 4, 5.5, 6.5, 7)),
    "sparkles": _column("magnitude", (1, 2, 3, 5, 6), (0.7, 3.5, 5.6, 6.3, 7)),
    "inverse_sparkles": _column("magnitude", (1, 2, 4, 9, 10), (1, 1.5, 2.5, 4.5, 5)),
    # the other five are not: for 32 px these are the same steps as for 224 px on the ladder of ten magnitudes from
    # which the authors chose (cifar10_new_corruptions.csv, as imagenet_new_corruptions.csv)
    "plasma": _column("magnitude", (4.75, 7, 8.5, 9.25, 10), (2.1, 4.2, 5.6, 6.3, 7)),
    "cocentric_sine": _column("magnitude", (3, 5, 8, 9, 10), (1.5, 2.5, 4, 4.5, 5)),
    "single_freq_grey": _column("magnitude", (1, 1.5, 2, 4.5, 5), (0.6, 0.9, 1.2, 2.7, 3)),
    "perlin": _column("magnitude", (4.6, 5.2, 5.8, 7.6, 8.8), (4.6, 5.2, 5.8, 7.6, 8.8)),
    "caustic": _column("magnitude", (2.35, 3.2, 4.9, 6.6, 9.15), (1.4, 1.8, 2.6, 3.4, 4.6)),
}  # fmt: skip
"""Of the nineteen corruptions of ImageNet-C and the ten of ImageNet-C-bar."""
