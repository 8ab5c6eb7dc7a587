"""Whether B is better than A: two sides of results compared on the images that both have, in both directions.

Each cell is tested by exact two-sided McNemar, what all cells amount to by the sign-flip test of the images' mean
differences, which of one cell is McNemar's; Holm corrects over both together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mae_bench.baseline import differing, is_repeated
from mae_bench.cells import family_place, near_name
from mae_bench.errors import BenchError
from mae_bench.leaderboard import UNRANKED
from mae_bench.markup import markdown_text, terminal_text
from mae_bench.outcomes import ABSENT
from mae_bench.regression import ALPHA, Rule, Shift, indicator_shifts
from mae_bench.rows import ResultRow
from mae_bench.side import Side
from mae_bench.statistics import (
    detectable_drop,
    holm,
    mcnemar,
    paired_drop_upper,
    paired_mean_interval,
    sign_flip,
)
from mae_bench.store import cell_of

if TYPE_CHECKING:
    import pandas as pd

Judgement = Literal["worse", "better", "no difference shown", "within tolerance", "unchanged"]
OVERALL = "overall"
MOST_LINES = 100
"""Lines of a table of cells in a terminal or in Markdown."""
MOST_SHIFTS = 20

_SAME_CELL = ("degradation_version", "seed")
"""Fields in which two cells agree whatever their models are, else their images are others."""
_SAME_MODEL = ("view", "label_map")
"""Fields in which two cells of one model agree too. Two models may each have their own, as in a leaderboard."""


class PairedComparisonError(BenchError):
    """Two sides that have nothing to be compared in."""


@dataclass(frozen=True, order=True)
class Pair:
    """A model of A and the one of B that it is compared with."""

    a: str
    b: str

    @classmethod
    def parse(cls, text: str) -> Pair:
        """The pair that ``OLD=NEW`` names.

        Raises:
            PairedComparisonError: it is not written so.

        >>> Pair.parse("supervised_s0=mae_ft_s0")
        Pair(a='supervised_s0', b='mae_ft_s0')
        """
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise PairedComparisonError(f"--model {text}: write OLD=NEW, a model of A and a model of B")
        return cls(old, new)

    def __str__(self) -> str:
        return self.a if self.a == self.b else f"{self.a} -> {self.b}"


@dataclass(frozen=True)
class CellDifference:
    """A cell on both sides. ``a`` and ``b`` are top-1 on the ``images`` compared, of which ``changed`` are predicted to
    be of another class, ``lost`` are right in A alone and ``gained`` in B alone. ``low`` and ``high`` are the 95 %
    interval of :attr:`difference` (Tango 1998), ``p_value`` is exact two-sided McNemar's, ``adjusted`` the same after
    Holm over all cells and all means that are judged. ``shifts`` are indicators that moved.
    """

    pair: Pair
    family: str
    condition: str
    images: int
    a: float
    b: float
    changed: int
    lost: int
    gained: int
    low: float
    high: float
    p_value: float
    adjusted: float
    judgement: Judgement
    shifts: tuple[Shift, ...] = ()

    @property
    def difference(self) -> float:
        """Top-1 of B less that of A, as a fraction of images."""
        return (self.gained - self.lost) / self.images


@dataclass(frozen=True)
class MeanDifference:
    """The mean top-1 of ``cells`` cells of a family on both sides, on the ``images`` that all of them have, with the
    95 % interval of its difference (Bonett and Price 2012), which reaches to zero where ``p_value``, of the exact
    sign-flip test of the images' differences, is above 0.05. ``pair`` is None where it is the mean over all pairs.

    ``family`` :data:`OVERALL` is the mean over ``families``; it alone is judged, by the p-value ``adjusted`` by Holm
    over all cells and all means that are judged.
    """

    pair: Pair | None
    family: str
    families: tuple[str, ...]
    cells: int
    images: int
    a: float
    b: float
    low: float
    high: float
    p_value: float
    adjusted: float | None = None
    judgement: Judgement | None = None

    @property
    def difference(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Incomparable:
    """A cell that both sides have and that was not compared: ``field`` names why, with its value on each side."""

    pair: Pair
    condition: str
    field: str
    a: str
    b: str


@dataclass(frozen=True, repr=False)
class PairedComparison:
    """What comparing side ``a`` with side ``b`` of a ``suite`` gave: ``cells`` in the order of families, ``means``
    of which the last is that of the whole, what was ``incomparable``, and ``remarks`` in sentences.
    """

    a: str
    b: str
    suite: str
    rule: Rule
    cells: tuple[CellDifference, ...]
    means: tuple[MeanDifference, ...]
    incomparable: tuple[Incomparable, ...]
    remarks: tuple[str, ...]

    @classmethod
    def of(
        cls,
        a: Side,
        b: Side,
        pairs: Sequence[Pair] = (),
        min_drop: float = Rule.min_drop,
        tolerance: float = Rule.tolerance,
    ) -> PairedComparison:
        """Compare the cells of each of ``pairs`` under equal conditions; without pairs each model with the one of its
        name. ``min_drop`` and ``tolerance`` are fractions of images.

        The verdict on a cell, the first that applies: *unchanged*: no prediction changed. *worse* and *better*: the
        corrected p-value is at most 0.05 and the difference at least ``min_drop``. *within tolerance*: it surely is
        smaller than ``tolerance`` in both directions (two one-sided 95 % tests). *no difference shown*: the rest. The
        verdict on the whole is the same; it is *worse* or *better* only where its 95 % interval leaves zero out, and
        *within tolerance* where all of it is smaller. Of images that are copies of each other on either side one votes.

        The p-values of cells and of the whole are corrected together: without any change at most 5 % of comparisons
        find B worse or better anywhere.

        Raises:
            PairedComparisonError: the sides are of different suites, classes or labels, have no image or no model in
                common, or lack a model of ``pairs``.
        """
        shared = _Shared.of(a, b)
        named, pairs = bool(pairs), _checked(a, b, pairs)
        cells: list[CellDifference] = []
        incomparable: list[Incomparable] = []
        remarks = _Remarks()
        for pair in pairs:
            here, there = _rows(a, pair.a), _rows(b, pair.b)
            remarks.note_missing(pair, here, there)
            for condition in sorted(here.keys() & there.keys(), key=lambda name: _order(here[name])):
                rows = here[condition], there[condition]
                if all(row.status == "not_applicable" for row in rows):
                    continue
                predicted = shared.predicted((cell_of(rows[0]).id, cell_of(rows[1]).id))
                voting = shared.voting(_in_both(predicted))
                hindrance = _hindrance(pair, *rows) or (None if len(voting) else "subset")
                if hindrance is not None:
                    values = (str(getattr(row, hindrance)) for row in rows)
                    incomparable.append(Incomparable(pair, condition, hindrance, *values))
                    continue
                shifts = _shifts(a, b, *rows)
                cells.append(_tested(pair, rows[0], predicted[:, voting], shared.labels[voting], shifts))
                remarks.note_compared(pair, *rows, cells[-1].changed)
        rule = Rule(max(1, len(cells)), min_drop, tolerance)
        judged, means = _judged(cells, _means(cells, shared), rule)
        sentences = remarks.sentences(a, b, pairs, named)
        return cls(a.name, b.name, a.outcomes.suite, rule, judged, means, tuple(incomparable), sentences)

    # ----------------------------------------------------------------------- what it amounts to

    @property
    def whole(self) -> MeanDifference | None:
        """All cells of all pairs together; None where no image is in all of them."""
        return self.means[-1] if self.means else None

    @property
    def is_worse(self) -> bool:
        """Whether B is worse in a cell, or a model of it, or all together, as a whole."""
        return "worse" in {*(cell.judgement for cell in self.cells), *(one.judgement for one in self.means)}

    @cached_property
    def counts(self) -> dict[Judgement, int]:
        """How many cells have each verdict."""
        found = Counter(cell.judgement for cell in self.cells)
        return {judgement: found[judgement] for judgement in get_args(Judgement)}

    @property
    def shifts(self) -> list[tuple[CellDifference, Shift]]:
        """Indicators that moved, with their cells."""
        return [(cell, shift) for cell in self.cells for shift in cell.shifts]

    @property
    def answer(self) -> str:
        """In a sentence or two, whether B is better than A."""
        if not self.cells:
            return "No cell could be compared."
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        cells = f"Of {len(self.cells)} cells: {counts}."
        whole = self.whole
        if whole is None:
            return cells
        if self.counts["unchanged"] == len(self.cells):
            return f"Nothing changed. {cells}"
        interval = f"{_points(whole.difference)} points {_interval(whole)} over {', '.join(whole.families)}"
        words = {
            "worse": f"B is worse as a whole, {interval}.",
            "better": f"B is better as a whole, {interval}.",
            "within tolerance": f"As a whole B is within {100 * self.rule.tolerance:g} points of A, {interval}.",
        }
        whole_words = words.get(str(whole.judgement), f"As a whole no difference is shown, {interval}.")
        return f"{whole_words} {cells}"

    @property
    def notable(self) -> list[CellDifference]:
        """Cells that are worse, then those that are better, the largest differences first."""
        found = [cell for cell in self.cells if cell.judgement in ("worse", "better")]
        return sorted(found, key=lambda cell: (cell.judgement != "worse", -abs(cell.difference), cell.condition))

    @property
    def legend(self) -> str:
        """How verdicts are found, in sentences."""
        rule = self.rule
        return (
            "Points of top-1, B less A, with 95 % intervals. Cells: exact two-sided McNemar test on the images that "
            f"both have, at least {100 * rule.min_drop:g} points; within tolerance: surely within "
            f"{100 * rule.tolerance:g} points either way. Families: mean over their cells; overall: mean over families "
            "(clean and token_drop apart where there are others), exact sign-flip test over images. p after Holm over "
            "all cells and what they amount to together: 5 % in all."
        )

    def to_frame(self) -> pd.DataFrame:
        """One line per cell with plain numbers; rates and differences are fractions, B less A."""
        import pandas as pd

        columns: dict[str, Callable[[CellDifference], object]] = {
            "model_a": lambda cell: cell.pair.a,
            "model_b": lambda cell: cell.pair.b,
            **{name: attrgetter(name) for name in ("family", "condition", "images", "a", "b", "difference")},
            **{name: attrgetter(name) for name in ("low", "high", "changed", "lost", "gained", "p_value")},
            "p_adjusted": attrgetter("adjusted"),
            "verdict": attrgetter("judgement"),
        }
        return pd.DataFrame({name: [of(cell) for cell in self.cells] for name, of in columns.items()})

    # ----------------------------------------------------------------------- what is said of it

    def to_text(self) -> str:
        """What the terminal shows: the answer, families, cells that are worse or better, what was not compared."""
        return "\n\n".join(self._parts(terminal_text, "simple"))

    def to_markdown(self) -> str:
        """The same as a page of Markdown, with every name as it is written."""
        head, answer, *rest = self._parts(markdown_text, "github")
        title = f"# {markdown_text(self.suite)}: is B better than A?"
        return "\n\n".join([title, f"**{answer}**", head.replace("\n", "  \n"), *rest]) + "\n"

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_markdown_(self) -> str:
        """As notebooks show it."""
        return self.to_markdown()

    def _parts(self, shown: Callable[[str], str], style: str) -> list[str]:
        parts = [f"A: {shown(self.a)}\nB: {shown(self.b)}", self.answer]
        if self.means:
            parts.append(_table(self.mean_header, self.mean_lines(self._telling_means, shown), style))
        if notable := self.notable:
            parts.append(_table(self.cell_header, self.cell_lines(notable[:MOST_LINES], shown), style))
            parts += _rest(notable, MOST_LINES)
        parts += [shown(sentence) for sentence in [self.legend, *self.remarks, *self._planning()]]
        if self.incomparable:
            lines = self.incomparable_lines(self.incomparable[:MOST_LINES], shown)
            parts.append(_table(self.incomparable_header, lines, style))
            parts += _rest(self.incomparable, MOST_LINES)
        if shifts := sorted(self.shifts, key=lambda moved: -abs(moved[1].difference)):
            parts.append(_table(self.shift_header, self.shift_lines(shifts[:MOST_SHIFTS], shown), style))
            parts += _rest(shifts, MOST_SHIFTS)
        return parts

    mean_header = ("model", "family", "cells", "images", "A (%)", "B (%)", "points", "95 %", "verdict")
    cell_header = ("model", "cell", "A (%)", "B (%)", "points", "95 %", "lost", "gained", "images", "p", "verdict")
    incomparable_header = ("not comparable", "cell", "differs in", "A", "B")
    shift_header = ("look here", "cell", "indicator", "change", "95 %", "p over all")

    @property
    def _telling_means(self) -> list[MeanDifference]:
        """Of one pair every family; of several what is judged, the families of all, and those that surely differ."""
        several = any(one.pair is None for one in self.means)
        return [
            one
            for one in self.means
            if not several or one.pair is None or one.family == OVERALL or one.low > 0 or one.high < 0
        ]

    def mean_lines(
        self, means: Iterable[MeanDifference], shown: Callable[[str], str] = terminal_text
    ) -> list[list[str]]:
        """Some ``means`` as text under :attr:`mean_header`; ``shown`` says how a name is written."""
        return [
            [
                f"all {len({one.pair for one in self.means} - {None})} models"
                if m.pair is None
                else shown(str(m.pair)),
                m.family,
                f"{m.cells}",
                f"{m.images:,}",
                f"{100 * m.a:.2f}",
                f"{100 * m.b:.2f}",
                _points(m.difference),
                _interval(m),
                m.judgement or "",
            ]
            for m in means
        ]

    def cell_lines(
        self, cells: Iterable[CellDifference], shown: Callable[[str], str] = terminal_text
    ) -> list[list[str]]:
        """Some ``cells`` as text under :attr:`cell_header`; p-values are corrected."""
        return [
            [
                shown(str(cell.pair)),
                cell.condition,
                f"{100 * cell.a:.2f}",
                f"{100 * cell.b:.2f}",
                _points(cell.difference),
                _interval(cell),
                f"{cell.lost}",
                f"{cell.gained}",
                f"{cell.images:,}",
                f"{cell.adjusted:.2g}",
                cell.judgement,
            ]
            for cell in cells
        ]

    def incomparable_lines(
        self, cells: Iterable[Incomparable], shown: Callable[[str], str] = terminal_text
    ) -> list[list[str]]:
        """Cells that were not compared as text under :attr:`incomparable_header`."""
        return [[shown(text) for text in (str(one.pair), one.condition, one.field, one.a, one.b)] for one in cells]

    def shift_lines(
        self, shifts: Iterable[tuple[CellDifference, Shift]], shown: Callable[[str], str] = terminal_text
    ) -> list[list[str]]:
        """Indicators that moved as text under :attr:`shift_header`."""
        return [
            [
                shown(str(cell.pair)),
                cell.condition,
                shown(shift.indicator),
                f"{shift.difference:+z.3f}",
                f"[{shift.low:+z.3f}, {shift.high:+z.3f}]",
                f"{min(1.0, shift.p_value * self.rule.cells):.2g}",
            ]
            for cell, shift in shifts
        ]

    @property
    def _judged(self) -> int:
        return len(self.cells) + sum(one.judgement is not None for one in self.means)

    def _planning(self) -> list[str]:
        """The smallest difference that this many images can show, for planning; it decides nothing."""
        if not self.counts["no difference shown"]:
            return []
        images = max(cell.images for cell in self.cells)
        discordance = max(0.02, float(np.mean([(cell.lost + cell.gained) / cell.images for cell in self.cells])))
        least = detectable_drop(images, discordance, self.rule.alpha / 2 / self._judged)
        what = "none" if least is None else f"{100 * least:.1f} points"
        return [
            f"Smallest difference of a cell that {images:,} images show with 80 % power where "
            f"{100 * discordance:.0f} % of outcomes change: {what}."
        ]


# --------------------------------------------------------------------------- images that both sides have


@dataclass(frozen=True)
class _Shared:
    """The images that both sides have, in an order that hangs on neither: their ``positions`` in A and in B, each
    (shared,), their ``labels`` (shared,), and ``groups`` (shared,) of those that are copies of each other on either
    side.
    """

    sides: tuple[Side, Side]
    positions: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, a: Side, b: Side) -> _Shared:
        """Raises:
        PairedComparisonError: there is none, or they are known under other suites, classes or labels.
        """
        one, other = a.outcomes, b.outcomes
        if one.suite != other.suite:
            raise PairedComparisonError(
                f"{a.name} is of suite {one.suite}, {b.name} of {other.suite}: compare results of one suite"
            )
        _, here, there = np.intersect1d(one.ids, other.ids, assume_unique=True, return_indices=True)
        if not len(here):
            raise PairedComparisonError(
                f"{a.name} and {b.name} have no image in common, so nothing can be compared: evaluate both on the same"
            )
        if one.classes.tolist() != other.classes.tolist():
            raise PairedComparisonError(
                f"{a.name} has classes {_few(one.classes.tolist())}, {b.name} {_few(other.classes.tolist())}: "
                "evaluate both on the same"
            )
        moved = np.flatnonzero(one.labels[here] != other.labels[there])
        if len(moved):
            raise PairedComparisonError(
                f"{a.name} and {b.name} know {len(moved)} images under different classes, such as "
                f"{one.ids[here][moved[0]].decode(errors='replace')}: evaluate both on the same"
            )
        groups = _groups(one.duplicate_of[here], other.duplicate_of[there])
        return cls((a, b), (here, there), one.labels[here], groups)

    def predicted(self, cells: tuple[str, str]) -> np.ndarray:
        """(2, shared) the classes predicted in a cell of A and in one of B."""
        each = zip(self.sides, cells, self.positions, strict=True)
        return np.stack([side.outcomes.prediction[cell][positions] for side, cell, positions in each])

    def voting(self, taken: np.ndarray) -> np.ndarray:
        """Positions of the first of each group of copies among the images ``taken`` (shared,)."""
        positions = np.flatnonzero(taken)
        return np.asarray(positions[np.sort(np.unique(self.groups[positions], return_index=True)[1])])


def _in_both(predicted: np.ndarray) -> np.ndarray:
    """(shared,) the images that both cells evaluated."""
    return np.asarray((predicted != ABSENT).all(0))


def _groups(*copies: np.ndarray) -> np.ndarray:
    """(images,) a number for each group of images that are joined by any of the groupings ``copies`` (images,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images = len(copies[0])
    firsts = []
    for each in copies:
        _, first, number = np.unique(each, return_index=True, return_inverse=True)
        firsts.append(first[number])
    ends = np.tile(np.arange(images), len(copies)), np.concatenate(firsts)
    joined = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(images, images))
    return np.asarray(connected_components(joined, directed=False)[1])


# --------------------------------------------------------------------------- cells


def _checked(a: Side, b: Side, pairs: Sequence[Pair]) -> list[Pair]:
    """Raises:
    PairedComparisonError: a side lacks a model, or no model is on both.
    """
    for pair in pairs:
        for side, model in ((a, pair.a), (b, pair.b)):
            if model not in side.models:
                raise PairedComparisonError(
                    f"{terminal_text(pair.a)}={terminal_text(pair.b)}: {terminal_text(side.name)} has no model "
                    f"{terminal_text(model)}; {terminal_text(near_name(model, side.models))}"
                )
    found = list(dict.fromkeys(pairs)) or [Pair(model, model) for model in a.models if model in b.models]
    if not found:
        raise PairedComparisonError(
            f"no model of {a.name} ({terminal_text(_few(a.models))}) is in {b.name} ({terminal_text(_few(b.models))}): "
            "say which are to be compared (--model OLD=NEW, or models={OLD: NEW} in Python)"
        )
    return found


def _rows(side: Side, model: str) -> dict[str, ResultRow]:
    return {row.condition: row for row in side.rows.values() if row.model == model}


def _order(row: ResultRow) -> tuple[tuple[int, str], str, float]:
    return family_place(row.family), row.degradation, row.level


def _hindrance(pair: Pair, a: ResultRow, b: ResultRow) -> str | None:
    """The field for which two cells cannot be compared."""
    if "not_applicable" in (a.status, b.status):
        return "status"
    names = (*_SAME_CELL, *(_SAME_MODEL if pair.a == pair.b else ()))
    return next((name for name in names if getattr(a, name) != getattr(b, name)), None)


def _shifts(a: Side, b: Side, mine: ResultRow, theirs: ResultRow) -> tuple[Shift, ...]:
    """Indicators that moved; only where both evaluated the same images in the same order."""
    if (mine.manifest_hash, mine.indicator_version) != (theirs.manifest_hash, theirs.indicator_version):
        return ()
    before, after = (side.outcomes.block_sums[cell_of(row).id] for side, row in ((a, mine), (b, theirs)))
    if "images" not in before or "images" not in after:
        return ()
    return tuple(indicator_shifts(mine.condition, before, after))


def _tested(
    pair: Pair, row: ResultRow, predicted: np.ndarray, labels: np.ndarray, shifts: tuple[Shift, ...]
) -> CellDifference:
    """The cell with its p-value, before it is known how many there are. ``predicted`` (2, images) holds classes."""
    was, now = predicted == labels
    lost, gained, images = int((was & ~now).sum()), int((~was & now).sum()), len(labels)
    p_value = min(1.0, 2 * min(mcnemar(lost, gained), mcnemar(gained, lost)))
    return CellDifference(
        pair=pair,
        family=row.family,
        condition=row.condition,
        images=images,
        a=float(was.mean()),
        b=float(now.mean()),
        changed=int((predicted[0] != predicted[1]).sum()),
        lost=lost,
        gained=gained,
        low=-paired_drop_upper(lost, gained, images, 0.975),
        high=paired_drop_upper(gained, lost, images, 0.975),
        p_value=p_value,
        adjusted=p_value,
        judgement="no difference shown",
        shifts=shifts,
    )


def _judged(
    cells: Sequence[CellDifference], means: Sequence[MeanDifference], rule: Rule
) -> tuple[tuple[CellDifference, ...], tuple[MeanDifference, ...]]:
    """All with their verdicts, whose p-values are corrected together; a mean of one cell is the same test as the cell,
    and counts once.
    """
    of = {one: _cells_of(one, cells) for one in means if one.family == OVERALL}
    tests = {_test(mine, one.images): one.p_value for one, mine in of.items()}
    tests |= {_test([cell], cell.images): cell.p_value for cell in cells}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    judged_cells = []
    for cell in cells:
        upper = [
            paired_drop_upper(*outcomes, cell.images)
            for outcomes in ((cell.lost, cell.gained), (cell.gained, cell.lost))
        ]
        p_value = adjusted[_test([cell], cell.images)]
        judgement = _judgement(cell.changed == 0, p_value, cell.difference, max(upper) < rule.tolerance, rule)
        judged_cells.append(replace(cell, adjusted=p_value, judgement=judgement))
    judged_means = []
    for one in means:
        if one in of:
            p_value = adjusted[_test(of[one], one.images)]
            unchanged = all(cell.changed == 0 for cell in of[one])
            within = -rule.tolerance < one.low and one.high < rule.tolerance
            shown = 1.0 if one.low <= 0 <= one.high else p_value
            judgement = _judgement(unchanged, shown, one.difference, within, rule)
            one = replace(one, adjusted=p_value, judgement=judgement)
        judged_means.append(one)
    return tuple(judged_cells), tuple(judged_means)


def _cells_of(one: MeanDifference, cells: Sequence[CellDifference]) -> list[CellDifference]:
    return [cell for cell in cells if one.pair in (None, cell.pair) and cell.family in one.families]


def _test(cells: Sequence[CellDifference], images: int) -> tuple[frozenset[tuple[Pair, str]], int]:
    """What tells one test from another."""
    return frozenset((cell.pair, cell.condition) for cell in cells), images


def _judgement(unchanged: bool, adjusted: float, difference: float, within: bool, rule: Rule) -> Judgement:
    if unchanged:
        return "unchanged"
    # a difference that is exactly the least that counts is one, whatever its binary digits say
    if adjusted <= rule.alpha and abs(difference) >= rule.min_drop - 1e-12:
        return "worse" if difference < 0 else "better"
    return "within tolerance" if within else "no difference shown"


# --------------------------------------------------------------------------- families and the whole


def _means(cells: Sequence[CellDifference], shared: _Shared) -> list[MeanDifference]:
    """Of each pair its families and all of them; then, of several pairs, the same over these; not judged yet."""
    by_pair: dict[Pair, dict[str, list[tuple[str, str]]]] = {}
    for cell in cells:
        ids = f"{cell.pair.a}-{cell.condition}", f"{cell.pair.b}-{cell.condition}"
        by_pair.setdefault(cell.pair, {}).setdefault(cell.family, []).append(ids)
    found = [one for pair, families in by_pair.items() for one in _mean_lines(pair, [families], shared)]
    if len(by_pair) > 1:
        found += _mean_lines(None, list(by_pair.values()), shared)
    return found


def _mean_lines(
    pair: Pair | None, models: Sequence[Mapping[str, Sequence[tuple[str, str]]]], shared: _Shared
) -> list[MeanDifference]:
    """Of one pair, or the means over several ``models``, each with its cells by family; none where no image is in all
    cells.
    """
    voting = shared.voting(
        np.all(
            [_in_both(shared.predicted(ids)) for families in models for cells in families.values() for ids in cells], 0
        )
    )
    if not len(voting):
        return []
    names = sorted({name for families in models for name in families}, key=family_place)
    ranked = tuple(name for name in names if name not in UNRANKED) or tuple(names)
    having = {name: [families[name] for families in models if name in families] for name in names}
    rates = {name: np.mean([_rates(cells, shared, voting) for cells in each], axis=0) for name, each in having.items()}
    counts = {name: sum(map(len, each)) for name, each in having.items()}
    rates[OVERALL] = np.mean([rates[name] for name in ranked], axis=0)
    counts[OVERALL] = sum(counts[name] for name in ranked)
    # what every mean is a multiple of: each cell has its share of its family, of its model and of all families
    unit = len(ranked) * math.lcm(*(len(each) * len(cells) for each in having.values() for cells in each))
    return [
        _mean_difference(pair, name, ranked if name == OVERALL else (name,), counts[name], a, b, unit)
        for name, (a, b) in rates.items()
    ]


def _mean_difference(
    pair: Pair | None, family: str, families: tuple[str, ...], cells: int, a: np.ndarray, b: np.ndarray, unit: int
) -> MeanDifference:
    """From the shares (images,) of the cells that A, and that B, gets each image right in, multiples of 1 / unit."""
    p_value = sign_flip(b - a, unit)
    low, high = paired_mean_interval(b - a)
    if p_value > ALPHA:
        low, high = min(0.0, low), max(0.0, high)
    return MeanDifference(pair, family, families, cells, len(a), float(a.mean()), float(b.mean()), low, high, p_value)


def _rates(cells: Sequence[tuple[str, str]], shared: _Shared, voting: np.ndarray) -> np.ndarray:
    """(2, voting) the share of ``cells`` that A, and that B, gets each image right in."""
    total = np.zeros((2, len(voting)))
    for ids in cells:
        total += shared.predicted(ids)[:, voting] == shared.labels[voting]
    return total / len(cells)


# --------------------------------------------------------------------------- what else there is to say


@dataclass
class _Remarks:
    """In what the sides are others, gathered cell by cell."""

    only: dict[str, list[str]] = field(default_factory=lambda: {"A": [], "B": []})
    weights: set[str] = field(default_factory=set)
    differing: set[tuple[str, str, str]] = field(default_factory=set)
    views: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def note_missing(self, pair: Pair, a: Mapping[str, ResultRow], b: Mapping[str, ResultRow]) -> None:
        self.only["A"] += [f"{pair.a}-{name}" for name in sorted(a.keys() - b.keys())]
        self.only["B"] += [f"{pair.b}-{name}" for name in sorted(b.keys() - a.keys())]

    def note_compared(self, pair: Pair, a: ResultRow, b: ResultRow, changed: int) -> None:
        if pair.a == pair.b and a.weights_hash != b.weights_hash:
            self.weights.add(pair.a)
        self.differing |= {(name, there, here) for name, (here, there) in differing(b, a).items() if here != there}
        if a.view != b.view:
            self.views.add(f"{pair} ({a.view}; {b.view})")
        if changed and is_repeated(b, a):
            self.faults.append(f"{pair}-{a.condition}")

    def sentences(self, a: Side, b: Side, pairs: Sequence[Pair], named: bool) -> tuple[str, ...]:
        """Names in them are as they are. Who ``named`` the pairs knows that there are other models."""
        said = []
        if self.weights:
            said.append(f"Other weights under the same name: {', '.join(sorted(self.weights))}.")
        if self.views:
            said.append(f"The models see other pixels, each its own view: {'; '.join(sorted(self.views))}.")
        if self.faults:
            said.append(
                f"Same weights, machine and libraries, yet predictions changed in {len(self.faults)} cells, such as "
                f"{self.faults[0]}: either the model or a degradation is not deterministic, or its code changed."
            )
        if self.differing:
            words = "; ".join(f"{name} {one} (A), {other} (B)" for name, one, other in sorted(self.differing))
            said.append(f"Computed otherwise: {words}.")
        for name, side, compared in (("A", a, {pair.a for pair in pairs}), ("B", b, {pair.b for pair in pairs})):
            if not named and (others := [model for model in side.models if model not in compared]):
                said.append(f"Models in {name} that were not compared: {', '.join(others)}.")
            if only := self.only[name]:
                said.append(f"Cells in {name} alone: {len(only)}, such as {only[0]}.")
            if side.left_out:
                said.append(
                    f"Cells of {name} that were evaluated otherwise than its others, and are left out: "
                    f"{len(side.left_out)}, such as {side.left_out[0]}."
                )
        return tuple(said)


# --------------------------------------------------------------------------- text


def _points(fraction: float) -> str:
    return f"{100 * fraction:+z.2f}"


def _interval(of: CellDifference | MeanDifference) -> str:
    return f"[{_points(of.low)}, {_points(of.high)}]"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], style: str) -> str:
    from tabulate import tabulate

    return tabulate(lines, headers=header, tablefmt=style, disable_numparse=True)


def _rest(lines: Sequence[object], most: int) -> list[str]:
    return [f"... and {len(lines) - most} more"] if len(lines) > most else []


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
