"""What pytest's collection of 10,000 cells costs, beside as many plain parametrized tests without the plugin."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mae_bench.degradations.ladders import conditions as conditions_of
from mae_bench.perf import PerfError
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import LONGER, Findings, Measurement
from mae_bench.perf.processes import finished
from mae_bench.perf.timing import Spread, ratio
from mae_bench.suites import SUITES

SECTION = "collection"
CELLS, FEW = 10_000, 1_000
HOOK = """
import json
import sys
from pathlib import Path


def pytest_collection_finish(session):
    collected = {"cells": len(session.items), "torch": "torch" in sys.modules}
    Path("collected.json").write_text(json.dumps(collected))
"""
MODEL = '''

@model_fixture
def model_{number}():
    """A model that is never built."""
'''
PLAIN = """
import pytest


@pytest.mark.parametrize("cell", [f"model_{{m}}-degradation-{{c}}" for m in range({models}) for c in range({cells})])
def test_cell(cell):
    pass
"""


def measured(conditions: Conditions) -> Findings:
    """Pairs of collections in processes of their own."""
    suite = SUITES["fashion_mnist"]
    families = sorted({kind.family for kind, _ in conditions_of(suite, full=True)})
    wanted = conditions.either(CELLS, FEW)
    cells = len(conditions_of(suite, full=True))
    models = -(-wanted // cells)
    with tempfile.TemporaryDirectory() as scratch:
        ours, plain = Path(scratch) / "ours", Path(scratch) / "plain"
        for folder in (ours, plain):
            folder.mkdir()
            (folder / "pytest.ini").write_text("[pytest]\n")
        fixtures = "".join(MODEL.format(number=n) for n in range(models))
        (ours / "conftest.py").write_text(f"{HOOK}\n\nfrom mae_bench import model_fixture\n{fixtures}")
        marks = "\n".join(f"@pytest.mark.{family}" for family in families)
        (ours / "test_cells.py").write_text(f"import pytest\n\n\n{marks}\ndef test_cell(cell):\n    cell.check()\n")
        (plain / "conftest.py").write_text(HOOK)
        (plain / "test_cells.py").write_text(PLAIN.format(models=models, cells=cells))
        # what else is installed here is none of ours, and may take longer than all the rest
        listing = ["-m", "pytest", "--co", "-qq", "-p", "no:cacheprovider", "--disable-plugin-autoload"]
        commands = {
            ours: [*listing, "-p", "mae_bench.pytest_plugin", "--mae-full", "--mae-baseline", "none"],
            plain: listing,
        }
        seconds: dict[Path, list[float]] = {ours: [], plain: []}
        rounds = conditions.either(conditions.rounds, 1)
        for turn in range(rounds):
            for folder in (ours, plain)[:: -1 if turn % 2 else 1]:
                seconds[folder].append(finished(commands[folder], folder).processor)
        collected = {folder: json.loads((folder / "collected.json").read_text()) for folder in (ours, plain)}
    count = collected[ours]["cells"]
    if not wanted <= count == collected[plain]["cells"]:
        raise PerfError(f"{count} cells were collected, and {collected[plain]['cells']} plain tests; expected {wanted}")
    case, full = f"{count:,} cells", not conditions.quick
    imported = float(collected[ours]["torch"])
    return Findings(
        [
            Measurement.of(SECTION, case, "with the plugin", "s", Spread.of(seconds[ours]), "collection" * full),
            Measurement.of(SECTION, case, "as many plain tests, without it", "s", Spread.of(seconds[plain])),
            Measurement.of(
                SECTION, case, "as many plain tests, without it", LONGER, ratio(seconds[ours], seconds[plain])
            ),
            Measurement.of(SECTION, case, "torch", "modules", Spread.of([imported]), "no torch"),
        ],
        ["processor time of whole processes, the start of Python and pytest with it, without other plugins"],
    )
