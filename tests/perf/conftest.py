"""Records of made-up runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mae_bench.perf.goals import GOALS
from mae_bench.perf.measurement import FASTER, LONGER, RATE, Findings, Measurement
from mae_bench.perf.record import Record


@pytest.fixture
def record() -> Callable[..., Record]:
    """Builds a record of the given measurements, its other fields made up."""

    def build(*measurements: Measurement, notes: dict[str, list[str]] | None = None, **changes: Any) -> Record:
        known: dict[str, Any] = {
            "machine": "a processor",
            "device": "cpu",
            "cores": 2,
            "rounds": 5,
            "quick": False,
            "versions": {"mae_bench": "1.0", "torch": "2.0"},
            "load": 0.5,
        }
        made = Record(**known | changes)
        for name in dict.fromkeys([m.section for m in measurements] + list(notes or ())):
            mine = [m for m in measurements if m.section == name]
            made = made.with_section(name, Findings(mine, (notes or {}).get(name, [])))
        return made

    return build


@pytest.fixture
def whole() -> list[Measurement]:
    """One measurement of every goal on a CPU, just met, and what the chart draws beside."""
    found = []
    for key, goal in GOALS.items():
        if goal.on != "cpu":
            continue
        unit = goal.unit or ("modules" if key == "no torch" else FASTER if goal.at_least else LONGER)
        case = "gaussian_blur-8.00, 3x224x224" if key.startswith("blur") else f"case of {key}"
        bound = goal.bound
        found.append(Measurement(goal.section, case, f"subject of {key}", unit, bound, bound, bound, (), key))
    found.append(Measurement("degradations", "gaussian_blur-8.00, 3x224x224", "mae_bench", RATE, 500.0, 450.0, 550.0))
    for count in (1000, 10000):
        found.append(Measurement("memory", f"{count:,} images", "mae_bench", "MB", 300.0, 300.0, 300.0))
    return found
