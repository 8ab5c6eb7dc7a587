"""The chart draws what a record holds, the same each time, and says why where it cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from mae_bench.perf.chart import chart
from mae_bench.perf.measurement import Measurement
from mae_bench.perf.record import Record

Build = Callable[..., Record]


def words(drawn: bytes) -> str:
    return " ".join(ElementTree.fromstring(drawn).itertext())


def test_every_panel_is_drawn_with_its_goal(record: Build, whole: list[Measurement]) -> None:
    drawn, why_not = chart(record(*whole))
    assert not why_not
    seen = words(drawn)
    for panel in (
        "the pure forward pass",
        "exact Gaussian blur",
        "ImageNet-C's corruptions",
        "resident memory",
    ):
        assert panel in seen
    for goal in ("goal: 1.05", "goal: 1", "goal: 1.05 times the first"):
        assert goal in seen


def test_the_same_record_is_drawn_alike(record: Build, whole: list[Measurement]) -> None:
    assert chart(record(*whole)) == chart(record(*whole))


@pytest.mark.parametrize("section", ["engine", "degradations", "corruptions", "memory"])
def test_a_section_alone_is_a_panel_alone(record: Build, whole: list[Measurement], section: str) -> None:
    drawn, _ = chart(record(*(m for m in whole if m.section == section)))
    assert drawn


def test_a_record_without_a_picture_says_so(record: Build, whole: list[Measurement]) -> None:
    assert chart(record(*(m for m in whole if m.section == "harness"))) == (
        b"",
        "None of what was measured has a picture.",
    )


def test_without_matplotlib_there_is_none(
    record: Build, whole: list[Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    drawn, why_not = chart(record(*whole))
    assert not drawn
    assert 'pip install "mae-bench[figures]"' in why_not
