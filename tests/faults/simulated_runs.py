"""Whole runs of a gate, simulated by what a verdict depends on: how many images each cell loses and gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.stats import norm

from mae_bench.regression import Rule, Shift, Verdict, holm_additions, indicator_shifts, verdict

Counts = np.ndarray
"""(cells, 2) images lost and gained in each cell of a run."""
Runs = Callable[[np.random.Generator], Counts]
"""Draws a run."""


def independent(images: int, flips: float, drops: Sequence[float]) -> Runs:
    """Cells whose images change independently, a share of ``flips`` in each, with these true ``drops``."""
    shares = np.array([[(flips + drop) / 2, (flips - drop) / 2, 1 - flips] for drop in drops])
    return lambda generator: generator.multinomial(images, shares)[:, :2]


def same_images(images: int, flips: float, cells: int, correlation: float) -> Runs:
    """Cells without a true drop in which much the same images change, for the worse or the better: how hard an image
    is pushed is normal, with this ``correlation`` between any two cells (a Gaussian copula), and it is lost where that
    lies below the quantile of half the ``flips``, gained where it lies above the opposite one.
    """
    quantile = float(norm.ppf(flips / 2))

    def run(generator: np.random.Generator) -> Counts:
        shared = np.sqrt(correlation) * generator.standard_normal(images, dtype=np.float32)
        own = generator.standard_normal((cells, images), dtype=np.float32)
        scale = np.float32(np.sqrt(1 - correlation))
        lost, gained = own < (quantile - shared) / scale, own > (-quantile - shared) / scale
        return np.stack([lost.sum(1), gained.sum(1)], axis=1)

    return run


def identical(images: int, flips: float, clusters: int, size: int) -> Runs:
    """Independent clusters of cells, in each of which the very same images change, without a true drop."""
    one_each = independent(images, flips, [0.0] * clusters)
    return lambda generator: np.repeat(one_each(generator), size, axis=0)


def judge(images: int, rule: Rule) -> Callable[[Counts], list[Verdict]]:
    """The verdicts on the cells of a run. They depend on the counts alone, so equal counts are judged once."""
    labels = np.zeros(images, dtype=np.int64)

    @cache
    def judged(lost: int, gained: int) -> Verdict:
        before, after = labels.copy(), labels.copy()
        after[:lost] = 1
        before[lost : lost + gained] = 1
        return verdict("vit-clean-0.00", before, after, labels, rule)

    return lambda counts: [judged(lost, gained) for lost, gained in counts.tolist()]


def alarm(verdicts: Sequence[Verdict], rule: Rule) -> bool:
    """Whether a run of these cells fails: one regressed in its own test, or by Holm's later steps at the end."""
    return any(v.judgement == "regression" for v in verdicts) or bool(holm_additions(verdicts, rule))


def shifts(
    generator: np.random.Generator, cells: int, indicators: int, blocks: int, shift: float, noise: float
) -> list[Shift]:
    """The indicators to look at in a run in which each truly moved by ``shift``, and the mean of each block of 256
    images by chance with a standard deviation of ``noise``.
    """
    before = {"images": np.full(blocks, 256.0)} | {f"alignment_{i}": np.zeros(blocks) for i in range(indicators)}
    moves = generator.normal(shift, noise, (cells, indicators, blocks))
    found = []
    for cell, move in enumerate(moves):
        # an interval beyond the floor is around a mean beyond it
        if (abs(move.mean(1)) > 0.02).any():
            after = before | {f"alignment_{i}": 256 * move[i] for i in range(indicators)}
            found += indicator_shifts(f"vit-{cell}", before, after)
    return found
