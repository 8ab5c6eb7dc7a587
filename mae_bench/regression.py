"""The verdict on a change: per cell, against the baseline, on the images that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mae_bench.statistics import block_interval, block_mean, mcnemar, paired_drop_upper

ALPHA = 0.05

Judgement = Literal["unchanged", "pass", "inconclusive", "regression", "determinism fault"]


@dataclass(frozen=True)
class Rule:
    """When a drop fails. ``cells`` is how many cells the baseline holds for the registered models (whatever was
    selected), ``min_drop`` and ``tolerance`` are fractions of images.
    """

    cells: int
    min_drop: float = 0.003
    tolerance: float = 0.01
    alpha: float = ALPHA


@dataclass(frozen=True)
class Verdict:
    """One cell's comparison; ``before`` and ``after`` are top-1 on the ``images`` compared, of which ``changed`` are
    predicted to be of another class, ``lost`` are no longer right and ``gained`` now are.
    """

    cell: str
    before: float
    after: float
    images: int
    changed: int
    lost: int
    gained: int
    p_value: float
    judgement: Judgement
    note: str = ""

    @property
    def drop(self) -> float:
        return (self.lost - self.gained) / self.images


def verdict(
    cell: str,
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    rule: Rule,
    note: str = "",
    repeatable: bool = False,
) -> Verdict:
    """The verdict on ``cell`` from the classes predicted ``before`` and ``after`` (n,) and the ``labels`` (n,).

    The first that applies: *unchanged*: no prediction changed. *determinism fault*: one did, though ``repeatable``
    says that the same weights were run again in the same way on the same machine; nothing is left to chance there,
    so nothing is tested, and the p-value is 1. *regression*: exact one-sided McNemar p <= alpha / cells and
    drop >= min_drop. *pass*: the upper end of the one-sided 95 % paired interval of the drop lies below the
    tolerance. *inconclusive*: the rest.

    Raises:
        ValueError: the three differ in length, or are empty.

    >>> right = np.zeros(1000, dtype=int)
    >>> wrong = np.r_[np.ones(40, dtype=int), right[40:]]
    >>> verdict("m-clean-0.00", right, wrong, right, Rule(cells=10)).judgement
    'regression'
    >>> verdict("m-clean-0.00", right, wrong, right, Rule(cells=10), repeatable=True).judgement
    'determinism fault'
    """
    if not len(before) == len(after) == len(labels) > 0:
        raise ValueError(f"{cell}: {len(before)} and {len(after)} predictions for {len(labels)} labels")
    was, now = before == labels, after == labels
    changed, images = int((before != after).sum()), len(labels)
    lost, gained = int((was & ~now).sum()), int((~was & now).sum())
    fault = repeatable and changed > 0
    p_value = 1.0 if fault else mcnemar(lost, gained)
    drop = (lost - gained) / images
    judgement: Judgement = "inconclusive"
    if changed == 0:
        judgement = "unchanged"
    elif fault:
        judgement = "determinism fault"
    elif p_value <= rule.alpha / rule.cells and drop >= rule.min_drop:
        judgement = "regression"
    elif paired_drop_upper(lost, gained, images) < rule.tolerance:
        judgement = "pass"
    return Verdict(cell, float(was.mean()), float(now.mean()), images, changed, lost, gained, p_value, judgement, note)


def holm_additions(verdicts: Sequence[Verdict], rule: Rule) -> list[Verdict]:
    """Cells that Holm's later steps add to the regressions found at the first, the smallest p-value first.

    The family is all ``rule.cells``; those that did not run, or were not tested, count as not rejected, which keeps the
    error rate. A cell whose drop is rejected as chance but is below ``min_drop`` is not added, yet counts as rejected,
    so that the steps after it are as easy as if it had been: the error rate is that of the rejections, of which only
    some are told.
    """
    family = max(rule.cells, len(verdicts))
    added = []
    for rejected, candidate in enumerate(sorted(verdicts, key=lambda v: (v.p_value, v.cell))):
        if candidate.p_value > rule.alpha / (family - rejected):
            break
        if candidate.judgement != "regression" and candidate.drop >= rule.min_drop:
            added.append(candidate)
    return added


@dataclass(frozen=True)
class Shift:
    """An indicator that moved between two runs of a cell: mean of the paired differences over blocks, interval.

    ``p_value`` is that of a mean within the floor, times the number of the cell's indicators (Bonferroni).
    """

    cell: str
    indicator: str
    difference: float
    low: float
    high: float
    p_value: float


NOT_INDICATORS = ("images", "hits", "nll", "active_clean", "active_degraded")
"""Sums per block that are counts, or are judged otherwise."""


def indicator_shifts(
    cell: str, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], floor: float = 0.02
) -> list[Shift]:
    """Indicators whose paired-by-block 95 % interval lies beyond ``floor`` on either side: where to look.

    ``before`` and ``after`` map names to sums per block of the same images; retention is the ratio of
    overlap to clean activity in each block. Blocks that only one side has, and those without any clean activity,
    are left out; fewer than four blocks give no interval and thus nothing.

    Nothing is corrected for how many are looked at. Of simulated runs of 100 cells with seven independent indicators,
    of which none moved, 0.2, 9 and 78 % list something at four blocks whose means vary by 0.012, 0.017 and 0.028
    (between two trainings of a bundled model: the median over indicators, that of the most variable one, and the
    largest), none at forty blocks; where every indicator truly moved by the floor, every run does. What may fail a run
    is therefore decided by :func:`certain_shifts`.
    """
    from scipy.stats import t

    names = sorted((before.keys() & after.keys()) - set(NOT_INDICATORS))
    shifts = []
    for name in names:
        divisor = "active_clean" if name == "active_overlap" else "images"
        count = min(len(before[name]), len(after[name]), len(before["images"]), len(after["images"]))
        same = before["images"][:count] == after["images"][:count]
        same &= (before[divisor][:count] > 0) & (after[divisor][:count] > 0)
        old = before[name][:count][same] / before[divisor][:count][same]
        new = after[name][:count][same] / after[divisor][:count][same]
        differences = np.asarray(new - old, dtype=np.float64).tolist()
        weights = [int(n) for n in before["images"][:count][same]]
        interval = block_interval(differences, weights)
        if interval is not None and (interval[0] > floor or interval[1] < -floor):
            label = "retention" if name == "active_overlap" else name
            mean, error, freedom = block_mean(differences, weights)
            ends = np.array([abs(mean) - floor, abs(mean) + floor])
            p_value = float(t.sf(ends / error, freedom).sum()) if error else 0.0
            shifts.append(Shift(cell, label, mean, *interval, min(1.0, len(names) * p_value)))
    return shifts


def certain_shifts(shifts: Sequence[Shift], rule: Rule) -> list[Shift]:
    """Those of ``shifts`` that moved beyond the floor even when all indicators of all ``rule.cells`` are tested
    together (Bonferroni), whatever was selected: at most alpha of the runs in which none did have one.
    """
    return [shift for shift in shifts if shift.p_value <= rule.alpha / rule.cells]
