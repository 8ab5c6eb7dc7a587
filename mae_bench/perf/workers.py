"""Two xdist workers on two cores against one on one core: from the start of the first cell to the end of the last."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import FASTER, Findings, Measurement
from mae_bench.perf.processes import finished
from mae_bench.perf.timing import Spread, ratio

SECTION = "workers"
MODELS = ("mae_ft_s0", "supervised_s0")
IMAGES = 1024
"""As many as a cell of the bundled suite has where nothing else is said."""
PAIRS = 3
"""Of which each starts five interpreters."""
CONFTEST = """
import time
from pathlib import Path

import pytest

from mae_bench import model_fixture


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    started = time.time()
    result = yield
    # the controller lets its workers run what it has collected
    if hasattr(item.config, "workerinput"):
        with Path(item.config.workerinput["workerid"]).with_suffix(".spans").open("a") as file:
            print(started, time.time(), file=file)
    return result
"""
MODEL = '''

@model_fixture
def {name}():
    """As it is bundled."""
    from mae_bench.models.zoo import bundled

    return bundled("{name}")
'''
TEST = """
import pytest


@pytest.mark.blur
@pytest.mark.occlusion
def test_cell(cell):
    cell.check()
"""


def measured(conditions: Conditions) -> Findings:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2 or find_spec("xdist") is None:
        return Findings(notes=["two workers are not measured: it takes two cores, and pip install pytest-xdist"])
    spans: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(min(conditions.rounds, PAIRS)):
        for workers in (1, 2)[:: -1 if turn % 2 else 1]:
            spans[workers].append(_span(workers, cores[:workers], IMAGES))
            rates[workers].append(_rate(cores[:workers]))
    case = f"{' and '.join(MODELS)}, blur and occlusion, {IMAGES:,} images"
    found = [
        Measurement.of(SECTION, case, f"{workers} worker{'s' * (workers > 1)}", "s", Spread.of(each))
        for workers, each in spans.items()
    ]
    found.append(Measurement.of(SECTION, case, "2 workers", FASTER, ratio(spans[1], spans[2]), "workers"))
    alone = "forward passes alone, which nothing can be faster than here"
    found.append(Measurement.of(SECTION, alone, "2 workers", FASTER, ratio(rates[2], rates[1])))
    note = (
        "by the clock on the wall, so that other work on the two cores counts against it; from the start of the first "
        "cell to the end of the last, the start of the interpreters aside, one thread in each worker; "
        f"{len(spans[1])} pairs"
    )
    return Findings(found, [note])


FORWARD = """
import sys
import time

import torch

from mae_bench.models.zoo import bundled

torch.set_num_threads(1)
network = bundled(sys.argv[1]).eval()
images = torch.rand(64, 1, 28, 28)
with torch.inference_mode():
    network(images)
    started = time.perf_counter()
    for _ in range(int(sys.argv[2])):
        network(images)
    print(int(sys.argv[2]) / (time.perf_counter() - started))
"""
PASSES = 200
"""Forward passes of 64 images."""


def _rate(cores: list[int]) -> float:
    """Forward passes per second of a process on each of the ``cores`` together, while all of them are at it."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(cores)) as pool:
        command = ["-c", FORWARD, MODELS[0], str(PASSES)]
        return sum(float(said.output) for said in pool.map(lambda core: finished(command, Path(name), [core]), cores))


def _span(workers: int, cores: list[int], images: int) -> float:
    """Seconds from the start of the first cell to the end of the last."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conftest.py").write_text(CONFTEST + "".join(MODEL.format(name=model) for model in MODELS))
        (folder / "test_cells.py").write_text(TEST)
        (folder / "pytest.ini").write_text("[pytest]\n")
        arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers), "--mae-run", "run"]
        arguments += ["--mae-baseline", "none", "--mae-device", "cpu", "--mae-limit", str(images)]
        finished(arguments, folder, cores)
        lines = [line.split() for file in folder.rglob("*.spans") for line in file.read_text().splitlines()]
    return max(float(end) for _, end in lines) - min(float(start) for start, _ in lines)
