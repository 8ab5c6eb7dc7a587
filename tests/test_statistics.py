import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench.statistics import (
    auc,
    block_interval,
    block_mean,
    detectable_drop,
    holm,
    jackknife_interval,
    mcnemar,
    paired_drop_upper,
    paired_mean_interval,
    sign_flip,
    wilson,
)

LAW = settings(max_examples=40, deadline=None, derandomize=True)
SLOW_LAW = settings(max_examples=12, deadline=None, derandomize=True)

# quantiles of the normal distribution as tables give them
Z_975 = 1.959963984540054
Z_95 = 1.6448536269514722


@st.composite
def proportions(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 20000))
    return draw(st.integers(0, trials)), trials


@LAW
@given(proportions())
def test_wilson_is_the_closed_formula(proportion: tuple[int, int]) -> None:
    successes, n = proportion
    p, z = successes / n, Z_975
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


@LAW
@given(proportions(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_holds_its_proportion_within_the_unit_interval(proportion: tuple[int, int], confidence: float) -> None:
    successes, n = proportion
    low, high = wilson(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    assert type(low) is type(high) is float
    wide_low, wide_high = wilson(successes, n, confidence + 0.005)
    assert wide_low <= low
    assert high <= wide_high


@LAW
@given(proportions())
def test_wilson_of_failures_mirrors_that_of_successes(proportion: tuple[int, int]) -> None:
    successes, n = proportion
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (1, 0), (-1, 10), (11, 10), (0, -1)])
def test_wilson_refuses_what_is_no_proportion(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=rf"{successes} successes of {trials} trials have no proportion"):
        wilson(successes, trials)


def slow_mcnemar(lost: int, gained: int) -> Fraction:
    """Probability of at least ``lost`` heads among ``lost + gained`` tosses of a fair coin, exactly."""
    tosses = lost + gained
    return Fraction(sum(math.comb(tosses, heads) for heads in range(lost, tosses + 1)), 2**tosses)


@LAW
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_sum(lost: int, gained: int) -> None:
    assert mcnemar(lost, gained) == pytest.approx(float(slow_mcnemar(lost, gained)), rel=1e-9)


@LAW
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_falls_with_losses_and_rises_with_gains(lost: int, gained: int) -> None:
    p = mcnemar(lost, gained)
    assert mcnemar(lost + 1, gained) <= p <= 1
    assert mcnemar(lost, gained + 1) >= p
    # far on the side of gains both round to 1
    assert mcnemar(lost + 1, gained) < p or p > 1 - 1e-12


def test_mcnemar_without_changes_is_certain_of_nothing() -> None:
    assert mcnemar(0, 0) == 1.0


def slow_holm(p_values: list[float]) -> list[float]:
    """Smallest family-wise level at which the step-down procedure rejects each hypothesis, by its definition."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    needed = 0.0
    for step, index in enumerate(order):
        # rejected at level a if this and every earlier step has p <= a / (hypotheses left)
        needed = max(needed, p_values[index] * (len(p_values) - step))
        adjusted[index] = min(1.0, needed)
    return adjusted


def step_down(p_values: list[float], level: float) -> set[int]:
    """Holm's procedure at one level: reject the smallest while it is below level / (hypotheses left)."""
    left = set(range(len(p_values)))
    rejected: set[int] = set()
    while left:
        smallest = min(left, key=lambda i: p_values[i])
        if p_values[smallest] > level / len(left):
            break
        left.remove(smallest)
        rejected.add(smallest)
    return rejected


probabilities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 1.0]))


@SLOW_LAW
@given(st.lists(probabilities, max_size=30))
def test_holm_is_the_slow_adjustment(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(slow_holm(p_values), abs=1e-12)


@SLOW_LAW
@given(st.lists(probabilities, min_size=1, max_size=12), st.sampled_from([0.0101, 0.0499, 0.2003]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], level: float) -> None:
    # a probability within rounding of its bound may fall to either side
    assume(all(abs(p * k - level) > 1e-9 for p in p_values for k in range(1, len(p_values) + 1)))
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == step_down(p_values, level)


@SLOW_LAW
@given(st.lists(probabilities, min_size=1, max_size=12), st.data())
def test_holm_follows_its_input_when_reordered(p_values: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(p_values))))
    adjusted = holm(p_values)
    assert holm([p_values[i] for i in order]) == pytest.approx([adjusted[i] for i in order], abs=1e-15)


def golden_maximum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a concave function is largest on [low, high], by shrinking the interval."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) < function(right):
            low = left
        else:
            high = right
    return (low + high) / 2


def slow_paired_drop_upper(lost: int, gained: int, images: int) -> float:
    """Tango's limit by its definition: the largest drop that the score test does not reject at one-sided 5 %.

    Under a drop of exactly ``delta`` the shares are (lost, gained, neither) = (q + delta, q, 1 - 2 q - delta);
    q is found by maximising the multinomial likelihood numerically, the limit by bisection.
    """

    def logarithm(count: int, share: float) -> float:
        return 0.0 if count == 0 else count * math.log(share) if share > 0 else -math.inf

    def statistic(delta: float) -> float:
        def likelihood(q: float) -> float:
            return (
                logarithm(lost, q + delta) + logarithm(gained, q) + logarithm(images - lost - gained, 1 - 2 * q - delta)
            )

        q = golden_maximum(likelihood, max(0.0, -delta), (1 - delta) / 2)
        variance = (q + delta) + q - delta * delta
        return (lost - gained - images * delta) / math.sqrt(images * variance)

    low, high = (lost - gained) / images, 1.0
    for _ in range(40 if low < 1 else 0):
        middle = (low + high) / 2
        if statistic(middle) > -Z_95:
            low = middle
        else:
            high = middle
    return low


@st.composite
def pairs(draw: st.DrawFn, most: int = 3000) -> tuple[int, int, int]:
    images = draw(st.integers(1, most))
    changed = draw(st.one_of(st.integers(0, min(20, images)), st.integers(0, images)))
    lost = draw(st.integers(0, changed))
    return lost, changed - lost, images


@SLOW_LAW
@given(pairs())
def test_upper_limit_of_the_drop_is_tangos(pair: tuple[int, int, int]) -> None:
    # the maximum of the likelihood is flat, so that numerical maximisation knows q to about 1e-8 only
    assert paired_drop_upper(*pair) == pytest.approx(slow_paired_drop_upper(*pair), abs=1e-6)


@LAW
@given(pairs(200000))
def test_upper_limit_lies_between_the_estimate_and_one(pair: tuple[int, int, int]) -> None:
    lost, gained, images = pair
    upper = paired_drop_upper(*pair)
    assert (lost - gained) / images <= upper <= 1
    assert upper > (lost - gained) / images or lost == images
    assert type(upper) is float


@LAW
@given(pairs())
def test_upper_limit_rises_with_losses_and_falls_with_gains(pair: tuple[int, int, int]) -> None:
    lost, gained, images = pair
    assume(lost + gained < images)
    upper = paired_drop_upper(lost, gained, images)
    slack = 1e-9
    assert paired_drop_upper(lost + 1, gained, images) >= upper - slack
    if gained:
        # an unchanged image turned into a gain may also widen the interval; a loss turned into a gain cannot
        assert paired_drop_upper(lost + 1, gained - 1, images) >= upper - slack
    assert paired_drop_upper(lost, gained, images, confidence=0.99) >= upper - slack


@LAW
@given(st.integers(1, 10**6))
def test_upper_limit_at_the_extremes_has_closed_forms(images: int) -> None:
    square = Z_95 * Z_95
    # no change, only gains, only losses
    assert paired_drop_upper(0, 0, images) == pytest.approx(square / (images + square), abs=1e-9)
    assert paired_drop_upper(0, images, images) == pytest.approx((square - images) / (square + images), abs=1e-9)
    assert paired_drop_upper(images, 0, images) == 1.0


@pytest.mark.parametrize("scale", [1, 100])
def test_upper_limit_approaches_walds_where_many_images_change(scale: int) -> None:
    lost, gained, images = 300 * scale, 250 * scale, 10000 * scale
    drop = (lost - gained) / images
    wald = drop + Z_95 * math.sqrt((lost + gained) / images - drop**2) / math.sqrt(images)
    # they differ at order 1 / images
    assert paired_drop_upper(lost, gained, images) == pytest.approx(wald, abs=2 / images)


@pytest.mark.parametrize(("lost", "gained", "images"), [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, -1)])
def test_impossible_counts_are_refused(lost: int, gained: int, images: int) -> None:
    with pytest.raises(ValueError, match=rf"{lost} lost and {gained} gained of {images} images is impossible"):
        paired_drop_upper(lost, gained, images)


# Smallest detectable drop in points at 80 % power: images -> discordance -> (alpha .05, alpha .0005). The values
# were computed for planning by a program of their own, with two decimals.
DETECTABLE = {
    500: {0.02: (1.65, None), 0.05: (2.59, 3.96), 0.10: (3.65, 5.81)},
    1000: {0.02: (1.16, 1.74), 0.05: (1.82, 2.91), 0.10: (2.57, 4.15)},
    5000: {0.02: (0.51, 0.83), 0.05: (0.80, 1.32), 0.10: (1.13, 1.86)},
    10000: {0.02: (0.36, 0.59), 0.05: (0.56, 0.93), 0.10: (0.80, 1.31)},
    50000: {0.02: (0.16, 0.26), 0.05: (0.25, 0.41), 0.10: (0.35, 0.59)},
}


@pytest.mark.parametrize(
    ("images", "discordance", "alpha", "points"),
    [
        (images, discordance, alpha, points)
        for images, row in DETECTABLE.items()
        for discordance, pair in row.items()
        for alpha, points in zip((0.05, 0.0005), pair, strict=True)
    ],
)
def test_detectable_drop_is_that_of_the_planning_table(
    images: int, discordance: float, alpha: float, points: float | None
) -> None:
    drop = detectable_drop(images, discordance, alpha)
    if points is None:
        assert drop is None
    else:
        assert drop is not None
        assert round(100 * drop, 2) == points


def slow_power(images: int, discordance: float, alpha: float, drop: float) -> float:
    """Probability that exact McNemar rejects, summed over every number of changed images and of losses."""
    total = 0.0
    for changed in range(images + 1):
        weight = math.comb(images, changed) * discordance**changed * (1 - discordance) ** (images - changed)
        share = (1 + drop / discordance) / 2
        for lost in range(changed + 1):
            if slow_mcnemar(lost, changed - lost) <= alpha:
                total += weight * math.comb(changed, lost) * share**lost * (1 - share) ** (changed - lost)
    return total


@pytest.mark.parametrize(("images", "discordance", "alpha"), [(40, 0.5, 0.05), (60, 0.3, 0.01), (30, 0.9, 0.05)])
def test_detectable_drop_has_the_stated_power(images: int, discordance: float, alpha: float) -> None:
    drop = detectable_drop(images, discordance, alpha)
    assert drop is not None
    assert slow_power(images, discordance, alpha, drop) == pytest.approx(0.8, abs=1e-6)


def test_nothing_is_detectable_where_hardly_any_image_changes() -> None:
    # of three changed images at best 1/8 = .125 is reached
    assert detectable_drop(20, 0.05, 0.05) is None


@pytest.mark.parametrize(("images", "discordance"), [(0, 0.5), (-1, 0.5), (10, 0.0), (10, 1.1), (10, math.nan)])
def test_drop_of_what_cannot_change_is_refused(images: int, discordance: float) -> None:
    with pytest.raises(ValueError, match=f"a share of {discordance} of {images} images cannot change"):
        detectable_drop(images, discordance, 0.05)


block_values = st.lists(st.floats(-10, 10), min_size=4, max_size=40)


SIGNED = st.lists(st.integers(-12, 12), min_size=1, max_size=11)


@given(SIGNED, st.sampled_from([1, 7, 240]))
def test_sign_flip_counts_all_signs(differences: list[int], unit: int) -> None:
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    share = np.mean(abs(signs @ np.array(differences)) >= abs(sum(differences)))
    assert sign_flip(np.array(differences) / unit, unit) == pytest.approx(share, abs=1e-12)
    assert sign_flip(-np.array(differences) / unit, unit) == sign_flip(np.array(differences) / unit, unit)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_sign_flip_of_one_size_is_two_sided_mcnemar(lost: int, gained: int, equal: int) -> None:
    differences = np.repeat([-1, 1, 0], [lost, gained, equal]) / 3
    assert sign_flip(differences, 3) == min(1.0, 2 * min(mcnemar(lost, gained), mcnemar(gained, lost)))


def test_sign_flip_of_many_sums_is_that_of_a_coarser_unit_and_nearly_normal() -> None:
    differences = np.random.default_rng(0).integers(-(10**6), 10**6, 5000) / 10**6 - 0.012
    normal = 2 * stats.norm.sf(abs(differences.sum()) / np.sqrt(np.square(differences).sum()))
    assert 0.01 < normal < 0.9
    assert sign_flip(differences, 10**6) == pytest.approx(normal, rel=0.03)
    assert sign_flip(np.ones(3000) - 0.5 * (np.arange(3000) % 2), 2) == 1e-12


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 500))
def test_interval_of_a_paired_mean_is_bonetts_and_prices(lost: int, gained: int, equal: int) -> None:
    n = lost + gained + equal
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = 1.959963985 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    low, high = paired_mean_interval(np.repeat([-1, 1, 0], [lost, gained, equal]))
    assert (low, high) == pytest.approx((max(-1, p12 - p21 - half), min(1, p12 - p21 + half)))
    assert low <= (gained - lost) / n <= high


@LAW
@given(block_values, st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_over_equal_blocks_is_students(values: list[float], confidence: float) -> None:
    interval = block_interval(values, [256] * len(values), confidence)
    assert interval is not None
    error = stats.sem(values)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error
    assert interval == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)


@LAW
@given(block_values, st.data())
def test_interval_is_centred_on_the_mean_over_images(values: list[float], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 256), min_size=len(values), max_size=len(values)))
    interval = block_interval(values, sizes)
    assert interval is not None
    images = np.repeat(values, sizes)
    assert sum(interval) / 2 == pytest.approx(images.mean(), abs=1e-9)
    assert interval[0] <= interval[1]
    # neither the unit of the value nor that of the weights matters but by scale
    scaled = block_interval([3 * value + 1 for value in values], [7 * size for size in sizes])
    assert scaled == pytest.approx((3 * interval[0] + 1, 3 * interval[1] + 1), abs=1e-8)


def test_interval_over_equal_blocks_with_a_short_last_one_covers_at_its_level() -> None:
    """Means of 9 blocks of 256 images and one of 40: 95 % intervals hold the truth about 95 % of the time."""
    sizes = [256] * 9 + [40]
    draws = np.random.default_rng(0).normal(size=(4000, 10)) / np.sqrt(sizes)
    covered = 0
    for values in draws:
        interval = block_interval(list(values), sizes)
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    # four standard errors of a proportion of .95 over 4,000 draws, and one point for the unequal block
    assert abs(covered / 4000 - 0.95) < 0.014 + 0.01


@pytest.mark.parametrize("sizes", [[256, 256, 256, 16], [256, 100, 40, 16, 16]], ids=str)
def test_error_of_unequal_blocks_is_as_large_as_the_mean_varies(sizes: list[int]) -> None:
    """Blocks of so many images with a standard deviation of 1: the mean over images varies by 1 / (all images)."""
    runs = 8000
    draws = np.random.default_rng(0).normal(size=(runs, len(sizes))) / np.sqrt(sizes)
    means, errors, freedoms = np.array([block_mean(list(values), sizes) for values in draws]).T
    assert means.tolist() == pytest.approx(np.average(draws, axis=1, weights=sizes).tolist())
    # the variance of a squared error is at most that of a chi-square with one degree of freedom, 2
    assert abs((errors**2).mean() * sum(sizes) - 1) <= 5 * math.sqrt(2 / runs)
    assert set(freedoms.round(9)) == {round(sum(sizes) ** 2 / sum(n * n for n in sizes) - 1, 9)}
    # and its interval, which Student's t makes of it, misses the truth in no more than one run of forty on either side
    beyond = means > stats.t.isf(0.025, freedoms) * errors
    assert beyond.sum() <= stats.binom.isf(1e-6, runs, 0.025)


@pytest.mark.parametrize("blocks", [0, 1])
def test_mean_of_fewer_than_two_blocks_has_no_error(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"{blocks} blocks have no spread"):
        block_mean([0.5] * blocks, [256] * blocks)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_fewer_than_four_blocks_have_no_interval(blocks: int) -> None:
    assert block_interval([0.5] * blocks, [256] * blocks) is None
    assert block_interval([0.5] * 4, [256] * 4) == pytest.approx((0.5, 0.5))


# --------------------------------------------------------------------------- the jackknife


@LAW
@given(block_values, st.sampled_from([0.8, 0.95, 0.99]))
def test_jackknife_of_a_mean_of_equal_groups_is_students(values: list[float], confidence: float) -> None:
    replicates = [(sum(values) - value) / (len(values) - 1) for value in values]
    interval = jackknife_interval(float(np.mean(values)), replicates, confidence)
    assert interval == pytest.approx(block_interval(values, [1] * len(values), confidence), abs=1e-9)


def test_jackknife_of_a_ratio_covers_at_its_level() -> None:
    """Ratios of means over 10 groups of 50 images: 95 % intervals hold the truth about 95 % of the time."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        below = generator.uniform(0.5, 1.5, (10, 50))
        above = below * 0.5 + generator.normal(scale=0.2, size=(10, 50))
        groups = np.arange(10)
        ratio = above.sum() / below.sum()
        parts = [above[groups != g].sum() / below[groups != g].sum() for g in groups]
        low, high = jackknife_interval(float(ratio), parts)
        covered += low <= 0.5 <= high
    # four standard errors of a proportion of .95 over 2,000 draws
    assert abs(covered / 2000 - 0.95) < 0.0195


@pytest.mark.parametrize("replicates", [[], [1.0]])
def test_replicates_without_spread_are_refused(replicates: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(replicates)} replicates have no spread"):
        jackknife_interval(1.0, replicates)


# --------------------------------------------------------------------------- the area under the ROC curve


@LAW
@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_auc_and_its_interval_are_counted_pair_by_pair(above: list[int], below: list[int]) -> None:
    """DeLong's structural components are each member's share of won pairs; ties count half."""
    won = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in below] for a in above])
    error = math.sqrt(won.mean(1).var(ddof=1) / len(above) + won.mean(0).var(ddof=1) / len(below))
    found = auc(np.array([*above, *below], dtype=float), np.array([True] * len(above) + [False] * len(below)))
    expected = (won.mean(), max(0.0, won.mean() - Z_975 * error), min(1.0, won.mean() + Z_975 * error))
    assert found == pytest.approx(expected, abs=1e-9)


def test_auc_of_a_group_of_one_is_none() -> None:
    assert auc(np.array([1.0, 2.0, 3.0]), np.array([True, False, False])) is None
