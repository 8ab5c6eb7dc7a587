"""The verdict on a change against its rule in exact arithmetic, and Holm's steps against other statements of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mae_bench.regression import (
    ALPHA,
    Rule,
    Shift,
    Verdict,
    certain_shifts,
    holm_additions,
    indicator_shifts,
    verdict,
)

LAW = settings(max_examples=100, derandomize=True)
Z_95 = 1.6448536269514722


def predictions(lost: int, gained: int, images: int, right: int = 0, moved: int = 0) -> tuple[np.ndarray, ...]:
    """Classes predicted before and after, and labels, of ``images`` images: of those that are not lost or gained
    ``right`` stay right, ``moved`` go from one wrong class to another, and the rest stay in one wrong class.
    """
    labels = np.arange(images) % 7
    before, after = labels + 1, labels + 1
    start = 0
    for count, (was, now) in ((lost, (0, 1)), (gained, (1, 0)), (right, (0, 0)), (moved, (1, 2))):
        part = slice(start, start + count)
        before[part], after[part] = labels[part] + was, labels[part] + now
        start += count
    assert start <= images
    return before, after, labels


def judged(
    lost: int, gained: int, images: int, rule: Rule, right: int = 0, moved: int = 0, repeatable: bool = False
) -> Verdict:
    return verdict("vit-clean-0.00", *predictions(lost, gained, images, right, moved), rule, repeatable=repeatable)


def exact_p(lost: int, gained: int) -> Fraction:
    """Probability of at least ``lost`` heads in ``lost + gained`` tosses of a fair coin."""
    tosses = lost + gained
    return Fraction(sum(math.comb(tosses, k) for k in range(lost, tosses + 1)), 2**tosses)


def refutes(drop: float, lost: int, gained: int, images: int) -> float:
    """How clearly the counts speak against a true drop of exactly ``drop``: Tango's score in excess of the
    one-sided 5 % point, positive where it is refuted as too large.
    """
    if lost == gained == 0 and drop == 0:
        return -Z_95  # an image that did not change cannot speak against no change

    def slope(share: float) -> float:
        """Derivative of the multinomial log-likelihood in the share of gains."""
        total = gained / share - 2 * (images - lost - gained) / max(1 - 2 * share - drop, 1e-300)
        return total + lost / (share + drop)

    low, high = 0.0, (1 - drop) / 2
    for _ in range(200):
        middle = (low + high) / 2
        if low < middle < high and slope(middle) > 0:
            low = middle
        else:
            high = middle
    variance = 2 * low + drop - drop * drop
    return -(lost - gained - images * drop) / math.sqrt(images * variance) - Z_95


def allowed(lost: int, gained: int, images: int, rule: Rule, moved: int) -> set[str]:
    """The judgements that the rule, read word by word, allows: one, or two where a float cannot tell the bound."""
    if lost == gained == moved == 0:
        return {"unchanged"}
    p, level = exact_p(lost, gained), Fraction(str(rule.alpha)) / rule.cells
    enough = Fraction(lost - gained, images) >= Fraction(str(rule.min_drop))
    if p <= level and enough:
        return {"regression"} if p < level else {"regression", "pass", "inconclusive"}
    clearness = refutes(rule.tolerance, lost, gained, images)
    if abs(clearness) < 1e-7:
        return {"pass", "inconclusive"}
    return {"pass"} if clearness > 0 else {"inconclusive"}


RULES = st.builds(
    Rule,
    cells=st.integers(1, 300),
    min_drop=st.sampled_from([0.0, 0.003, 0.01, 0.05, 0.2]),
    tolerance=st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.1, 0.5]),
    alpha=st.sampled_from([0.01, ALPHA, 0.2]),
)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(1),
        Rule(1, min_drop=0.3, tolerance=0.3, alpha=0.3),
        Rule(2, min_drop=0.0, tolerance=0.5, alpha=0.5),
        Rule(5, min_drop=0.1, tolerance=0.0),
    ],
    ids=str,
)
def test_verdict_is_the_rule_for_every_outcome_of_up_to_nine_images(rule: Rule) -> None:
    seen = set()
    for images in range(1, 10):
        for lost, gained, moved in itertools.product(range(images + 1), range(images + 1), (0, 1)):
            if lost + gained + moved <= images:
                result = judged(lost, gained, images, rule, moved=moved)
                assert result.judgement in allowed(lost, gained, images, rule, moved), (lost, gained, images, moved)
                seen.add(result.judgement)
    assert {"unchanged", "inconclusive"} < seen


@st.composite
def changes(draw: st.DrawFn, most: int = 2000) -> tuple[int, int, int, int, int]:
    """Lost, gained, images, right, moved."""
    images = draw(st.integers(1, most))
    lost = draw(st.integers(0, min(images, 100)))
    gained = draw(st.integers(0, min(images - lost, 60)))
    right = draw(st.integers(0, images - lost - gained))
    moved = draw(st.integers(0, images - lost - gained - right))
    return lost, gained, images, right, moved


@settings(max_examples=300, derandomize=True)
@given(changes(), RULES)
@example((40, 10, 1000, 800, 0), Rule(100))
@example((20, 3, 10_000, 9_000, 0), Rule(1, tolerance=0.01))  # significant, but too small to matter
@example((6, 0, 2000, 1900, 0), Rule(1, min_drop=0.003))  # just large enough to matter
@example((20, 3, 1000, 900, 0), Rule(1, tolerance=0.5))  # both a regression and within tolerance
def test_verdict_is_the_rule(change: tuple[int, int, int, int, int], rule: Rule) -> None:
    lost, gained, images, right, moved = change
    result = judged(lost, gained, images, rule, right, moved)
    assert result.judgement in allowed(lost, gained, images, rule, moved)
    assert (result.changed, result.lost, result.gained, result.images) == (lost + gained + moved, lost, gained, images)
    assert result.p_value == pytest.approx(float(exact_p(lost, gained)), rel=1e-9)
    assert result.before == pytest.approx((lost + right) / images)
    assert result.after == pytest.approx((gained + right) / images)
    assert result.drop == pytest.approx(result.before - result.after, abs=1e-12)


@LAW
@given(st.integers(1, 500), st.integers(0, 500), RULES)
def test_unchanged_comes_before_every_other_judgement(images: int, right: int, rule: Rule) -> None:
    result = judged(0, 0, images, rule, right=min(right, images))
    assert (result.judgement, result.p_value, result.drop) == ("unchanged", 1.0, 0.0)


@LAW
@given(st.integers(1, 500), st.integers(1, 500), RULES)
def test_exchange_of_one_wrong_class_for_another_is_a_change_but_no_regression(
    images: int, moved: int, rule: Rule
) -> None:
    result = judged(0, 0, images, rule, moved=min(moved, images))
    assert result.judgement in ("pass", "inconclusive")


@LAW
@given(changes(), RULES)
@example((0, 0, 1000, 900, 1), Rule(100))  # one wrong class for another
@example((0, 50, 1000, 900, 0), Rule(100))  # an improvement
@example((40, 10, 1000, 800, 0), Rule(100))
@example((0, 0, 1, 0, 0), Rule(100))
def test_any_change_where_nothing_is_left_to_chance_is_a_fault_whatever_the_rule(
    change: tuple[int, int, int, int, int], rule: Rule
) -> None:
    lost, gained, images, right, moved = change
    repeated, other = (judged(lost, gained, images, rule, right, moved, repeatable) for repeatable in (True, False))
    if lost + gained + moved == 0:
        assert repeated == other
        assert repeated.judgement == "unchanged"
    else:
        assert other.judgement != "determinism fault"
        assert (repeated.judgement, repeated.p_value) == ("determinism fault", 1.0)
        assert repeated.changed == lost + gained + moved
        assert (repeated.before, repeated.after, repeated.drop) == (other.before, other.after, other.drop)


@LAW
@given(changes(), RULES)
def test_model_that_did_not_get_worse_never_regresses(change: tuple[int, int, int, int, int], rule: Rule) -> None:
    lost, gained, images, right, moved = change
    lost, gained = min(lost, gained), max(lost, gained)
    assert judged(lost, gained, images, rule, right, moved).judgement != "regression"


@LAW
@given(changes(), RULES, st.integers(0, 2**32 - 1))
def test_order_of_the_images_does_not_matter(change: tuple[int, int, int, int, int], rule: Rule, seed: int) -> None:
    lost, gained, images, right, moved = change
    order = np.random.default_rng(seed).permutation(images)
    shuffled = (values[order] for values in predictions(lost, gained, images, right, moved))
    assert verdict("vit-clean-0.00", *shuffled, rule) == judged(lost, gained, images, rule, right, moved)


@LAW
@given(changes(), RULES)
def test_larger_family_or_larger_least_drop_never_makes_a_regression(
    change: tuple[int, int, int, int, int], rule: Rule
) -> None:
    lost, gained, images, right, moved = change
    assume(judged(lost, gained, images, rule, right, moved).judgement != "regression")
    for stricter in (
        Rule(rule.cells + 1, rule.min_drop, rule.tolerance, rule.alpha),
        Rule(rule.cells, rule.min_drop + 0.01, rule.tolerance, rule.alpha),
    ):
        assert judged(lost, gained, images, stricter, right, moved).judgement != "regression"


@pytest.mark.parametrize("lengths", [(0, 0, 0), (2, 2, 3), (2, 3, 3), (3, 2, 3)])
def test_predictions_that_do_not_belong_together_are_refused_naming_the_cell(lengths: tuple[int, int, int]) -> None:
    before, after, labels = (np.zeros(length, dtype=int) for length in lengths)
    wanted = f"vit-clean-0.00: {lengths[0]} and {lengths[1]} predictions for {lengths[2]} labels"
    with pytest.raises(ValueError, match=wanted):
        verdict("vit-clean-0.00", before, after, labels, Rule(1))


# --------------------------------------------------------------------------- Holm's later steps


def closed_bonferroni(p_values: list[float], level: float) -> set[int]:
    """Hypotheses that the closure of Bonferroni's test rejects, which is what Holm's procedure does: those of
    which every intersection with others is rejected, that is, has a p-value of at most level over its size.
    """
    every = range(len(p_values))
    rejected = set(every)
    for size in range(1, len(p_values) + 1):
        for subset in itertools.combinations(every, size):
            if min(p_values[i] for i in subset) > level / size:
                rejected -= set(subset)
    return rejected


COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 12), st.booleans())
"""Images lost and gained of 1,000, and whether the same was run again in the same way."""


def of_counts(counts: Sequence[tuple[int, int, bool]], rule: Rule) -> list[Verdict]:
    return [
        verdict(f"vit-{i:02d}", *predictions(lost, gained, 1000), rule, repeatable=repeatable)
        for i, (lost, gained, repeatable) in enumerate(counts)
    ]


def rejected_at_first(verdicts: Sequence[Verdict]) -> set[str]:
    return {v.cell for v in verdicts if v.judgement == "regression"}


def rejected_later(verdicts: Sequence[Verdict], rule: Rule) -> set[str]:
    return {v.cell for v in holm_additions(verdicts, rule)}


@LAW
@given(st.lists(COUNTS, max_size=7), st.integers(0, 3), st.sampled_from([0.0, 0.003, 0.02]))
@example([(30, 0, False), (6, 0, False), (8, 0, False)], 0, 0.003)
@example([(30, 0, False), (7, 0, False)], 1, 0.003)
@example([(30, 0, True), (6, 0, False), (6, 0, False)], 1, 0.003)
def test_what_is_told_is_what_the_closed_test_rejects_over_the_whole_family(
    counts: list[tuple[int, int, bool]], absent: int, min_drop: float
) -> None:
    """A cell that did not run counts as one that shows nothing, and so does one that no chance can have changed."""
    rule = Rule(max(1, len(counts) + absent), min_drop)
    verdicts = of_counts(counts, rule)
    exact = [1.0 if repeatable else float(exact_p(lost, gained)) for lost, gained, repeatable in counts]
    rejected = closed_bonferroni(exact + [1.0] * absent, rule.alpha)
    expected = {v.cell for i, v in enumerate(verdicts) if i in rejected and v.lost - v.gained >= min_drop * 1000}
    first, later = rejected_at_first(verdicts), rejected_later(verdicts, rule)
    assert first | later == expected
    assert first & later == set()
    assert len(holm_additions(verdicts, rule)) == len(later)


@LAW
@given(
    st.lists(COUNTS, min_size=1, max_size=40),
    st.integers(0, 60),
    st.sampled_from([0.0, 0.003, 0.01, 0.02]),
    st.sampled_from([ALPHA, 0.2]),
)
@example([(12, 0, False)] * 5 + [(13, 0, False)] * 3, 0, 0.0, ALPHA)  # ties
@example([(11, 0, False), (9, 0, False), (25, 7, False)], 10, 0.012, ALPHA)  # the smallest is below the least drop
@example([(0, 0, True), (0, 0, False), (8, 0, True), (9, 0, False), (8, 0, False)], 8, 0.003, ALPHA)
def test_what_is_told_are_the_large_drops_among_what_statsmodels_rejects(
    counts: list[tuple[int, int, bool]], absent: int, min_drop: float, alpha: float
) -> None:
    """Drops that are too small to tell are rejections all the same: they do not make later steps harder."""
    rule = Rule(len(counts) + absent, min_drop, alpha=alpha)
    verdicts = of_counts(counts, rule)
    family = [v.p_value for v in verdicts] + [1.0] * absent
    rejected = multipletests(family, alpha, method="holm")[0].tolist()
    told = {v.cell for v, is_rejected in zip(verdicts, rejected, strict=False) if is_rejected and v.drop >= min_drop}
    assert rejected_at_first(verdicts) | rejected_later(verdicts, rule) == told
    assert not any(v.judgement in ("unchanged", "determinism fault") for v in holm_additions(verdicts, rule))


@LAW
@given(st.lists(COUNTS, max_size=12), st.integers(0, 20), st.data())
def test_cells_that_are_added_or_reordered_never_take_back_a_rejection(
    counts: list[tuple[int, int, bool]], absent: int, data: st.DataObject
) -> None:
    """A cell's own verdict does not depend on which others ran, and whatever some cells reject, more of them do too."""
    rule = Rule(max(1, len(counts) + absent))
    verdicts = of_counts(counts, rule)
    some = data.draw(st.permutations(verdicts))[: data.draw(st.integers(0, len(verdicts)))]
    names = {v.cell for v in some}
    assert rejected_at_first(some) == rejected_at_first(verdicts) & names
    assert rejected_later(some, rule) <= rejected_later(verdicts, rule)
    # later steps only add
    assert rejected_later(verdicts, rule).isdisjoint(rejected_at_first(verdicts))
    assert holm_additions(data.draw(st.permutations(verdicts)), rule) == holm_additions(verdicts, rule)


def test_drop_that_is_too_small_to_tell_counts_as_rejected() -> None:
    # nine losses and no gain are below alpha / 13, twenty-two against seven only below alpha / 12
    rule = Rule(13, min_drop=0.012)
    small, large = judged(9, 0, 1000, rule), judged(22, 7, 1000, rule)
    assert small.p_value < rule.alpha / 13 < large.p_value < rule.alpha / 12
    assert holm_additions([small, large], rule) == [large]
    assert holm_additions([large], rule) == []


def test_fault_neither_rejects_nor_makes_later_steps_easier() -> None:
    rule = Rule(2)
    fault, candidate = judged(40, 0, 1000, rule, repeatable=True), judged(5, 0, 1000, rule)
    assert rule.alpha / 2 < candidate.p_value < rule.alpha
    assert holm_additions([fault, candidate], rule) == []
    assert holm_additions([judged(40, 0, 1000, rule), candidate], rule) == [candidate]


def test_equal_drops_are_found_together_or_not_at_all() -> None:
    # 2 ** -6 lies between alpha / 4 and alpha / 3
    six = [verdict(f"vit-{i}", *predictions(6, 0, 1000), Rule(5)) for i in range(3)]
    first = judged(20, 0, 1000, Rule(5))
    assert holm_additions([*six, first], Rule(5)) == []
    assert holm_additions([six[2], first, six[0], six[1]], Rule(4)) == six


def test_family_is_at_least_what_was_judged() -> None:
    verdicts = [judged(5, 0, 1000, Rule(3)) for _ in range(3)]
    assert holm_additions(verdicts, Rule(1)) == []


def test_later_steps_find_what_the_first_does_not() -> None:
    rule = Rule(4)
    verdicts = [judged(lost, 0, 1000, rule) for lost in (20, 6, 3)]
    # .05 / 4 < 2 ** -6 <= .05 / 3: only once the first is rejected
    assert [v.judgement for v in verdicts] == ["regression", "inconclusive", "pass"]
    assert holm_additions(verdicts, rule) == [verdicts[1]]
    assert holm_additions(verdicts[1:], rule) == []


def test_cells_that_did_not_run_never_make_additions_easier() -> None:
    verdicts = [judged(lost, 0, 1000, Rule(10)) for lost in (30, 20, 8, 7, 6)]
    found = [{v.lost for v in holm_additions(verdicts, Rule(cells))} for cells in range(5, 40)]
    assert all(more >= fewer for more, fewer in itertools.pairwise(found))


def test_nothing_is_added_to_nothing() -> None:
    assert holm_additions([], Rule(1)) == []


# --------------------------------------------------------------------------- indicators

SKIPPED = ("hits", "nll", "active_clean", "active_degraded")


def slow_shifts(
    before: dict[str, list[float]], after: dict[str, list[float]], floor: float
) -> list[tuple[str, float, float, float]]:
    """Each indicator's weighted mean of paired differences over blocks with its t interval, beyond the floor."""
    found = []
    for name in sorted(set(before) & set(after) - {"images", *SKIPPED}):
        divisor = "active_clean" if name == "active_overlap" else "images"
        pairs = []
        for block in range(min(len(before[name]), len(after[name]))):
            images = before["images"][block]
            if images == after["images"][block] and before[divisor][block] > 0 and after[divisor][block] > 0:
                old = before[name][block] / before[divisor][block]
                new = after[name][block] / after[divisor][block]
                pairs.append((images, new - old))
        if len(pairs) < 4:
            continue
        total = sum(images for images, _ in pairs)
        mean = sum(images * d for images, d in pairs) / total
        spread = sum((images / total) ** 2 * (d - mean) ** 2 for images, d in pairs)
        # as many equal blocks as would be as precise as these
        freedom = total**2 / sum(images**2 for images, _ in pairs) - 1
        error = math.sqrt(spread * (freedom + 1) / freedom)
        half = float(stats.t.ppf(0.975, freedom)) * error
        if mean - half > floor or mean + half < -floor:
            found.append(("retention" if name == "active_overlap" else name, mean, mean - half, mean + half))
    return found


def arrays(sums: dict[str, list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(values, dtype=np.float32) for name, values in sums.items()}


@st.composite
def block_sums(draw: st.DrawFn, blocks: int) -> dict[str, list[float]]:
    images = [float(draw(st.sampled_from([256, 256, 256, 100]))) for _ in range(blocks)]
    shift, noise = draw(st.sampled_from([0.0, 0.1, 0.5])), draw(st.sampled_from([0.0, 0.02, 0.3]))
    sums = {"images": images, "active_clean": [draw(st.sampled_from([0.0, 500.0, 800.0])) for _ in images]}
    for name in ("hits", "nll", "active_degraded", "alignment_cls", "correlation_mean_patch"):
        sums[name] = [n * (0.4 + shift + noise * draw(st.floats(-1, 1))) for n in images]
    sums["active_overlap"] = [c * (0.4 + shift + noise * draw(st.floats(-1, 1))) for c in sums["active_clean"]]
    absent = draw(st.sets(st.sampled_from(["nll", "alignment_cls", "active_overlap"])))
    return {name: values for name, values in sums.items() if name not in absent}


@LAW
@given(st.data(), st.sampled_from([0.0, 0.02, 0.2]))
def test_shifts_are_those_of_the_slow_loop(data: st.DataObject, floor: float) -> None:
    before, after = (data.draw(block_sums(data.draw(st.integers(0, 7)))) for _ in range(2))
    found = [
        (s.indicator, s.difference, s.low, s.high) for s in indicator_shifts("c", arrays(before), arrays(after), floor)
    ]
    expected = slow_shifts(before, after, floor)
    certain = [e for e in expected if e[2] > floor + 1e-5 or e[3] < -floor - 1e-5]
    # the sums are kept in single precision, so an interval that ends at the floor may fall on either side
    assert {name for name, *_ in certain} <= {name for name, *_ in found}
    close = {name: values for name, *values in slow_shifts(before, after, floor - 1e-5)}
    for name, *values in found:
        assert values == pytest.approx(close[name], abs=1e-5)


def uniform(blocks: int, value: float, images: float = 256.0, **others: float) -> dict[str, np.ndarray]:
    sums = {"images": images, "alignment_cls": value * images, **others}
    return {name: np.full(blocks, total, dtype=np.float32) for name, total in sums.items()}


def test_steady_shift_beyond_the_floor_is_found_in_both_directions() -> None:
    for old, new in ((0.5, 0.6), (0.6, 0.5)):
        [shift] = indicator_shifts("vit-clean-0.00", uniform(4, old), uniform(4, new))
        assert (shift.cell, shift.indicator) == ("vit-clean-0.00", "alignment_cls")
        assert shift.difference == pytest.approx(new - old, abs=1e-6)
        assert shift.low <= shift.difference <= shift.high


def test_blocks_count_by_their_images() -> None:
    before, after = uniform(5, 0.5), uniform(5, 0.8)
    before["images"][4] = after["images"][4] = 64
    before["alignment_cls"][4], after["alignment_cls"][4] = 32, 38.4
    [shift] = indicator_shifts("c", before, after)
    assert shift.difference == pytest.approx((4 * 256 * 0.3 + 64 * 0.1) / (4 * 256 + 64), abs=1e-6)


def test_shift_within_the_floor_is_of_no_practical_interest() -> None:
    assert indicator_shifts("c", uniform(400, 0.5), uniform(400, 0.519)) == []
    assert indicator_shifts("c", uniform(400, 0.5), uniform(400, 0.5)) == []


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_fewer_than_four_common_blocks_say_nothing(blocks: int) -> None:
    for one, other in ((blocks, 8), (8, blocks), (blocks, blocks)):
        assert indicator_shifts("c", uniform(one, 0.1), uniform(other, 0.9)) == []


def test_block_without_an_active_feature_is_left_out_of_retention() -> None:
    """Of nothing nothing can be kept; the other blocks still speak."""
    before = uniform(6, 0.5, active_clean=100.0, active_overlap=90.0)
    after = uniform(6, 0.5, active_clean=100.0, active_overlap=50.0)
    before["active_clean"][2] = before["active_overlap"][2] = 0
    [shift] = indicator_shifts("c", before, after)
    assert shift.indicator == "retention"
    assert shift.difference == pytest.approx(-0.4, abs=1e-6)


def test_chance_of_a_shift_is_students_for_all_indicators_of_the_cell() -> None:
    generator = np.random.default_rng(0)
    moves = generator.normal(0.1, 0.05, (2, 6))
    before = uniform(6, 0.5, correlation_cls=128.0)
    after = {name: values.astype(np.float64) for name, values in before.items()}
    for name, move in zip(("alignment_cls", "correlation_cls"), moves, strict=True):
        after[name] += 256 * move
    found = {s.indicator: s.p_value for s in indicator_shifts("c", before, after, floor=0.0)}
    for name, move in zip(("alignment_cls", "correlation_cls"), moves, strict=True):
        # as often do means vary so far in either direction
        assert found[name] == pytest.approx(2 * stats.ttest_1samp(move, 0).pvalue, rel=1e-5)
    small = {s.indicator: s.p_value for s in indicator_shifts("c", before, after)}
    assert all(small[name] > found[name] for name in small)


def test_steady_shift_is_certain_and_one_by_chance_is_not_among_many() -> None:
    steady = indicator_shifts("a", uniform(4, 0.5), uniform(4, 0.6))
    after = uniform(4, 0.5)
    after["alignment_cls"] += np.array([20, 24, 28, 32], dtype=np.float32)
    by_chance = indicator_shifts("b", uniform(4, 0.5), after)
    assert [s.p_value for s in steady] == [0.0]
    assert 0.0005 < by_chance[0].p_value < 0.05
    assert certain_shifts(steady + by_chance, Rule(1)) == steady + by_chance
    assert certain_shifts(steady + by_chance, Rule(100)) == steady


@LAW
@given(st.lists(st.floats(0, 1), max_size=9), st.integers(1, 200))
def test_more_cells_never_make_a_shift_certain(p_values: list[float], cells: int) -> None:
    shifts = [Shift("c", f"i{i}", 0.1, 0.03, 0.2, p) for i, p in enumerate(p_values)]
    fewer, more = certain_shifts(shifts, Rule(cells)), certain_shifts(shifts, Rule(cells + 1))
    assert set(more) <= set(fewer)
    assert [s.p_value for s in fewer] == [p for p in p_values if p * cells <= ALPHA or p <= ALPHA / cells]
