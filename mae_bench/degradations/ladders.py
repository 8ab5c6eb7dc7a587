"""Levels of each degradation as data: five per reference image size, and which of them a suite's matrix holds."""

from __future__ import annotations

from mae_bench.cells import Level
from mae_bench.degradations import Degradation, every
from mae_bench.degradations.severity import LARGE
from mae_bench.errors import BenchError
from mae_bench.suites import SuiteEntry

GRIDS = {28: 7, 32: 8, 224: 14}
"""Cells along a side of the occlusion grid, by reference image size."""

RARE = ("cbar", "geometry")
"""Families that are collected in full runs only."""

_GEOMETRY = {
    "rotation": (5.0, 10.0, 15.0, 30.0, 45.0),
    "scale": (0.1, 0.2, 0.35, 0.5, 1.0),
    "translation": (0.05, 0.1, 0.15, 0.2, 0.3),
}
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


class LadderError(BenchError):
    """A size of images that no levels are stated for."""


def ladder(kind: Degradation, reference_size: int) -> tuple[Level, ...]:
    """The five levels of ``kind``, rising; a clean image has one, and what a package adds has its own. Those in pixels
    are meant for images of side ``reference_size`` and scale with the actual side.

    Raises:
        LadderError: no ladder is stated for this reference size.

    >>> from mae_bench.degradations import degradation
    >>> [str(level) for level in ladder(degradation("gaussian_blur"), 28)]
    ['0.50', '1.00', '1.50', '2.00', '3.00']
    """
    if reference_size not in GRIDS:
        sizes = ", ".join(map(str, GRIDS))
        raise LadderError(f"no ladder for images of {reference_size} px: ladders exist for {sizes}")
    if kind.family == "clean":
        return (Level(0.0),)
    if kind.levels:
        return tuple(map(Level, kind.levels))
    if kind.by_severity:
        return tuple(Level(float(severity), severity=True) for severity in range(1, 6))
    if kind.family == "blur":
        return tuple(map(Level, _BLUR[reference_size][kind.name]))
    return tuple(map(Level, _GEOMETRY.get(kind.name, _FRACTIONS)))


def levels(kind: Degradation, suite: SuiteEntry, full: bool = False) -> tuple[Level, ...]:
    """The levels of ``kind`` in the matrix of ``suite``, all that it has with ``full``; none where it has no cells.

    By default low, middle and top; of severities the middle one, on natural images all, without which no mCE is
    defined. What a suite holds as it was published is read at every severity, and nothing else is made from it. What
    cannot change a grey image has no cells on grey images, and ``salient`` none without a reference model.

    Raises:
        LadderError: as :func:`ladder`.

    >>> from mae_bench.degradations import degradation
    >>> from mae_bench.suites import SUITES
    >>> [str(level) for level in levels(degradation("gaussian_blur"), SUITES["fashion_mnist"])]
    ['0.50', '1.50', '3.00']
    """
    rungs = ladder(kind, suite.reference_size)
    if kind.family == "clean":
        return rungs
    if suite.stored:
        return rungs if kind.family in suite.stored else ()
    if (kind.colour and suite.grey) or (kind.by_salience and suite.salience is None):
        return ()
    if full:
        return rungs
    if kind.family in RARE:
        return ()
    if kind.by_severity:
        return rungs if suite.reference_size >= LARGE else rungs[2:3]
    return tuple(rungs[i] for i in sorted({0, len(rungs) // 2, len(rungs) - 1}))


def conditions(suite: SuiteEntry, full: bool = False) -> list[tuple[Degradation, Level]]:
    """Every degradation at every level of the matrix of ``suite``."""
    return [(kind, level) for kind in every() for level in levels(kind, suite, full)]
