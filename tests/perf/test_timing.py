"""Pieces take turns, ratios are of pairs, and a noise band is what it says, whatever the distribution."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.perf.timing import BAND, Spread, Work, band, interleaved, processor_seconds, ratio

SECONDS = st.floats(1e-6, 1e6)
VALUES = st.lists(SECONDS, min_size=1, max_size=30)


class Clock:
    """Every piece takes as long as it is told to, and the machine is slower by ``slowing`` each time."""

    def __init__(self, slowing: float = 1.0) -> None:
        self.now, self.speed, self.slowing = 0.0, 1.0, slowing
        self.done: list[str] = []

    def work(self, name: str, seconds: float, images: int = 1) -> Work:
        def do() -> None:
            self.done.append(name)
            self.now += seconds * self.speed

        return Work(do, images)

    def __call__(self, do: Callable[[], object]) -> float:
        before = self.now
        do()
        self.speed *= self.slowing
        return self.now - before


def test_pieces_take_turns_forwards_and_backwards_and_the_warm_up_does_not_count() -> None:
    clock = Clock()
    work = {"a": clock.work("a", 1.0), "b": clock.work("b", 3.0, images=2)}
    assert interleaved(work, clock, 3) == {"a": (1.0, 1.0, 1.0), "b": (1.5, 1.5, 1.5)}
    assert "".join(clock.done) == "ab" + "ab" + "ba" + "ab"


def test_without_a_warm_up_each_piece_is_done_once_a_round() -> None:
    clock = Clock()
    interleaved({"a": clock.work("a", 1.0)}, clock, 2, warm_up=False)
    assert clock.done == ["a", "a"]


def test_a_short_piece_is_repeated_until_it_takes_long_enough() -> None:
    clock = Clock()
    work = {"short": clock.work("s", 0.25), "long": clock.work("l", 8.0)}
    assert interleaved(work, clock, 1, least=1.0) == {"short": (0.25,), "long": (8.0,)}
    assert "".join(clock.done) == "ss" + "ll" + "ssss" + "l"


@given(st.floats(0.9, 1.1), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_machine_that_becomes_slower_leaves_the_median_ratio_almost_alone(slowing: float, a: float, b: float) -> None:
    """Each pair is a step of the slowing off, in turns this way and that."""
    clock = Clock(slowing)
    seconds = interleaved({"a": clock.work("a", a), "b": clock.work("b", b)}, clock, 4)
    found = ratio(seconds["a"], seconds["b"])
    assert found.value == pytest.approx(a / b * (slowing + 1 / slowing) / 2)
    assert found.low == pytest.approx(a / b * min(slowing, 1 / slowing))


@given(VALUES)
def test_the_median_is_pythons_and_lies_in_its_band(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.value == statistics.median(values)
    assert spread.low <= spread.value <= spread.high
    assert {spread.low, spread.high} <= set(values)
    assert spread.values == tuple(values)


@given(VALUES)
def test_the_order_of_rounds_says_nothing_of_the_band(values: list[float]) -> None:
    assert band(values) == band(values[::-1]) == band(sorted(values))


@given(VALUES)
def test_the_band_of_reciprocals_is_the_band_turned_over(values: list[float]) -> None:
    low, high = band(values)
    assert band([1 / value for value in values]) == (1 / high, 1 / low)


@pytest.mark.parametrize("count", range(1, 40))
def test_the_band_is_the_narrowest_that_holds_the_median_often_enough(count: int) -> None:
    """Counted: of the 2^n ways in which n values fall below or above the median, those in which it is inside."""
    low, high = band([float(place) for place in range(count)])
    left_out = int(low)
    assert high == count - 1 - low

    def coverage(outside: int) -> float:
        missed = 2 * sum(comb(count, below) for below in range(outside + 1))
        return 1 - missed / 2**count

    assert coverage(left_out) >= BAND or left_out == 0
    assert count < 3 or coverage(left_out + 1) < BAND


@pytest.mark.parametrize("rounds", [5, 6, 7])
def test_bands_of_rounds_drawn_alike_miss_each_other_as_seldom_as_stated(rounds: int) -> None:
    """Of all the ways to deal 2n different values out to two runs, two leave their bands apart."""
    apart = 0
    values = set(range(2 * rounds))
    for first in combinations(sorted(values), rounds):
        one, other = band(first), band(sorted(values - set(first)))
        apart += one[1] < other[0] or other[1] < one[0]
    assert apart == 2


def test_no_values_have_no_median() -> None:
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=9), st.floats(0.1, 10))
def test_a_ratio_is_of_pairs(pairs: list[tuple[float, float]], scale: float) -> None:
    above, below = zip(*pairs, strict=True)
    found = ratio(above, below)
    assert found.values == tuple(a / b for a, b in pairs)
    assert ratio([scale * a for a in above], below).value == pytest.approx(scale * found.value)


def test_rounds_that_were_not_timed_together_make_no_ratio() -> None:
    with pytest.raises(ValueError, match="argument"):
        ratio([1.0, 2.0], [1.0])


def test_the_processors_time_is_that_of_this_process() -> None:
    assert processor_seconds(lambda: sum(range(1000))) > 0
