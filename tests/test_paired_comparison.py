"""Is B better than A: the tests, the intervals and the laws that hold whatever the sides are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench.labelled_images import LabelledImages, first_copies
from mae_bench.leaderboard import Leaderboard
from mae_bench.paired_comparison import (
    OVERALL,
    CellDifference,
    Judgement,
    Pair,
    PairedComparison,
    PairedComparisonError,
)
from mae_bench.rows import CellResult
from mae_bench.side import Side
from references import page

LAW = settings(max_examples=15, derandomize=True)
MakeResult = Callable[..., CellResult]
IMAGES = 40
CLASSES = [f"class {k}" for k in range(10)]
CONDITIONS = ("clean-0.00", "gaussian_blur-3.00", "random_patch-0.25", "random_patch-0.50", "token_drop-0.50")
SUMS = {"images": [10.0] * 4, "alignment_cls": [9.0] * 4}
MOVED = {"images": [10.0] * 4, "alignment_cls": [5.0] * 4}


def ids_of(images: int = IMAGES, start: int = 0) -> list[str]:
    return [f"{k:032x}-0" for k in range(start, start + images)]


def images_of(ids: Sequence[str], duplicate_of: np.ndarray | None = None) -> LabelledImages:
    """Images whose class hangs on their content alone."""
    labels = np.array([int(name.partition("-")[0], 16) % 10 for name in ids])
    return LabelledImages(list(ids), labels, CLASSES, first_copies(ids) if duplicate_of is None else duplicate_of)


def side_of(name: str, results: Sequence[CellResult], images: LabelledImages | None = None) -> Side:
    return Side.of(name, results, images or images_of(ids_of()))


def right_but(images: LabelledImages, wrong: Sequence[int]) -> np.ndarray:
    """Predictions that are right but for the images at positions ``wrong``."""
    prediction = images.labels.copy()
    prediction[list(wrong)] = (prediction[list(wrong)] + 1) % 10
    return prediction


def only_cell(a: Side, b: Side, **options: Any) -> CellDifference:
    (cell,) = PairedComparison.of(a, b, **options).cells
    return cell


# --------------------------------------------------------------------------- references


def two_sided_mcnemar(lost: int, gained: int) -> float:
    """The share of all ways in which discordant images might have gone that are as uneven as this one."""
    ways = list(product((-1, 1), repeat=lost + gained))
    return sum(abs(sum(way)) >= abs(gained - lost) for way in ways) / len(ways)


def two_sided_flips(differences: Iterable[Fraction]) -> float:
    """The share of all ways to give the differences signs whose sum is as far from zero as theirs."""
    differing = [one for one in differences if one]
    scale = math.lcm(*(one.denominator for one in differing))
    sums = np.zeros(1, dtype=int)
    for one in differing:
        sums = np.concatenate([sums + int(one * scale), sums - int(one * scale)])
    return float(np.mean(abs(sums) >= abs(int(sum(differing) * scale))))


def stepwise_holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value times the number of those that are not smaller, and never below the one before it."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, p_values[k] * (len(p_values) - step)))
        adjusted[k] = largest
    return adjusted


@LAW
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=4))
def test_cells_are_tested_exactly_and_corrected_by_holm(
    cell_result: MakeResult, outcomes: list[tuple[int, int]]
) -> None:
    images = images_of(ids_of())
    names = [f"vit-{condition}" for condition in CONDITIONS[: len(outcomes)]]
    a = [
        cell_result(name, right_but(images, range(lost, lost + gained)))
        for name, (lost, gained) in zip(names, outcomes, strict=True)
    ]
    b = [cell_result(name, right_but(images, range(lost))) for name, (lost, _) in zip(names, outcomes, strict=True)]
    found = PairedComparison.of(side_of("a", a), side_of("b", b), min_drop=0.1, tolerance=0.2)
    p_values = [two_sided_mcnemar(lost, gained) for lost, gained in outcomes]
    assert found.whole is not None
    families = [family for family in (outcomes[1:2], outcomes[2:4]) if family] or [outcomes[:1]]
    differences = [
        sum(
            Fraction((lost <= k < lost + gained) - (k < lost), len(family) * len(families))
            for family in families
            for lost, gained in family
        )
        for k in range(14)
    ]
    assert found.whole.p_value == pytest.approx(two_sided_flips(map(Fraction, differences)))
    # a whole of one cell is the same test
    together = p_values if found.whole.cells == 1 else [*p_values, found.whole.p_value]
    assert found.whole.adjusted in [
        *(cell.adjusted for cell in found.cells),
        pytest.approx(stepwise_holm(together)[-1]),
    ]
    for cell, (lost, gained), p, adjusted in zip(
        found.cells, outcomes, p_values, stepwise_holm(together)[: len(outcomes)], strict=True
    ):
        assert (cell.lost, cell.gained, cell.images) == (lost, gained, IMAGES)
        assert (cell.a, cell.b) == (1 - gained / IMAGES, 1 - lost / IMAGES)
        assert cell.difference == pytest.approx(cell.b - cell.a)
        assert cell.p_value == pytest.approx(p)
        assert cell.adjusted == pytest.approx(adjusted)
        assert cell.low <= cell.difference <= cell.high
        shown = adjusted <= 0.05 and abs(lost - gained) >= 4
        assert (cell.judgement in ("better", "worse")) is shown
        if shown:
            assert cell.judgement == ("better" if gained > lost else "worse")
        assert (cell.judgement == "unchanged") is (lost + gained == 0)
    assert found.is_worse is any(one.judgement == "worse" for one in (*found.cells, *found.means))


def test_each_verdict_has_its_case(cell_result: MakeResult) -> None:
    images = images_of(ids_of(1000))
    cases: dict[Judgement, tuple[range, range]] = {
        "unchanged": (range(0), range(0)),
        "better": (range(30), range(0)),
        "worse": (range(0), range(30)),
        "no difference shown": (range(40), range(40, 90)),
        "within tolerance": (range(2), range(2, 4)),
    }
    assert set(cases) == set(get_args(Judgement))
    for judgement, (wrong_in_a, wrong_in_b) in cases.items():
        a, b = (
            side_of(name, [cell_result("vit-random_patch-0.50", right_but(images, wrong))], images)
            for name, wrong in (("a", wrong_in_a), ("b", wrong_in_b))
        )
        found = PairedComparison.of(a, b)
        assert [one.judgement for one in (*found.cells, found.whole) if one] == [judgement, judgement]
        assert found.is_worse is (judgement == "worse")


def test_a_difference_below_the_least_that_counts_is_none(cell_result: MakeResult) -> None:
    images = images_of(ids_of(1000))
    a = side_of("a", [cell_result("vit-clean-0.00", right_but(images, []))], images)
    b = side_of("b", [cell_result("vit-clean-0.00", right_but(images, range(20)))], images)
    assert only_cell(a, b, min_drop=0.02).judgement == "worse"
    assert only_cell(a, b, min_drop=0.021).judgement == "no difference shown"
    assert only_cell(a, b, min_drop=0.021, tolerance=0.05).judgement == "within tolerance"


# --------------------------------------------------------------------------- families and the whole


def some_sides(cell_result: MakeResult, models: Sequence[str] = ("cnn", "vit"), images: int = 300) -> tuple[Side, Side]:
    of_suite = images_of(ids_of(images))
    generator = np.random.default_rng(7)

    def side(name: str, share: float) -> Side:
        results = [
            cell_result(
                f"{model}-{condition}",
                np.where(generator.random(images) < share, of_suite.labels, (of_suite.labels + 1) % 10),
                of_suite.labels,
            )
            for model in models
            for condition in CONDITIONS
            if not (model == "cnn" and condition.startswith("token_drop"))
        ]
        return side_of(name, results, of_suite)

    return side("a", 0.6), side("b", 0.75)


def test_families_are_means_over_cells_with_an_interval_over_images(cell_result: MakeResult) -> None:
    a, b = some_sides(cell_result)
    found = PairedComparison.of(a, b)
    families = {
        "clean": CONDITIONS[:1],
        "blur": CONDITIONS[1:2],
        "occlusion": CONDITIONS[2:4],
        "token_drop": CONDITIONS[4:],
    }
    lines = {(one.pair and one.pair.b, one.family): one for one in found.means}
    assert set(lines) == {
        *(("vit", name) for name in (*families, OVERALL)),
        *(("cnn", name) for name in (*families, OVERALL) if name != "token_drop"),
        *((None, name) for name in (*families, OVERALL)),
    }
    for model in ("vit", "cnn"):
        differences = {}
        for name, conditions in families.items():
            if (model, name) in lines:
                cells = [f"{model}-{condition}" for condition in conditions]
                differences[name] = sum(
                    b.outcomes.correct(cell).astype(float) - a.outcomes.correct(cell) for cell in cells
                ) / len(cells)
        differences[OVERALL] = (differences["blur"] + differences["occlusion"]) / 2
        for name, difference in differences.items():
            line = lines[model, name]
            assert line.difference == pytest.approx(difference.mean())
            more = np.array([*difference, -1, 1])
            half = 1.959964 * more.std() / len(more) ** 0.5
            low, high = more.mean() - half, more.mean() + half
            if line.p_value > 0.05:
                low, high = min(low, 0), max(high, 0)
            assert (line.low, line.high) == pytest.approx((low, high), rel=1e-6)
    for name in ("clean", "blur", OVERALL):
        each = [lines[model, name].difference for model in ("vit", "cnn")]
        assert lines[None, name].difference == pytest.approx(sum(each) / 2)
    assert lines[None, OVERALL].families == ("blur", "occlusion")
    assert found.whole is lines[None, OVERALL]
    assert found.whole.judgement == "better"


def test_the_whole_of_a_model_is_the_difference_of_its_scores(cell_result: MakeResult) -> None:
    """Where a leaderboard ranks both, on all conditions of the same families."""
    from mae_bench.leaderboard import default_conditions
    from mae_bench.suites import SUITES

    images = images_of(ids_of(100))
    generator = np.random.default_rng(1)
    conditions = [
        c for family in ("blur", "occlusion") for c in sorted(default_conditions(family, SUITES["fashion_mnist"]))
    ]
    boards, ends = [], []
    for name in "ab":
        results = [
            cell_result(f"vit-{condition}", generator.integers(0, 2, 100) + images.labels // 2, images.labels)
            for condition in ("clean-0.00", *conditions)
        ]
        ends.append(side_of(name, results, images))
        boards.append(Leaderboard.of(ends[-1].rows.values(), ends[-1].outcomes))
    whole = PairedComparison.of(*ends).whole
    assert whole is not None
    assert [whole.a, whole.b] == pytest.approx([board.standings[0].score for board in boards])


def test_many_small_losses_are_seen_as_a_whole(cell_result: MakeResult) -> None:
    """No cell is worse on its own, all together are."""
    images = images_of(ids_of(500))
    conditions = [f"random_patch-{level}" for level in ("0.10", "0.25", "0.50", "0.75", "0.90")]
    a, b = (
        side_of(
            name,
            [cell_result(f"vit-{c}", right_but(images, range(5 * k, 5 * k + wrong))) for k, c in enumerate(conditions)],
            images,
        )
        for name, wrong in (("a", 0), ("b", 5))
    )
    found = PairedComparison.of(a, b)
    assert {cell.judgement for cell in found.cells} == {"no difference shown"}
    assert found.whole is not None
    assert found.whole.judgement == "worse"
    assert found.is_worse


def sides_that_differ(
    cell_result: MakeResult, cells: Sequence[tuple[Sequence[int], Sequence[int]]], images: LabelledImages
) -> tuple[Side, Side]:
    """Two sides of occlusion; each of ``cells`` is wrong in A alone, and in B alone, for images at these positions."""
    levels = ("0.50", "0.10", "0.25", "0.75", "0.90")[: len(cells)]
    a, b = (
        side_of(
            name,
            [
                cell_result(f"vit-random_patch-{level}", right_but(images, cell[k]), images.labels)
                for level, cell in zip(levels, cells, strict=True)
            ],
            images,
        )
        for k, name in enumerate("ab")
    )
    return a, b


@LAW
@given(st.integers(0, 9), st.integers(0, 9))
def test_of_one_cell_the_whole_is_the_cell(cell_result: MakeResult, lost: int, gained: int) -> None:
    images = images_of(ids_of())
    sides = sides_that_differ(cell_result, [(range(gained), range(gained, gained + lost))], images)
    found = PairedComparison.of(*sides)
    (cell,) = found.cells
    for one in found.means:
        assert one.p_value == cell.p_value == pytest.approx(two_sided_mcnemar(lost, gained))
        assert one.adjusted in (None, cell.p_value)
        assert cell.adjusted == cell.p_value


@LAW
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5), st.sampled_from([40, 1000]))
def test_an_interval_of_a_mean_does_not_collapse_and_agrees_with_the_test(
    cell_result: MakeResult, outcomes: list[tuple[int, int]], count: int
) -> None:
    images = images_of(ids_of(count))
    cells = [(range(gained), range(20, 20 + lost)) for lost, gained in outcomes]
    found = PairedComparison.of(*sides_that_differ(cell_result, cells, images), min_drop=0)
    for one in found.means:
        assert one.low <= one.difference <= one.high
        assert one.high - one.low >= 2 * 3.84 / (count + 4) * 0.7
        if one.p_value > 0.05:
            assert one.low <= 0 <= one.high
        if one.judgement in ("worse", "better"):
            assert one.low > 0 or one.high < 0
        if one.judgement == "within tolerance":
            assert max(-one.low, one.high) < 0.01


def test_few_images_are_no_alarm(cell_result: MakeResult) -> None:
    images = images_of(ids_of(1024))
    found = PairedComparison.of(*sides_that_differ(cell_result, [([], range(4))], images))
    assert found.whole is not None
    assert found.whole.p_value == 0.125
    assert found.whole.judgement == found.cells[0].judgement == "within tolerance"
    assert not found.is_worse


def error_of_one_cell(cell_result: MakeResult, discordant: int) -> float:
    """How often B is worse or better anywhere where each of so many images is lost or gained by the toss of a coin."""
    images = images_of(ids_of(1024))
    error = 0.0
    for lost in range(discordant // 2 + 1):
        found = PairedComparison.of(
            *sides_that_differ(cell_result, [(range(lost, discordant), range(lost))], images), min_drop=0
        )
        verdicts = {one.judgement for one in (*found.cells, found.whole) if one is not None}
        ways = stats.binom.pmf(lost, discordant, 0.5) * (1 if 2 * lost == discordant else 2)
        error += ways * bool(verdicts & {"worse", "better"})
    return error


@pytest.mark.parametrize("discordant", [4, 5, 8, 14, pytest.param(100, marks=pytest.mark.thorough)])
def test_without_a_change_of_one_cell_hardly_any_comparison_speaks(cell_result: MakeResult, discordant: int) -> None:
    assert error_of_one_cell(cell_result, discordant) <= 0.05


@pytest.mark.thorough  # simulates comparisons
@pytest.mark.parametrize("discordant", [4, 5, 8, 14, 100])
def test_without_a_change_of_several_cells_hardly_any_comparison_speaks(
    cell_result: MakeResult, discordant: int
) -> None:
    """An image that differs does so in some cells, in all of them in the same direction."""
    images, generator, draws = images_of(ids_of(512)), np.random.default_rng(20260203), 400
    alarms = 0
    for _ in range(draws):
        gained = generator.random(discordant) < 0.5
        changed = generator.random((5, discordant)) < 0.6
        cells = [(np.flatnonzero(row & gained), np.flatnonzero(row & ~gained)) for row in changed]
        sides = sides_that_differ(cell_result, [(one.tolist(), other.tolist()) for one, other in cells], images)
        found = PairedComparison.of(*sides, min_drop=0)
        verdicts = {one.judgement for one in (*found.cells, *found.means)}
        alarms += bool(verdicts & {"worse", "better"})
    assert alarms <= 0.055 * draws


# --------------------------------------------------------------------------- laws


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[list[Any], list[Any]]:
    """Ids, copies, and predictions by condition of each of two sides that overlap."""

    def side(start: int, tag: str) -> list[Any]:
        count = draw(st.integers(6, 20))
        ids = draw(st.permutations(ids_of(count, start)))
        copies = np.arange(count)
        for k in draw(st.sets(st.integers(1, count - 1), max_size=3)):
            copies[k] = 0
        names = draw(st.sets(st.sampled_from(CONDITIONS), min_size=1))
        seed = draw(st.integers(0, 1000))
        sizes = {name: draw(st.integers(1, count)) for name in sorted(names)}
        return [tag, ids, copies, sizes, seed]

    return side(0, "a"), side(draw(st.integers(0, 4)), "b")


def built(cell_result: MakeResult, drawn: list[Any]) -> Side:
    tag, ids, copies, sizes, seed = drawn
    images, generator = images_of(ids, copies), np.random.default_rng(seed)
    results = []
    for model in ("cnn", "vit"):
        for name, size in sizes.items():
            hit = generator.random(size) < 0.6
            prediction = np.where(hit, images.labels[:size], (images.labels[:size] + 1) % 10)
            sums = {"images": [8.0] * 5, "alignment_cls": generator.uniform(0, 8, 5).tolist()}
            results.append(cell_result(f"{model}-{name}", prediction, n_expected=len(ids), block_sums=sums))
    return side_of(tag, results, images)


MIRRORED = {"worse": "better", "better": "worse"}


@LAW
@given(two_sides())
def test_the_other_way_round_everything_is_the_other_way_round(
    cell_result: MakeResult, drawn: tuple[list[Any], list[Any]]
) -> None:
    a, b = (built(cell_result, each) for each in drawn)
    there, back = (PairedComparison.of(*ends, min_drop=0.01, tolerance=0.3) for ends in ((a, b), (b, a)))
    assert len(there.cells) == len(back.cells)
    for one, other in zip(there.cells, back.cells, strict=True):
        assert (one.pair, one.condition, one.images, one.changed) == (
            other.pair, other.condition, other.images, other.changed,
        )  # fmt: skip
        assert (one.a, one.b, one.lost, one.gained) == (other.b, other.a, other.gained, other.lost)
        assert (one.low, one.high, one.difference) == (-other.high, -other.low, -other.difference)
        assert (one.p_value, one.adjusted) == (other.p_value, other.adjusted)
        assert other.judgement == MIRRORED.get(one.judgement, one.judgement)
        assert [shift.indicator for shift in one.shifts] == [shift.indicator for shift in other.shifts]
        for forth, fro in zip(one.shifts, other.shifts, strict=True):
            assert (forth.difference, forth.low, forth.p_value) == pytest.approx(
                (-fro.difference, -fro.high, fro.p_value)
            )
    for one, other in zip(there.means, back.means, strict=True):
        assert (one.pair, one.family, one.cells, one.images) == (other.pair, other.family, other.cells, other.images)
        assert (one.a, one.b) == pytest.approx((other.b, other.a))
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert (one.p_value, one.adjusted) == (other.p_value, other.adjusted)
        assert other.judgement == MIRRORED.get(str(one.judgement), one.judgement)
    assert [(i.condition, i.field, i.a, i.b) for i in there.incomparable] == [
        (i.condition, i.field, i.b, i.a) for i in back.incomparable
    ]


@LAW
@given(two_sides())
def test_against_itself_nothing_changes(cell_result: MakeResult, drawn: tuple[list[Any], list[Any]]) -> None:
    side = built(cell_result, drawn[0])
    found = PairedComparison.of(side, side)
    assert {cell.judgement for cell in found.cells} == {"unchanged"}
    assert {one.judgement for one in found.means} <= {"unchanged", None}
    assert all(one.difference == 0 > one.low == -one.high for one in found.means)
    assert (found.is_worse, found.shifts, found.incomparable) == (False, [], ())
    assert found.answer.startswith("Nothing changed. ")


def test_the_order_of_images_changes_nothing(cell_result: MakeResult) -> None:
    a, b = some_sides(cell_result)
    order = np.random.default_rng(3).permutation(len(b.outcomes.ids))
    shuffled = images_of([b.outcomes.ids[k].decode() for k in order])
    results = [cell_result(name, b.outcomes.prediction[name][order]) for name in b.rows]
    found, again = PairedComparison.of(a, b), PairedComparison.of(a, side_of("b", results, shuffled))
    assert (again.cells, again.means) == (found.cells, found.means)


@pytest.mark.parametrize("where", ["a", "b", "ids"])
def test_of_images_that_are_copies_on_either_side_one_votes(cell_result: MakeResult, where: str) -> None:
    ids = ids_of(20)
    if where == "ids":
        ids = [f"{0:032x}-{k}" if k < 5 else ids[k] for k in range(20)]
    copies = np.r_[np.zeros(5, dtype=int), np.arange(5, 20)]
    a, b = (
        side_of(
            name,
            [cell_result("vit-clean-0.00", right_but(images_of(ids), wrong))],
            images_of(ids, copies if name == where else None),
        )
        for name, wrong in (("a", range(0)), ("b", range(6)))
    )
    cell = only_cell(a, b)
    assert (cell.images, cell.lost, cell.changed) == (16, 2, 2)


# --------------------------------------------------------------------------- what is compared with what


def test_two_models_are_compared_on_one_side(cell_result: MakeResult) -> None:
    images = images_of(ids_of(200))
    side = side_of(
        "run",
        [
            cell_result("old-random_patch-0.50", right_but(images, range(100)), view="224", label_map="by name"),
            cell_result("new-random_patch-0.50", right_but(images, range(50)), view="384", label_map="by order"),
            cell_result("new-random_patch-0.25", right_but(images, [])),
        ],
        images,
    )
    found = PairedComparison.of(side, side, [Pair("old", "new")])
    (cell,) = found.cells
    assert (cell.gained, cell.lost, cell.judgement) == (50, 0, "better")
    assert str(cell.pair) == "old -> new"
    remarks = " ".join(found.remarks)
    assert "The models see other pixels, each its own view: old -> new (224; 384)." in remarks
    assert "Cells in B alone: 1, such as new-random_patch-0.25." in remarks
    assert "not compared" not in remarks  # who names models knows that there are others
    assert "Other weights" not in remarks
    other = side_of(
        "other", [cell_result(f"{name}-random_patch-0.50", images.labels) for name in ("old", "cnn")], images
    )
    assert {"Models in A that were not compared: new.", "Models in B that were not compared: cnn."} <= set(
        PairedComparison.of(side, other).remarks
    )


@pytest.mark.parametrize(
    ("field", "other"), [("seed", 7), ("degradation_version", 2), ("view", "v"), ("label_map", "m")]
)
def test_cells_of_other_images_are_named_with_the_field(cell_result: MakeResult, field: str, other: Any) -> None:
    """What tells the images of a cell apart, or of one model what its outputs stand for."""
    images = images_of(ids_of())
    names = ("vit-clean-0.00", "vit-box_blur-1.75")
    a = side_of("a", [cell_result(name, images.labels) for name in names])
    b = side_of("b", [cell_result(name, images.labels, **{field: other}) for name in names])
    found = PairedComparison.of(a, b)
    assert (found.cells, found.means) == ((), ())
    here = str(getattr(a.rows[names[0]], field))
    assert [(i.condition, i.field, i.a, i.b) for i in found.incomparable] == [
        (name.partition("-")[2], field, here, str(other)) for name in names
    ]
    assert f"box_blur-1.75  {field}" in found.to_text()
    assert f"| box_blur-1.75 | {field}" in " ".join(found.to_markdown().split())


def test_a_cell_without_a_common_image_is_named(cell_result: MakeResult) -> None:
    images, turned = images_of(ids_of(20)), images_of(ids_of(20)[::-1])
    some: dict[str, Any] = {"n_expected": 20, "subset": "first 5 of 20"}
    a, b = (
        side_of(n, [cell_result("vit-clean-0.00", i.labels[:5], **some)], i) for n, i in (("a", images), ("b", turned))
    )
    found = PairedComparison.of(a, b)
    assert [(i.condition, i.field, i.a) for i in found.incomparable] == [("clean-0.00", "subset", "first 5 of 20")]
    assert found.cells == ()


def test_a_cell_that_one_model_cannot_have_is_named_and_one_that_none_has_is_nothing(cell_result: MakeResult) -> None:
    images = images_of(ids_of())
    impossible: dict[str, Any] = {"status": "not_applicable", "n_expected": IMAGES}
    side = side_of(
        "run",
        [
            cell_result("vit-token_drop-0.50", images.labels),
            *(cell_result(f"{model}-token_drop-0.50", **impossible) for model in ("cnn", "mlp")),
        ],
    )
    found = PairedComparison.of(side, side, [Pair("vit", "cnn"), Pair("cnn", "mlp")])
    assert [(str(i.pair), i.field, i.a, i.b) for i in found.incomparable] == [
        ("vit -> cnn", "status", "ok", "not_applicable")
    ]


def test_indicators_that_moved_are_told(cell_result: MakeResult) -> None:
    images = images_of(ids_of())
    name = "vit-random_patch-0.50"
    a, b = (side_of(n, [cell_result(name, images.labels, block_sums=sums)]) for n, sums in (("a", SUMS), ("b", MOVED)))
    found = PairedComparison.of(a, b)
    ((cell, shift),) = found.shifts
    assert (cell.condition, shift.indicator, round(shift.difference, 3)) == ("random_patch-0.50", "alignment_cls", -0.4)
    assert "alignment_cls" in found.to_text()
    other = side_of("b", [cell_result(name, images.labels, block_sums=MOVED, indicator_version=9)])
    assert PairedComparison.of(a, other).shifts == []


def test_what_else_differs_is_told(cell_result: MakeResult) -> None:
    images = images_of(ids_of())
    known: dict[str, Any] = {"machine": "a", "libraries": "numpy 2", "torch_version": "2", "mae_bench_version": "1"}
    known |= {"device": "cpu", "dtype": "float32", "weights_hash": "w"}
    name = "vit-clean-0.00"
    a = side_of("a", [cell_result(name, images.labels, **known)])
    same = side_of("b", [cell_result(name, right_but(images, [3]), **known)])
    other = side_of("b", [cell_result(name, right_but(images, [3]), **known | {"machine": "b", "weights_hash": "x"})])
    assert any(said.startswith("Same weights, machine and libraries") for said in PairedComparison.of(a, same).remarks)
    assert PairedComparison.of(a, other).remarks == (
        "Other weights under the same name: vit.",
        "Computed otherwise: machine a (A), b (B).",
    )


# --------------------------------------------------------------------------- refusals


def test_sides_that_do_not_fit_are_refused(cell_result: MakeResult) -> None:
    images = images_of(ids_of())
    a = side_of("runs/a", [cell_result("vit-clean-0.00", images.labels)])
    renamed = LabelledImages(images.ids, images.labels, [*CLASSES[:-1], "other"], images.duplicate_of)
    moved = LabelledImages(images.ids, (images.labels + 1) % 10, CLASSES, images.duplicate_of)
    far = images_of(ids_of(start=1000))
    result = cell_result("vit-clean-0.00", images.labels)
    for other, words in (
        (
            side_of("b", [cell_result("vit-clean-0.00", images.labels, suite="cifar10")]),
            "runs/a is of suite fashion_mnist, b of cifar10",
        ),
        (side_of("b", [result], renamed), "has classes"),
        (side_of("b", [result], moved), "know 40 images under different classes, such as 0000"),
        (side_of("b", [result], far), "no image in common"),
        (
            side_of("b", [cell_result("cnn-clean-0.00", images.labels)]),
            r"no model of runs/a \(vit\) is in b \(cnn\).*--model OLD=NEW",
        ),
    ):
        with pytest.raises(PairedComparisonError, match=words):
            PairedComparison.of(a, other)
    with pytest.raises(PairedComparisonError, match=r"^vit=vitt: runs/a has no model vitt; did you mean vit"):
        PairedComparison.of(a, a, [Pair("vit", "vitt")])


@pytest.mark.parametrize("text", ["vit", "=vit", "vit=", "", "="])
def test_a_pair_is_written_with_both_names(text: str) -> None:
    with pytest.raises(PairedComparisonError, match="write OLD=NEW"):
        Pair.parse(text)


# --------------------------------------------------------------------------- what is printed

HOSTILE = "<img src=x onerror=alert(1)>|*\x1b[2J\u202e"


def test_a_hostile_name_stays_text(cell_result: MakeResult) -> None:
    images = images_of(ids_of(100))

    def ends(model: str, place: str) -> tuple[Side, Side]:
        return tuple(  # type: ignore[return-value]
            side_of(
                place,
                [
                    cell_result(
                        f"{model}-clean-0.00", right_but(images, range(wrong)), view=model, weights_hash=str(wrong)
                    ),
                    cell_result(f"{model}-box_blur-1.75", right_but(images, []), view=model, block_sums=sums),
                ],
                images,
            )
            for wrong, sums in ((0, SUMS), (30, MOVED))
        )

    plain, hostile = (PairedComparison.of(*ends(*names)) for names in (("vit", "run"), (HOSTILE, HOSTILE)))
    assert "\x1b" not in hostile.to_text()
    assert "\u202e" not in hostile.to_text()
    usual, found = page.read(plain.to_markdown()), page.read(hostile.to_markdown())
    assert found.tags == usual.tags
    assert any("onerror=alert(1)" in cell for cell in found.tables[0][1])


def test_the_frame_holds_every_cell_in_plain_numbers(cell_result: MakeResult) -> None:
    found = PairedComparison.of(*some_sides(cell_result))
    frame = found.to_frame()
    assert len(frame) == len(found.cells) == 9
    assert set(frame["verdict"]) <= set(get_args(Judgement))
    for line, cell in zip(frame.itertuples(), found.cells, strict=True):
        assert (line.model_a, line.model_b, line.condition) == (cell.pair.a, cell.pair.b, cell.condition)
        assert line.difference == pytest.approx(line.b - line.a)
        assert line.gained - line.lost == round(line.difference * line.images)
    empty = PairedComparison.of(
        *(
            side_of(n, [cell_result(f"vit-{c}", [0])], images_of(ids_of(1)))
            for n, c in (("a", "clean-0.00"), ("b", "box_blur-1.75"))
        )
    )
    assert empty.answer == "No cell could be compared."
    assert len(empty.to_frame()) == 0
    assert (empty.whole, empty.is_worse) == (None, False)
    assert "No cell could be compared." in empty.to_text()
