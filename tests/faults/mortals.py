"""A project whose models end their process, or hang, in cells that are named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Project

MORTAL = '''
"""Networks that end in the way that deaths.json names for a cell; of a clean cell, in the clean pass."""

import json
import os

from faults.deaths import DEATHS, FAILURES, INTERRUPTIONS
from mae_bench import Classifier
from mae_bench.evaluation import Evaluation
from networks import HERE, MeanColour, note

WAYS = json.loads((HERE / "deaths.json").read_text())
CLEAN = []
GIVEN = Evaluation._clean_pass


def clean_pass(evaluation, folder):
    # a worker that takes the place of another finds what that one's clean pass has left
    CLEAN.append(evaluation)
    try:
        return GIVEN(evaluation, folder)
    finally:
        CLEAN.pop()


Evaluation._clean_pass = clean_pass


class Mortal(MeanColour):
    def forward(self, images):
        if len(images) > 2:  # not those on which a model is tried
            cell = os.environ["PYTEST_CURRENT_TEST"].partition("[")[2].partition("]")[0]
            cell = f"{self.name}-clean-0.00" if CLEAN else cell
            note(f"pass {cell}")
            if cell in WAYS:
                {**DEATHS, **FAILURES, **INTERRUPTIONS}[WAYS[cell]]()
        return super().forward(images)


def mortal(name):
    return Classifier(Mortal(name), mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 16, 16), crop_pct=1.0)
'''
MODEL = """
@model_fixture
def {name}():
    from mortal import mortal

    return mortal("{name}")
"""
HOOKS = """
import json
import os
from pathlib import Path

import mae_bench.executors.deadline as deadlines
from faults.deaths import PROCESSES

WAYS = json.loads((Path(__file__).parent / "deaths.json").read_text())
GIVEN = deadlines.deadline


def deadline(seconds, what, give_up, **rest):
    # cells that will hang are not waited for, others have all the time that a slow machine needs
    hangs = any("hang" in way for cell, way in WAYS.items() if what.endswith(f" {cell}"))
    return GIVEN(2.0 if hangs else seconds, what, give_up, grace=0.5, **rest)


deadlines.deadline = deadline


def pytest_configure(config):
    file = PROCESSES / str(os.getpid())
    file.parent.mkdir(exist_ok=True)
    file.write_text("worker" if hasattr(config, "workerinput") else "controller")


def pytest_unconfigure():
    (PROCESSES / str(os.getpid())).unlink(missing_ok=True)
"""
CONDITIONS = [
    *(f"gaussian_blur-{level}" for level in ("1.00", "3.00", "6.00")),
    *(f"box_blur-{level}" for level in ("3.50", "10.50", "21.00")),
]
ARGUMENTS = ("-k", "gaussian or box", "-p", "no:cacheprovider", "--mae-baseline", "none", "--mae-cell-timeout", "600")


def mortals(project: Project, ways: Mapping[str, str], models: Sequence[str]) -> None:
    """A project of ``models`` that end in these ``ways`` in those cells."""
    project.matrix("blur")
    project.write("mortal.py", MORTAL)
    project.write("deaths.json", json.dumps(ways))
    project.conftest(HOOKS + "".join(MODEL.format(name=name) for name in models))


def failed(output: str) -> list[str]:
    """Ids of the cells that the summary calls failed."""
    return sorted(re.findall(r"^FAILED test_x\.py::test_cell\[(.*?)\]", output, re.MULTILINE))


def died_in(output: str) -> list[str]:
    """Ids of the cells in which a worker died, as the controller says."""
    return sorted(re.findall(r"^worker 'gw\d+' crashed while running 'test_x\.py::test_cell\[(.*?)\]'", output, re.M))


def passes(project: Project) -> list[str]:
    """Ids of the cells whose images a network was given, of clean ones too, sorted."""
    return sorted(line.removeprefix("pass ") for line in project.log if line.startswith("pass "))
