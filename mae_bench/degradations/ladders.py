"""Levels of each degradation as data: five per reference image size, three of them in the default matrix."""

from __future__ import annotations

from mae_bench.cells import Level
from mae_bench.degradations import DEGRADATIONS

GRIDS = {28: 7, 32: 8, 224: 14}
"""Cells along a side of the occlusion grid, by reference image size."""

_FRACTIONS = (0.10, 0.25, 0.50, 0.75, 0.90)
_SMALL_BLUR = {
    # rung by rung the four kernels have about the same standard deviation along the direction that they blur
    "gaussian_blur": (0.5, 1.0, 1.5, 2.0, 3.0),  # standard deviation
    "box_blur": (1.75, 3.5, 5.25, 7.0, 10.5),  # side
    "motion_blur": (1.75, 3.5, 5.25, 7.0, 10.5),  # length
    "defocus_blur": (1.0, 2.0, 3.0, 4.0, 6.0),  # radius
}
_BLUR = {
    28: _SMALL_BLUR,
    32: _SMALL_BLUR,
    224: {
        "gaussian_blur": (1.0, 2.0, 3.0, 4.0, 6.0),
        "box_blur": (3.5, 7.0, 10.5, 14.0, 21.0),
        "motion_blur": (3.5, 7.0, 10.5, 14.0, 21.0),
        "defocus_blur": (2.0, 4.0, 6.0, 8.0, 12.0),
    },
}


def levels(name: str, reference_size: int, full: bool = False) -> tuple[Level, ...]:
    """The ladder of degradation ``name``: low, middle and top of its five levels, or all with ``full``.

    Levels in pixels are meant for images of side ``reference_size`` and scale with the actual side.

    Raises:
        ValueError: no ladder is stated for this reference size.

    >>> [str(level) for level in levels("gaussian_blur", 28)]
    ['0.50', '1.50', '3.00']
    """
    if reference_size not in GRIDS:
        raise ValueError(f"no ladder for images of {reference_size} px: ladders exist for {', '.join(map(str, GRIDS))}")
    family = DEGRADATIONS[name].family
    if family == "clean":
        return (Level(0.0),)
    values = _BLUR[reference_size][name] if family == "blur" else _FRACTIONS
    return tuple(Level(value) for value in (values if full else values[::2]))
