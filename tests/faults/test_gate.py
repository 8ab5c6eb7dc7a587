"""The gate is asked a thousand times whether something changed: where nothing did, and where something did.

Seeds are fixed. At the whole size the bounds are the promises themselves (at most alpha; the power stated), which a
thousand runs meet by more than four binomial standard errors; the small size allows what a kept promise would miss
less than once in a million draws of the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from faults.reliability import Injection
from faults.simulated_runs import Runs, alarm, identical, independent, judge, same_images, shifts
from mae_bench.comparison import Comparison
from mae_bench.regression import ALPHA, Rule, Verdict, certain_shifts, verdict
from mae_bench.statistics import mcnemar

Journal = Callable[[Injection], None]

SEED = 20260203
IMAGES, CELLS, FLIPS, TRUE = 1000, 100, 0.05, 10
RULE = Rule(CELLS)
WHOLE = 1000
COUNTS = pytest.mark.parametrize("count", [20, pytest.param(WHOLE, marks=pytest.mark.faults)])
SETTINGS = {
    "cells independent": independent(IMAGES, FLIPS, [0.0] * CELLS),
    "cells correlated by 0.5": same_images(IMAGES, FLIPS, CELLS, 0.5),
    "cells correlated by 0.9": same_images(IMAGES, FLIPS, CELLS, 0.9),
    "ten clusters of ten identical cells": identical(IMAGES, FLIPS, clusters=10, size=10),
}


def excess(alarms: int, count: int) -> int:
    """Alarms beyond those that as many runs may raise."""
    return max(0, alarms - int(ALPHA * count if count >= WHOLE else stats.binom.isf(1e-6, count, ALPHA)))


def percent(part: float, count: float) -> str:
    return f"{100 * part / count:.1f} %"


@COUNTS
@pytest.mark.parametrize("setting", SETTINGS)
def test_unchanged_runs_raise_an_alarm_in_at_most_alpha(setting: str, count: int, journal: Journal) -> None:
    """A whole run, one of a random selection of its cells, and one that was interrupted half-way and resumed."""
    generator, judged = np.random.default_rng(SEED), judge(IMAGES, RULE)
    alarms = dict.fromkeys(("gate", "selected", "resumed", "uncorrected", "tolerance"), 0)
    for _ in range(count):
        counts = SETTINGS[setting](generator)
        verdicts = judged(counts)
        order = generator.permutation(CELLS)
        selected = [verdicts[i] for i in order[: generator.integers(1, CELLS)]]
        first, second = ([verdicts[i] for i in half] for half in np.array_split(order, 2))
        alarms["gate"] += alarm(verdicts, RULE)
        alarms["selected"] += alarm(selected, RULE)
        alarms["resumed"] += alarm(first, RULE) or alarm(second, RULE) or alarm(first + second, RULE)
        alarms["uncorrected"] += any(mcnemar(*cell) <= ALPHA for cell in counts.tolist())
        alarms["tolerance"] += bool((counts[:, 0] - counts[:, 1] > IMAGES // 100).any())
    shares = {name: percent(found, count) for name, found in alarms.items()}
    journal(
        Injection(
            "gate",
            f"run of 100 unchanged cells of 1,000 images of which 5 % flip by chance, {setting}",
            count,
            f"{shares['gate']} of the runs fail (allowed: 5 %), {shares['selected']} of random selections of their "
            f"cells, {shares['resumed']} in either half or once resumed; every cell tested at 0.05 would fail "
            f"{shares['uncorrected']}, a fixed tolerance of one point {shares['tolerance']}",
            lost=sum(excess(alarms[name], count) for name in ("gate", "selected", "resumed")),
        )
    )


def found_in(run: Runs, generator: np.random.Generator, judged: Callable[[np.ndarray], list[Verdict]]) -> list[str]:
    """Cells that fail, by number, in their own test or at the end."""
    failures = Comparison([replace(v, cell=f"{i}") for i, v in enumerate(judged(run(generator)))]).failures(RULE)
    return [v.cell for v in failures.cells + failures.later]


@COUNTS
def test_true_drops_are_found_with_the_stated_power(count: int, journal: Journal) -> None:
    run = independent(IMAGES, FLIPS, [0.03] * TRUE + [0.0] * (CELLS - TRUE))
    generator, judged = np.random.default_rng(SEED), judge(IMAGES, RULE)
    dropped = {str(i) for i in range(TRUE)}
    found = [found_in(run, generator, judged) for _ in range(count)]
    true = sum(len(dropped.intersection(cells)) for cells in found)
    false = sum(len(cells) for cells in found) - true
    power, drops = 0.847, count * TRUE  # by a step-down of its own over 20,000 runs
    bound = power * drops - 5 * np.sqrt(power * (1 - power) * drops)
    journal(
        Injection(
            "gate",
            "run in which ten of 100 cells truly lose 3 points of 1,000 images, of which 5 % flip",
            count,
            f"{percent(true, drops)} of the drops are named, with {false / count:.2f} false alarms a run",
            lost=max(0, false - int(stats.poisson.isf(1e-6, ALPHA * count))),
            silent=max(0, int(bound) - true),
        )
    )


@COUNTS
def test_one_changed_prediction_of_the_same_model_on_the_same_machine_is_a_fault(count: int, journal: Journal) -> None:
    """Wherever the image lies, and whether it was right before, is now, or is wrong in another way."""
    generator = np.random.default_rng(SEED)
    kinds: dict[str, int] = dict.fromkeys(("lost", "gained", "neither"), 0)
    unnoticed = 0
    for _ in range(count):
        labels, before = generator.integers(0, 10, (2, IMAGES))
        after, image = before.copy(), generator.integers(IMAGES)
        after[image] = (before[image] + generator.integers(1, 10)) % 10
        result = verdict("vit-clean-0.00", before, after, labels, RULE, repeatable=True)
        failures = Comparison([result]).failures(RULE)
        unnoticed += result.judgement != "determinism fault" or failures.cells != [result] or result.changed != 1
        kinds["lost" if result.lost else "gained" if result.gained else "neither"] += 1
    assert all(kinds.values())
    journal(
        Injection(
            "gate",
            "one prediction of 1,000 changes though weights, machine and libraries are the same",
            count,
            f"{count - unnoticed} of {count} cells fail as determinism faults, "
            f"in {kinds['neither']} of which top-1 is the same",
            silent=unnoticed,
        )
    )


@pytest.mark.parametrize("count", [2, pytest.param(200, marks=pytest.mark.faults)])
@pytest.mark.parametrize(("blocks", "noise"), [(4, 0.012), (4, 0.017), (4, 0.028), (40, 0.028)])
def test_unchanged_indicators_fail_a_run_in_at_most_alpha(
    blocks: int, noise: float, count: int, journal: Journal
) -> None:
    generator = np.random.default_rng(SEED)
    found = [shifts(generator, CELLS, 7, blocks, shift=0.0, noise=noise) for _ in range(count)]
    listed = sum(map(bool, found))
    alarms = sum(bool(certain_shifts(each, RULE)) for each in found)
    journal(
        Injection(
            "gate",
            f"run of 100 cells with seven unchanged indicators each, {blocks} blocks whose means vary by {noise}",
            count,
            f"{percent(listed, count)} of the runs list an indicator to look at, {percent(alarms, count)} fail where "
            "indicators may fail a run (allowed: 5 %)",
            lost=excess(alarms, count),
        )
    )
