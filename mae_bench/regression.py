"""The verdict on a change: per cell, against the baseline, on the images that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mae_bench.statistics import block_interval, mcnemar, paired_drop_upper

ALPHA = 0.05

Judgement = Literal["unchanged", "pass", "inconclusive", "regression"]


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
    """One cell's comparison; ``before`` and ``after`` are top-1 on the ``images`` compared."""

    cell: str
    before: float
    after: float
    images: int
    lost: int
    gained: int
    p_value: float
    judgement: Judgement
    note: str = ""

    @property
    def drop(self) -> float:
        return (self.lost - self.gained) / self.images


def verdict(
    cell: str, before: np.ndarray, after: np.ndarray, labels: np.ndarray, rule: Rule, note: str = ""
) -> Verdict:
    """The verdict on ``cell`` from the classes predicted ``before`` and ``after`` (n,) and the ``labels`` (n,).

    The first that applies: *unchanged*: no prediction changed. *regression*: exact one-sided McNemar
    p <= alpha / cells and drop >= min_drop. *pass*: the upper end of the one-sided 95 % paired interval of the
    drop lies below the tolerance. *inconclusive*: the rest.

    Raises:
        ValueError: the three differ in length, or are empty.

    >>> right = np.zeros(1000, dtype=int)
    >>> wrong = np.r_[np.ones(40, dtype=int), right[40:]]
    >>> verdict("m-clean-0.00", right, wrong, right, Rule(cells=10)).judgement
    'regression'
    """
    if not len(before) == len(after) == len(labels) > 0:
        raise ValueError(f"{cell}: {len(before)} and {len(after)} predictions for {len(labels)} labels")
    was, now = before == labels, after == labels
    lost, gained, images = int((was & ~now).sum()), int((~was & now).sum()), len(labels)
    p_value = mcnemar(lost, gained)
    drop = (lost - gained) / images
    judgement: Judgement = "inconclusive"
    if bool((before == after).all()):
        judgement = "unchanged"
    elif p_value <= rule.alpha / rule.cells and drop >= rule.min_drop:
        judgement = "regression"
    elif paired_drop_upper(lost, gained, images) < rule.tolerance:
        judgement = "pass"
    return Verdict(cell, float(was.mean()), float(now.mean()), images, lost, gained, p_value, judgement, note)


def holm_additions(verdicts: Sequence[Verdict], rule: Rule) -> list[Verdict]:
    """Cells that Holm's later steps add to the regressions found at the first.

    The family is all ``rule.cells``; those that did not run count as not rejected, which keeps the error rate.
    """
    added = []
    for rejected, candidate in enumerate(sorted(verdicts, key=lambda v: v.p_value)):
        if candidate.p_value > rule.alpha / max(1, rule.cells - rejected):
            break
        if candidate.judgement not in ("regression", "unchanged") and candidate.drop >= rule.min_drop:
            added.append(candidate)
    return added


@dataclass(frozen=True)
class Shift:
    """An indicator that moved between two runs of a cell: mean of the paired differences over blocks, interval."""

    cell: str
    indicator: str
    difference: float
    low: float
    high: float


def indicator_shifts(
    cell: str, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], floor: float = 0.02
) -> list[Shift]:
    """Indicators whose paired-by-block 95 % interval lies beyond ``floor`` on either side.

    ``before`` and ``after`` map names to sums per block of the same images; retention is the ratio of
    overlap to clean activity in each block. Blocks that only one side has, and those without any clean activity,
    are left out; fewer than four blocks give no interval and thus nothing.
    """
    shifts = []
    for name in sorted(before.keys() & after.keys()):
        if name in ("images", "hits", "nll", "active_clean", "active_degraded"):
            continue
        divisor = "active_clean" if name == "active_overlap" else "images"
        count = min(len(before[name]), len(after[name]), len(before["images"]), len(after["images"]))
        same = before["images"][:count] == after["images"][:count]
        same &= (before[divisor][:count] > 0) & (after[divisor][:count] > 0)
        old = before[name][:count][same] / before[divisor][:count][same]
        new = after[name][:count][same] / after[divisor][:count][same]
        difference = np.asarray(new - old, dtype=np.float64)
        weights = [int(n) for n in before["images"][:count][same]]
        if not len(difference):
            continue
        interval = block_interval(difference.tolist(), weights)
        if interval is not None and (interval[0] > floor or interval[1] < -floor):
            label = "retention" if name == "active_overlap" else name
            shifts.append(Shift(cell, label, float(np.average(difference, weights=weights)), *interval))
    return shifts
