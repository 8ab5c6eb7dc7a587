"""Time on machines that fail is either work that is kept, or lost, or waited for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.plan import makespan
from mae_bench.simulation import Failures, Work, simulated

seconds = st.floats(0.0, 500.0)
works = st.lists(
    st.builds(Work, seconds, st.lists(seconds, min_size=1, max_size=6).map(tuple)), min_size=1, max_size=20
)
FAILURES = Failures(mtbf_hours=0.2, repair_hours=0.1)


@given(works, st.integers(1, 8))
def test_without_failures_nodes_take_what_comes_next(groups: list[Work], nodes: int) -> None:
    course = simulated(groups, nodes)
    assert course.makespan == pytest.approx(makespan([group.seconds for group in groups], nodes))
    assert course.cells == pytest.approx(sum(sum(group.cells) for group in groups))
    assert course.starts == pytest.approx(sum(group.start for group in groups))
    assert (course.lost, course.failures) == (0.0, 0)


@given(works, st.integers(0, 5))
def test_one_node_works_loses_or_is_repaired_all_the_time(groups: list[Work], seed: int) -> None:
    course = simulated(groups, 1, FAILURES, seed)
    busy = course.cells + course.starts + course.lost
    assert course.makespan == pytest.approx(busy + course.failures * 3600 * FAILURES.repair_hours)
    assert course.starts >= sum(group.start for group in groups) - 1e-6


@given(works, st.integers(1, 8), st.integers(0, 5))
def test_failures_lose_no_cell_and_the_ideal_is_never_beaten(groups: list[Work], nodes: int, seed: int) -> None:
    course = simulated(groups, nodes, FAILURES, seed)
    assert course == simulated(groups, nodes, FAILURES, seed)
    assert course.cells == pytest.approx(sum(sum(group.cells) for group in groups))
    assert course.makespan * nodes >= (course.cells + course.starts + course.lost) * (1 - 1e-9)
    assert course.ideal == pytest.approx(course.cells / nodes)
    assert (course.lost > 0) == (course.failures > 0)


def test_nodes_fail_as_often_as_was_said() -> None:
    groups = [Work(0.0, (60.0,) * 60)] * 2000  # 2,000 node-hours in minutes, of which hardly anything is lost
    course = simulated(groups, 50, Failures(mtbf_hours=10.0, repair_hours=0.0))
    hours = (course.cells + course.lost) / 3600
    # the count is Poisson: within five standard deviations of its mean
    assert abs(course.failures - hours / 10) < 5 * math.sqrt(hours / 10)
    # a failure comes in the middle of a minute, on average
    assert course.lost / course.failures == pytest.approx(30, rel=0.2)


def test_what_is_left_of_a_group_is_taken_before_what_nobody_began() -> None:
    groups = [Work(0.0, (50.0,) * 100)] * 3
    course = simulated(groups, 1, Failures(mtbf_hours=0.5, repair_hours=0.0), seed=1)
    assert course.failures > 0
    assert course.makespan < sum(group.seconds for group in groups) + 50.0 * course.failures
