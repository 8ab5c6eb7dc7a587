"""The verdict on a change against its rule in exact arithmetic, and the error rates that the rule promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench.regression import ALPHA, Rule, Verdict, holm_additions, indicator_shifts, verdict

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


def judged(lost: int, gained: int, images: int, rule: Rule, right: int = 0, moved: int = 0) -> Verdict:
    return verdict("vit-clean-0.00", *predictions(lost, gained, images, right, moved), rule)


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
    assert (result.lost, result.gained, result.images) == (lost, gained, images)
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


# --------------------------------------------------------------------------- error rates


def simulated(
    generator: np.random.Generator, runs: int, images: int, shares: Sequence[tuple[float, float]]
) -> Iterator[list[tuple[int, int]]]:
    """Per run the (lost, gained) of every cell, each with its shares of images lost and gained."""
    cells = np.array([[lost, gained, 1 - lost - gained] for lost, gained in shares])
    for _ in range(runs):
        yield [(int(lost), int(gained)) for lost, gained, _ in generator.multinomial(images, cells)]


def test_run_without_a_change_raises_an_alarm_in_at_most_five_percent() -> None:
    """5 % of the images flip, as often for the better as for the worse."""
    runs, cells, images = 1000, 40, 1000
    rule = Rule(cells)
    # an outcome's verdict depends on its counts alone, as seen above, so equal counts are judged once
    verdict_of = lru_cache(maxsize=None)(lambda lost, gained: judged(lost, gained, images, rule))
    alarms = 0
    for counts in simulated(np.random.default_rng(20260203), runs, images, [(0.025, 0.025)] * cells):
        verdicts = [verdict_of(lost, gained) for lost, gained in counts]
        found = [v for v in verdicts if v.judgement == "regression"]
        alarms += bool(found or holm_additions(verdicts, rule))
    assert alarms / runs <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert alarms > 0  # a rule that never speaks would pass too


def test_true_drops_are_found_with_the_stated_power() -> None:
    """Ten of 100 cells truly drop by 3 points at 1,000 images of which 5 % change."""
    runs, cells, true, images = 200, 100, 10, 1000
    rule = Rule(cells)
    verdict_of = lru_cache(maxsize=None)(lambda lost, gained: judged(lost, gained, images, rule))
    first = both = false = 0
    shares = [(0.04, 0.01)] * true + [(0.025, 0.025)] * (cells - true)
    for counts in simulated(np.random.default_rng(20260203), runs, images, shares):
        verdicts = [Verdict(**{**vars(verdict_of(*c)), "cell": f"vit-{i}"}) for i, c in enumerate(counts)]
        found = {v.cell for v in verdicts if v.judgement == "regression"}
        later = {v.cell for v in holm_additions(verdicts, rule)}
        assert found.isdisjoint(later)
        dropped = {f"vit-{i}" for i in range(true)}
        first += len(found & dropped)
        both += len((found | later) & dropped)
        false += bool((found | later) - dropped)
    error = math.sqrt(0.856 * (1 - 0.856) / (runs * true))
    assert abs(both / (runs * true) - 0.856) <= 3 * error
    # Bonferroni's step alone, summed exactly over every number of changed images
    exact = sum(
        stats.binom.pmf(changed, images, 0.05)
        * stats.binom.sf(stats.binom.isf(ALPHA / cells, changed, 0.5), changed, 0.8)
        for changed in range(1, 150)
    )
    assert abs(first / (runs * true) - exact) <= 3 * error
    assert first < both
    assert false / runs <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


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


COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 12))


@LAW
@given(st.lists(COUNTS, max_size=7), st.integers(0, 3), st.sampled_from([0.0, 0.003, 0.02]))
@example([(30, 0), (6, 0), (8, 0)], 0, 0.003)
@example([(30, 0), (7, 0)], 1, 0.003)
def test_additions_are_what_holm_rejects_over_the_whole_family(
    counts: list[tuple[int, int]], absent: int, min_drop: float
) -> None:
    """A cell that did not run counts as one that shows nothing."""
    rule = Rule(max(1, len(counts) + absent), min_drop)
    verdicts = [verdict(f"vit-{i}", *predictions(lost, gained, 1000), rule) for i, (lost, gained) in enumerate(counts)]
    rejected = closed_bonferroni([v.p_value for v in verdicts] + [1.0] * absent, rule.alpha)
    expected = {
        v.cell
        for i, v in enumerate(verdicts)
        if i in rejected and v.lost - v.gained >= min_drop * 1000 and v.judgement != "regression"
    }
    added = holm_additions(verdicts, rule)
    assert {v.cell for v in added} == expected
    assert len(added) == len(expected)


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
        error = math.sqrt(spread * len(pairs) / (len(pairs) - 1))
        half = float(stats.t.ppf(0.975, len(pairs) - 1)) * error
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
