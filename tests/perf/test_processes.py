"""Processes of their own: what they say, what they use, how they end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from mae_bench.perf import PerfError, collection, degradations, harness
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.processes import finished
from mae_bench.perf.sections import measure

pytestmark = pytest.mark.thorough
QUICK = Conditions(torch.device("cpu"), rounds=1, quick=True)


def test_what_a_process_says_and_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--wrong")
    program = "import os; sum(range(3_000_000)); print(os.getcwd(), os.environ.get('PYTEST_ADDOPTS'))"
    done = finished(["-c", program], tmp_path)
    assert done.output.split() == [str(tmp_path), "None"]
    assert done.processor > 0
    assert done.elapsed > 0


def test_one_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PerfError, match=r"python -c .* ended with exit code 3: last words"):
        finished(["-c", "print('last words'); raise SystemExit(3)"], tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason=f"{sys.platform} binds no process to a core")
def test_one_is_bound_to_its_cores_and_this_one_is_not(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    assert (
        finished(["-c", "import os; print(os.sched_getaffinity(0))"], tmp_path, [core]).output.strip() == f"{{{core}}}"
    )
    assert os.sched_getaffinity(0) == before


def test_cells_of_a_model_that_costs_nothing_have_a_cost() -> None:
    beside, images, elapsed, nothing = harness.measured(QUICK).measurements
    assert (beside.unit, beside.goal, images.goal, elapsed.goal) == ("ms", "harness", "", "")
    assert 0 < nothing.value < beside.value
    assert images.value > 0
    assert 0 < beside.low <= beside.value <= beside.high


def test_collection_holds_as_many_plain_tests_against_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "FEW", 200)
    found = {(m.subject, m.unit): m.value for m in collection.measured(QUICK).measurements}
    assert found["torch", "modules"] == 0
    assert found["with the plugin", "s"] > 0
    assert found["as many plain tests, without it", "times as long"] > 0


def test_a_quick_run_of_degradations_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degradations, "SIGMAS", {(1, 28): (0.5, 1.0), (3, 224): (1.0, 2.0)})
    monkeypatch.setattr(degradations, "BUILT_IN", degradations.BUILT_IN[:4])
    record = measure(QUICK, tmp_path, ["degradations"])
    subjects = {m.subject for m in record.measurements}
    assert {"mae_bench", "kornia", "torchvision", "OpenCV", "scikit-image", "a copy"} <= subjects
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".svg"}
