"""Leaderboards: one row per model from the rows and outcomes of its cells, sorted, with intervals and tie groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mae_bench import corruption_error
from mae_bench.cells import family_place
from mae_bench.corruption_error import corruption_scores
from mae_bench.degradations import BUILT_IN
from mae_bench.degradations.ladders import RARE, conditions
from mae_bench.markup import csv_text, markdown_text, terminal_text
from mae_bench.outcomes import ABSENT, Outcomes
from mae_bench.rows import ResultRow
from mae_bench.statistics import holm
from mae_bench.store import cell_of
from mae_bench.suites import SuiteEntry, suite_entry

UNRANKED = ("clean", "token_drop")
"""Families that do not enter the ranking score."""
RESAMPLES = 2000
_SEED = 20260203
_LEGEND = (
    "Rates in percent with 95 % intervals (clean: Wilson; score: bootstrap over images). *score*: mean, over the "
    "families that every ranked model has complete (clean and token_drop apart), of the mean top-1 of a family's "
    "cells. *kept*: that mean over the clean top-1. `1=`: the paired difference from the leader may be chance "
    "(bootstrap over images, Holm over models). *alignment* (mean patch token) and *retention adj.*: at the last "
    "block, mean over the same families. images/s depends on the machine that ran."
)


@dataclass(frozen=True)
class Standing:
    """One model. Rates are in [0, 1]; ``score`` is None where no ranked family is complete, ``tied`` says that
    its difference from the leader may be chance, ``partial`` names families with missing cells. ``robust`` is the mean
    top-1 of the ``averaged`` cells of each family.
    """

    model: str
    parameters: int
    clean: tuple[float, float, float]
    robust: dict[str, float]
    averaged: dict[str, int]
    retained: dict[str, float]
    auc: dict[str, float]
    alignment: dict[str, float | None]
    alignment_centered: dict[str, float | None]
    retention_adjusted: dict[str, float | None]
    images_per_second: float
    score: float | None = None
    score_interval: tuple[float, float] | None = None
    tied: bool = False
    partial: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """Standings, best first, of ``families`` on the first ``images`` of ``images_expected`` images of a suite."""

    suite: str
    families: tuple[str, ...]
    images: int
    images_expected: int
    standings: tuple[Standing, ...]
    rows: tuple[ResultRow, ...] = field(repr=False)

    @classmethod
    def of(cls, rows: Iterable[ResultRow], outcomes: Outcomes) -> Leaderboard:
        """The leaderboard of ``rows``; ranked among each other are models with equal images and complete families.

        A family is complete for a model that has every condition of the default matrix; its mean runs over
        the conditions that all complete models have.

        Raises:
            ValueError: there is no row, or rows of several suites.
        """
        rows = list(rows)
        possible = {(row.model, row.family) for row in rows if row.status != "not_applicable"}
        impossible = {(row.model, row.family) for row in rows} - possible
        rows = sorted((row for row in rows if row.status != "not_applicable"), key=cell_of)
        suites = {row.suite for row in rows}
        if len(suites) != 1:
            raise ValueError(f"a leaderboard is of one suite, not of {sorted(suites)}")
        suite = suites.pop()
        images = max(row.n for row in rows)
        by_model: dict[str, list[ResultRow]] = {}
        for row in rows:
            by_model.setdefault(row.model, []).append(row)
        families = tuple(dict.fromkeys(r.family for r in sorted(rows, key=_family_order) if r.family != "clean"))
        entry = suite_entry(suite)
        default = {  # of a family from a package that is not installed here, what there is
            family: default_conditions(family, entry) or {row.condition for row in rows if row.family == family}
            for family in families
        }
        shared = {family: _shared(family, by_model, default[family], images) for family in families}
        standings = [
            _standing(
                model,
                mine,
                {family: conditions for family, conditions in shared.items() if (model, family) not in impossible},
                default,
                images,
            )
            for model, mine in by_model.items()
            if _clean(mine) is not None
        ]
        return cls(suite, families, images, rows[0].n_expected, _ranked(standings, shared, outcomes), tuple(rows))

    def to_frame(self) -> pd.DataFrame:
        """One line per model with plain numbers, and names as ``leaderboard.csv`` has them."""
        lines = []
        for rank, s in enumerate(self.standings, start=1):
            line: dict[str, object] = {
                "rank": rank if s.score is not None else None,
                "tied_with_leader": s.tied if s.score is not None else None,
                "model": csv_text(s.model),
                "score": s.score,
                "score_low": s.score_interval[0] if s.score_interval else None,
                "score_high": s.score_interval[1] if s.score_interval else None,
                "clean": s.clean[0],
                "clean_low": s.clean[1],
                "clean_high": s.clean[2],
            }
            for family in self.families:
                for name in ("robust", "retained", "auc", "alignment", "alignment_centered", "retention_adjusted"):
                    line[f"{family}_{name}"] = getattr(s, name).get(family)
            line |= {
                "parameters": s.parameters,
                "images_per_second": s.images_per_second,
                "partial": " ".join(s.partial) or None,
                "images": self.images,
            }
            lines.append(line)
        return pd.DataFrame(lines)

    def to_csv(self) -> str:
        text: str = self.to_frame().to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return text

    @property
    def header(self) -> list[str]:
        families = [name for f in self.families for name in (f"{f} (%)", f"{f} kept")]
        return ["#", "model", "score (%)", "clean (%)", *families, "alignment", "retention adj.", "params", "images/s"]

    def cells(self, shown: Callable[[str], str] = terminal_text) -> list[list[str]]:
        """The main table as text, one list per model, under :attr:`header`; ``shown`` says how a name is written."""
        lines = []
        scored = scored_families(self.standings) or self.families
        for rank, s in enumerate(self.standings, start=1):
            mark = "" if s.score is None else ("1=" if s.tied else str(rank))
            score = (
                ("partial" if s.partial else "-")
                if s.score is None
                else _interval(s.score, *(s.score_interval or (s.score, s.score)))
            )
            families = [text for f in self.families for text in (_percent(s.robust.get(f)), _ratio(s.retained.get(f)))]
            lines.append(
                [
                    mark,
                    shown(s.model),
                    score,
                    _interval(*s.clean),
                    *families,
                    _ratio(_mean(s.alignment.get(family) for family in scored)),
                    _ratio(_mean(s.retention_adjusted.get(family) for family in scored)),
                    f"{s.parameters:,}",
                    f"{s.images_per_second:,.0f}",
                ]
            )
        return lines

    @property
    def caption(self) -> str:
        """What the table is of, in one sentence."""
        subset = (
            f"all {self.images:,}"
            if self.images == self.images_expected
            else f"the first {self.images:,} of {self.images_expected:,}"
        )
        scored = scored_families(self.standings)
        of_score = f" The score is over {', '.join(scored)}." if scored else ""
        return f"{self.suite}: {subset} images, {len(self.rows)} cells.{of_score}"

    def to_text(self) -> str:
        from tabulate import tabulate

        return tabulate(self.cells(), headers=self.header, tablefmt="simple", disable_numparse=True)

    def to_markdown(self) -> str:
        """The leaderboard and, per family, every condition: top-1 by level, area under it, level at half; of
        ImageNet-C's corruptions the corruption errors.
        """
        from tabulate import tabulate

        parts = [
            f"# Leaderboard: {self.suite}",
            self.caption,
            tabulate(self.cells(markdown_text), headers=self.header, tablefmt="github", disable_numparse=True),
            _LEGEND,
        ]
        for family in self.families:
            parts += [f"## {family}", self._conditions(family)]
        if scores := corruption_scores(self.rows):
            parts += ["## Corruption errors", corruption_error.to_markdown(scores)]
        return "\n\n".join(parts) + "\n"

    def _conditions(self, family: str) -> str:
        from tabulate import tabulate

        names = dict.fromkeys(row.degradation for row in self.rows if row.family == family)
        tables = []
        for name in names:
            mine = [row for row in self.rows if (row.family, row.degradation) == (family, name)]
            values = sorted({row.level for row in mine})
            header = [
                "model",
                *(f"{value:g}" for value in values),
                "AUC",
                "level at half",
                "alignment centred",
                "retention adj.",
            ]
            lines = []
            for standing in self.standings:
                curve = {row.level: row for row in mine if row.model == standing.model}
                if not curve:
                    continue
                top1 = {level: row.top1 for level, row in curve.items() if row.top1 is not None}
                half = level_at_half(standing.clean[0], top1, 1 / next(iter(curve.values())).classes)
                top = curve[max(curve)]
                lines.append(
                    [
                        markdown_text(standing.model),
                        *(_percent(top1.get(value)) for value in values),
                        _ratio(area_under_curve(standing.clean[0], top1)),
                        "beyond" if half is None else f"{half:.2f}",
                        _ratio(top.alignment_centered_mean_patch),
                        _ratio(top.retention_adjusted),
                    ]
                )
            unit = markdown_text(mine[0].unit)
            tables.append(
                f"**{name}** (level in {unit}; top-1 in percent; indicators at the top level)\n\n"
                + tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)
            )
        return "\n\n".join(tables)


def default_conditions(family: str, suite: SuiteEntry, full: bool = False) -> set[str]:
    """Conditions of ``family`` in the default matrix of ``suite``, or in the whole one."""
    return {
        f"{kind.name}-{level}" for kind, level in conditions(suite, full or family in RARE) if kind.family == family
    }


def area_under_curve(clean: float, top1: Mapping[float, float]) -> float | None:
    """Mean height of the polyline through (0, ``clean``) and (level, top-1), from level 0 to the highest.

    >>> area_under_curve(1.0, {1.0: 0.5, 2.0: 0.0})
    0.5
    """
    if not top1:
        return None
    x = np.array([0.0, *sorted(top1)])
    y = np.array([clean, *(top1[level] for level in sorted(top1))])
    return float(np.trapezoid(y, x) / x[-1])


def level_at_half(clean: float, top1: Mapping[float, float], chance: float) -> float | None:
    """Lowest level, linearly interpolated, at which accuracy above ``chance`` is half of the clean one; None if
    it stays above, 0 if the clean one is not above chance.

    >>> level_at_half(0.9, {1.0: 0.7, 2.0: 0.3}, 0.1)
    1.5
    """
    if clean <= chance:
        return 0.0
    target = chance + (clean - chance) / 2
    last_level, last = 0.0, clean
    for level in sorted(top1):
        if top1[level] <= target:
            if last == top1[level]:
                return level
            return float(last_level + (level - last_level) * (last - target) / (last - top1[level]))
        last_level, last = level, top1[level]
    return None


def image_scores(outcomes: Outcomes, model: str, shared: Mapping[str, set[str]]) -> np.ndarray:
    """(images,) each image's own ranking score: the mean over families of the share of its cells classified rightly."""
    per_family = [
        np.mean([outcomes.correct(f"{model}-{condition}") for condition in sorted(conditions)], axis=0)
        for family, conditions in shared.items()
        if conditions and family not in UNRANKED
    ]
    return np.asarray(np.mean(per_family, axis=0), dtype=np.float64)


def bootstrap_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = _SEED) -> np.ndarray:
    """(resamples, k) means of ``values`` (n, k) over images drawn with replacement, the same draws for every column."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.empty((resamples, values.shape[1]))
    for i in range(resamples):
        means[i] = np.bincount(rng.integers(0, n, n), minlength=n) @ values / n
    return means


def tied_with_leader(scores: np.ndarray, means: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """(k,) whether each model's difference from the best of ``scores`` (k,) may be chance, from bootstrap ``means``
    (resamples, k): two-sided bootstrap p, Holm over models.
    """
    leader = int(scores.argmax())
    # a matrix product may round equal columns differently
    difference = np.round(means[:, [leader]] - means, 9)
    below = (difference <= 0).mean(0)
    above = (difference >= 0).mean(0)
    p = np.minimum(1.0, 2 * np.minimum(below, above) + 1 / len(means))
    others = [i for i in range(len(scores)) if i != leader]
    tied = np.ones(len(scores), dtype=bool)
    for i, adjusted in zip(others, holm([float(p[i]) for i in others]), strict=True):
        tied[i] = adjusted > alpha
    return tied


def _ranked(standings: Sequence[Standing], shared: Mapping[str, set[str]], outcomes: Outcomes) -> tuple[Standing, ...]:
    scored = scored_families(standings)
    ranked = [s for s in standings if scored and not s.partial and s.robust.keys() >= set(scored)]
    rest = sorted((s for s in standings if s not in ranked), key=lambda s: (-s.clean[0], s.model))
    if not ranked:
        return tuple(rest)
    counted = {family: shared[family] for family in scored}
    first = f"{ranked[0].model}-{min(shared[scored[0]])}"
    ran = outcomes.prediction[first] != ABSENT
    values = np.stack([image_scores(outcomes, s.model, counted)[ran] for s in ranked], axis=1)
    scores = values.mean(0)
    means = bootstrap_means(values)
    tied = tied_with_leader(scores, means)
    intervals = np.quantile(means, [0.025, 0.975], axis=0)
    many = tied.sum() > 1
    placed = [
        _scored(s, float(scores[i]), (float(intervals[0, i]), float(intervals[1, i])), bool(tied[i] and many))
        for i, s in enumerate(ranked)
    ]
    return (*sorted(placed, key=lambda s: (-(s.score or 0.0), s.model)), *rest)


def scored_families(standings: Iterable[Standing]) -> tuple[str, ...]:
    """Families that enter the ranking score: those that every model has complete which is complete in all that it has
    cells of; clean and token_drop never do.
    """
    complete = [s.robust.keys() - set(UNRANKED) for s in standings if not s.partial]
    having = [families for families in complete if families]
    common = set.intersection(*having) if having else set()
    return tuple(sorted(common, key=family_place))


def _scored(standing: Standing, score: float, interval: tuple[float, float], tied: bool) -> Standing:
    return Standing(**{**vars(standing), "score": score, "score_interval": interval, "tied": tied})


def _shared(family: str, by_model: Mapping[str, Sequence[ResultRow]], default: set[str], images: int) -> set[str]:
    """Conditions of ``family`` that every model complete in it has; none where no model is complete."""
    have = [{r.condition for r in rows if r.family == family and r.n == images} for rows in by_model.values()]
    complete = [conditions for conditions in have if conditions >= default]
    return set.intersection(*complete) if complete else set()


def _standing(
    model: str, rows: Sequence[ResultRow], shared: Mapping[str, set[str]], default: Mapping[str, set[str]], images: int
) -> Standing:
    clean = _clean(rows)
    assert clean is not None
    clean_top1 = clean.top1 or 0.0
    robust, averaged, retained, auc, partial = {}, {}, {}, {}, []
    last: dict[str, dict[str, float | None]] = {
        name: {} for name in ("alignment", "alignment_centered", "retention_adjusted")
    }
    for family in shared:
        mine = [r for r in rows if r.family == family and r.n == images]
        started = any(r.family == family for r in rows)
        if started and not {r.condition for r in mine} >= default[family]:
            partial.append(family)
        counted = [r for r in mine if not shared[family] or r.condition in shared[family]]
        if not counted:
            continue
        robust[family] = float(np.mean([r.top1 for r in counted if r.top1 is not None]))
        averaged[family] = len(counted)
        if clean_top1:
            retained[family] = robust[family] / clean_top1
        curves: dict[str, dict[float, float]] = {}
        for r in counted:
            curves.setdefault(r.degradation, {})[r.level] = r.top1 or 0.0
        auc[family] = float(np.mean([area_under_curve(clean_top1, curve) for curve in curves.values()]))
        last["alignment"][family] = _mean(r.alignment_mean_patch for r in counted)
        last["alignment_centered"][family] = _mean(r.alignment_centered_mean_patch for r in counted)
        last["retention_adjusted"][family] = _mean(r.retention_adjusted for r in counted)
    return Standing(
        model=model,
        parameters=clean.parameters,
        clean=(clean_top1, clean.top1_low or 0.0, clean.top1_high or 1.0),
        robust=robust,
        averaged=averaged,
        retained=retained,
        auc=auc,
        alignment=last["alignment"],
        alignment_centered=last["alignment_centered"],
        retention_adjusted=last["retention_adjusted"],
        images_per_second=float(np.median([r.images_per_second for r in rows if r.images_per_second])),
        partial=tuple(partial),
    )


def _clean(rows: Iterable[ResultRow]) -> ResultRow | None:
    return next((row for row in rows if row.family == "clean"), None)


def _family_order(row: ResultRow) -> tuple[int, str, str]:
    own = row.family, row.degradation
    known = [(kind.family, kind.name) for kind in BUILT_IN]
    return (known.index(own) if own in known else len(known), *own)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
