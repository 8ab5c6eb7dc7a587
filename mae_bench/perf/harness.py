"""What pytest, the plugin and the store cost for a cell: a whole run of models and images that cost next to nothing."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import Findings, Measurement
from mae_bench.perf.processes import finished
from mae_bench.perf.timing import Spread

SECTION = "harness"
IMAGES, SIDE = 8, 16
CONFTEST = '''
"""A linear read-out of a mean colour under several names, and what each test costs from its set-up to its report, and
of that to degrade its images and to pass them through the model."""

import json
import time
from pathlib import Path

import pytest
import torch

from mae_bench import Classifier, model_fixture
from mae_bench.forward_pass import ForwardPass
from mae_bench.inputs import Inputs

COSTS = {"processor": [], "elapsed": [], "images": [], "nothing": []}
IMAGES = [0.0]


def timed(method):
    def run(*arguments):
        before = time.process_time()
        result = method(*arguments)
        IMAGES[0] += time.process_time() - before
        return result

    return run


Inputs.degraded, ForwardPass.logits = timed(Inputs.degraded), timed(ForwardPass.logits)


class MeanColour(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3) + 0.1)

    def forward(self, images):
        return images.mean((2, 3)) @ self.weight


def mean_colour():
    return Classifier(MeanColour(), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 16, 16), crop_pct=1.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    processor, elapsed, IMAGES[0] = time.process_time(), time.perf_counter(), 0.0
    result = yield
    processor, elapsed = time.process_time() - processor, time.perf_counter() - elapsed
    if "cell" in item.fixturenames:
        COSTS["processor"].append(processor)
        COSTS["elapsed"].append(elapsed)
        COSTS["images"].append(IMAGES[0])
    else:
        COSTS["nothing"].append(processor)
    return result


def pytest_sessionfinish():
    Path("costs.json").write_text(json.dumps(COSTS))
'''
MODEL = '''

@model_fixture
def colour_{number}():
    """A mean colour."""
    return mean_colour()
'''
TEST = """
import pytest


@pytest.mark.occlusion
@pytest.mark.geometry
def test_cell(cell):
    cell.check()


@pytest.mark.parametrize("number", range(100))
def test_nothing(number):
    pass
"""


def measured(conditions: Conditions) -> Findings:
    with tempfile.TemporaryDirectory() as folder:
        costs = cell_costs(Path(folder), models=conditions.either(4, 1))
    milliseconds = {name: 1000 * np.array(each) for name, each in costs.items()}
    beside = milliseconds["processor"] - milliseconds["images"]
    found = [
        Measurement.of(SECTION, case, "a cell", "ms", median_of(each), goal)
        for case, each, goal in (
            ("processor time of a test, from its set-up to its report, beside its images", beside, "harness"),
            ("what degrading its images and the forward pass take", milliseconds["images"], ""),
            ("both by the clock on the wall, with what waits for the disk", milliseconds["elapsed"], ""),
            ("processor time of a test that does nothing, behind the cells", milliseconds["nothing"], ""),
        )
    ]
    note = (
        f"{len(beside)} cells of {IMAGES} images of {SIDE} pixels through a linear model; the first cell of a model, "
        "which has its clean pass, does not count"
    )
    return Findings(found, [note])


def median_of(values: np.ndarray) -> Spread:
    """The median, and between which values the middle half lies."""
    low, middle, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return Spread(middle, low, high, ())


def cell_costs(folder: Path, models: int) -> dict[str, list[float]]:
    """Seconds of the cells of so many ``models``, but for the first of each, by kind of clock, and those of tests that
    do nothing.
    """
    generator = np.random.default_rng(0)
    for k, name in enumerate("bgr"):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(IMAGES // 3 + (k < IMAGES % 3)):
            pixels = generator.integers(1, 100, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[..., 2 - k] += 120
            Image.fromarray(pixels).save(folder / "data" / name / f"{i}.png")
    (folder / "conftest.py").write_text(CONFTEST + "".join(MODEL.format(number=n) for n in range(models)))
    (folder / "test_cells.py").write_text(TEST)
    (folder / "pytest.ini").write_text("[pytest]\nmae_suite = imagefolder\nmae_data = data\n")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--mae-full", "--mae-run", "run"]
    cores = sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_getaffinity") else []  # idle threads spin
    finished([*arguments, "--mae-baseline", "none", "--mae-device", "cpu"], folder, cores)
    costs: dict[str, list[float]] = json.loads((folder / "costs.json").read_text())
    each = len(costs["processor"]) // models
    return {
        clock: all_costs if clock == "nothing" else [cost for i, cost in enumerate(all_costs) if i % each]
        for clock, all_costs in costs.items()
    }
