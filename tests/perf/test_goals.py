"""The verdict on a figure follows from its value, its band and the goal alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.perf import SECTIONS
from mae_bench.perf.goals import GOALS, Goal
from mae_bench.perf.measurement import FASTER, LONGER, Measurement


def measurement(value: float, low: float | None = None, high: float | None = None, unit: str = LONGER) -> Measurement:
    return Measurement("engine", "", "", unit, value, value if low is None else low, value if high is None else high)


@pytest.mark.parametrize(
    ("at_least", "value", "low", "high", "verdict"),
    [
        (False, 2.0, 1.9, 2.2, "met"),
        (False, 1.0, 0.9, 3.0, "met"),
        (False, 2.5, 2.4, 2.6, "missed by 25.0 %"),
        (False, 2.5, 2.0, 2.6, "missed by 25.0 %, within the noise band"),
        (True, 2.0, 1.0, 2.2, "met"),
        (True, 1.5, 1.4, 1.9, "missed by 25.0 %"),
        (True, 1.5, 1.4, 2.0, "missed by 25.0 %, within the noise band"),
    ],
)
def test_verdict(at_least: bool, value: float, low: float, high: float, verdict: str) -> None:
    assert Goal("", "engine", 2.0, at_least).verdict(measurement(value, low, high)) == verdict


def test_what_shall_not_be_at_all_is_missed_by_no_share() -> None:
    goal = GOALS["no torch"]
    assert (goal.verdict(measurement(0.0)), goal.verdict(measurement(1.0))) == ("met", "missed")


@given(st.lists(st.floats(0.1, 10), min_size=1), st.booleans(), st.floats(0.1, 10))
def test_a_goal_of_several_figures_is_met_by_the_worst_exactly_if_by_all(
    values: list[float], at_least: bool, bound: float
) -> None:
    goal = Goal("", "engine", bound, at_least)
    measured = [measurement(value) for value in values]
    assert goal.is_met(goal.worst(measured).value) is all(goal.is_met(value) for value in values)


def test_goals_are_of_sections_that_there_are() -> None:
    assert {goal.section for goal in GOALS.values()} == set(SECTIONS) - {"options"}  # whose table decides on defaults
    assert all(goal.figure for goal in GOALS.values())
    assert measurement(1.0, unit=FASTER).more_is_better
    assert not measurement(1.0, unit=LONGER).more_is_better
