"""A run is killed at any moment, most often while it writes, or interrupted, and gone on with: nothing that it had
finished is lost, and what comes out is what an uninterrupted run gives.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from faults.deaths import INTERRUPTIONS
from faults.mortals import ARGUMENTS as MORTAL
from faults.mortals import CONDITIONS, mortals
from faults.prepared import Interpreter, pytest_of
from faults.reliability import Injection
from mae_bench.errors import BenchError
from mae_bench.store import RunDirectory, cell_of

if TYPE_CHECKING:
    from conftest import Project

Journal = Callable[[Injection], None]

TIMES = ("seconds", "images_per_second", "run_id")
REPRESENTATION = """
import pytest


@pytest.mark.representation
def test_representation(representation):
    representation.check()
"""
ARGUMENTS = ("-k", "gaussian_blur", "-p", "no:cacheprovider", "--mae-baseline", "none", "-q")


@pytest.fixture
def interrupted(project: Project) -> Project:
    """Two models, their cells and representations of three levels of one blur."""
    project.matrix("blur", models=("bright", "dim"), per_class=12)
    project.write("test_y.py", REPRESENTATION)
    return project


def outcome(path: Path) -> dict[str, Any]:
    """All that a run has found, without times."""
    run = RunDirectory(path)
    rows = pd.read_parquet(path / "cells.parquet").drop(columns=list(TIMES)).to_dict("records")
    return {
        "cells": {
            cell_of(result.row).id: (
                {name: value for name, value in asdict(result.row).items() if name not in TIMES},
                result.prediction.tolist(),
                result.indicators,
                result.block_sums,
            )
            for result in run.cells()
        },
        "representations": {cell: asdict(found) for cell, found in run.representations().items()},
        "rows": [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows],
        **{
            name: (path / name).read_bytes()
            for name in ("outcomes.npz", "indicators.parquet", "representations.parquet", "images.json", "plan.json")
        },
    }


def finished(path: Path) -> dict[Path, bytes]:
    """The files of what a run has finished."""
    run = RunDirectory(path)
    return {file: file.read_bytes() for file in (*run.cell_files(), *run.representation_files())}


def torn(path: Path) -> int:
    """How many files of finished results cannot be read."""
    run = RunDirectory(path)
    count = 0
    for read, files in (
        (run.read_cell_file, run.cell_files()),
        (run.read_representation_file, run.representation_files()),
    ):
        for file in files:
            try:
                read(file)
            except BenchError:
                count += 1
    return count


def litter(path: Path) -> list[str]:
    """What a run leaves beside its results."""
    return [
        str(left.relative_to(path)) for left in path.rglob("*") if left.name.startswith(".") and left.name != ".lock"
    ]


@dataclass
class Kills:
    """Runs of one project, each in its own directory and with its own cache, that are killed and gone on with."""

    folder: Path
    interpreter: Interpreter

    def run(self, name: str, before: str = "", *arguments: str) -> int:
        """The exit status of a run that does something ``before`` it begins."""
        folders = [str(self.folder / name), str(self.folder / f"{name}-cache")]
        code = f"from faults.accesses import *\nfolders = {folders}\n{before}\n"
        code += pytest_of(*ARGUMENTS, "--mae-run", name, *arguments)
        with open(os.devnull, "w") as nothing:
            environment = {"MAE_BENCH_CACHE": folders[1]}
            return self.interpreter.start(code, self.folder, nothing, environment).wait()

    @cached_property
    def accesses(self) -> list[tuple[str, float]]:
        """What an uninterrupted run does to files, each with the processor time before it."""
        assert self.run("whole", f"record(folders, {str(self.folder / 'accesses')!r})") == 0
        lines = (line.split() for line in (self.folder / "accesses").read_text().splitlines())
        return [(event, float(seconds)) for event, seconds in lines]

    @cached_property
    def whole(self) -> dict[str, Any]:
        """What an uninterrupted run finds."""
        assert self.accesses
        return outcome(self.folder / "whole")

    def after(self, name: str) -> tuple[bool, bool]:
        """Go on with a run that was killed: whether something that it had finished was lost or torn, and whether what
        comes out is something else.
        """
        path = self.folder / name
        before, unreadable = finished(path), torn(path)
        assert self.run(name, "", "--mae-resume") == 0
        assert litter(path) == []
        after = finished(path)
        lost = unreadable > 0 or any(after.get(file) != content for file, content in before.items())
        return lost, outcome(path) != self.whole

    def at_an_access(self, number: int, of: int) -> tuple[bool, bool]:
        name = f"access{number}"
        assert self.run(name, f"die_at(folders, {1 + number * len(self.accesses) // of})") == -signal.SIGKILL
        return self.after(name)

    def in_a_write(self, number: int, of: int) -> tuple[bool, bool]:
        name = f"write{number}"
        opened = [i for i, (event, _) in enumerate(self.accesses, 1) if event == "open"]
        torn = Random(number).randrange(1, 200)
        assert self.run(name, f"die_at(folders, {opened[number * len(opened) // of]}, {torn})") == -signal.SIGXFSZ
        return self.after(name)

    def at_a_moment(self, number: int, of: int) -> tuple[bool, bool]:
        name, status = f"moment{number}", 0
        seconds = self.accesses[-1][1] * (number + Random(number).random()) / of
        while status == 0:  # it may be faster than the uninterrupted one
            shutil.rmtree(self.folder / name, ignore_errors=True)
            status = self.run(name, f"die_after({seconds})")
            seconds /= 2
        assert status == -signal.SIGPROF
        return self.after(name)

    def by_an_interrupt(self, number: int, of: int) -> tuple[bool, bool]:
        name = f"interrupt{number}"
        renamed = [i for i, (event, _) in enumerate(self.accesses, 1) if event == "os.rename"]
        # somewhere in a write; the last ones are of tables, which are made when the tests are over
        at = renamed[number * (len(renamed) - 6) // of] - Random(number).randrange(4)
        assert self.run(name, f"interrupt_at(folders, {at})") == pytest.ExitCode.INTERRUPTED
        assert litter(self.folder / name) == []
        return self.after(name)


WAYS = {
    Kills.at_an_access: "SIGKILL at an access to a file of the run or of the cache",
    Kills.in_a_write: "ended by the kernel in the middle of a write",
    Kills.by_an_interrupt: "Ctrl-C in a write",
    Kills.at_a_moment: "ended by the kernel at some other moment",
}


@pytest.mark.parametrize("counts", [(1, 1, 1, 0), pytest.param((80, 80, 20, 40), marks=pytest.mark.faults)])
def test_run_that_is_ended_is_gone_on_with_as_if_it_had_not_been(
    interrupted: Project, interpreter: Interpreter, journal: Journal, counts: tuple[int, ...]
) -> None:
    kills = Kills(interrupted.path, interpreter)
    assert len(kills.whole["cells"]) == 8
    assert len(kills.whole["representations"]) == 4
    ways = [(way, number, count) for way, count in zip(WAYS, counts, strict=True) for number in range(count)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda each: each[0](kills, *each[1:]), ways))
    for way, count in zip(WAYS, counts, strict=True):
        of_way = [each for (done, _, _), each in zip(ways, found, strict=True) if done is way]
        kept = "finished results are kept byte for byte, none is torn, and the resumed run gives what a whole one does"
        if count:
            journal(
                Injection(
                    "kill",
                    WAYS[way],
                    count,
                    f"exit status 2 and no scratch; {kept}" if way is Kills.by_an_interrupt else kept,
                    lost=sum(lost for lost, _ in of_way),
                    silent=sum(other for _, other in of_way),
                )
            )


@pytest.mark.faults
@pytest.mark.parametrize("way", INTERRUPTIONS)
def test_run_with_workers_that_is_ended_from_outside_can_be_gone_on_with(
    project: Project, interpreter: Interpreter, journal: Journal, way: str
) -> None:
    mortals(project, {}, [f"m{i}" for i in range(4)])
    assert interpreter.pytest(project.path, *MORTAL, "--mae-run", "whole")[0] == 0
    times = 2
    lost = silent = 0
    for number in range(times):
        name = f"run{number}"
        project.write("deaths.json", json.dumps({f"m0-{CONDITIONS[2 + number]}": way}))
        status, output = interpreter.pytest(project.path, *MORTAL, "-n", 2, "--mae-run", name)
        assert status == (-signal.SIGKILL if "kill" in way else pytest.ExitCode.INTERRUPTED), output
        assert "Traceback" not in output
        before, unreadable = finished(project.path / name), torn(project.path / name)
        assert before
        project.write("deaths.json", "{}")
        status, output = interpreter.pytest(project.path, *MORTAL, "-n", 2, "--mae-run", name, "--mae-resume")
        assert status == 0, output
        assert litter(project.path / name) == []
        after = finished(project.path / name)
        lost += unreadable > 0 or any(after[file] != content for file, content in before.items())
        silent += project.rows(name) != project.rows("whole")
        for file in (project.path / "processes").iterdir():  # nobody is left behind
            ended(int(file.name))
            file.unlink()  # its number may be another's in the next round
    journal(
        Injection(
            "kill",
            f"{way} of pytest-xdist workers in the middle of a cell",
            times,
            "no worker is left behind, and the resumed run gives what an uninterrupted one does"
            + ("" if "kill" in way else "; exit status 2 and no tracebacks"),
            lost=lost,
            silent=silent,
        )
    )


def ended(pid: int) -> None:
    """Wait until there is no process of that number."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([descriptor], [], [], 60)[0], f"process {pid} goes on"
    os.close(descriptor)
