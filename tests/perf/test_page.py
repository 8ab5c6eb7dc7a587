"""The page says of every goal what was measured and whether that is enough, and shows every measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mae_bench.perf.goals import GOALS
from mae_bench.perf.measurement import FASTER, LONGER, RATE, Measurement
from mae_bench.perf.page import page
from mae_bench.perf.record import Record
from references import page as reader

Build = Callable[..., Record]
CPU = [key for key, goal in GOALS.items() if goal.on == "cpu"]


def goals(record: Record) -> dict[str, list[str]]:
    """Goal, figure and verdict by what they are about."""
    return {line[0]: line[1:] for line in reader.read(page(record)).tables[0][1:]}


def test_goals_just_met_are_met(record: Build, whole: list[Measurement]) -> None:
    found = goals(record(*whole))
    assert list(found) == [GOALS[key].figure for key in CPU]
    assert {verdict for _, _, verdict in found.values()} == {"met"}


@pytest.mark.parametrize("key", CPU)
def test_a_goal_that_is_missed_says_by_how_much(record: Build, whole: list[Measurement], key: str) -> None:
    goal = GOALS[key]
    value = (0.5 if goal.at_least else 1.5) * goal.bound or 1.0
    measured = [replace(m, value=value, low=value, high=value) if m.goal == key else m for m in whole]
    found = goals(record(*measured))
    assert found.pop(goal.figure)[-1] == ("missed by 50.0 %" if goal.bound else "missed")
    assert {verdict for _, _, verdict in found.values()} == {"met"}


@pytest.mark.parametrize("key", CPU)
def test_a_goal_without_a_measurement_is_not_measured(record: Build, whole: list[Measurement], key: str) -> None:
    found = goals(record(*(m for m in whole if m.goal != key)))
    assert found[GOALS[key].figure][1:] == ["-", "not measured"]


def test_the_worst_of_several_figures_decides(record: Build) -> None:
    measured = [
        Measurement("degradations", f"gaussian_blur-{sigma}", "kornia", FASTER, value, value, value, (), "blur kornia")
        for sigma, value in ((1, 9.0), (2, 5.7), (4, 7.0))
    ]
    assert goals(record(*measured))[GOALS["blur kornia"].figure] == ["at least 6", "5.700", "missed by 5.0 %"]


def test_bands_and_units_stand_beside_figures(record: Build) -> None:
    found = goals(
        record(
            Measurement("engine", "vit", "a cell", LONGER, 1.06, 1.04, 1.08, (), "pooled float32"),
            Measurement("harness", "a test", "a cell", "ms", 4.0, 3.0, 5.5, (), "harness"),
        )
    )
    assert found[GOALS["pooled float32"].figure] == [
        "at most 1.05", "1.060 (1.040 to 1.080)", "missed by 1.0 %, within the noise band",
    ]  # fmt: skip
    assert found[GOALS["harness"].figure] == ["at most 5 ms", "4.000 (3.000 to 5.500) ms", "met"]


@pytest.mark.parametrize("key", [key for key, goal in GOALS.items() if goal.why])
def test_what_stands_in_the_way_is_said_of_goals_that_are_missed(
    record: Build, whole: list[Measurement], key: str
) -> None:
    goal = GOALS[key]
    (measured, *_) = (m for m in whole if m.goal == key)
    said = {}
    for value in (0.01, 1000.0):
        said[value] = goal.why in page(record(replace(measured, value=value, low=value, high=value)))
    assert said == {0.01: goal.at_least, 1000.0: not goal.at_least}


def test_a_gpu_has_goals_of_its_own(record: Build) -> None:
    found = goals(record(device="cuda"))
    assert list(found) == [goal.figure for goal in GOALS.values() if goal.on == "cuda"]
    assert "CUDA events" in page(record(device="cuda"))


def test_every_measurement_is_shown_with_its_ratio(record: Build) -> None:
    text = page(
        record(
            Measurement("degradations", "blur", "mae_bench", RATE, 2000.0, 1900.0, 2100.0, method="toeplitz"),
            Measurement("degradations", "blur", "kornia", RATE, 125.0, 120.0, 130.0),
            Measurement("degradations", "blur", "kornia", FASTER, 16.0, 15.0, 17.0),
            Measurement("degradations", "noise", "mae_bench", RATE, 50.0, 50.0, 50.0),
            Measurement("engine", "vit", "the forward pass", RATE, 30.0, 30.0, 30.0),
            Measurement("engine", "vit", "the naive loop", LONGER, 2.0, 1.9, 2.1),
        )
    )
    _, both, alone, engine = reader.read(text).tables
    assert both == [["", "mae_bench", "kornia"], ["blur", "2,000 toeplitz", "125 [16.0, 15.0 to 17.0]"]]
    assert alone == [["", "mae_bench"], ["noise", "50.0"]]
    assert engine == [["", "vit"], ["the forward pass", "30.0"], ["the naive loop", "[2.000, 1.900 to 2.100]"]]


def test_what_was_absent_is_said(record: Build) -> None:
    text = page(record(notes={"corruptions": ["numba was absent: pip install numba"]}))
    assert "numba was absent: pip install numba" in reader.read(text).text


def test_machine_versions_and_quickness_are_said(record: Build) -> None:
    seen = reader.read(page(record(quick=True, rounds=3))).text
    for words in (
        "Performance on a processor",
        "torch 2.0",
        "2 cores, load 0.5",
        "3 interleaved",
        "sign of life",
    ):
        assert words in seen
    assert "sign of life" not in page(record())


def test_names_are_text(record: Build) -> None:
    name = "*fast*\n\n# <b>$x$ | y"
    made = record(
        Measurement("engine", name, name, LONGER, 1.0, 1.0, 1.0),
        machine=name,
        versions={"torch": name},
        notes={"engine": [name]},
    )
    seen = reader.read(page(made))
    assert seen.text.count(r"*fast*\n\n# <b>$x$ | y") == 5
    assert set(seen.tags) <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "li"}


def test_the_chart_stands_below_the_goals_or_why_there_is_none(record: Build) -> None:
    assert "![ratios beside the goals](cpu.svg)" in page(record(), "cpu.svg")
    assert "no matplotlib" in page(record(), None, "no matplotlib")
