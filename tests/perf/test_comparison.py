"""Two runs of one machine: what moved is named, noise is not, and other machines are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_bench.perf import PerfError
from mae_bench.perf.comparison import apart, compared, to_text
from mae_bench.perf.measurement import FASTER, LONGER, Measurement
from mae_bench.perf.record import Record

Build = Callable[..., Record]


def measured(value: float, noise: float = 0.1, unit: str = LONGER, subject: str = "a cell") -> Measurement:
    return Measurement("engine", "a model", subject, unit, value, value - noise, value + noise)


@pytest.mark.parametrize(
    ("unit", "now", "worse"), [(LONGER, 1.5, True), (LONGER, 0.5, False), (FASTER, 0.5, True), (FASTER, 1.5, False)]
)
def test_a_ratio_beyond_both_bands_has_moved(record: Build, unit: str, now: float, worse: bool) -> None:
    found = compared(record(measured(1.0, unit=unit)), record(measured(now, unit=unit)))
    assert found.shared == 1
    assert [move.is_worse for move in found.moved] == [worse]
    assert found.is_worse is worse
    text = to_text(found)
    assert ("worse" if worse else "better") + ": engine, a model, a cell" in text
    assert f"{unit} 1.000 (0.9 to 1.100) before" in text
    assert text.endswith(f"1 of 1 ratios moved beyond the noise bands of both runs, {int(worse)} of them for the worse")


def test_noise_is_no_move(record: Build) -> None:
    found = compared(record(measured(1.0)), record(measured(1.2)))
    assert not found.moved
    assert not found.is_worse
    assert to_text(found).startswith("0 of 1 ratios moved")


def test_times_are_never_compared(record: Build) -> None:
    before, now = (record(measured(1.0), measured(seconds, unit="s")) for seconds in (1.0, 100.0))
    assert compared(before, now).shared == 1
    assert not compared(before, now).moved


def test_what_is_in_one_run_alone_is_not_compared(record: Build) -> None:
    before = record(measured(1.0), measured(9.0, subject="the old loop"))
    assert compared(before, record(measured(1.0), measured(5.0, subject="the new loop"))).shared == 1


@pytest.mark.parametrize("change", [{"machine": "another"}, {"device": "cuda"}, {"quick": True}])
def test_runs_of_other_surroundings_are_refused(record: Build, change: dict[str, object]) -> None:
    [name] = change
    with pytest.raises(PerfError, match=f"two runs of different {name} cannot be compared"):
        compared(record(measured(1.0), **change), record(measured(1.0)))


def test_runs_without_a_common_ratio_are_refused(record: Build) -> None:
    with pytest.raises(PerfError, match="no ratio in common"):
        compared(record(measured(1.0)), record(measured(1.0, subject="another")))


def test_other_versions_are_said(record: Build) -> None:
    before = record(measured(1.0), versions={"mae_bench": "1.0", "torch": "2.0", "numba": "1"})
    now = record(measured(1.0), versions={"mae_bench": "2.0", "torch": "3.0"})
    found = compared(before, now)
    assert found.versions == ["numba 1 before, absent now", "torch 2.0 before, 3.0 now"]
    assert "another version: torch 2.0 before, 3.0 now" in to_text(found)


@given(*[st.floats(0, 10)] * 4)
def test_bands_are_apart_exactly_if_no_value_is_in_both(a: float, b: float, c: float, d: float) -> None:
    one, other = (Measurement("", "", "", LONGER, low, low, high) for low, high in (sorted((a, b)), sorted((c, d))))
    meets = any(one.low <= value <= one.high and other.low <= value <= other.high for value in (a, b, c, d))
    assert apart(one, other) is apart(other, one) is not meets
