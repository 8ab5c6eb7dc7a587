"""How often the gate speaks in whole runs: hardly ever without a change, and as often as stated with one.

Every simulation has a fixed seed, and a bound that a rule which keeps its promise would miss less than once in a
million draws of the seed: five standard errors, or that quantile of the binomial distribution.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from faults.simulated_runs import Runs, alarm, identical, independent, judge, same_images, shifts
from mae_bench.comparison import Comparison
from mae_bench.regression import ALPHA, Rule, certain_shifts
from mae_bench.statistics import mcnemar

SEED = 20260203
IMAGES, CELLS, FLIPS = 1000, 100, 0.05
RULE = Rule(CELLS)
NULL = {
    "independent": independent(IMAGES, FLIPS, [0.0] * CELLS),
    "correlated": same_images(IMAGES, FLIPS, CELLS, 0.5),
    "nearly_equal": same_images(IMAGES, FLIPS, CELLS, 0.9),
    "clusters": identical(IMAGES, FLIPS, clusters=10, size=10),
}
"""Runs in which nothing changed but by chance."""


def standard_error(share: float, draws: int) -> float:
    return float(np.sqrt(share * (1 - share) / draws))


def at_most(share: float, draws: int) -> float:
    """Number that as many draws with this true share exceed less than once in a million."""
    return float(stats.binom.isf(1e-6, draws, share))


def rejected_share(images: int, flips: float, drop: float, alpha: float) -> float:
    """Probability that a cell is rejected by exact McNemar, summed over every number of changed images."""
    changed = np.arange(images + 1)
    lost = stats.binom.isf(alpha, changed, 0.5)
    power = stats.binom.sf(lost, changed, (1 + drop / flips) / 2)
    return float((stats.binom.pmf(changed, images, flips) * power).sum())


# --------------------------------------------------------------------------- nothing changed


@pytest.mark.parametrize(("setting", "runs"), [("independent", 1000), ("clusters", 1000), ("correlated", 150)])
def test_unchanged_run_raises_an_alarm_in_at_most_alpha(setting: str, runs: int) -> None:
    generator, verdicts = np.random.default_rng(SEED), judge(IMAGES, RULE)
    alarms = sum(alarm(verdicts(NULL[setting](generator)), RULE) for _ in range(runs))
    assert alarms <= at_most(ALPHA, runs)
    if setting == "independent":
        # the first step decides: some cell's p-value is below alpha over cells
        exact = 1 - (1 - rejected_share(IMAGES, FLIPS, 0, ALPHA / CELLS)) ** CELLS
        assert exact == pytest.approx(0.029, abs=0.001)
        assert abs(alarms / runs - exact) <= 5 * standard_error(exact, runs)


def test_simulated_cells_change_as_often_as_they_say_and_in_common() -> None:
    generator = np.random.default_rng(SEED)
    for name, run in NULL.items():
        counts = np.stack([run(generator) for _ in range(60)])
        assert counts.shape == (60, CELLS, 2)
        assert counts.sum(2).mean() == pytest.approx(IMAGES * FLIPS, abs=1.5), name
        excess = counts[..., 0] - counts[..., 1]
        # the mean over cells varies between runs as much as its cells have in common
        common = excess.mean(1).var() / excess.var()
        bounds = {"independent": (0, 0.03), "correlated": (0.1, 0.4), "nearly_equal": (0.5, 0.8), "clusters": (0, 0.2)}
        assert bounds[name][0] <= common <= bounds[name][1], name


@pytest.mark.parametrize("setting", ["independent", "clusters"])
def test_selected_or_resumed_run_never_raises_more_alarms(setting: str) -> None:
    """A run of some cells, and one that is interrupted half-way and then resumed, fail only where the whole does: the
    family is what the baseline holds, not what was run.
    """
    runs, alarms = 300, {"whole": 0, "selected": 0, "resumed": 0}
    generator, judged = np.random.default_rng(SEED), judge(IMAGES, RULE)
    for _ in range(runs):
        verdicts = judged(NULL[setting](generator))
        order = generator.permutation(CELLS)
        some, half, rest = order[: generator.integers(1, CELLS)], order[: CELLS // 2], order[CELLS // 2 :]
        selected, first, second = ([verdicts[i] for i in part] for part in (some, half, rest))
        found = {
            "whole": alarm(verdicts, RULE),
            "selected": alarm(selected, RULE),
            "resumed": alarm(first, RULE) or alarm(second, RULE) or alarm(first + second, RULE),
        }
        assert found["selected"] <= found["whole"]
        assert found["resumed"] == found["whole"]
        alarms = {name: count + found[name] for name, count in alarms.items()}
    assert max(alarms.values()) <= at_most(ALPHA, runs)


def test_tests_without_correction_raise_an_alarm_in_nearly_every_run() -> None:
    runs = 300
    generator = np.random.default_rng(SEED)
    drawn = (NULL["independent"](generator).tolist() for _ in range(runs))
    alarms = sum(any(mcnemar(*cell) <= ALPHA for cell in cells) for cells in drawn)
    exact = 1 - (1 - rejected_share(IMAGES, FLIPS, 0, ALPHA)) ** CELLS
    assert exact > 0.97
    assert abs(alarms / runs - exact) <= 5 * standard_error(exact, runs)


@pytest.mark.parametrize(("images", "few", "many"), [(500, 0.98, 1.0), (1000, 0.61, 1.0), (5000, 0.0, 0.07)])
def test_fixed_tolerance_of_one_point_raises_alarms_that_depend_on_the_number_of_images(
    images: int, few: float, many: float
) -> None:
    """Where 2 % of the images change by chance, and where 5 % do."""
    runs = 400
    for flips, share in ((0.02, few), (0.05, many)):
        run, generator = independent(images, flips, [0.0] * CELLS), np.random.default_rng(SEED)
        drops = np.array([lost - gained for lost, gained in (run(generator).T for _ in range(runs))])
        alarms = (drops > images // 100).any(axis=1).mean()
        # the share is known to a hundredth
        assert abs(alarms - share) <= 5 * standard_error(max(share, 0.01), runs) + 0.01


# --------------------------------------------------------------------------- something did


def drops_found(run: Runs, true: int, runs: int, rule: Rule, seed: int = SEED) -> tuple[float, float, float]:
    """Share of the first ``true`` cells that the first step finds, that it or Holm's later steps find, and false alarms
    per run.
    """
    generator, judged = np.random.default_rng(seed), judge(IMAGES, rule)
    first = both = false = 0
    for _ in range(runs):
        verdicts = [replace(v, cell=f"vit-{i}") for i, v in enumerate(judged(run(generator)))]
        failures = Comparison(verdicts).failures(rule)
        names = {f"vit-{i}" for i in range(true)}
        found, later = ({v.cell for v in part} for part in (failures.cells, failures.later))
        assert found.isdisjoint(later)
        first += len(found & names)
        both += len((found | later) & names)
        false += len((found | later) - names)
    return first / (runs * true), both / (runs * true), false / runs


def test_true_drops_are_found_with_the_stated_power() -> None:
    """Ten of 100 cells truly drop by 3 points at 1,000 images of which 5 % change."""
    runs, true = 200, 10
    run = independent(IMAGES, FLIPS, [0.03] * true + [0.0] * (CELLS - true))
    first, both, false = drops_found(run, true, runs, RULE)
    # 0.847 by a step-down of its own over 20,000 runs
    assert abs(both - 0.847) <= 5 * standard_error(0.847, runs * true)
    exact = rejected_share(IMAGES, FLIPS, 0.03, ALPHA / CELLS)
    assert abs(first - exact) <= 5 * standard_error(exact, runs * true)
    assert first < both
    assert false * runs <= stats.poisson.isf(1e-6, ALPHA * runs)


@pytest.mark.parametrize(
    ("images", "flips", "alpha", "drop"),
    [
        (500, 0.05, 0.0005, 0.0396),
        (1000, 0.02, 0.05, 0.0116),
        (1000, 0.05, 0.0005, 0.0291),
        (5000, 0.1, 0.05, 0.0113),
        (10_000, 0.05, 0.0005, 0.0093),
        (50_000, 0.02, 0.05, 0.0016),
    ],
)
def test_smallest_detectable_drop_is_found_four_times_in_five(
    images: int, flips: float, alpha: float, drop: float
) -> None:
    runs, generator = 2000, np.random.default_rng(SEED)
    counts = independent(images, flips, [drop] * runs)(generator).tolist()
    power = np.mean([mcnemar(lost, gained) <= alpha for lost, gained in counts])
    # half a hundredth of a point, to which the drop is rounded, is worth this much power
    error = 0.00005
    rounding = rejected_share(images, flips, drop + error, alpha) - rejected_share(images, flips, drop - error, alpha)
    assert abs(power - 0.8) <= 5 * standard_error(0.8, runs) + rounding


# --------------------------------------------------------------------------- indicators


@pytest.mark.parametrize("noise", [0.012, 0.2])
def test_indicators_that_moved_by_the_floor_fail_at_most_alpha_of_the_runs(noise: float) -> None:
    """The floor itself is the most that is of no interest; no smaller shift fails more often."""
    runs, rule, generator = 300, Rule(4), np.random.default_rng(SEED)
    found = [shifts(generator, rule.cells, indicators=3, blocks=4, shift=0.02, noise=noise) for _ in range(runs)]
    assert sum(bool(certain_shifts(each, rule)) for each in found) <= at_most(ALPHA, runs)
    # while some interval lies beyond it far more often, so that lists of them must not fail a run
    assert sum(map(bool, found)) > at_most(2 * ALPHA, runs)


def test_indicators_that_truly_moved_fail() -> None:
    generator = np.random.default_rng(SEED)
    found = shifts(generator, cells=5, indicators=7, blocks=40, shift=0.1, noise=0.012)
    assert len(certain_shifts(found, RULE)) == len(found) == 35
